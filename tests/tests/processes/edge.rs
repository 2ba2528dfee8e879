//! TLS before a container, as routers meet it: curl and openssl outside, an app that knows nothing of it inside.

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

impl Processes {
    /// curl as a client that knows the instance by its guid, with the certificate of `who`.
    fn curl(&self, instance: &Value, who: Option<&str>, path: &str, more: &[&str]) -> Answer {
        let guid = instance["instance_guid"].as_str().unwrap();
        let port = instance["ports"][0]["host_tls_proxy_port"].as_u64().unwrap();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", "--cacert"]).arg(self.path("identity-ca"));
        curl.args(["--resolve", &format!("{guid}:{port}:127.0.0.1")]).args(more);
        if let Some(who) = who {
            curl.arg("--cert").arg(self.path(who)).arg("--key").arg(self.path(&format!("{who}-key")));
        }
        Answer::of(curl.arg(format!("https://{guid}:{port}{path}")))
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
