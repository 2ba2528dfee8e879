//! The route emitter between the real BBS and a real NATS server, on the loopback interface. The cell and the router
//! are what the test says; the router hears everything that is published.

use std::future::Future;
use std::path::Path;
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
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;
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
        let server = Command::new(NATS_SERVER)
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

/// A client that subscribed to all there is.
struct Router {
    lines: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

#[derive(Debug)]
struct Heard {
    subject: String,
    reply: Option<String>,
    message: Value,
}

impl Router {
    async fn connect(port: u16) -> Router {
        let stream = until(|| async { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
        let (reader, mut writer) = stream.into_split();
        let connect = json!({ "verbose": false, "user": "nats", "pass": "p@ss \"word" });
        writer.write_all(format!("CONNECT {connect}\r\nSUB > 1\r\nPING\r\n").as_bytes()).await.unwrap();
        let mut router = Router { lines: BufReader::new(reader), writer };
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
    let nats = Nats::start(free);
    let router = Router::connect(free).await;
    let mut config = Config::new(bbs.clone(), vec!["127.0.0.1:1".into(), format!("nats://127.0.0.1:{free}")]);
    config.nats_credentials = Credentials { user: "nats".into(), password: "p@ss \"word".into() };
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
