//! Against a stand-in for the forwarder, over real connections.

mod stand_in;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use diego_base::tls::{Files, ServerTls};
use loggregator::{Config, Counts, Forwarder, Message, QUEUE_BYTES_MAX, Stream, Value};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use stand_in::{Counter, Envelope, Gauge, Log, Measure, Received, Said, Timer, stand_in};
use tokio_util::sync::CancellationToken;

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn until(received: &Received, count: usize) -> Vec<Envelope> {
    for _ in 0..600 {
        let all = received.all();
        if all.len() >= count {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} of {count} envelopes came within 30 s", received.all().len());
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
    let all = until(&received, messages.len()).await;
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
    let all = until(&received, 10_020).await;
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
    assert_eq!(until(&received, kept as usize).await.len() as u64, kept, "what was kept arrives");
    say(&forwarder, b"and what is new");
    until(&received, kept as usize + 1).await;
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
    let all = until(&received, 1).await;
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
