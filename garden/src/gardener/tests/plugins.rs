//! Gardens whose networks or roots are made by programs: scripts that note down what they are told, and a real CNI
//! plugin.

use super::*;
use crate::plugins::Program;
use crate::plugins::image::ImagePlugin;
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
        // A connection that comes before its server, or is closed before it is read, says nothing.
        let ask = format!(
            "for n in 1 2 3 4 5 6 7 8 9; do said=$(nc {a} 8080 2>/dev/null) && [ -n \"$said\" ] && echo $said && exit 0; sleep 0.1; done"
        );
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

/// Makes roots of two mounts over what stands in the image, and notes down what it is told.
const IMAGES: &str = r#"
dir=$1; shift
echo "$*" >> $dir/calls
for handle; do :; done
case $1 in
create)
  [ -e $dir/create.fails ] && { echo "no image today" >&2; echo partly; exit 1; }
  mkdir -p $dir/images/$handle/root $dir/images/$handle/upper $dir/images/$handle/work
  cp -a $dir/rootfs $dir/images/$handle/lower
  chmod 755 $dir $dir/images $dir/images/$handle $dir/images/$handle/*
  [ "$owner" = "" ] || chown -Rh $owner:$owner $dir/images/$handle/upper $dir/images/$handle/lower
  echo "{\"root\":{\"path\":\"$dir/images/$handle/root\"},\"process\":{\"env\":[\"FROM=image\"]},\"mounts\":[
    {\"destination\":\"/\",\"type\":\"overlay\",\"source\":\"overlay\",\"options\":[
      \"lowerdir=$dir/images/$handle/lower\",\"upperdir=$dir/images/$handle/upper\",\"workdir=$dir/images/$handle/work\"]},
    {\"destination\":\"/scratch\",\"type\":\"tmpfs\",\"source\":\"tmpfs\",\"options\":[\"nosuid\",\"size=1m\",\"mode=1777\"]},
    {\"destination\":\"/etc/seal\",\"type\":\"bind\",\"source\":\"$dir/calls\",\"options\":[\"bind\",\"ro\"]}]}"
  ;;
delete) [ -e $dir/delete.fails ] && exit 1; rm -rf $dir/images/$handle ;;
stats) echo '{"disk_usage":{"total_bytes_used":7,"exclusive_bytes_used":5}}' ;;
capacity) echo '{"capacity":4242}' ;;
esac
"#;

const OWNER: u32 = u32::MAX - 1;

fn image_plugin(dir: &Path, owner: &str) -> ImagePlugin {
    let path = dir.join(format!("images{owner}.sh"));
    std::fs::write(&path, format!("owner={owner}\n{IMAGES}")).unwrap();
    let extra_args = vec![path.display().to_string(), dir.display().to_string()];
    ImagePlugin { program: Program { path: "/bin/sh".into(), extra_args, deadline: Duration::from_secs(5) } }
}

fn with_image_plugins(config: &mut Config, dir: &Path) {
    config.image_plugin = Some(image_plugin(dir, &OWNER.to_string()));
    config.privileged_image_plugin = Some(image_plugin(dir, ""));
    config.containerizer.ids = containerizer::IdPool::Shared(containerizer::IdRange {
        base: 1,
        count: OWNER - 1,
        root: Some(OWNER),
    });
}

#[test]
fn a_plugin_makes_the_root_of_a_container() {
    in_a_world_of("a_plugin_makes_the_root_of_a_container", with_image_plugins, async |world| {
        let garden = &world.gardener;
        let mut spec = ContainerSpec {
            image: ImageRef { uri: "docker:///busybox#1".into(), username: "u".into(), password: "p".into() },
            env: vec!["OWN=1".into()],
            ..named("h")
        };
        spec.limits.disk.byte_hard = 1 << 20;
        spec.limits.disk.scope = 1;
        world.create(spec).await;
        let flags = "--disk-limit-size-bytes 1048576 --username u --password p --exclude-image-from-quota";
        assert_eq!(world.calls(), [format!("create {flags} docker:///busybox:1 h")]);
        let record = std::fs::read_to_string(world.config.directory.join("depot/h/container.json")).unwrap();
        assert!(!record.contains("\"p\""), "a password is on the disk: {record}");

        let script = "echo $FROM $OWN; cat /etc/seal | wc -l; echo x > /scratch/y && echo x > /root-file && stat -c %u:%g /root-file; \
            grep -c '/etc/seal ro' /proc/self/mountinfo; id -u; cat /proc/self/uid_map";
        let (_, text) = world.sh("h", script).await;
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[..6], ["image", "1", "1", "0:0", "1", "0"], "{text}");
        assert!(
            text.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .contains(&format!("0 {OWNER} 1 1 1 {}", OWNER - 1)),
            "{text}"
        );
        let upper = world.file("images/h/upper/root-file");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(upper).unwrap()), OWNER);
        let host = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!host.contains("images/h"), "the host has nothing mounted: {host}");

        let disk = garden.metrics("h").await.unwrap().disk;
        assert_eq!((disk.total_bytes_used, disk.exclusive_bytes_used), (7, 5));
        assert_eq!(garden.capacity().await.unwrap().schedulable_disk_in_bytes, 4242);
        let (status, _) = run(garden, "h", ProcessSpec { user: "vcap".into(), ..shell("id -u") }, "").await;
        assert_eq!(status, 0);
        garden.destroy("h").await.unwrap();
        assert_eq!(world.calls().last().unwrap(), "delete h");
        assert_eq!(names(&world.file("images")), [] as [&str; 0]);

        world.create(ContainerSpec { privileged: true, ..named("p") }).await;
        let (status, text) = world.sh("p", "echo x > /f && id -u && cat /proc/self/uid_map").await;
        assert!(status == 0 && text.contains("4294967295"), "{text}");
        garden.destroy("p").await.unwrap();
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_root_that_a_plugin_made_is_deleted_until_it_is_gone() {
    let name = "a_root_that_a_plugin_made_is_deleted_until_it_is_gone";
    in_a_world_of(name, with_image_plugins, async |mut world| {
        std::fs::write(world.file("create.fails"), "").unwrap();
        let error = world.gardener.create(named("h")).await.unwrap_err().to_string();
        assert_eq!(error, "running image plugin create: exit status 1: partly: no image today");
        assert_eq!(world.calls().last().unwrap(), "delete h", "half a root is deleted, too");
        world.assert_nothing_left();
        std::fs::remove_file(world.file("create.fails")).unwrap();

        world.create(named("h")).await;
        std::fs::write(world.file("delete.fails"), "").unwrap();
        let error = world.gardener.destroy("h").await.unwrap_err().to_string();
        assert!(error.contains("running image plugin delete: exit status 1"), "{error}");
        std::fs::remove_file(world.file("delete.fails")).unwrap();
        world.kill_and_start_again().await;
        world.gardener.destroy("h").await.ok();
        assert_eq!(names(&world.file("images")), [] as [&str; 0]);

        world.config.privileged_image_plugin = None;
        world.kill_and_start_again().await;
        let privileged = ContainerSpec { privileged: true, ..named("p") };
        let error = world.gardener.create(privileged).await.unwrap_err().to_string();
        assert_eq!(error, "no privileged_image_plugin provided");
        let raw = format!("raw://{}", world.file("rootfs").display());
        world.create(ContainerSpec { rootfs_path: raw, privileged: true, ..named("raw") }).await;
        assert_eq!(world.sh("raw", "true").await.0, 0);
        world.gardener.destroy("raw").await.unwrap();
        assert!(!names(&world.file("rootfs/bin")).is_empty());
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_plugin_makes_the_root_of_a_pea_and_is_told_of_its_end() {
    let name = "a_plugin_makes_the_root_of_a_pea_and_is_told_of_its_end";
    in_a_world_of(name, with_image_plugins, async |world| {
        let garden = &world.gardener;
        for (handle, privileged) in [("h", false), ("p", true)] {
            world.create(ContainerSpec { privileged, ..named(handle) }).await;
            let image = ImageRef { uri: "docker:///busybox#1".into(), ..ImageRef::default() };
            let pea = ProcessSpec {
                image,
                ..shell("echo $FROM; cat /etc/seal | wc -l; echo x > /mine; [ -e /mine ] && exit 3")
            };
            let calls = world.calls().len();
            let (status, text) = run(garden, handle, pea.clone(), "").await;
            assert_eq!((status, text.starts_with("image\n")), (3, true), "{text}");
            assert!(world.calls()[calls].contains(" docker:///busybox:1 pea-"), "{:?}", world.calls());
            let is_deleted = async || (names(&world.file("images")) == [handle.to_owned()]).then_some(());
            eventually("the plugin has taken the root away", is_deleted).await;
            std::fs::write(world.file("create.fails"), "").unwrap();
            let error =
                garden.run(handle, pea.clone(), ProcessIo::default()).await.err().unwrap().to_string();
            assert_eq!(error, "running image plugin create: exit status 1: partly: no image today");
            assert!(world.calls().last().unwrap().starts_with("delete pea-"), "half a root is deleted, too");
            std::fs::remove_file(world.file("create.fails")).unwrap();
            // What cannot be taken away at once goes with the container.
            std::fs::write(world.file("delete.fails"), "").unwrap();
            run(garden, handle, pea, "").await;
            let refused = garden.destroy(handle).await.unwrap_err().to_string();
            assert!(refused.contains("running image plugin delete: exit status 1"), "{refused}");
            std::fs::remove_file(world.file("delete.fails")).unwrap();
            garden.destroy(handle).await.unwrap();
            assert_eq!(names(&world.file("images")), [] as [&str; 0]);
        }
        world.assert_nothing_left();
        let raw = format!("raw://{}", world.file("rootfs").display());
        world.create(ContainerSpec { rootfs_path: raw.clone(), privileged: true, ..named("raw") }).await;
        let image = ImageRef { uri: raw, ..ImageRef::default() };
        assert_eq!(run(garden, "raw", ProcessSpec { image, ..shell("exit 4") }, "").await.0, 4);
        garden.destroy("raw").await.unwrap();
        assert!(!names(&world.file("rootfs/bin")).is_empty());
        world.assert_nothing_left();
        world
    });
}
