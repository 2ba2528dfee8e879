//! Every route, by our own client and by hand, against a garden in memory.

use std::path::PathBuf;

use diego_base::serve::Listen;
use garden_client::memory::{MemoryGarden, Script};
use garden_client::{
    Address, ContainerSpec, Garden, HttpGarden, NetOutRule, ProcessIo, ProcessSpec, Properties, Signal,
    WindowSize,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::*;

struct Served {
    memory: MemoryGarden,
    client: HttpGarden,
    socket: PathBuf,
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
}

async fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("garden.sock");
    let listener = Listener::bind(Listen::Unix(socket.clone())).await.unwrap();
    let (memory, shutdown) = (MemoryGarden::new(), CancellationToken::new());
    tokio::spawn(serve(listener, Arc::new(memory.clone()), shutdown.clone()));
    let client = HttpGarden::new(Address::Unix(socket.clone()));
    Served { memory, client, socket, shutdown, _directory: directory }
}

/// Keeps what is written to it.
fn sink() -> (garden_client::Writer, tokio::task::JoinHandle<String>) {
    let (write, mut read) = tokio::io::duplex(64);
    let text = tokio::spawn(async move {
        let mut text = String::new();
        read.read_to_string(&mut text).await.unwrap();
        text
    });
    (Box::new(write), text)
}

#[tokio::test]
async fn every_call_survives_the_wire() {
    let Served { client, memory, .. } = &served().await;
    client.ping().await.unwrap();
    assert_eq!(client.capacity().await.unwrap(), memory.capacity().await.unwrap());

    let properties: Properties = [("owner".to_owned(), "ex ecutor&=".to_owned())].into();
    let spec = ContainerSpec { handle: "a b/c".into(), properties: properties.clone(), ..Default::default() };
    assert_eq!(client.create(spec.clone()).await.unwrap(), "a b/c");
    let h = "a b/c";
    assert_eq!(client.create(spec).await.unwrap_err().to_string(), "Handle 'a b/c' already in use");
    assert_eq!(client.containers(&properties).await.unwrap(), [h]);
    let nobody = [("owner".to_owned(), "nobody".to_owned())].into();
    assert_eq!(client.containers(&nobody).await.unwrap(), [] as [&str; 0]);

    assert_eq!(client.info(h).await.unwrap(), memory.info(h).await.unwrap());
    let handles = [h.to_owned(), "none".to_owned()];
    let bulk = client.bulk_info(&handles).await.unwrap();
    assert_eq!(bulk, memory.bulk_info(&handles).await.unwrap());
    assert_eq!(bulk["none"], Err(Error::ContainerNotFound { handle: "none".into() }));
    assert_eq!(client.bulk_metrics(&handles).await.unwrap(), memory.bulk_metrics(&handles).await.unwrap());
    assert_eq!(client.metrics(h).await.unwrap(), memory.metrics(h).await.unwrap());
    assert_eq!(client.current_limits(h).await.unwrap(), Default::default());

    client.set_property(h, "x/y", "1 &2").await.unwrap();
    assert_eq!(client.property(h, "x/y").await.unwrap(), "1 &2");
    assert_eq!(client.properties(h).await.unwrap().len(), 2);
    client.remove_property(h, "x/y").await.unwrap();
    client.property(h, "x/y").await.unwrap_err();
    client.set_grace_time(h, Duration::from_secs(7)).await.unwrap();
    assert_eq!(memory.seen(h).unwrap().spec.grace_time, 7_000_000_000);

    let (host, container) = client.net_in(h, 0, 8080).await.unwrap();
    assert!(host > 0 && container == 8080);
    client.bulk_net_out(h, &[NetOutRule { protocol: 1, log: true, ..Default::default() }]).await.unwrap();
    assert_eq!(memory.seen(h).unwrap().spec.net_out[0].protocol, 1);

    client.stop(h, true).await.unwrap();
    client.destroy(h).await.unwrap();
    assert_eq!(client.destroy(h).await, Err(Error::ContainerNotFound { handle: h.into() }));
    assert_eq!(client.info(h).await, Err(Error::ContainerNotFound { handle: h.into() }));
}

#[tokio::test]
async fn tar_streams_go_both_ways() {
    let Served { client, memory, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.create(ContainerSpec { handle: "m".into(), ..Default::default() }).await.unwrap();
    let content = vec![b'x'; 300_000];
    memory.put_file("m", "/tmp/file", &content);
    let tar = client.stream_out("m", "root", "/tmp/file").await.unwrap();
    client.stream_in("h", "vcap", "/home", tar).await.unwrap();
    let seen = memory.seen("h").unwrap();
    assert_eq!(seen.files["/home/file"], content);
    assert_eq!(seen.stream_users, ["vcap"]);
    assert!(client.stream_out("h", "", "/none").await.is_err());
}

#[tokio::test]
async fn a_process_brings_its_output_and_then_its_status() {
    let Served { client, memory, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::exits(3).out("hello out").err("hello err"));
    let ((stdout, out), (stderr, err)) = (sink(), sink());
    let io = ProcessIo { stdin: None, stdout: Some(stdout), stderr: Some(stderr) };
    let process =
        client.run("h", ProcessSpec { path: "/bin/app".into(), ..Default::default() }, io).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 3);
    assert_eq!(process.wait().await.unwrap(), 3, "asked again");
    assert_eq!((out.await.unwrap().as_str(), err.await.unwrap().as_str()), ("hello out", "hello err"));
}

#[tokio::test]
async fn signals_reach_a_process_by_whoever_is_attached() {
    let Served { client, memory, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs());
    let spec = || ProcessSpec { path: "/bin/app".into(), id: "p 1".into(), ..Default::default() };
    let process = client.run("h", spec(), ProcessIo::default()).await.unwrap();
    let attached = client.attach("h", process.id(), ProcessIo::default()).await.unwrap();
    assert_eq!(attached.id(), "p 1");
    attached.set_window_size(WindowSize { columns: 80, rows: 24 }).await.unwrap();
    attached.signal(Signal::Terminate).await.unwrap();
    assert_eq!((process.wait().await, attached.wait().await), (Ok(143), Ok(143)));

    let refused = |result: garden_client::Result<Box<dyn garden_client::Process>>| result.err().unwrap();
    let none = client.attach("h", "none", ProcessIo::default()).await;
    assert_eq!(refused(none), Error::ProcessNotFound { process_id: "none".into() });
    let missing =
        client.run("h", ProcessSpec { path: "missing".into(), ..Default::default() }, ProcessIo::default());
    assert!(matches!(refused(missing.await), Error::ExecutableNotFound(_)));
}

#[tokio::test]
async fn a_shutdown_detaches_clients() {
    let Served { client, memory, shutdown, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs());
    let spec = ProcessSpec { path: "/bin/app".into(), ..Default::default() };
    let process = client.run("h", spec, ProcessIo::default()).await.unwrap();
    shutdown.cancel();
    assert!(process.wait().await.is_err());
    assert_eq!(memory.running("h").len(), 1, "the process itself goes on");
}

/// As the public client does it: the connection is taken over after the head, which must not announce its end.
#[tokio::test]
async fn a_process_stream_by_hand() {
    let Served { client, memory, socket, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs().out("text"));
    let mut stream = BufReader::new(UnixStream::connect(socket).await.unwrap());
    let body = r#"{"path":"/bin/app","id":"p","rlimits":{},"image":{}}"#;
    let request =
        format!("POST /containers/h/processes HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n", body.len());
    // In pieces, and with the first message on the heels of the request.
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::task::yield_now().await;
    let rest = format!("\r\n{body}{{\"process_id\":\"p\",\"source\":0}}\n");
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut lines = stream.lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "HTTP/1.1 201 Created");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "Content-Type: application/json");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "Transfer-Encoding: chunked");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"{"process_id":"p","stream_id":"1"}"#);
    lines.get_mut().write_all(b"{\"process_id\":\"p\",\"signal\":1}").await.unwrap();
    lines.get_mut().write_all(b"\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"{"process_id":"p","exit_status":137}"#);
    assert_eq!(lines.next_line().await.unwrap(), None);

    let (status, text) =
        by_hand(socket, "GET /containers/h/processes/p/attaches/1/stdout HTTP/1.1\r\n\r\n").await;
    assert_eq!((status, text.as_str()), (200, "text"), "output is kept for a client that comes late");
    let (_, text) =
        by_hand(socket, "GET /containers/h/processes/p/attaches/99/stdout HTTP/1.1\r\n\r\n").await;
    assert_eq!(text, "");
}

#[tokio::test]
async fn bad_requests_are_told_so() {
    let Served { socket, .. } = &served().await;
    let check = async |request: &str, expected: u16, part: &str| {
        let (status, text) = by_hand(socket, request).await;
        assert_eq!(status, expected, "{request}: {text}");
        assert!(text.contains(part), "{request}: {text}");
    };
    check("GET /nonsense HTTP/1.1\r\nHost: x\r\n\r\n", 404, "404 page not found").await;
    let unknown = r#"{"Type":"ContainerNotFoundError","Message":"unknown handle: h","Handle":"h","#;
    check("GET /containers/h/info HTTP/1.1\r\nHost: x\r\n\r\n", 404, unknown).await;
    check("POST /containers HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{", 500, "\"Message\":").await;
    check("POST /containers/h/processes HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx", 500, "expected value")
        .await;
    let chunked = "POST /containers/h/processes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    check(chunked, 500, "a body with a length").await;
    let long = format!("POST /containers/h/processes HTTP/1.1\r\nContent-Length: {}\r\n\r\n", u64::MAX);
    check(&long, 500, "a body with a length").await;
}

async fn by_hand(socket: &PathBuf, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
