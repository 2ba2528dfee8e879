//! Against a forwarder that reads envelopes with messages written down from the published ones, over real connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::post;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::{Files, ServerTls};
use loggregator::{Config, Counts, Forwarder, Message, QUEUE_BYTES_MAX, Stream, Value};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_util::sync::CancellationToken;
use tonic::server::{ClientStreamingService, Grpc};
use tonic::{Response, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(message, repeated, tag = "1")]
    batch: Vec<Envelope>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(int64, tag = "1")]
    timestamp: i64,
    #[prost(string, tag = "2")]
    source_id: String,
    #[prost(string, tag = "8")]
    instance_id: String,
    #[prost(btree_map = "string, string", tag = "9")]
    tags: BTreeMap<String, String>,
    #[prost(oneof = "Said", tags = "4, 5, 6, 7")]
    said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Said {
    #[prost(message, tag = "4")]
    Log(Log),
    #[prost(message, tag = "5")]
    Counter(Counter),
    #[prost(message, tag = "6")]
    Gauge(Gauge),
    #[prost(message, tag = "7")]
    Timer(Timer),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Log {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
    #[prost(int32, tag = "2")]
    stream: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Counter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    delta: u64,
    #[prost(uint64, tag = "3")]
    total: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Gauge {
    #[prost(btree_map = "string, message", tag = "1")]
    metrics: BTreeMap<String, Measure>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Measure {
    #[prost(string, tag = "1")]
    unit: String,
    #[prost(double, tag = "2")]
    value: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Timer {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    start: i64,
    #[prost(int64, tag = "3")]
    stop: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {}

/// What was received, batch by batch.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Vec<Envelope>>>>);

impl Received {
    fn all(&self) -> Vec<Envelope> {
        self.0.lock().unwrap().concat()
    }

    async fn until(&self, count: usize) -> Vec<Envelope> {
        for _ in 0..600 {
            let all = self.all();
            if all.len() >= count {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} of {count} envelopes came within 30 s", self.all().len());
    }
}

impl ClientStreamingService<Batch> for Received {
    type Response = Done;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Done>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Batch>>) -> Self::Future {
        let received = self.clone();
        Box::pin(async move {
            let mut batches = request.into_inner();
            while let Some(batch) = batches.message().await? {
                received.0.lock().unwrap().push(batch.batch);
            }
            Ok(Response::new(Done {}))
        })
    }
}

async fn batch_sender(
    State(received): State<Received>,
    request: Request,
) -> http::Response<tonic::body::Body> {
    Grpc::new(ProstCodec::<Done, Batch>::default()).client_streaming(received, request).await
}

async fn stand_in(address: SocketAddr, tls: Option<ServerTls>) -> (SocketAddr, Received, CancellationToken) {
    let received = Received::default();
    let router = Router::new()
        .route("/loggregator.v2.Ingress/BatchSender", post(batch_sender))
        .with_state(received.clone());
    let stop = CancellationToken::new();
    let listener = Listener::bind(Listen::Tcp(address)).await.unwrap();
    let address = listener.tcp_address().unwrap();
    tokio::spawn(serve(listener, router, tls, stop.clone()));
    (address, received, stop)
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn say(forwarder: &Forwarder, payload: &[u8]) {
    let source = forwarder.source("app", "0", [("source_type", "APP")]);
    forwarder.emit(1, &source, &Message::Log { payload, stream: Stream::Out });
}

#[tokio::test]
async fn every_kind_of_envelope_arrives_as_it_was_meant() {
    let (address, received, _stop) = stand_in(anywhere(), None).await;
    let (forwarder, sender) = Forwarder::new(Config::new(address.to_string(), "rep")).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(sender.run(stop.clone().cancelled_owned()));
    let long = "v".repeat(300);
    let source = forwarder.source("app-guid", "3", [("source_type", "APP/PROC/WEB"), ("long", &long)]);
    let now = 1_700_000_000_000_000_000;
    let payload = vec![0xff; 61_440];
    let gauge = [
        Value { name: "cpu", value: 12.5, unit: "percentage" },
        Value { name: "memory", value: 0.0, unit: "bytes" },
    ];
    let messages = [
        Message::Log { payload: &payload, stream: Stream::Err },
        Message::Gauge(&gauge),
        Message::Delta { name: "requests", delta: 7 },
        Message::Total { name: "rx_bytes", total: u64::MAX },
        Message::Timer { name: "spike", start_ns: now, stop_ns: -1 },
    ];
    for message in &messages {
        forwarder.emit(now, &source, message);
    }
    let all = received.until(messages.len()).await;
    for envelope in &all {
        assert_eq!(
            (envelope.timestamp, &*envelope.source_id, &*envelope.instance_id),
            (now, "app-guid", "3")
        );
        let tags: Vec<_> = envelope.tags.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(tags, [("long", &*long), ("origin", "rep"), ("source_type", "APP/PROC/WEB")]);
    }
    let measure = |unit: &str, value| Measure { unit: unit.into(), value };
    let expected = [
        Said::Log(Log { payload: payload.clone(), stream: 1 }),
        Said::Gauge(Gauge {
            metrics: BTreeMap::from([
                ("cpu".into(), measure("percentage", 12.5)),
                ("memory".into(), measure("bytes", 0.0)),
            ]),
        }),
        Said::Counter(Counter { name: "requests".into(), delta: 7, total: 0 }),
        Said::Counter(Counter { name: "rx_bytes".into(), delta: 0, total: u64::MAX }),
        Said::Timer(Timer { name: "spike".into(), start: now, stop: -1 }),
    ];
    assert_eq!(all.into_iter().filter_map(|envelope| envelope.said).collect::<Vec<_>>(), expected);
    say(&forwarder, b"the last words");
    stop.cancel();
    running.await.unwrap();
    assert_eq!(received.all().len(), messages.len() + 1, "what waited at the end was sent");
    say(&forwarder, b"too late");
    assert_eq!(forwarder.counts(), Counts { emitted: 7, sent: 6, dropped: 1 });
}

#[tokio::test]
async fn many_lines_go_in_batches_and_in_order() {
    let (address, received, _stop) = stand_in(anywhere(), None).await;
    let config = Config { batch_envelopes: 50, ..Config::new(address.to_string(), "") };
    let (forwarder, sender) = Forwarder::new(config).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(sender.run(stop.clone().cancelled_owned()));
    for number in 0..10_020_u32 {
        say(&forwarder, &number.to_be_bytes());
    }
    let all = received.until(10_020).await;
    for (number, envelope) in all.iter().enumerate() {
        let payload = (number as u32).to_be_bytes().to_vec();
        assert_eq!(envelope.said, Some(Said::Log(Log { payload, stream: 0 })));
        assert!(!envelope.tags.contains_key("origin"));
    }
    let sizes: Vec<_> = received.0.lock().unwrap().iter().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| *size <= 50), "{sizes:?}");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_forwarder_that_is_away_costs_nobody_time_and_only_so_much_memory() {
    let (address, _, stop_first) = stand_in(anywhere(), None).await;
    stop_first.cancel();
    let (forwarder, sender) = Forwarder::new(Config::new(address.to_string(), "rep")).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(sender.run(stop.clone().cancelled_owned()));
    let line = vec![b'x'; 60_000];
    for _ in 0..1_000 {
        say(&forwarder, &line);
    }
    let counts = forwarder.counts();
    let kept = counts.emitted - counts.dropped;
    assert!(kept * 60_000 <= QUEUE_BYTES_MAX as u64 && kept > 250, "{counts:?}");
    // It comes to the address that the first one left, which may take a moment to be free.
    let (_, received, _stop) = loop {
        match std::net::TcpListener::bind(address) {
            Ok(free) => {
                drop(free);
                break stand_in(address, None).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(received.until(kept as usize).await.len() as u64, kept, "what was kept arrives");
    say(&forwarder, b"and what is new");
    received.until(kept as usize + 1).await;
    stop.cancel();
    running.await.unwrap();
}

/// An authority, and a certificate of it for whoever is named.
fn certify(dir: &Path, name: &str) -> Files {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let files = Files { cert: dir.join("cert"), key: dir.join("key"), ca: Some(dir.join("ca")) };
    std::fs::write(dir.join("ca"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    std::fs::write(&files.cert, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

#[tokio::test]
async fn both_ends_prove_who_they_are() {
    let (dir, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = certify(dir.path(), "metron");
    let (address, received, _stop) = stand_in(anywhere(), Some(ServerTls::load(&files).unwrap())).await;
    let stranger = certify(others.path(), "metron");
    let stop = CancellationToken::new();
    let start = |tls: Files| {
        let config = Config { tls: Some(tls), ..Config::new(address.to_string(), "rep") };
        let (forwarder, sender) = Forwarder::new(config).unwrap();
        tokio::spawn(sender.run(stop.clone().cancelled_owned()));
        forwarder
    };
    let of_stranger = start(Files { ca: files.ca.clone(), ..stranger.clone() });
    let to_stranger = start(Files { ca: stranger.ca, ..files.clone() });
    let ours = start(files);
    for (forwarder, words) in [(&of_stranger, "stranger"), (&to_stranger, "deceived"), (&ours, "ours")] {
        say(forwarder, words.as_bytes());
    }
    let all = received.until(1).await;
    assert_eq!(all[0].said, Some(Said::Log(Log { payload: b"ours".to_vec(), stream: 0 })));
    stop.cancel();
}

#[tokio::test]
async fn what_cannot_be_used_is_said_at_once() {
    let refused = |config| Forwarder::new(config).err().unwrap().to_string();
    let bad = refused(Config::new("no where", "rep"));
    assert_eq!(bad, "no where is no address of a forwarder of logs");
    let missing = Files { cert: "/nonexistent".into(), key: "/nonexistent".into(), ca: None };
    let bad = refused(Config { tls: Some(missing), ..Config::new("127.0.0.1:1", "rep") });
    assert_eq!(bad, "cannot read /nonexistent to speak to the forwarder of logs at 127.0.0.1:1");
}
