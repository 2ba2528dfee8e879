//! Checks that a cell makes itself: from within a container's network, of apps that answer in every way.

mod world;

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use bbs_models::{Check, CheckDefinition};
use executor::*;
use garden_client::memory::Script;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use world::network::Network;
use world::*;

fn checked(check: Check) -> RunInfo {
    let check_definition = Some(CheckDefinition { checks: vec![check], ..CheckDefinition::default() });
    RunInfo { check_definition, start_timeout_ms: 60_000, ..recipe("/app") }
}

fn tcp(port: u16, interval_ms: u64) -> Check {
    Check::Tcp { port, connect_timeout_ms: 0, interval_ms }
}

fn http(port: u16, request_timeout_ms: u64) -> Check {
    Check::Http { port, path: "/health".into(), request_timeout_ms, interval_ms: 3_600_000 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_checked_from_within_its_network() {
    let Some(network) = Network::start("a_container_is_checked_from_within_its_network") else { return };
    let mut world = world();
    world.garden.set_container_ip(Ipv4Addr::LOCALHOST.into());
    world.garden.set_network_namespace(network.at());
    world.garden.script("/app", Script::runs());
    // Its backlog takes whoever comes. The same port outside is nobody's.
    let listening = network.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).join().unwrap();
    let port = listening.local_addr().unwrap().port();
    world.start("a", checked(tcp(port, 20)));
    world.expect(&["Reserved a", "Running a"]).await;
    drop(listening);
    let failed = world.event().await;
    let wanted = format!(
        "Failed a: Instance became unhealthy: Liveness check unsuccessful: failed to make TCP connection to \
         127.0.0.1:{port}: dial tcp 127.0.0.1:{port}: connect: connection refused"
    );
    assert_eq!(failed, wanted);
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

/// One that holds so many connections, taken by nobody.
fn listener_that_holds(network: &Network, backlog: i32) -> TcpListener {
    let listen = move || {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let (family, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
        rustix::net::bind(&socket, &std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&socket, backlog).unwrap();
        TcpListener::from(socket)
    };
    network.inside(listen).join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_takes_nobody_has_its_time_and_no_more() {
    let Some(network) = Network::start("an_app_that_takes_nobody_has_its_time_and_no_more") else { return };
    for (connect_timeout_ms, takes_some, outcome) in
        [(300, false, "timed out after 0.30 seconds"), (20_000, true, "connection refused")]
    {
        let mut world = world();
        world.garden.set_container_ip(Ipv4Addr::LOCALHOST.into());
        world.garden.set_network_namespace(network.at());
        world.garden.script("/app", Script::runs());
        let listening = listener_that_holds(&network, 4);
        let port = listening.local_addr().unwrap().port();
        world.start("a", checked(Check::Tcp { port, connect_timeout_ms, interval_ms: 20 }));
        world.expect(&["Reserved a", "Running a"]).await;
        if takes_some {
            // By now nobody can get in; a client that waits tries again after a second.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let taken = tokio::task::spawn_blocking(move || {
                (0..20).for_each(|_| drop(listening.accept().unwrap()));
                listening
            });
            let listening = tokio::time::timeout(Duration::from_secs(20), taken).await.unwrap().unwrap();
            assert_eq!(world.executor.get("a").unwrap().state, State::Running);
            drop(listening);
        }
        let failed = world.event().await;
        assert!(failed.contains("Liveness check unsuccessful") && failed.contains(outcome), "{failed}");
        world.executor.delete("a").await.unwrap();
        world.nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_looks_after_a_container_that_is_gone() {
    let Some(network) = Network::start("nobody_looks_after_a_container_that_is_gone") else { return };
    let mut world = world();
    world.garden.set_container_ip(Ipv4Addr::LOCALHOST.into());
    world.garden.set_network_namespace(network.at());
    world.garden.script("/app", Script::runs());
    let listening = listener_that_holds(&network, 1000);
    let port = listening.local_addr().unwrap().port();
    world.start("a", checked(tcp(port, 20)));
    world.expect(&["Reserved a", "Running a"]).await;
    // As long as it is there, it is visited again and again.
    let visited = tokio::task::spawn_blocking(move || {
        (0..5).for_each(|_| drop(listening.accept().unwrap()));
        listening
    });
    let listening = visited.await.unwrap();
    listening.set_nonblocking(true).unwrap();
    world.executor.delete("a").await.unwrap();
    while listening.accept().is_ok() {}
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(listening.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_whose_checks_hang_holds_up_no_other() {
    let mut world = world_with(|config| config.work.checks = 1);
    world.garden.script("/app", Script::runs());
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = app.local_addr().unwrap().port();
    let hour = 3_600_000;
    let checks = (0..20).map(|_| http(port, hour)).collect();
    let check_definition = Some(CheckDefinition { checks, ..CheckDefinition::default() });
    world.start("hangs", RunInfo { check_definition, ..recipe("/app") });
    world.expect(&["Reserved hangs"]).await;
    // It was asked, and is not answered.
    let (app, asked) = tokio::task::spawn_blocking(move || {
        let asked = app.accept().unwrap();
        (app, asked)
    })
    .await
    .unwrap();
    world.start("a", checked(tcp(port, hour)));
    world.expect(&["Reserved a", "Running a"]).await;
    world.executor.delete("hangs").await.unwrap();
    world.executor.delete("a").await.unwrap();
    drop((app, asked));
    world.nothing_is_left().await;
}

/// An app that reads a request, answers this, and then says nothing more.
async fn answering(answer: Vec<u8>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = client.read(&mut request).await;
                let _ = client.write_all(&answer).await;
                // Until the client goes.
                while let Ok(1..) = client.read(&mut request).await {}
            });
        }
    });
    port
}

/// What becomes of an instance whose app answers so.
async fn met_with(answer: impl Into<Vec<u8>>, request_timeout_ms: u64, start_timeout_ms: u64) -> String {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let port = answering(answer.into()).await;
    world.start("a", RunInfo { start_timeout_ms, ..checked(http(port, request_timeout_ms)) });
    world.expect(&["Reserved a"]).await;
    let met = world.event().await.replace(&port.to_string(), "PORT");
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
    met
}

#[tokio::test]
async fn an_app_that_has_answered_well_is_healthy_however_its_answer_ends() {
    const MINUTE: u64 = 60_000;
    let body = "x".repeat(3 << 20);
    for (answer, timeout_ms) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_string(), 2 * MINUTE),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_string(),
            2 * MINUTE,
        ),
        // The connection stays open: its end is known by other means.
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_string(), 2 * MINUTE),
        // More than is read.
        (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()), 2 * MINUTE),
        (format!("HTTP/1.1 200 OK\r\n\r\n{body}"), 2 * MINUTE),
        // It hangs within its body, or its body never ends.
        ("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nok".to_string(), 300),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n".to_string(), 300),
        ("HTTP/1.0 200 OK\r\n\r\nok".to_string(), 300),
    ] {
        let head = answer[..answer.len().min(90)].to_string();
        assert_eq!(met_with(answer, timeout_ms, MINUTE).await, "Running a", "{head}");
    }
}

#[tokio::test]
async fn an_app_that_does_not_answer_well_is_told_so() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(1000));
    let asked = "failed to make HTTP request to '/health' on port PORT";
    let table = [
        ("", format!("{asked}: timed out after 0.10 seconds")),
        ("HTTP/1.1 200 O", format!("{asked}: timed out after 0.10 seconds")),
        (&long, format!("{asked}: connection refused")),
        (&many, format!("{asked}: connection refused")),
        ("SSH-2.0-rubbish\r\n\r\n", format!("{asked}: connection refused")),
        ("HTTP/1.1 302 Found\r\nLocation: /health\r\n\r\n", format!("{asked}: connection refused")),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n",
            format!("{asked}: received status code 302 in "),
        ),
        ("HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n", format!("{asked}: received status code 503 in ")),
        ("HTTP/1.1 204 No Content\r\n\r\n", format!("{asked}: received status code 204 in ")),
    ];
    // The first attempt is over before the time for all of them is.
    let meetings = table.map(|(answer, wanted)| async move { (met_with(answer, 100, 5_000).await, wanted) });
    for (met, wanted) in futures_util::future::join_all(meetings).await {
        assert!(met.starts_with("Failed a: Instance never healthy after "), "{met}");
        assert!(met.contains(": Timed out after 5s ("), "{met}");
        assert!(met.contains(&wanted), "{wanted} in {met}");
    }
}

/// Of this process, in user's and in kernel's mode.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// `cargo test --release -p executor --test checks -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, of a minute"]
async fn what_checking_1000_instances_every_2_seconds_costs() {
    const INSTANCES: usize = 1000;
    const NETWORKS: usize = 50;
    let name = "what_checking_1000_instances_every_2_seconds_costs";
    let world = world_with(|config| {
        config.total =
            CellResources { memory_mb: 1 << 20, disk_mb: 1 << 20, containers: 2 * INSTANCES as u64 };
    });
    world.garden.set_container_ip(Ipv4Addr::LOCALHOST.into());
    world.garden.script("/app", Script::runs());
    let (mut networks, mut stops) = (Vec::new(), Vec::new());
    for number in 0..INSTANCES {
        if number % (INSTANCES / NETWORKS) == 0 {
            let Some(network) = Network::start(name) else { return };
            world.garden.set_network_namespace(network.at());
            let listener = network.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).unwrap());
            let listener = listener.join().unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (stop, mut stopped) = oneshot::channel::<()>();
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        taken = listener.accept() => drop(taken.unwrap()),
                        _ = &mut stopped => return,
                    }
                }
            });
            networks.push(network);
            stops.push(stop);
        }
        world.start(&format!("i{number}"), checked(tcp(8080, 2_000)));
    }
    let is_running = |container: &Container| container.state == State::Running;
    while world.executor.list().iter().filter(|container| is_running(container)).count() < INSTANCES {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (ticks, began) = (cpu_ticks(), Instant::now());
    tokio::time::sleep(Duration::from_secs(40)).await;
    let percent = (cpu_ticks() - ticks) as f64 / began.elapsed().as_secs_f64();
    println!("figure checks_1000_cpu_percent {percent:.2} % of one core, the apps' own accepting with it");
}
