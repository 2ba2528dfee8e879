//! TLS before a container, as routers meet it: curl and openssl outside, an app that knows nothing of it inside.

use std::os::fd::AsFd as _;

use garden_sys::netlink::route::Route;
use garden_sys::netlink::{in_namespace, new_namespace};
use rcgen::SanType;
use rcgen::string::Ia5String;
use tests::busybox_image;

use super::*;

const ROUTER: &str = "gorouter.service.cf.internal";

/// A cell whose containers let in one router, and nobody else; what signs what is in files beside the rest.
fn with_tls_before_containers() -> Processes {
    let mut processes = Processes::new();
    let routers = sign_for_routers(processes.dir.path());
    let (identity, key) = new_authority();
    let files = [
        ("identity-ca", identity.self_signed(&key).unwrap().pem()),
        ("identity-key", key.serialize_pem()),
        ("routers-ca", routers),
    ];
    for (name, content) in files {
        std::fs::write(processes.path(name), content).unwrap();
    }
    stack_with_app(&processes.path("app.tar"));
    processes.rep_flags = vec![
        processes.flag("instance-identity-ca-file", processes.path("identity-ca")),
        processes.flag("instance-identity-key-file", processes.path("identity-key")),
        "--container-proxy".into(),
        "--container-proxy-require-client-certificates".into(),
        processes.flag("container-proxy-trusted-ca-file", processes.path("routers-ca")),
        format!("--container-proxy-verify-subject-alt-name={ROUTER}"),
        format!("--stack=app={}", processes.path("app.tar").display()),
    ];
    processes
}

/// A cell that is reached by TLS and in no other way.
fn with_nothing_but_tls() -> Processes {
    let mut processes = with_tls_before_containers();
    processes.rep_flags.push("--without-unproxied-port-mappings".into());
    processes
}

fn new_authority() -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params, KeyPair::generate().unwrap())
}

/// A certificate for the router and one for somebody else, of the same authority, which is returned.
fn sign_for_routers(dir: &Path) -> String {
    let (authority, authority_key) = new_authority();
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    for (file, name) in [("router", ROUTER), ("stranger", "stranger.internal")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(name).unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        std::fs::write(dir.join(file), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{file}-key")), key.serialize_pem()).unwrap();
    }
    pem
}

/// The userland, and an app in it that speaks both versions of HTTP.
fn stack_with_app(path: &Path) {
    let image = busybox_image(&[]);
    let mut userland = tar::Archive::new(flate2::read::GzDecoder::new(&image.layer[..]));
    let mut stack = tar::Builder::new(std::fs::File::create(path).unwrap());
    for entry in userland.entries().unwrap() {
        let entry = entry.unwrap();
        stack.append(&entry.header().clone(), entry).unwrap();
    }
    stack.append_path_with_name(env!("CARGO_BIN_EXE_bench-net"), "bin/app").unwrap();
    stack.finish().unwrap();
}

fn app() -> Value {
    json!({
        "process_guid": "app", "domain": "stories", "log_guid": "app", "log_source": "APP",
        "rootfs": "preloaded:app", "instances": 1, "memory_mb": 128, "disk_mb": 128, "ports": [8080],
        "action": { "run": { "path": "/bin/app", "args": ["app", "8080"], "user": "root" } },
        "check_definition": { "checks": [{ "tcp_check": { "port": 8080 } }] },
    })
}

const POOL_V6: &str = "fd00:d1e9::/112";

/// The same, and containers have IPv6.
fn with_tls_over_ipv6() -> Processes {
    let mut processes = with_tls_before_containers();
    processes.garden_flags.push(format!("--network-pool-v6={POOL_V6}"));
    processes
}

impl Processes {
    /// curl as a client that knows the instance by its guid, with the certificate of `who`.
    fn curl(&self, instance: &Value, who: Option<&str>, path: &str, more: &[&str]) -> Answer {
        Answer::of(self.curl_at("127.0.0.1", instance, who, path).args(more))
    }

    fn curl_at(&self, address: &str, instance: &Value, who: Option<&str>, path: &str) -> Command {
        let guid = instance["instance_guid"].as_str().unwrap();
        let port = instance["ports"][0]["host_tls_proxy_port"].as_u64().unwrap();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", "--cacert"]).arg(self.path("identity-ca"));
        curl.args(["--resolve", &format!("{guid}:{port}:{address}")]);
        if let Some(who) = who {
            curl.arg("--cert").arg(self.path(who)).arg("--key").arg(self.path(&format!("{who}-key")));
        }
        curl.arg(format!("https://{guid}:{port}{path}"));
        curl
    }
}

#[test]
fn routers_reach_an_instance_by_tls_and_know_which_it_is() {
    let name = "routers_reach_an_instance_by_tls_and_know_which_it_is";
    in_six_processes(name, with_tls_before_containers, |processes, web| {
        assert!(web["ports"][0]["host_tls_proxy_port"].as_u64() > Some(0), "{web}");
        processes.cfdot(&["create-desired-lrp", &app().to_string()]).worked();
        let instance = processes.running_instance_of("app", "");
        let ports = &instance["ports"];
        assert_eq!(ports[0]["container_tls_proxy_port"], 61001, "{instance}");
        assert_eq!(ports[1]["container_tls_proxy_port"], 61443, "{instance}");

        a_router_is_served_and_others_are_not(processes, &instance);
        let told = processes.curl(&instance, Some("router"), "/env/CF_INSTANCE_PORTS", &[]).worked().stdout;
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told[0]["internal_tls_proxy"], 61001, "{told}");
        assert_eq!(told[0]["external_tls_proxy"], ports[0]["host_tls_proxy_port"], "{told}");
        assert_eq!(told[1]["internal_tls_proxy"], 61443, "{told}");

        // With an agent that is killed the listeners are gone; its successor serves the same instance.
        processes.kill("rep");
        assert_ne!(processes.curl(&instance, Some("router"), "/", &[]).code, 0);
        processes.start_rep();
        processes.until("the instance is served again", |processes| {
            (processes.curl(&instance, Some("router"), "/", &[]).code == 0).then_some(())
        });
        assert_eq!(processes.running_instance_of("app", ""), instance);
        a_router_is_served_and_others_are_not(processes, &instance);
        for process in ["app", "web"] {
            processes.cfdot(&["delete-desired-lrp", process]).worked();
        }
        processes.until("both instances are gone", |processes| {
            processes.listed(&["actual-lrps"]).is_empty().then_some(())
        });
        assert_ne!(processes.curl(&instance, Some("router"), "/", &[]).code, 0);
    });
}

fn a_router_is_served_and_others_are_not(processes: &Processes, instance: &Value) {
    let hello = |version: &str| processes.curl(instance, Some("router"), "/", &[version]).worked().stdout;
    assert_eq!(hello("--http1.1"), "hello over HTTP/1.1\n");
    assert_eq!(hello("--http2"), "hello over HTTP/2.0\n");
    for who in [None, Some("stranger")] {
        for version in ["--tlsv1.3", "--tls-max=1.2"] {
            let refused = processes.curl(instance, who, "/", &[version]);
            assert_ne!(refused.code, 0, "{who:?} {version}: {refused:?}");
            assert_eq!(refused.stdout, "");
        }
    }
    let port = instance["ports"][0]["host_tls_proxy_port"].as_u64().unwrap();
    let met = Answer::of(
        Command::new("openssl")
            .args(["s_client", "-alpn", "h2", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"])
            .arg(processes.path("identity-ca"))
            .arg("-cert")
            .arg(processes.path("router"))
            .arg("-key")
            .arg(processes.path("router-key"))
            .stdin(Stdio::null()),
    )
    .worked()
    .stdout;
    let subject = format!("CN = {}", instance["instance_guid"].as_str().unwrap());
    for line in ["ALPN protocol: h2", "Verification: OK", &subject] {
        assert!(met.contains(line), "{line} in {met}");
    }
}

#[test]
fn an_instance_whose_own_ports_are_closed_is_reached_by_tls_and_not_otherwise() {
    let name = "an_instance_whose_own_ports_are_closed_is_reached_by_tls_and_not_otherwise";
    in_six_processes(name, with_nothing_but_tls, |processes, web| {
        assert_eq!(web["ports"][0]["host_port"].as_u64().unwrap_or(0), 0, "{web}");
        processes.until("it is reached by TLS", |processes| {
            let answer = processes.curl(web, Some("router"), "/", &["--http1.1"]);
            (answer.stdout == "hello\n").then_some(())
        });
        // Nothing else of the host leads to it.
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "10", "--unix-socket"]).arg(processes.path("garden.sock"));
        let guid = web["instance_guid"].as_str().unwrap();
        let info = Answer::of(curl.arg(format!("http://garden/containers/{guid}/info"))).worked().stdout;
        let info: Value = serde_json::from_str(&info).unwrap();
        let tls = &web["ports"][0]["host_tls_proxy_port"];
        assert_eq!(info["MappedPorts"], json!([{ "HostPort": tls, "ContainerPort": 61001 }]), "{info}");
        processes.cfdot(&["delete-desired-lrp", "web"]).worked();
        processes.until("the instance is gone", |processes| {
            processes.listed(&["actual-lrps"]).is_empty().then_some(())
        });
    });
}

/// More than fits into the buffers between a client that does not read and the app.
const FILE_BYTES: usize = 24 << 20;
/// How long the app goes on once it is told to end: less than a rep has patience for.
const LAST_SECONDS: usize = 7;

/// Serves a file, also for a while after it was told to end.
fn app_that_takes_its_time() -> Value {
    let serve = format!(
        "head -c {FILE_BYTES} /dev/zero > /tmp/file; (trap '' TERM; exec httpd -f -p 8080 -h /tmp) & app=$!;
         trap 'sleep {LAST_SECONDS}; kill -9 $app; exit' TERM; wait"
    );
    let mut app = app();
    app["action"]["run"] = json!({ "path": "/bin/sh", "args": ["-c", serve], "user": "root" });
    app["env"] = json!([{ "name": "PATH", "value": "/bin" }]);
    app
}

#[test]
fn routers_reach_an_instance_over_ipv6_and_get_what_they_asked_for_before_it_ends() {
    let name = "routers_reach_an_instance_over_ipv6_and_get_what_they_asked_for_before_it_ends";
    if !Path::new("/proc/net/if_inet6").exists() {
        return println!("SKIPPED {name}: this kernel has no IPv6");
    }
    if !require_root(name) {
        return;
    }
    // Their host is a network of its own: whether it forwards IPv6 is nobody else's.
    let network = new_namespace().unwrap();
    let story = || {
        let host = Route::open().unwrap();
        host.bring_up(host.index("lo").unwrap()).unwrap();
        in_six_processes(name, with_tls_over_ipv6, |processes, _| is_reached_over_ipv6(processes));
    };
    in_namespace(network.as_fd(), story).unwrap();
}

fn is_reached_over_ipv6(processes: &mut Processes) {
    processes.cfdot(&["create-desired-lrp", &app_that_takes_its_time().to_string()]).worked();
    let instance = processes.running_instance_of("app", "");
    assert_eq!(instance["ports"][0]["container_tls_proxy_port"], 61001, "{instance}");
    let curl = |processes: &Processes, who| {
        let mut curl = processes.curl_at("[::1]", &instance, who, "/file");
        curl.arg("--http1.1");
        curl
    };
    let head = |processes: &Processes, who| Answer::of(curl(processes, who).arg("--head"));
    let answer = head(processes, Some("router")).worked();
    assert!(answer.stdout.contains(&format!("Content-Length: {FILE_BYTES}")), "{answer:?}");
    for who in [None, Some("stranger")] {
        assert_ne!(head(processes, who).code, 0, "{who:?}");
    }

    let mut reading = curl(processes, Some("router"));
    let mut reading = reading.args(["--max-time", "60"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = reading.stdout.take().unwrap();
    said.read_exact(&mut [0; 1000]).unwrap();
    processes.cfdot(&["delete-desired-lrp", "app"]).worked();
    processes.until("nobody is let in any more", |processes| {
        (head(processes, Some("router")).code != 0).then_some(())
    });
    let mut rest = Vec::new();
    said.read_to_end(&mut rest).unwrap();
    assert!(reading.wait().unwrap().success(), "who was there stays until it has everything");
    assert_eq!(1000 + rest.len(), FILE_BYTES);
    processes.cfdot(&["delete-desired-lrp", "web"]).worked();
    processes.until("both instances are gone", |processes| {
        processes.listed(&["actual-lrps"]).is_empty().then_some(())
    });
}
