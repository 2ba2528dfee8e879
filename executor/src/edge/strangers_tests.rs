//! Clients who have shown no certificate as yet, and mean no good.

use super::*;

#[test]
fn whatever_a_stranger_sends_ends_in_an_error_or_in_waiting() {
    let authority = authority();
    let config = config(&ContainerProxy::default(), &authority.issue(NAME));
    let mut client = rustls::ClientConnection::new(
        Arc::new(authority.client(None, rustls::ALL_VERSIONS)),
        ServerName::try_from(NAME).unwrap(),
    )
    .unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let meet = |bytes: &[u8], piece: usize| {
        let mut session = Session::new(config.clone()).unwrap();
        let (mut waiting, mut plain, mut out) = (Vec::new(), Buffer::default(), Buffer::default());
        for piece in bytes.chunks(piece) {
            waiting.extend_from_slice(piece);
            match session.take(&mut waiting, &mut plain, &mut out) {
                Ok(taken) => drop(waiting.drain(..taken)),
                Err(_) => return (false, out.filled().to_vec()),
            }
        }
        assert!(plain.is_empty());
        (true, out.filled().to_vec())
    };
    for piece in [1, 7, 64, hello.len()] {
        let (goes_on, out) = meet(&hello, piece);
        assert!(goes_on && !out.is_empty(), "pieces of {piece}");
    }
    for at in 0..hello.len() {
        for change in [0x01, 0x80, 0xFF] {
            let mut broken = hello.clone();
            broken[at] ^= change;
            broken.extend_from_slice(&hello);
            for piece in [5, 64, broken.len()] {
                meet(&broken, piece);
            }
        }
    }
    let (goes_on, out) = meet(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 8);
    assert!(!goes_on && out.first() == Some(&21), "an alert: {out:?}");
}

/// However long it goes on, little of it is kept.
#[test]
fn what_a_stranger_sends_before_hands_are_shaken_is_bounded() {
    const MOST_KEPT: usize = 160 << 10;
    let authority = authority();
    let config = config(&ContainerProxy::default(), &authority.issue(NAME));
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3], &length[..], content].concat()
    };
    let (alert, handshake, data) = (21, 22, 23);
    let hello_of = |length: [u8; 3]| [&[1][..], &length, &[0; 16_000]].concat();
    let endless = [
        ("a hello of 16 MiB", record(handshake, &hello_of([255; 3])), record(handshake, &[0; 16_000])),
        ("a hello of 64 KiB", record(handshake, &hello_of([0, 255, 255])), record(handshake, &[0; 16_000])),
        ("a hello in single bytes", record(handshake, &[1, 0, 255]), record(handshake, &[0])),
        ("empty records", Vec::new(), record(handshake, &[])),
        ("changes of ciphers", Vec::new(), record(20, &[1])),
        ("warnings", Vec::new(), record(alert, &[1, 90])),
        ("data", Vec::new(), record(data, &[0; 16_000])),
        ("a record of 64 KiB", vec![handshake, 3, 3, 255, 255], vec![0; 16_000]),
        ("renegotiation without an end", Vec::new(), record(handshake, &[0, 0, 0, 0])),
    ];
    for (what, begin, piece) in endless {
        let mut session = Session::new(config.clone()).unwrap();
        let (mut waiting, mut plain, mut out) = (begin, Buffer::default(), Buffer::default());
        for _ in 0..2000 {
            waiting.extend_from_slice(&piece);
            let taken = session.take(&mut waiting, &mut plain, &mut out);
            assert!(waiting.len() + out.len() <= MOST_KEPT && plain.is_empty(), "{what}: {}", waiting.len());
            let Ok(taken) = taken else { break };
            drop(waiting.drain(..taken));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_shake_hands_makes_room_soon_when_there_is_little() {
    const PLACES: usize = 8;
    let name = "who_does_not_shake_hands_makes_room_soon_when_there_is_little";
    let Some(container) = Container::start(name) else { return };
    let authority = authority();
    let proxy = ContainerProxy { connections_max: PLACES, ..ContainerProxy::default() };
    let edges = Edges::new(&proxy, Errands::start().unwrap()).unwrap();
    let issued = authority.issue(NAME);
    let shown = Shown { to_routers: &issued, to_containers: &issued };
    let app_ip = [127, 0, 0, 1].into();
    let place = Place { network: container.at(), app: app_ip, has_ipv6: false };
    let fronts = [Front { app_port: 8080, port: 61001 }];
    let edge = edges.open("h", place, &fronts, shown, CancellationToken::new()).await.unwrap();
    let inside = Arc::new(Namespace::open(container.at()).unwrap());
    let connect = async || {
        let socket = edges.errands.stream(&inside, app_ip).await.unwrap();
        let socket = tokio::net::TcpSocket::from_std_stream(socket);
        socket.connect(([127, 0, 0, 1], 61001).into()).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..PLACES + 2 {
        silent.push(connect().await);
    }
    let began = Instant::now();
    let mut client = tls(connect().await, authority.client(None, rustls::ALL_VERSIONS)).await.unwrap();
    // There is no app.
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(9), "after {:?}", began.elapsed());
    drop(silent);
    edge.close(Duration::from_secs(10)).await;
}

impl Container {
    /// With an address of its own, and so few ports to connect from.
    fn with_few_ports(&self, address: IpAddr, ports: u16) {
        let script = format!(
            "/bin/busybox ip address add {address}/32 dev lo && \
             echo 40000 {} > /proc/sys/net/ipv4/ip_local_port_range",
            40_000 + ports - 1
        );
        let pid = self.0.id().to_string();
        let enter = ["nsenter", "-t", &pid, "-n", "/bin/busybox", "sh", "-c", &script];
        assert!(Command::new("/bin/busybox").args(enter).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_come_and_go_do_not_use_up_the_containers_ports() {
    const PORTS: u16 = 20;
    let name = "clients_that_come_and_go_do_not_use_up_the_containers_ports";
    let Some(container) = Container::start(name) else { return };
    let app_ip: IpAddr = [10, 254, 0, 2].into();
    container.with_few_ports(app_ip, PORTS);
    let authority = authority();
    let edges = Edges::new(&ContainerProxy::default(), Errands::start().unwrap()).unwrap();
    let issued = authority.issue(NAME);
    let shown = Shown { to_routers: &issued, to_containers: &issued };
    let place = Place { network: container.at(), app: app_ip, has_ipv6: false };
    let fronts = [Front { app_port: 8080, port: 61001 }];
    let edge = edges.open("h", place, &fronts, shown, CancellationToken::new()).await.unwrap();
    let inside = Arc::new(Namespace::open(container.at()).unwrap());
    let app = TcpListener::from_std(edges.errands.listener(&inside, 8080, false).await.unwrap()).unwrap();
    let serve = tokio::spawn(async move {
        while let Ok((mut connection, _)) = app.accept().await {
            connection.write_all(b"hello").await.unwrap();
            // It is the client that ends it.
            let _ = connection.read(&mut [0]).await;
        }
    });
    for number in 0..2 * PORTS {
        let socket = edges.errands.stream(&inside, app_ip).await.unwrap();
        let socket = tokio::net::TcpSocket::from_std_stream(socket);
        // Each from elsewhere: it is not their ports that run out.
        socket.bind(([127, 9, 9, number as u8], 0).into()).unwrap();
        let stream = socket.connect((app_ip, 61001).into()).await.unwrap();
        let mut stream = tls(stream, authority.client(None, rustls::ALL_VERSIONS)).await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap_or_else(|error| panic!("client {number}: {error}"));
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
    serve.abort();
    edge.close(Duration::from_secs(10)).await;
}
