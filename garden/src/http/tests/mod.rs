//! Every route, by our own client and by hand, against a garden in memory.

mod bodies;
mod hostile;

use std::path::{Path, PathBuf};

use diego_base::serve::Listen;
use garden_client::memory::{MemoryGarden, Script};
use garden_client::{
    Address, ContainerSpec, Garden, HttpGarden, NetOutRule, ProcessIo, ProcessSpec, Properties, Signal,
    WindowSize,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
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
    served_within(Limits::default()).await
}

async fn served_within(limits: Limits) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("garden.sock");
    let listener = Listener::bind(Listen::Unix(socket.clone())).await.unwrap();
    let (memory, shutdown) = (MemoryGarden::new(), CancellationToken::new());
    tokio::spawn(serve_within(limits, listener, Arc::new(memory.clone()), shutdown.clone()));
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
    let error = client.remove_property(h, "x/y").await.unwrap_err();
    assert_eq!(error.to_string(), "cannot Remove a b/c:x/y");
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
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("Date: "));
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
    check("PUT /containers HTTP/1.1\r\n\r\n", 405, "Method Not Allowed").await;
    check("GET /ping HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "a length that is no number").await;
    check("GET /ping HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "unsupported").await;
    check(
        "PUT /containers/h/grace_time HTTP/1.1\r\nContent-Length: 21\r\n\r\n999999999999999999999",
        500,
        "",
    )
    .await;
    let attach = "GET /containers/h/processes/p HTTP/1.1\r\nContent-Length: 300000\r\n\r\n";
    check(attach, 400, "this request has no body").await;
    for length in [super::api::REQUEST_BYTES_MAX as u64 + 1, u64::MAX] {
        for path in ["/containers", "/containers/h/processes"] {
            let long = format!("POST {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            check(&long, 413, "at most 16777216 bytes").await;
        }
    }
    // Little to read, much to hold.
    let many = format!("[{}{{}}]", "{},".repeat(100_000));
    let rules =
        format!("POST /containers/h/net/out/bulk HTTP/1.1\r\nContent-Length: {}\r\n\r\n{many}", many.len());
    check(&rules, 413, "at most 131072 values").await;
    let long = format!("GET /ping?{} HTTP/1.1\r\n\r\n", "x".repeat(head::HEAD_BYTES_MAX));
    check(&long, 431, "the head of the request is longer").await;
}

/// As the public client does it when it has all input at hand; quoting has made it long.
#[tokio::test]
async fn all_of_a_process_s_input_may_come_as_one_message() {
    let memory = MemoryGarden::new();
    memory.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs());
    let spec = ProcessSpec { path: "/bin/app".into(), ..Default::default() };
    let process = memory.run("h", spec, ProcessIo::default()).await.unwrap();
    let input = "\u{1}".repeat(1 << 20);
    let message = wire::ProcessPayload { source: Some(0), data: Some(input.clone()), ..Default::default() };
    let messages = [wire::line(&message).unwrap(), b"{\"source\":0}\n".to_vec()].concat();
    let (stdin, mut process_stdin) = process::input();
    let mut text = String::new();
    let (mut bytes, budget) = (&messages[..], Budget::new(8 << 20));
    let follow = process::follow_messages(&mut bytes, &budget, stdin, process.as_ref());
    let (ended, read) = tokio::join!(follow, process_stdin.read_to_string(&mut text));
    assert!(matches!(ended, process::Ended::OutOfInput));
    assert!(read.unwrap() == input.len() && text == input);
    let (stdin, _process_stdin) = process::input();
    let budget = Budget::new(1 << 20);
    let ended = process::follow_messages(&mut &messages[..], &budget, stdin, process.as_ref()).await;
    assert!(matches!(ended, process::Ended::Gone), "more than all may hold");
}

/// A process whose client breaks off waits for the next: its input is not at its end.
#[tokio::test]
async fn input_ends_only_when_the_client_says_so() {
    let memory = MemoryGarden::new();
    memory.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs());
    let spec = ProcessSpec { path: "/bin/app".into(), ..Default::default() };
    let process = memory.run("h", spec, ProcessIo::default()).await.unwrap();
    let message = wire::ProcessPayload { source: Some(0), data: Some("half".into()), ..Default::default() };
    for (last, expected) in
        [(&b""[..], Err(std::io::ErrorKind::ConnectionAborted)), (b"{\"source\":0}\n", Ok(4))]
    {
        let messages = [&wire::line(&message).unwrap(), last].concat();
        let (stdin, mut process_stdin) = process::input();
        process::follow_messages(&mut &messages[..], &Budget::new(1 << 20), stdin, process.as_ref()).await;
        let mut text = String::new();
        assert_eq!(process_stdin.read_to_string(&mut text).await.map_err(|error| error.kind()), expected);
        assert_eq!(text, if expected.is_ok() { "half" } else { "" });
    }
}

/// As clients do it that do not know how much they will say.
#[tokio::test]
async fn a_request_in_chunks_is_like_any_other() {
    let Served { client, memory, socket, .. } = &served().await;
    let chunks = "POST /containers HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
        a\r\n{\"handle\":\r\n4\r\n\"h\"}\r\n0\r\n\r\n";
    assert_eq!(by_hand(socket, chunks).await, (200, "{\"Handle\":\"h\"}\n".into()));
    assert_eq!(client.containers(&Properties::new()).await.unwrap(), ["h"]);
    memory.script("/bin/app", Script::exits(3));
    let run = "POST /containers/h/processes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
        1c\r\n{\"path\":\"/bin/app\",\"id\":\"p\"}\r\n0\r\n\r\n";
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(run.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("{\"process_id\":\"p\",\"exit_status\":3}\n"), "{answer}");
}

#[tokio::test]
async fn one_connection_carries_many_requests_and_then_a_process() {
    let Served { client, memory, socket, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::exits(0));
    let stream = UnixStream::connect(socket).await.unwrap();
    let mut stream = BufReader::new(stream);
    for (request, answers) in [
        ("GET /ping HTTP/1.1\r\n\r\n", 1),
        ("GET /nonsense HTTP/1.1\r\n\r\n", 1),
        ("GET /containers/none/info HTTP/1.1\r\n\r\n", 1),
        // What is not wanted of a request is not taken for the next one.
        ("GET /ping HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET /evil HTTP/1.1\r\n\r\n..", 1),
        ("PUT /containers/h/properties/a HTTP/1.1\r\nContent-Length: 13\r\n\r\n{\"value\":\"b\"}", 1),
        ("GET /ping HTTP/1.1\r\n\r\nGET /containers/h/properties/a HTTP/1.1\r\n\r\n", 2),
        // The public client reads no error on such a request when the connection is to end after it.
        ("POST /containers/h/processes HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"path\":\"missing\"}", 1),
        ("POST /containers/h/processes HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx", 1),
        ("GET /containers/h/processes/none HTTP/1.1\r\n\r\n", 1),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        for _ in 0..answers {
            let (head, _) = answer(&mut stream).await;
            assert!(!head.contains("Connection: close"), "{request}: {head}");
        }
    }
    let run = "POST /containers/h/processes HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"path\":\"/bin/app\"}";
    stream.write_all(run.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("201 Created") && text.ends_with("\"exit_status\":0}\n"), "{text}");
}

#[tokio::test]
async fn our_client_uses_a_connection_again() {
    let Served { client, .. } = &served_within(Limits { connections: 1, ..Limits::default() }).await;
    for number in 0..20 {
        let spec = ContainerSpec { handle: format!("h{number}"), ..Default::default() };
        client.create(spec).await.unwrap();
        client.info("none").await.unwrap_err();
    }
    assert_eq!(client.containers(&Properties::new()).await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_connection_that_garden_has_closed_is_replaced() {
    let limits = Limits { idle_time: Duration::from_millis(10), ..Limits::default() };
    let Served { client, .. } = &served_within(limits).await;
    for _ in 0..5 {
        client.ping().await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test]
async fn a_client_that_waits_for_a_word_gets_it() {
    let Served { socket, .. } = &served().await;
    let mut stream = BufReader::new(UnixStream::connect(socket).await.unwrap());
    let head = "POST /containers HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut word = [0; 25];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{\"handle\":\"h\"}").await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "{\"Handle\":\"h\"}\n");
    // A body that nobody wants is not asked for.
    let head = "POST /nonsense HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (head, _) = answer(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 404") && head.contains("Connection: close"), "{head}");
}

#[tokio::test]
async fn the_api_is_the_same_over_tcp() {
    let (listen, address) = Listen::loopback().unwrap();
    let listener = Listener::bind(listen).await.unwrap();
    let (memory, shutdown) = (MemoryGarden::new(), CancellationToken::new());
    let server = tokio::spawn(serve(listener, Arc::new(memory.clone()), shutdown.clone()));
    let client = HttpGarden::new(Address::Tcp(address));
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::exits(4).out("hello"));
    let (stdout, out) = sink();
    let io = ProcessIo { stdin: None, stdout: Some(stdout), stderr: None };
    let process = client.run("h", ProcessSpec { path: "/bin/app".into(), ..Default::default() }, io).await;
    assert_eq!((process.unwrap().wait().await, out.await.unwrap().as_str()), (Ok(4), "hello"));
    memory.put_file("h", "/file", b"content");
    let tar = client.stream_out("h", "", "/file").await.unwrap();
    client.stream_in("h", "", "/in", tar).await.unwrap();
    assert_eq!(memory.seen("h").unwrap().files["/in/file"], b"content");
    shutdown.cancel();
    timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
    client.ping().await.unwrap_err();
}

/// The head and the body of one answer.
async fn answer(stream: &mut BufReader<UnixStream>) -> (String, String) {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).await.unwrap() > 0, "closed after {head:?}");
        if let Some(line) = head.lines().last().and_then(|line| line.strip_prefix("Content-Length: ")) {
            length = line.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

async fn by_hand(socket: &Path, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // It may be refused before it has been sent.
    _ = stream.write_all(request.as_bytes()).await;
    _ = stream.shutdown().await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
