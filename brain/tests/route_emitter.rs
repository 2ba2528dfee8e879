//! The route emitter between the real BBS and a real NATS server, on the loopback interface. The cell and the router
//! are what the test says; the router hears everything that is published.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbs_client::{BbsClient, StartedLrp};
use bbs_models::{
    Action, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, DesiredLrp, DesiredLrpUpdate, PortMapping,
    Routes, RunAction,
};
use brain::route_emitter::{self, Config, Credentials};
use brain_client::AuctioneerClient;
use diego_base::serve::Listen;
use diego_base::tls::{ClientTls, Files};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;

const NATS_SERVER: &str = "/usr/sbin/nats-server";
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(3600);

struct Nats {
    port: u16,
    server: Child,
}

impl Nats {
    fn start(port: u16) -> Nats {
        Nats::start_with(port, None)
    }

    fn start_with(port: u16, certificates: Option<&Certificates>) -> Nats {
        let mut command = Command::new(NATS_SERVER);
        if let Some(certificates) = certificates {
            command.arg("--tlsverify");
            for (flag, file) in
                [("--tlscert", "server.crt"), ("--tlskey", "server.key"), ("--tlscacert", "ca.crt")]
            {
                command.arg(flag).arg(certificates.path(file));
            }
        }
        let server = command
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "--user", "nats", "--pass", "p@ss \"word"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Nats { port, server }
    }

    fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An authority's, and one each for the server and its clients, in files.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn make() -> Certificates {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.crt", authority.self_signed(&key).unwrap().pem());
        let authority = Issuer::new(authority, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            write(&format!("{name}.crt"), params.signed_by(&key, &authority).unwrap().pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Certificates(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn client(&self) -> ClientTls {
        let (cert, key) = (self.path("client.crt"), self.path("client.key"));
        ClientTls::load(&Files { cert, key, ca: Some(self.path("ca.crt")) }).unwrap()
    }
}

/// A client that subscribed to all there is.
struct Router {
    lines: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

#[derive(Debug)]
struct Heard {
    subject: String,
    reply: Option<String>,
    message: Value,
}

impl Router {
    async fn connect(port: u16) -> Router {
        Router::connect_with(port, None).await
    }

    async fn connect_with(port: u16, tls: Option<ClientTls>) -> Router {
        let mut stream = until(|| async { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
        let mut router = match tls {
            None => {
                let (reader, writer) = stream.into_split();
                Router { lines: BufReader::new(Box::new(reader)), writer: Box::new(writer) }
            }
            Some(tls) => {
                // The greeting, byte by byte: what follows it is TLS.
                while stream.read_u8().await.unwrap() != b'\n' {}
                let name = ServerName::try_from("127.0.0.1").unwrap();
                let stream = TlsConnector::from(tls.0).connect(name, stream).await.unwrap();
                let (reader, writer) = tokio::io::split(stream);
                Router { lines: BufReader::new(Box::new(reader)), writer: Box::new(writer) }
            }
        };
        let connect = json!({ "verbose": false, "user": "nats", "pass": "p@ss \"word" });
        let hello = format!("CONNECT {connect}\r\nSUB > 1\r\nPING\r\n");
        router.writer.write_all(hello.as_bytes()).await.unwrap();
        while router.line().await != "PONG" {}
        router
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.lines.read_line(&mut line)).await;
        assert_ne!(read.expect("nothing is heard").unwrap(), 0, "NATS closed the connection");
        line.trim_end().to_owned()
    }

    async fn hear(&mut self) -> Heard {
        loop {
            let line = self.line().await;
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["MSG", subject, _, reply @ .., len] => {
                    let mut payload = vec![0; len.parse::<usize>().unwrap() + 2];
                    self.lines.read_exact(&mut payload).await.unwrap();
                    let message = serde_json::from_slice(&payload).unwrap_or_default();
                    let reply = reply.first().map(|reply| reply.to_string());
                    return Heard { subject: subject.to_string(), reply, message };
                }
                ["PING"] => self.writer.write_all(b"PONG\r\n").await.unwrap(),
                _ => {}
            }
        }
    }

    /// The next message of `subject` about `uri`; what comes before is passed over.
    async fn hears(&mut self, subject: &str, uri: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let heard = self.hear().await;
            if heard.subject == subject && heard.message["uris"][0] == uri {
                return heard.message;
            }
        }
        panic!("{subject} of {uri} was not heard");
    }

    async fn greeted(&mut self) -> String {
        loop {
            let heard = self.hear().await;
            if heard.subject == "router.greet" {
                return heard.reply.unwrap();
            }
        }
    }

    async fn say(&mut self, subject: &str, message: Value) {
        let payload = message.to_string();
        let line = format!("PUB {subject} {}\r\n{payload}\r\n", payload.len());
        self.writer.write_all(line.as_bytes()).await.unwrap();
    }
}

async fn until<T, F: Future<Output = Option<T>>>(mut try_it: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = try_it().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct World {
    bbs: BbsClient,
    nats: Nats,
    router: Router,
    stop: CancellationToken,
    runs: JoinSet<()>,
    _state: tempfile::TempDir,
}

/// An emitter that never repeats itself unasked, unless `change` makes it.
async fn world(test: &str, change: impl FnOnce(&mut Config)) -> Option<World> {
    world_with(test, None, change).await
}

async fn world_with(
    test: &str,
    certificates: Option<&Certificates>,
    change: impl FnOnce(&mut Config),
) -> Option<World> {
    if !Path::new(NATS_SERVER).exists() {
        println!("SKIPPED {test}: there is no {NATS_SERVER}; run: tests/tools");
        return None;
    }
    let (stop, mut runs) = (CancellationToken::new(), JoinSet::new());
    let state = tempfile::tempdir().unwrap();
    let (listen, address) = Listen::loopback().unwrap();
    let http = diego_base::http::client(&Default::default()).unwrap();
    // Nobody places anything here: the test is the cell.
    let auctioneer = Arc::new(AuctioneerClient::new(http, "http://127.0.0.1:1"));
    let cells = watch::channel(Vec::new()).1;
    let config = bbs::Config::new(listen, state.path().join("bbs.sqlite"), auctioneer, cells).unwrap();
    let running = bbs::run(config, stop.clone());
    runs.spawn(async { running.await.unwrap() });
    let bbs = BbsClient::new(&format!("http://{address}"), &Default::default()).unwrap();
    until(|| async { bbs.ping().await.ok() }).await;
    bbs.upsert_domain("domain", None).await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tls = certificates.map(Certificates::client);
    let nats = Nats::start_with(free, certificates);
    let router = Router::connect_with(free, tls.clone()).await;
    let mut config = Config::new(bbs.clone(), vec!["127.0.0.1:1".into(), format!("nats://127.0.0.1:{free}")]);
    config.nats_credentials = Credentials { user: "nats".into(), password: "p@ss \"word".into() };
    config.nats_tls = tls;
    config.emit_interval = NEVER;
    config.unregistration_interval = NEVER;
    config.jitter_factor = 0.0;
    change(&mut config);
    let running = route_emitter::run(config, stop.clone());
    runs.spawn(async { running.await.unwrap() });
    Some(World { bbs, nats, router, stop, runs, _state: state })
}

fn routes(hostnames: &[&str]) -> Routes {
    let mut routes = Routes::new();
    routes.insert("cf-router", &json!([{ "hostnames": hostnames, "port": 8080 }])).unwrap();
    routes.insert("internal-router", &json!([{ "hostname": "app.internal" }])).unwrap();
    routes
}

fn instance(app: &str, cell: &str) -> (ActualLrpKey, ActualLrpInstanceKey) {
    (ActualLrpKey::new(app, 0, "domain"), ActualLrpInstanceKey::new(format!("{app}-instance"), cell))
}

impl World {
    async fn desire(&self, app: &str, hostnames: &[&str]) {
        let run = RunAction { path: "/app".into(), user: "vcap".into(), ..RunAction::default() };
        let mut lrp = DesiredLrp::new(app, "domain", "preloaded:linux", Action::Run(run));
        lrp.routes = routes(hostnames);
        lrp.log_guid = "log-guid".into();
        self.bbs.desire_lrp(&lrp).await.unwrap();
    }

    async fn start(&self, app: &str, cell: &str) {
        let (key, instance) = instance(app, cell);
        self.bbs.claim_actual_lrp(&key, &instance).await.unwrap();
        let ports = vec![PortMapping { container_port: 8080, host_port: 61001, ..PortMapping::default() }];
        let net_info = ActualLrpNetInfo {
            address: "10.0.0.1".into(),
            instance_address: "10.255.0.7".into(),
            ports,
            ..Default::default()
        };
        let started =
            StartedLrp { net_info, routable: true, availability_zone: "z1".into(), ..StartedLrp::default() };
        self.bbs.start_actual_lrp(&key, &instance, &started).await.unwrap();
    }

    /// Both must end well when told to.
    async fn end(self) {
        self.stop.cancel();
        self.runs.join_all().await;
    }

    async fn crash(&self, app: &str, cell: &str) {
        let (key, instance) = instance(app, cell);
        self.bbs.crash_actual_lrp(&key, &instance, "the test says so").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_hear_of_instances_as_they_come_and_go() {
    let Some(mut world) = world("routers_hear_of_instances_as_they_come_and_go", |_| ()).await else {
        return;
    };
    world.router.greeted().await;
    world.desire("app", &["app.example.com"]).await;
    world.start("app", "cell").await;
    let running = Instant::now();
    let mut told = world.router.hears("router.register", "app.example.com").await;
    println!("registered {:?} after the BBS took RUNNING", running.elapsed());
    let since = told.as_object_mut().unwrap().remove("endpoint_updated_at_ns");
    assert!(since.and_then(|since| since.as_i64()) > Some(0));
    assert_eq!(
        told,
        json!({
            "host": "10.0.0.1", "port": 61001, "uris": ["app.example.com"], "app": "log-guid",
            "private_instance_id": "app-instance", "private_instance_index": "0",
            "server_cert_domain_san": "app-instance", "tags": { "component": "route-emitter" },
            "availability_zone": "z1",
        })
    );
    let internal = world.router.hears("service-discovery.register", "app.internal").await;
    assert_eq!(internal["host"], "10.255.0.7");
    assert_eq!(internal["uris"], json!(["app.internal", "0.app.internal"]));

    let update = DesiredLrpUpdate { routes: Some(routes(&["new.example.com"])), ..Default::default() };
    world.bbs.update_desired_lrp("app", &update).await.unwrap();
    world.router.hears("router.register", "new.example.com").await;
    world.router.hears("router.unregister", "app.example.com").await;
    world.crash("app", "cell").await;
    let gone = world.router.hears("router.unregister", "new.example.com").await;
    assert_eq!((&gone["host"], &gone["port"]), (&json!("10.0.0.1"), &json!(61001)));
    world.router.hears("service-discovery.unregister", "app.internal").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_hear_of_instances_over_tls_from_servers_that_want_a_certificate() {
    let certificates = Certificates::make();
    let name = "routers_hear_of_instances_over_tls_from_servers_that_want_a_certificate";
    let Some(mut world) = world_with(name, Some(&certificates), |_| ()).await else { return };
    world.router.greeted().await;
    // More than one record of TLS holds.
    let long = format!("{}.example.com", "x".repeat(30_000));
    world.desire("app", &[&long]).await;
    world.start("app", "cell").await;
    world.router.hears("router.register", &long).await;
    world.crash("app", "cell").await;
    world.router.hears("router.unregister", &long).await;
    world.end().await;
}

/// What the emitter says of a server it is told to speak TLS with, or not to, when that is not so: nothing but why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_to_a_server_that_is_not_who_it_should_be() {
    let name = "nothing_is_told_to_a_server_that_is_not_who_it_should_be";
    let (known, strange) = (Certificates::make(), Certificates::make());
    for (certificates, tls) in
        [(Some(&known), None), (Some(&known), Some(strange.client())), (None, Some(known.client()))]
    {
        let Some(mut world) = world_with(name, certificates, |config| config.nats_tls = tls).await else {
            return;
        };
        world.desire("app", &["app.example.com"]).await;
        world.start("app", "cell").await;
        let heard = tokio::time::timeout(Duration::from_secs(2), world.router.hear()).await;
        assert!(heard.is_err(), "{heard:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_to_nothing_unregisters_before_the_instance_stops() {
    let Some(mut world) = world("scaling_to_nothing", |_| ()).await else { return };
    world.desire("app", &["app.example.com"]).await;
    world.start("app", "cell").await;
    world.router.hears("router.register", "app.example.com").await;
    let update = DesiredLrpUpdate { instances: Some(0), ..Default::default() };
    world.bbs.update_desired_lrp("app", &update).await.unwrap();
    world.router.hears("router.unregister", "app.example.com").await;
    assert!(world.bbs.actual_lrps(&Default::default()).await.unwrap().iter().any(|lrp| lrp.is_running()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_sets_the_pace_and_one_that_starts_is_told_everything() {
    let Some(mut world) = world("a_router_sets_the_pace", |_| ()).await else { return };
    world.desire("app", &["app.example.com"]).await;
    world.start("app", "cell").await;
    world.router.hears("router.register", "app.example.com").await;
    let start = json!({ "minimumRegisterIntervalInSeconds": 3600, "pruneThresholdInSeconds": 7200 });
    world.router.say("router.start", start).await;
    world.router.hears("router.register", "app.example.com").await;
    // Said to the emitter's inbox, as the answer to a greeting is.
    let Some(mut paced) = self::world("a_router_sets_the_pace", |_| ()).await else { return };
    let inbox = paced.router.greeted().await;
    paced.router.say("router.start", json!("nonsense")).await;
    let answer = json!({ "minimumRegisterIntervalInSeconds": 1, "pruneThresholdInSeconds": 120 });
    paced.router.say(&inbox, answer).await;
    paced.desire("app", &["app.example.com"]).await;
    paced.start("app", "cell").await;
    for _ in 0..3 {
        paced.router.hears("router.register", "app.example.com").await;
    }
    paced.end().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_nats_comes_back_everything_is_told_and_what_went_is_taken_back() {
    let repeating = |config: &mut Config| config.unregistration_interval = Duration::from_millis(200);
    let Some(mut world) = world("when_nats_comes_back", repeating).await else { return };
    for app in ["stays", "goes"] {
        world.desire(app, &[app]).await;
        world.start(app, "cell").await;
        world.router.hears("router.register", app).await;
    }
    world.nats.kill();
    world.crash("goes", "cell").await;
    world.desire("comes", &["comes"]).await;
    world.start("comes", "cell").await;
    world.nats = Nats::start(world.nats.port);
    world.router = Router::connect(world.nats.port).await;
    let start = json!({ "minimumRegisterIntervalInSeconds": 1, "pruneThresholdInSeconds": 120 });
    let mut awaited =
        vec![("router.register", "stays"), ("router.register", "comes"), ("router.unregister", "goes")];
    // The emitter may have been quicker than this router: a router that starts says so.
    world.router.greeted().await;
    world.router.say("router.start", start).await;
    while !awaited.is_empty() {
        let heard = world.router.hear().await;
        assert!(heard.subject != "router.register" || heard.message["uris"][0] != "goes");
        awaited.retain(|(subject, uri)| heard.subject != *subject || heard.message["uris"][0] != *uri);
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cells_own_emitter_tells_of_that_cell_only() {
    let cell = |config: &mut Config| config.cell_id = Some("here".into());
    let Some(mut world) = world("a_cells_own_emitter_tells_of_that_cell_only", cell).await else { return };
    for (app, cell) in [("elsewhere", "there"), ("mine", "here")] {
        world.desire(app, &[app]).await;
        world.start(app, cell).await;
    }
    loop {
        let heard = world.router.hear().await;
        assert_ne!(heard.message["uris"][0], "elsewhere");
        if heard.subject == "router.register" && heard.message["uris"][0] == "mine" {
            break;
        }
    }
    world.end().await;
}
