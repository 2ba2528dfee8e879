//! Gardens whose networks are made by programs: a script that notes down what it is told, and a real CNI plugin.

use super::*;
use crate::plugins::Program;
use crate::plugins::network::NetworkPlugin;

/// Notes each call and its input in `calls`, and answers with what stands in `ACTION.answer`. Where `ACTION.fails`
/// stands it fails, where `ACTION.hangs` stands it does not answer.
const NOTING: &str = r#"
dir=$1; action=$3; handle=$5
input=$(cat)
echo "$action $handle $input" >> $dir/calls
[ -e $dir/$action.hangs ] && sleep 1000
if [ -e $dir/$action.fails ]; then echo "no $action today" >&2; exit 1; fi
[ -e $dir/$action.answer ] && cat $dir/$action.answer
exit 0
"#;

fn plugin(dir: &Path, script: &str, deadline: Duration) -> NetworkPlugin {
    let path = dir.join("plugin.sh");
    std::fs::write(&path, script).unwrap();
    let extra_args = vec![path.display().to_string(), dir.display().to_string()];
    NetworkPlugin { program: Program { path: "/bin/sh".into(), extra_args, deadline } }
}

fn noting(config: &mut Config, dir: &Path) {
    let answer = r#"{"properties":{"garden.network.container-ip":"10.255.1.2","garden.network.host-ip":"255.255.255.255",
        "garden.network.mapped-ports":"[{\"HostPort\":1,\"ContainerPort\":2}]","policy":"x"},
        "dns_servers":["9.8.7.6"],"search_domains":["apps.internal"]}"#;
    std::fs::write(dir.join("up.answer"), answer).unwrap();
    std::fs::write(dir.join("net-in.answer"), r#"{"host_port":60001,"container_port":8080}"#).unwrap();
    config.network_plugin = Some(plugin(dir, NOTING, Duration::from_secs(2)));
}

impl World {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn calls(&self) -> Vec<String> {
        lines(&std::fs::read(self.file("calls")).unwrap_or_default())
    }

    fn actions(&self) -> Vec<String> {
        self.calls().iter().map(|call| call.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }
}

#[test]
fn a_plugin_makes_the_network_of_a_container() {
    in_a_world_of("a_plugin_makes_the_network_of_a_container", noting, async |world| {
        let garden = &world.gardener;
        let properties = [("network.app_id", "a"), ("log_config", "l"), ("other", "o")];
        let spec = ContainerSpec {
            properties: properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            net_in: vec![NetIn { host_port: 0, container_port: 8080 }],
            net_out: vec![NetOutRule { protocol: 1, ..NetOutRule::default() }],
            ..named("h")
        };
        world.create(spec).await;
        let calls = world.calls();
        let told: serde_json::Value = serde_json::from_str(calls[0].strip_prefix("up h ").unwrap()).unwrap();
        let pid = garden.entry("h").unwrap().container().unwrap().pid();
        assert_eq!(
            told,
            serde_json::json!({
                "Pid": pid, "Properties": { "app_id": "a", "log_config": "l" },
                "netin": [{ "host_port": 0, "container_port": 8080 }], "netout_rules": [{ "protocol": 1 }],
            })
        );

        let info = garden.info("h").await.unwrap();
        assert_eq!((&info.container_ip[..], &info.host_ip[..]), ("10.255.1.2", "255.255.255.255"));
        assert_eq!((info.mapped_ports.len(), &info.properties["policy"][..]), (1, "x"));
        assert_eq!(info.properties["garden.network.external-ip"], info.external_ip);
        let (_, text) = world.sh("h", "cat /etc/resolv.conf /etc/hosts").await;
        assert_eq!(text, "nameserver 9.8.7.6\nsearch apps.internal\n127.0.0.1 localhost\n10.255.1.2 h\n");

        assert_eq!(garden.net_in("h", 0, 8080).await.unwrap(), (60001, 8080));
        garden.bulk_net_out("h", &[NetOutRule { protocol: 2, ..NetOutRule::default() }]).await.unwrap();
        assert_eq!(garden.info("h").await.unwrap().mapped_ports.len(), 2);
        let external_ip = garden.external_ip();
        assert_eq!(
            world.calls()[1..],
            [
                format!(
                    r#"net-in h {{"HostIP":"{external_ip}","HostPort":0,"ContainerIP":"10.255.1.2","ContainerPort":8080}}"#
                ),
                r#"bulk-net-out h {"container_ip":"10.255.1.2","netout_rules":[{"protocol":2}]}"#.into(),
            ]
        );
        assert_eq!(garden.capacity().await.unwrap().max_containers, u64::MAX);
        garden.destroy("h").await.unwrap();
        assert_eq!(world.calls()[3..], ["down h null"]);
        world.assert_nothing_left();
        world
    });
}

#[test]
fn what_a_plugin_made_is_taken_away_until_it_is_gone() {
    in_a_world_of("what_a_plugin_made_is_taken_away_until_it_is_gone", noting, async |mut world| {
        std::fs::write(world.file("up.fails"), "").unwrap();
        let error = world.gardener.create(named("h")).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "external networker encountered an error running 'up' action: exit status 1: no up today"
        );
        assert_eq!(world.actions(), ["up h", "down h"], "half a network is taken away, too");
        world.assert_nothing_left();
        std::fs::remove_file(world.file("up.fails")).unwrap();

        std::fs::write(world.file("up.answer"), "nonsense").unwrap();
        let error = world.gardener.create(named("h")).await.unwrap_err().to_string();
        assert!(error.starts_with("unmarshaling result from external networker: "), "{error}");
        std::fs::remove_file(world.file("up.answer")).unwrap();
        std::fs::write(world.file("up.hangs"), "").unwrap();
        let started = Instant::now();
        let error = world.gardener.create(named("h")).await.unwrap_err().to_string();
        assert!(error.ends_with("running 'up' action: it took longer than 2s"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(8));
        std::fs::remove_file(world.file("up.hangs")).unwrap();
        world.assert_nothing_left();

        // A plugin that says nothing has made a network of which nothing is known.
        world.create(named("h")).await;
        assert_eq!(world.gardener.info("h").await.unwrap().container_ip, "");
        let error = world.gardener.net_in("h", 0, 1).await.unwrap_err().to_string();
        assert_eq!(error, "cannot find container [h]");
        std::fs::write(world.file("down.fails"), "").unwrap();
        let error = world.gardener.destroy("h").await.unwrap_err().to_string();
        assert!(error.contains("running 'down' action: exit status 1: no down today"), "{error}");
        assert_eq!(world.gardener.containers(&all()).await.unwrap(), ["h"], "it can be tried again");
        std::fs::remove_file(world.file("down.fails")).unwrap();

        // Even by a garden that begins after this one was killed.
        world.kill_and_start_again().await;
        world.gardener.destroy("h").await.ok();
        assert_eq!(world.actions().last().unwrap(), "down h");
        world.assert_nothing_left();
        world
    });
}

/// Drives Debian's `bridge` with `host-local` as Cloud Foundry's own plugin drives CNI plugins.
const CNI_SHIM: &str = r#"
dir=$1; action=$3; handle=$5
input=$(cat)
conf="{\"cniVersion\":\"0.3.1\",\"name\":\"t\",\"type\":\"bridge\",\"bridge\":\"dgcni0\",\"isGateway\":true,
  \"ipam\":{\"type\":\"host-local\",\"dataDir\":\"$dir/ipam\",\"subnet\":\"10.77.0.0/24\",\"routes\":[{\"dst\":\"0.0.0.0/0\"}]}}"
export CNI_CONTAINERID=$handle CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni
case $action in
up)
  pid=$(echo "$input" | sed 's/.*"Pid":\([0-9]*\).*/\1/')
  export CNI_COMMAND=ADD CNI_NETNS=/proc/$pid/ns/net
  result=$(echo "$conf" | /usr/lib/cni/bridge) || { echo "$result" >&2; exit 1; }
  ip=$(echo "$result" | tr -d ' \n\t' | sed 's/.*"address":"\([0-9.]*\).*/\1/')
  echo "{\"properties\":{\"garden.network.container-ip\":\"$ip\",\"garden.network.host-ip\":\"10.77.0.1\"}}"
  ;;
down)
  export CNI_COMMAND=DEL CNI_NETNS=
  echo "$conf" | /usr/lib/cni/bridge
  ;;
*) exit 1 ;;
esac
"#;

#[test]
fn a_cni_plugin_gives_a_container_its_network() {
    let name = "a_cni_plugin_gives_a_container_its_network";
    if !Path::new("/usr/lib/cni/bridge").exists() {
        println!("SKIPPED {name}: needs the CNI plugins in /usr/lib/cni");
        return;
    }
    let configure = |config: &mut Config, dir: &Path| {
        config.network_plugin = Some(plugin(dir, CNI_SHIM, Duration::from_secs(10)));
    };
    in_a_world_of(name, configure, async |mut world| {
        world.create(named("a")).await;
        world.create(named("b")).await;
        let host = Route::open().unwrap();
        let ip = async |handle: &str| world.gardener.info(handle).await.unwrap().container_ip;
        let (a, b) = (ip("a").await, ip("b").await);
        assert!(a != b && a.starts_with("10.77.0."), "{a} {b}");
        let serve = shell("while true; do echo hello | nc -l -p 8080; done");
        let process = world.gardener.run("a", serve, ProcessIo::default()).await.unwrap();
        let ask = format!("for n in 1 2 3 4 5 6 7 8 9; do nc {a} 8080 && exit 0; sleep 0.1; done");
        let (status, text) = world.sh("b", &ask).await;
        assert_eq!((status, text.as_str()), (0, "hello\n"));
        let network = world.gardener.metrics("b").await.unwrap().network.unwrap();
        assert!(network.rx_bytes > 0 && network.tx_bytes > 0, "{network:?}");
        process.signal(Signal::Kill).await.unwrap();
        world.gardener.destroy("a").await.unwrap();
        world.gardener.destroy("b").await.unwrap();
        let leases: Vec<_> = names(&world.file("ipam/t"));
        assert!(!leases.iter().any(|lease| lease.starts_with("10.")), "{leases:?}");
        // The bridge stays: it is the plugin's.
        world.clean.get_mut("links").unwrap().push("dgcni0".into());
        eventually("the links are gone", async || (world.left() == world.clean).then_some(())).await;
        host.delete("dgcni0").unwrap();
        world
    });
}
