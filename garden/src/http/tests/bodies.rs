//! Bodies that go from a connection to a pipe, or the other way, without passing through here, whatever they are framed in
//! and however they arrive.

use std::io::{Read, Write};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::containerizer::liveness::Progress;
use crate::containerizer::{owner::Refused, streams, tar_out};
use crate::socket::Straight;

async fn unix_pair() -> (Socket, UnixStream) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let stream = |fd: std::os::fd::OwnedFd| UnixStream::from_std(fd.into()).unwrap();
    (Socket::Unix(stream(ours)), stream(theirs))
}

async fn tcp_pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Socket::Tcp(listener.accept().await.unwrap().0), theirs)
}

/// What arrives of the body of a request that is sent in pieces of this size, and how the feeding ended.
async fn fed(
    (socket, mut client): (Socket, impl tokio::io::AsyncWrite + Unpin + Send + 'static),
    request: Vec<u8>,
    size: usize,
) -> (Vec<u8>, io::Result<()>, bool) {
    tokio::spawn(async move {
        for piece in request.chunks(size) {
            client.write_all(piece).await.unwrap();
        }
    });
    let connection = Connection::new(socket);
    connection.read_head(&Budget::new(1 << 20)).await.unwrap().unwrap();
    let (read, write) = streams::pipe().unwrap();
    let collect = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::from(read).read_to_end(&mut bytes).unwrap();
        bytes
    });
    let body = Box::new(Straight(Box::new(connection.body())));
    let outcome = streams::feed(write, body, &Progress::default()).await;
    let ended = connection.skip_body().await;
    (collect.await.unwrap(), outcome, ended)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31) >> 3) as u8).collect()
}

fn in_chunks(content: &[u8], size: usize) -> Vec<u8> {
    let mut request = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in content.chunks(size) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

fn whole(content: &[u8]) -> Vec<u8> {
    let head = format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", content.len());
    [head.as_bytes(), content].concat()
}

#[tokio::test]
async fn bodies_arrive_whole_by_unix_and_tcp_in_chunks_and_without() {
    for length in [0, 1, 5_000, 3_000_001] {
        let content = content(length);
        for request in [whole(&content), in_chunks(&content, 32 << 10), in_chunks(&content, 777)] {
            for size in [request.len(), 100_003, 4096] {
                let by_unix = fed(unix_pair().await, request.clone(), size).await;
                let by_tcp = fed(tcp_pair().await, request.clone(), size).await;
                for (bytes, outcome, ended) in [by_unix, by_tcp] {
                    outcome.unwrap();
                    assert!(bytes == content, "{length} bytes in pieces of {size}");
                    assert!(ended, "the next request follows");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_no_end() {
    let content = content(500_000);
    for request in [whole(&content), in_chunks(&content, 32 << 10)] {
        for length in [120, 20_000, 300_000] {
            let (bytes, outcome, _) = fed(unix_pair().await, request[..length].to_vec(), length).await;
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert!(content.starts_with(&bytes));
        }
    }
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_feeding() {
    let (socket, mut client) = unix_pair().await;
    let connection = Connection::new(socket);
    let sent = tokio::spawn(async move { client.write_all(&whole(&content(5_000_000))).await });
    connection.read_head(&Budget::new(1 << 20)).await.unwrap().unwrap();
    let (read, write) = streams::pipe().unwrap();
    drop(read);
    let body = Box::new(Straight(Box::new(connection.body())));
    let outcome = streams::feed(write, body, &Progress::default()).await;
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(connection);
    assert!(sent.await.unwrap().is_err());
}

/// What a client gets of an archive that is written to a pipe and ends so.
async fn sent(
    (socket, mut client): (Socket, impl tokio::io::AsyncRead + Unpin + Send + 'static),
    content: Vec<u8>,
    chunks: bool,
    ends: Result<(), Refused>,
) -> (Vec<u8>, io::Result<()>) {
    let received = tokio::spawn(async move {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    let (read, write) = streams::pipe().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::fs::File::from(write).write_all(&content).unwrap();
        end.send(ends).unwrap();
    });
    let tar = tar_out::open(read, ended, Duration::from_secs(60)).await.unwrap();
    let outcome = tar::send(&Connection::new(socket), chunks, true, tar).await;
    (received.await.unwrap(), outcome)
}

/// The content of an answer in chunks; the rest of it, if it has no end.
fn dechunked(answer: &[u8]) -> (Vec<u8>, bool) {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let (mut rest, mut content) = (&answer[head..], Vec::new());
    loop {
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else { return (content, false) };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        let (from, to) = (line + 2, line + 2 + length);
        let (chunk, end) = (&rest[from..to.min(rest.len())], rest.get(to..to + 2));
        content.extend_from_slice(chunk);
        match end {
            Some(end) => assert_eq!(end, b"\r\n"),
            None => return (content, false),
        }
        rest = &rest[to + 2..];
        if length == 0 {
            assert_eq!(rest, b"");
            return (content, true);
        }
    }
}

#[tokio::test]
async fn archives_leave_whole_by_unix_and_tcp_in_chunks_and_without() {
    for length in [1, 5_000, 3_000_001] {
        let content = content(length);
        let by_unix = sent(unix_pair().await, content.clone(), true, Ok(())).await;
        let by_tcp = sent(tcp_pair().await, content.clone(), true, Ok(())).await;
        for (answer, outcome) in [by_unix, by_tcp] {
            outcome.unwrap();
            assert!(dechunked(&answer) == (content.clone(), true), "{length}");
        }
        let (answer, outcome) = sent(unix_pair().await, content.clone(), false, Ok(())).await;
        outcome.unwrap();
        assert!(answer.ends_with(&[b"\r\n\r\n", &content[..]].concat()), "{length}");
    }
}

#[tokio::test]
async fn an_archive_that_fails_half_way_has_no_last_chunk() {
    let content = content(300_000);
    let refused = Refused::Other { message: "disk on fire".into() };
    let (answer, outcome) = sent(unix_pair().await, content.clone(), true, Err(refused)).await;
    assert_eq!(outcome.unwrap_err().to_string(), "disk on fire");
    assert!(dechunked(&answer) == (content, false));
}

#[tokio::test]
async fn a_client_in_the_middle_of_an_archive_hears_why_it_is_not_taken() {
    let listener = Listener::bind(Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let Listener::Tcp(tcp) = &listener else { unreachable!() };
    let address = tcp.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::new(MemoryGarden::new()), CancellationToken::new()));
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let sent = tokio::spawn(async move {
        let head = "PUT /containers/none/files?destination=%2F HTTP/1.1\r\nContent-Length: 20000000\r\n\r\n";
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&vec![0; 20_000_000]).await
    });
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("unknown handle: none"));
    sent.await.unwrap().unwrap();
}
