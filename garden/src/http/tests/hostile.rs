//! Clients that mean no good, or know no better.

use garden_client::wire::ProcessPayload;
use tokio::task::JoinSet;

use super::*;

const SOON: Duration = Duration::from_secs(10);

async fn closed(mut stream: UnixStream) -> String {
    let mut text = String::new();
    _ = timeout(SOON, stream.read_to_string(&mut text)).await.expect("it is closed");
    text
}

#[tokio::test]
async fn who_asks_slowly_is_not_waited_for() {
    let head_time = Duration::from_millis(100);
    let body_time = Duration::from_millis(100);
    let Served { socket, client, .. } =
        &served_within(Limits { head_time, body_time, ..Limits::default() }).await;
    let silent = UnixStream::connect(socket).await.unwrap();
    let mut halfway = UnixStream::connect(socket).await.unwrap();
    halfway.write_all(b"GET /pi").await.unwrap();
    let mut body = UnixStream::connect(socket).await.unwrap();
    body.write_all(b"POST /containers HTTP/1.1\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
    let mut run = UnixStream::connect(socket).await.unwrap();
    run.write_all(b"POST /containers/h/processes HTTP/1.1\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
    let slow = UnixStream::connect(socket).await.unwrap();
    let dripping = tokio::spawn(async move {
        let mut slow = slow;
        while slow.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(closed(silent).await, "");
    assert_eq!(closed(halfway).await, "");
    assert!(closed(body).await.starts_with("HTTP/1.1 408 "));
    assert!(closed(run).await.starts_with("HTTP/1.1 408 "));
    timeout(SOON, dripping).await.unwrap().unwrap();
    client.ping().await.unwrap();
}

#[tokio::test]
async fn when_places_are_short_who_waits_longest_for_a_request_goes() {
    let Served { socket, client, .. } = &served_within(Limits { connections: 4, ..Limits::default() }).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(UnixStream::connect(socket).await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.ping().await.unwrap();
    assert_eq!(closed(idle.remove(0)).await, "");
    for stream in &mut idle {
        stream.write_all(b"GET /ping HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0, "the others are served still");
    }
}

#[tokio::test]
async fn beyond_the_places_connections_are_refused_politely_until_there_is_room() {
    let Served { socket, client, memory, .. } =
        &served_within(Limits { connections: 3, ..Limits::default() }).await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs());
    let mut processes = Vec::new();
    for _ in 0..3 {
        let spec = ProcessSpec { path: "/bin/app".into(), ..Default::default() };
        processes.push(client.run("h", spec, ProcessIo::default()).await.unwrap());
    }
    for _ in 0..5 {
        let refused = closed(UnixStream::connect(socket).await.unwrap()).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("\"Type\":\"ServiceUnavailableError\""), "{refused}");
    }
    processes.pop();
    let pinged = async {
        while client.ping().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, pinged).await.unwrap();
}

#[tokio::test]
async fn what_all_requests_hold_together_is_bounded() {
    let Served { socket, client, .. } =
        &served_within(Limits { request_bytes: 1 << 20, ..Limits::default() }).await;
    let mut greedy = JoinSet::new();
    for _ in 0..8 {
        let socket = socket.clone();
        greedy.spawn(async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(b"POST /containers HTTP/1.1\r\nContent-Length: 700000\r\n\r\n").await.unwrap();
            _ = stream.write_all(&vec![b' '; 600_000]).await;
            let mut text = String::new();
            // Those that are let in wait for the rest.
            _ = timeout(Duration::from_secs(2), stream.read_to_string(&mut text)).await;
            text
        });
    }
    let answers = greedy.join_all().await;
    let refused = answers.iter().filter(|text| text.starts_with("HTTP/1.1 503 ")).count();
    assert!(refused >= 6, "{answers:?}");
    client.create(ContainerSpec { handle: "h".repeat(60_000), ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn a_thousand_connections_disturb_nobody() {
    let Served { socket, client, .. } =
        &served_within(Limits { connections: 600, ..Limits::default() }).await;
    let mut open = Vec::new();
    for _ in 0..1000 {
        open.push(UnixStream::connect(socket).await.unwrap());
    }
    let started = std::time::Instant::now();
    client.ping().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    drop(open);
    client.ping().await.unwrap();
}

/// Whatever it was doing, its process goes on and its place is free again.
#[tokio::test]
async fn clients_that_vanish_leave_nothing_but_the_process() {
    let Served { socket, client, memory, .. } =
        &served_within(Limits { connections: 8, ..Limits::default() }).await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs().out("text"));
    for number in 0..20 {
        let run = format!(
            "POST /containers/h/processes HTTP/1.1\r\nContent-Length: 30\r\n\r\n{{\"path\":\"/bin/app\",\"id\":\"p{number:02}\"}} "
        );
        let mut process = BufReader::new(UnixStream::connect(socket).await.unwrap());
        process.write_all(run.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\"}\n") {
            process.read_line(&mut head).await.unwrap();
        }
        let stream_id = head.split("stream_id\":\"").nth(1).unwrap().trim_end_matches("\"}\n");
        let mut output = UnixStream::connect(socket).await.unwrap();
        let fetch =
            format!("GET /containers/h/processes/p{number:02}/attaches/{stream_id}/stdout HTTP/1.1\r\n\r\n");
        output.write_all(fetch.as_bytes()).await.unwrap();
        output.read_exact(&mut [0; 10]).await.unwrap();
        let mut tar = UnixStream::connect(socket).await.unwrap();
        let head =
            b"PUT /containers/h/files?destination=/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
        tar.write_all(head).await.unwrap();
    }
    assert_eq!(memory.running("h").len(), 20);
    client.ping().await.unwrap();
}

/// It has said all it has to say, and listens still.
#[tokio::test]
async fn a_connection_closed_in_one_direction_is_served_in_the_other() {
    let Served { socket, client, memory, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    memory.script("/bin/app", Script::runs().out("text"));
    let mut process = BufReader::new(UnixStream::connect(socket).await.unwrap());
    let run = "POST /containers/h/processes HTTP/1.1\r\nContent-Length: 28\r\n\r\n{\"path\":\"/bin/app\",\"id\":\"p\"}";
    process.write_all(run.as_bytes()).await.unwrap();
    process.write_all(b"{\"process_id\":\"p\",\"source\":0}\n").await.unwrap();
    process.shutdown().await.unwrap();
    let mut output = UnixStream::connect(socket).await.unwrap();
    let mut first = String::new();
    while !first.ends_with("\"}\n") {
        process.read_line(&mut first).await.unwrap();
    }
    output.write_all(b"GET /containers/h/processes/p/attaches/1/stdout HTTP/1.1\r\n\r\n").await.unwrap();
    output.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let attached = client.attach("h", "p", ProcessIo::default()).await.unwrap();
    attached.signal(Signal::Kill).await.unwrap();
    assert!(closed(output).await.ends_with("text"));
    let last: ProcessPayload =
        timeout(SOON, wire::read_message(&mut process)).await.unwrap().unwrap().unwrap();
    assert_eq!(last.exit_status, Some(137));
}

#[tokio::test]
async fn a_body_without_an_end_is_no_request() {
    let Served { socket, client, memory, .. } = &served().await;
    client.create(ContainerSpec { handle: "h".into(), ..Default::default() }).await.unwrap();
    for body in [
        "Content-Length: 100\r\n\r\n{\"value\":\"x\"}",
        "Transfer-Encoding: chunked\r\n\r\nd\r\n{\"value\":\"x\"}\r\n",
        "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ] {
        let (status, _) =
            by_hand(socket, &format!("PUT /containers/h/properties/p HTTP/1.1\r\n{body}")).await;
        assert_eq!(status, 400, "{body}");
    }
    let (status, _) =
        by_hand(socket, "PUT /containers/h/files?destination=/ HTTP/1.1\r\nContent-Length: 1024\r\n\r\nabc")
            .await;
    assert_eq!(status, 500);
    assert!(memory.seen("h").unwrap().files.is_empty());
    assert!(client.property("h", "p").await.is_err());
}
