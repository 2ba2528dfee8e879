//! Containers' lives, from reservation to nothing left, on a garden in memory.

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use bbs_models::{Check, CheckDefinition, EnvironmentVariable, File};
use executor::*;
use garden_client::memory::{Call, Script};
use garden_client::{ContainerSpec, Garden, Properties};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use world::*;

#[tokio::test(start_paused = true)]
async fn a_container_is_reserved_runs_completes_and_leaves_nothing() {
    let mut world = world();
    world.garden.script("/app", Script::exits_after(Duration::from_secs(5), 0).out("hello\n"));
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    let left = world.executor.remaining_resources();
    assert_eq!((left.memory_mb, left.disk_mb, left.containers), (900, 1800, 9));
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
    assert_eq!(world.executor.delete("a").await, Err(Error::ContainerNotFound));
    let said = [
        "APP: Cell cell-1 creating container for instance a",
        "APP: Cell cell-1 successfully created container for instance a",
        "APP: hello",
        "APP: Exit status 0",
        "APP: Cell cell-1 stopping instance a",
        "APP: Cell cell-1 destroying container for instance a",
        "APP: Cell cell-1 successfully destroyed container for instance a",
    ];
    let said: Vec<_> = said.iter().filter(|line| !line.contains("stopping")).collect();
    assert_eq!(world.said().iter().collect::<Vec<_>>(), said);
}

#[tokio::test(start_paused = true)]
async fn a_crash_says_why() {
    let mut world = world();
    world.garden.script("/app", Script::exits_after(Duration::from_secs(1), 42));
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a", "Failed a: APP: Exited with status 42"]).await;
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_at_once_still_ran() {
    let mut world = world();
    world.garden.script("/app", Script::exits(1));
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a", "Failed a: APP: Exited with status 1"]).await;
}

#[tokio::test(start_paused = true)]
async fn running_out_of_memory_is_the_reason() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    world.garden.add_event("a", "Out of memory");
    world.garden.exit("a", "/app", 137);
    world
        .expect(&["Failed a: APP: Exited with status 137 (out of memory): SIGKILL, memory limit 100M"])
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_graceful_and_its_completion_says_so() {
    let mut world = world();
    world.garden.script("/app", Script::runs().ignores_terminate());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    let started = tokio::time::Instant::now();
    world.executor.stop("a").await.unwrap();
    world.executor.stop("a").await.unwrap();
    world.expect(&["Failed a: exceeded graceful shutdown interval (stopped)"]).await;
    assert_eq!(started.elapsed().as_secs(), 10);
    let signals = world.garden.calls().into_iter().filter(|call| call.starts_with("signal"));
    assert_eq!(signals.collect::<Vec<_>>(), ["signal a /app Terminate", "signal a /app Kill"]);
    assert!(world.garden.handles() == ["a"], "its files stay until it is deleted");
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_delete_stops_first_and_waits() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    let (one, two) = tokio::join!(world.executor.delete("a"), world.executor.delete("a"));
    assert_eq!((one, two), (Ok(()), Ok(())));
    world.expect(&["Failed a: cancelled (stopped)"]).await;
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_setup_runs_no_action() {
    let mut world = world();
    world.garden.script("/setup", Script::exits(3));
    world.garden.script("/app", Script::runs());
    world.start("a", RunInfo { setup: Some(action("/setup")), ..recipe("/app") });
    world.expect(&["Reserved a", "Failed a: APP: Exited with status 3"]).await;
    assert_eq!(world.garden.seen("a").unwrap().processes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_recipe_without_action_fails() {
    let mut world = world();
    world.start("a", RunInfo { action: None, ..recipe("") });
    world.expect(&["Reserved a", "Failed a: container cannot have empty action"]).await;
}

#[tokio::test(start_paused = true)]
async fn garden_s_refusal_is_the_reason_and_may_be_tried_elsewhere() {
    let mut world = world();
    let error = garden_client::Error::Other("no image nothing:latest in registry".into());
    world.garden.fail(Call::Create, error, 1);
    world.start("a", recipe("/app"));
    let failed = "Failed a: failed to create container: no image nothing:latest in registry (retryable)";
    world.expect(&["Reserved a", failed]).await;
    assert!(matches!(world.executor.files("a", "/x").await, Err(Error::ContainerNotFound)));
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_not_destroyed_is_kept_and_deleted_again() {
    let mut world = world();
    world.garden.script("/app", Script::exits(0));
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    world.garden.fail(Call::Destroy, garden_client::Error::Other("device busy".into()), 1);
    let error = world.executor.delete("a").await.unwrap_err();
    assert_eq!(error.to_string(), "device busy");
    assert_eq!(world.executor.remaining_resources().containers, 9, "it still takes what it took");
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_never_run_can_be_stopped_and_deleted() {
    let mut world = world();
    assert!(world.allocate("a").is_empty());
    world.executor.stop("a").await.unwrap();
    world.expect(&["Reserved a", "Failed a: stopped-before-running (stopped)"]).await;
    world.executor.delete("a").await.unwrap();
    assert!(world.allocate("b").is_empty());
    world.executor.delete("b").await.unwrap();
    world.expect(&["Reserved b", "Failed b: stopped-before-running (stopped)"]).await;
    world.nothing_is_left().await;
    assert_eq!(world.executor.stop("b").await, Err(Error::ContainerNotFound));
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_garden_creates_is_obeyed_when_it_has() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.garden.hold(Call::Create);
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a"]).await;
    until(|| world.garden.calls().contains(&"create a".to_string())).await;
    world.executor.stop("a").await.unwrap();
    world.garden.release(Call::Create);
    world.expect(&["Failed a: stopped-before-running (stopped)"]).await;
    assert!(world.garden.seen("a").unwrap().processes.is_empty());
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_refused_for_what_is_short() {
    let world = world();
    let request = |guid: &str, memory_mb, disk_mb| AllocationRequest {
        guid: guid.into(),
        resource: Resource { memory_mb, disk_mb, max_pids: 0 },
        tags: Tags::new(),
    };
    let requests = vec![
        request("fits", 1000, 1),
        request("fits", 0, 0),
        request("", 0, 0),
        request("memory", 1, 0),
        request("both", 1, 2000),
    ];
    let failures = world.executor.allocate(requests);
    let told: Vec<_> =
        failures.iter().map(|failure| (failure.guid.as_str(), failure.reason.as_str())).collect();
    let wanted = [
        ("fits", "container guid not available"),
        ("", "container guid not specified"),
        ("memory", "insufficient resources: memory"),
        ("both", "insufficient resources: disk, memory"),
    ];
    assert_eq!(told, wanted);
    let many = (0..10).map(|n| request(&n.to_string(), 0, 0)).collect();
    let failures = world.executor.allocate(many);
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].reason, "insufficient resources: containers");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_exact_whoever_comes_at_once() {
    let world = std::sync::Arc::new(world());
    world.garden.script("/app", Script::runs());
    let lives = (0..60).map(|n| {
        let world = world.clone();
        tokio::spawn(async move {
            let guid = n.to_string();
            if world.allocate(&guid).is_empty() {
                if n % 3 != 0 {
                    world.run(&guid, recipe("/app"));
                }
                world.executor.delete(&guid).await.unwrap();
            }
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.unwrap();
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn an_instance_that_never_listens_fails_with_the_check_s_last_word() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let port = free_port().await;
    world.start("a", RunInfo { start_timeout_ms: 300, ..checked(port, None) });
    world.expect(&["Reserved a"]).await;
    let failed = world.event().await;
    assert!(failed.starts_with("Failed a: Instance never healthy after "), "{failed}");
    assert!(failed.contains(": Timed out after 300ms ("), "{failed}");
    let refused = format!(
        "waiting for startup check to succeed: failed to make TCP connection to 127.0.0.1:{port}: dial tcp 127.0.0.1:{port}: connect: connection refused"
    );
    assert!(failed.ends_with(&refused), "{failed}");
    assert!(world.garden.running("a").is_empty(), "the action is stopped");
    let said = world.said();
    assert!(said.contains(&"APP: Starting health monitoring of container".to_string()), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("HEALTH: Timed out after")), "{said:?}");
    assert!(said.iter().any(|line| line.ends_with("startup health check never passed.")), "{said:?}");
}

#[tokio::test]
async fn an_instance_runs_once_it_listens_and_fails_when_it_does_not_any_more() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    world.start("a", checked(port, None));
    world.expect(&["Reserved a", "Running a"]).await;
    drop(listener);
    let failed = world.event().await;
    let wanted =
        "Failed a: Instance became unhealthy: Liveness check unsuccessful: failed to make TCP connection";
    assert!(failed.starts_with(wanted), "{failed}");
    assert!(world.said().contains(&"APP: Container became unhealthy".to_string()));
}

#[tokio::test]
async fn readiness_only_makes_routable_or_not() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ready = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = ready.local_addr().unwrap();
    world.start("a", checked(app.local_addr().unwrap().port(), Some(address.port())));
    world.expect(&["Reserved a", "Running a (not routable)", "Routable a true"]).await;
    drop(ready);
    world.expect(&["Routable a false"]).await;
    let _ready = TcpListener::bind(address).await.unwrap();
    world.expect(&["Routable a true"]).await;
    world.executor.delete("a").await.unwrap();
    world.expect(&["Completed a:  (stopped)"]).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn an_http_check_passes_with_200_only() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let routes = axum::Router::new()
        .route("/up", axum::routing::get(|| async { "fine" }))
        .route("/moved", axum::routing::get(|| async { axum::response::Redirect::temporary("/up") }))
        .route("/down", axum::routing::get(|| async { axum::http::StatusCode::SERVICE_UNAVAILABLE }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    for (guid, path, passes) in [("a", "/up", true), ("b", "/moved", true), ("c", "/down", false)] {
        let check = Check::Http { port, path: path.into(), request_timeout_ms: 0, interval_ms: 0 };
        let definition =
            CheckDefinition { checks: vec![check], log_source: String::new(), readiness_checks: vec![] };
        let start_timeout_ms = if passes { 60_000 } else { 300 };
        let run_info = RunInfo { check_definition: Some(definition), start_timeout_ms, ..recipe("/app") };
        world.start(guid, run_info);
        world.expect(&[&format!("Reserved {guid}")]).await;
        let event = world.event().await;
        if passes {
            assert_eq!(event, format!("Running {guid}"));
        } else {
            let told = format!(
                "failed to make HTTP request to '/down' on port {port}: received status code 503 in "
            );
            assert!(event.contains(&told), "{event}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_monitor_action_is_run_as_processes() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.garden.script("/check", Script::exits(1).out("not yet\n"));
    let run_info = RunInfo { monitor: Some(action("/check")), start_timeout_ms: 60_000, ..recipe("/app") };
    world.start("a", run_info);
    world.expect(&["Reserved a"]).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    world.garden.script("/check", Script::exits(0));
    world.expect(&["Running a"]).await;
    world.garden.script("/check", Script::exits(1));
    world.expect(&["Failed a: Instance became unhealthy: "]).await;
    assert!(world.garden.running("a").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_action_that_ends_well_leaves_it_to_its_monitor_what_to_make_of_that() {
    let mut world = world();
    world.garden.script("/app", Script::exits_after(Duration::from_secs(3), 0));
    world.garden.script("/check", Script::exits(0));
    let started = tokio::time::Instant::now();
    world.start("a", RunInfo { monitor: Some(action("/check")), ..recipe("/app") });
    world.expect(&["Reserved a", "Running a"]).await;
    // It serves from the background.
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.garden.script("/check", Script::exits(1));
    world.expect(&["Failed a: Instance became unhealthy: "]).await;
    assert!(started.elapsed().as_secs() > 60);
}

#[tokio::test(start_paused = true)]
async fn with_sidecars_and_where_nobody_watches_an_action_that_ends_well_is_the_end() {
    let mut world = world();
    world.garden.script("/app", Script::exits_after(Duration::from_secs(3), 0));
    world.garden.script("/sidecar", Script::runs());
    world.garden.script("/check", Script::exits(0));
    let sidecars = vec![Sidecar { action: action("/sidecar"), memory_mb: 1, disk_mb: 1 }];
    world.start("a", RunInfo { monitor: Some(action("/check")), sidecars, ..recipe("/app") });
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    let check = Check::Tcp { port: 1, connect_timeout_ms: 0, interval_ms: 0 };
    let definition =
        CheckDefinition { checks: vec![], log_source: String::new(), readiness_checks: vec![check] };
    world.start("b", RunInfo { check_definition: Some(definition), ..recipe("/app") });
    world.expect(&["Reserved b", "Running b (not routable)", "Completed b: "]).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_life_left_without_a_record_is_destroyed() {
    let world = world();
    let owned = Properties::from([("executor:owner".to_string(), "executor".to_string())]);
    let spec = ContainerSpec { handle: "left".into(), properties: owned, ..Default::default() };
    world.garden.create(spec).await.unwrap();
    world.garden.create(ContainerSpec { handle: "foreign".into(), ..Default::default() }).await.unwrap();
    let (executor, shutdown) = (world.executor.clone(), CancellationToken::new());
    let running = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { executor.run(shutdown).await }
    });
    until(|| world.garden.handles() == ["foreign"]).await;
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_container_that_vanished_is_completed() {
    let mut world = world();
    let shutdown = background(&world);
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    world.garden.lose("a");
    let failed = world.event().await;
    assert!(failed.starts_with("Failed a: "), "{failed}");
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_has_completed_waits_to_be_collected_whatever_becomes_of_it_in_garden() {
    let mut world = world();
    let shutdown = background(&world);
    world.garden.script("/app", Script::exits(0));
    for guid in ["kept", "lost"] {
        world.start(guid, recipe("/app"));
        world.expect(&[&format!("Reserved {guid}"), &format!("Running {guid}")]).await;
        world.expect(&[&format!("Completed {guid}: ")]).await;
    }
    world.garden.lose("lost");
    // Long enough for many looks of the reaper.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.garden.handles(), ["kept"], "its files may be asked for");
    assert_eq!(world.executor.remaining_resources().containers, 8, "both take what they took");
    for guid in ["kept", "lost"] {
        let State::Completed(result) = world.executor.get(guid).unwrap().state else { panic!("{guid}") };
        assert!(!result.failed, "{guid}");
        world.executor.delete(guid).await.unwrap();
    }
    world.nothing_is_left().await;
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_cell_promises_what_it_is_told_to_and_only_then_more_than_there_is() {
    let told = world();
    let asked = world_with(|config| config.disk_follows_garden = true);
    let stops = [background(&told), background(&asked)];
    for world in [&told, &asked] {
        assert!(world.allocate("a").is_empty());
        world.garden.set_disk_bytes(100 << 20);
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    let disk_mb = |world: &World| {
        (world.executor.total_resources().disk_mb, world.executor.remaining_resources().disk_mb)
    };
    assert_eq!(disk_mb(&told), (2000, 1800), "what has expired takes what it took until it is deleted");
    assert_eq!(disk_mb(&asked), (100, 0), "never less than nothing");
    stops.iter().for_each(CancellationToken::cancel);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_nobody_runs_expires_whatever_clocks_say() {
    let clock = std::sync::Arc::new(diego_base::clock::ManualClock::at(0));
    let mut world = world_with(|config| config.clock = clock.clone());
    let shutdown = background(&world);
    assert!(world.allocate("a").is_empty());
    world.expect(&["Reserved a"]).await;
    clock.advance(Duration::from_secs(86_400));
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(world.executor.get("a").unwrap().state, State::Reserved, "its time is not over");
    world.expect(&["Failed a: expired container"]).await;
    let request = RunRequest { guid: "a".into(), run_info: recipe("/app"), tags: Tags::new() };
    assert_eq!(world.executor.run_container(request), Err(Error::InvalidTransition));
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_executor_leaves_nothing_where_nothing_is_to_be_left() {
    let mut world = world_with(|config| config.destroy_containers_on_stop = true);
    let executor = world.executor.clone();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { executor.run(shutdown).await }
    });
    world.garden.script("/app", Script::runs().ignores_terminate());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    assert!(world.allocate("reserved").is_empty());
    shutdown.cancel();
    running.await.unwrap();
    assert!(world.garden.handles().is_empty());
    let written = std::fs::read_dir(world.state.path().join("executor-containers")).unwrap();
    let is_record = |name: &std::ffi::OsStr| !name.to_string_lossy().starts_with('.');
    assert_eq!(written.filter(|entry| is_record(&entry.as_ref().unwrap().file_name())).count(), 0);
    assert!(world.allocate("b").is_empty());
    let request = RunRequest { guid: "b".into(), run_info: recipe("/app"), tags: Tags::new() };
    assert_eq!(world.executor.run_container(request), Err(Error::ShuttingDown));
}

#[tokio::test(start_paused = true)]
async fn garden_is_asked_for_what_the_recipe_says() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().pem();
    let mut world = world_with(|config| {
        config.instance_identity = Some(InstanceIdentity {
            ca_certificate_pem: ca,
            ca_private_key_pem: key.serialize_pem(),
            validity: Duration::from_secs(86_400),
        });
        config.clock = std::sync::Arc::new(PausedClock::start());
        config.trusted_system_certificates = Some("/host/certificates".into());
    });
    world.garden.script("/app", Script::runs());
    let run_info = RunInfo {
        cpu_weight: 50,
        ports: vec![
            PortMapping { container_port: 8080, ..PortMapping::default() },
            PortMapping { container_port: 2222, ..PortMapping::default() },
            PortMapping { container_port: 8080, ..PortMapping::default() },
        ],
        env: vec![EnvironmentVariable { name: "A".into(), value: "1".into() }],
        trusted_system_certificates_path: "/etc/cf-system-certificates".into(),
        network_properties: BTreeMap::from([("policy".into(), "x".into())]),
        volume_mounted_files: vec![File { path: "/db/password".into(), content: "secret".into() }],
        ..recipe("/app")
    };
    world.start("a", run_info);
    world.expect(&["Reserved a", "Running a"]).await;
    let seen = world.garden.seen("a").unwrap();
    let limits = &seen.spec.limits;
    assert_eq!(limits.memory.limit_in_bytes, 100 << 20);
    assert_eq!((limits.disk.byte_hard, limits.disk.scope), (200 << 20, 1));
    assert_eq!(limits.cpu.limit_in_shares, 512);
    assert_eq!(seen.properties["executor:owner"], "executor");
    assert_eq!(seen.properties["network.policy"], "x");
    let env = [
        "A=1",
        "CF_SYSTEM_CERT_PATH=/etc/cf-system-certificates",
        "CF_INSTANCE_CERT=/etc/cf-instance-credentials/instance.crt",
        "CF_INSTANCE_KEY=/etc/cf-instance-credentials/instance.key",
    ];
    assert_eq!(seen.spec.env, env);
    let mounted = |path: &str| {
        let mount = seen.spec.bind_mounts.iter().find(|mount| mount.dst_path == path).unwrap();
        assert_eq!(mount.mode, 0, "{path} is read-only");
        std::path::PathBuf::from(&mount.src_path)
    };
    let file = mounted("/etc/cf-service-bindings").join("db/password");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "secret");
    let certificate = mounted("/etc/cf-instance-credentials").join("instance.crt");
    assert!(std::fs::read_to_string(certificate).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let certificate = mounted("/etc/cf-instance-credentials").join("instance.crt");
    let first = std::fs::read_to_string(&certificate).unwrap();
    tokio::time::sleep(Duration::from_secs(86_400 - 1800 + 1)).await;
    assert_ne!(std::fs::read_to_string(&certificate).unwrap(), first, "it is renewed before it expires");
    assert_eq!(mounted("/etc/cf-system-certificates").to_str(), Some("/host/certificates"));
    let ports = world.executor.get("a").unwrap().ports;
    let ports: Vec<_> = ports.iter().map(|port| (port.container_port, port.host_port)).collect();
    assert_eq!(ports, [(8080, 61001), (2222, 61002)]);
    assert!(seen.processes[0].env.contains(&"CF_INSTANCE_ADDR=127.0.0.1:61001".to_string()));
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_reaches_the_logs_and_garden() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    let tags = BTreeMap::from([("space".to_string(), "s".to_string())]);
    let update = UpdateRequest { guid: "a".into(), metric_tags: Some(tags), internal_routes: None };
    world.executor.update(update).await.unwrap();
    world.garden.exit("a", "/app", 0);
    world.expect(&["Completed a: "]).await;
    let last = world.executor.logs().recent("app", 1).remove(0);
    assert_eq!(last.tags["space"], "s");
    assert_eq!(last.tags["source_id"], "app");
    assert!(world.garden.seen("a").unwrap().properties["log_config"].contains("space"));
    let update = UpdateRequest { guid: "nobody".into(), ..UpdateRequest::default() };
    assert_eq!(world.executor.update(update).await, Err(Error::ContainerNotFound));
}

#[tokio::test(start_paused = true)]
async fn files_can_be_read_until_the_delete() {
    use tokio::io::AsyncReadExt;
    let mut world = world();
    world.garden.script("/app", Script::exits(0));
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    world.garden.put_file("a", "/tmp/result", b"the result");
    let mut tar = Vec::new();
    world.executor.files("a", "/tmp/result").await.unwrap().read_to_end(&mut tar).await.unwrap();
    assert!(tar.windows(10).any(|window| window == b"the result"));
}

#[tokio::test(start_paused = true)]
async fn metrics_are_those_of_created_containers() {
    let mut world = world();
    world.garden.script("/app", Script::runs().out("12345\n"));
    assert!(world.allocate("reserved").is_empty());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved reserved", "Reserved a", "Running a"]).await;
    let mut metrics = garden_client::Metrics::default();
    metrics.memory.total_usage_toward_limit = 7;
    metrics.disk.exclusive_bytes_used = 8;
    metrics.disk.total_bytes_used = 1 << 30;
    world.garden.set_metrics("a", metrics);
    let metrics = world.executor.metrics().await.unwrap();
    assert_eq!(metrics.keys().collect::<Vec<_>>(), ["a"]);
    let metrics = &metrics["a"];
    assert_eq!((metrics.memory_usage_bytes, metrics.memory_limit_bytes), (7, 100 << 20));
    assert_eq!((metrics.disk_usage_bytes, metrics.disk_limit_bytes), (8, 200 << 20));
    assert_eq!(metrics.log_bytes, 5);
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_metrics_while_they_are_measured_shares_them() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    let asked = || world.garden.calls().iter().filter(|call| call.starts_with("metrics")).count();
    world.garden.hold(Call::Metrics);
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.garden.release(Call::Metrics);
    };
    let ask = async || world.executor.metrics().await.unwrap().len();
    assert_eq!(tokio::join!(ask(), ask(), release), (1, 1, ()));
    assert_eq!(asked(), 1);
    assert_eq!((ask().await, asked()), (1, 2), "later there is something else to be seen");
}

#[tokio::test(start_paused = true)]
async fn a_long_reason_is_cut() {
    let mut world = world();
    let error = garden_client::Error::Other("x".repeat(20_000));
    world.garden.fail(Call::Create, error, 1);
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a"]).await;
    assert_eq!(world.event().await.len(), "Failed a:  (retryable)".len() + FAILURE_REASON_BYTES_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_too_slow_is_told_so() {
    let mut world = world();
    for _ in 0..=EVENTS_BEHIND_MAX / 2 {
        assert!(world.allocate("a").is_empty());
        world.executor.delete("a").await.unwrap();
    }
    assert_eq!(world.event().await, "missed 2");
    assert_eq!(world.event().await, "Reserved a");
}

fn background(world: &World) -> CancellationToken {
    let (executor, shutdown) = (world.executor.clone(), CancellationToken::new());
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move { executor.run(shutdown).await }
    });
    shutdown
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes true");
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Checked every 20 ms.
fn checked(port: u16, ready_port: Option<u16>) -> RunInfo {
    let check = |port| Check::Tcp { port, connect_timeout_ms: 0, interval_ms: 20 };
    let definition = CheckDefinition {
        checks: vec![check(port)],
        log_source: String::new(),
        readiness_checks: ready_port.map(check).into_iter().collect(),
    };
    RunInfo { check_definition: Some(definition), ..recipe("/app") }
}
