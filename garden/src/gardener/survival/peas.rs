//! Peas of a garden that was killed.

use garden_client::{ImageRef, ProcessLimits};

use super::*;

impl Place {
    fn pea(&self, id: &str, script: &str) -> ProcessSpec {
        let image = self.directory.path().join("pea");
        if !image.exists() {
            make_root(&image);
        }
        let uri = format!("preloaded:{}", image.display());
        let shared = BindMount {
            src_path: self.shared().display().to_string(),
            dst_path: "/shared".into(),
            mode: 1,
            ..BindMount::default()
        };
        ProcessSpec {
            image: ImageRef { uri, ..ImageRef::default() },
            bind_mounts: vec![shared],
            ..process(id, script)
        }
    }

    /// Of peas: roots, records and sockets in the depot, groups.
    fn of_peas(&self) -> Vec<String> {
        let depot = self.settings.directory.join("depot/h");
        let groups = self.left()["groups"].clone();
        let nested = groups.iter().flat_map(|group| directories(Path::new(group)));
        let all = [names(&self.settings.directory.join("store/roots")), names(&depot), groups.clone()];
        all.into_iter().flatten().chain(nested).filter(|name| name.contains("pea-")).collect()
    }
}

#[test]
fn peas_outlive_their_garden_and_are_not_missed() {
    in_a_place("peas_outlive_their_garden_and_are_not_missed", async |mut place| {
        place.start().await;
        std::fs::set_permissions(place.shared(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let client = HttpGarden::new(Address::Unix(place.settings.socket.clone()));
        client.create(full_spec(&place)).await.unwrap();
        let io = || ProcessIo { stdin: Some(Box::new(tokio::io::empty())), ..ProcessIo::default() };
        let limited =
            |spec| ProcessSpec { override_container_limits: Some(ProcessLimits::default()), ..spec };
        let ender = "echo last words; echo complaint >&2; touch /shared/ended; exit 7";
        client.run("h", place.pea("ender", &format!("{WAIT} {ender}")), io()).await.unwrap();
        let reader =
            limited(place.pea("reader", "echo mine > /mine; read line; echo got $line; cat /mine; exit 4"));
        let (mut words, stdin) = tokio::io::duplex(64);
        let reading = ProcessIo { stdin: Some(Box::new(stdin)), ..ProcessIo::default() };
        let first = client.run("h", reader, reading).await.unwrap();
        let tty = ProcessSpec {
            tty: Some(TtySpec { window_size: Some(WindowSize { columns: 91, rows: 17 }) }),
            ..place.pea("terminal", "read line; stty size; echo got $line; exit 5")
        };
        client.run("h", tty, ProcessIo::default()).await.unwrap();
        client.run("h", limited(place.pea("killed", "sleep 1000")), io()).await.unwrap();
        client.run("h", place.pea("goes", "exit 0"), io()).await.unwrap().wait().await.unwrap();

        place.kill();
        drop(first);
        std::fs::write(place.shared().join("go"), "").unwrap();
        until("the end of a pea without a garden", || place.shared().join("ended").exists()).await;
        place.start().await;

        let ids = client.info("h").await.unwrap().process_ids;
        assert!(["reader", "terminal", "killed"].iter().all(|id| ids.contains(&(*id).to_owned())), "{ids:?}");
        let taken = client.run("h", process("reader", "true"), io()).await.err().unwrap().to_string();
        assert_eq!(taken, "process ID 'reader' already in use");
        let ender = Heard::attach(&client, "ender", None).await;
        assert_eq!(ender.all().await, (7, "last words\n".into(), "complaint\n".into()));
        _ = words.write_all(b"lost\n").await;
        let (mut words, stdin) = tokio::io::duplex(64);
        let reader = Heard::attach(&client, "reader", Some(Box::new(stdin))).await;
        words.write_all(b"two\n").await.unwrap();
        assert_eq!(reader.all().await, (4, "got two\nmine\n".into(), String::new()));
        let (mut keys, stdin) = tokio::io::duplex(64);
        let terminal = Heard::attach(&client, "terminal", Some(Box::new(stdin))).await;
        terminal.process.set_window_size(WindowSize { columns: 92, rows: 18 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        keys.write_all(b"hello\n").await.unwrap();
        let (status, text, _) = terminal.all().await;
        assert!(status == 5 && text.contains("18 92") && text.contains("got hello"), "{status} {text}");
        let killed = Heard::attach(&client, "killed", None).await;
        killed.process.signal(Signal::Kill).await.unwrap();
        assert_eq!(killed.all().await.0, 137);
        until("nothing is left of peas that have ended", || place.of_peas().is_empty()).await;

        // One whose init has gone meanwhile is taken away; others go with their container.
        let init = |place: &Place| {
            let depot = place.settings.directory.join("depot/h");
            let record = names(&depot).into_iter().find(|name| name.ends_with(".pea.json")).unwrap();
            let record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(depot.join(record)).unwrap()).unwrap();
            record["init"]["pid"].as_i64().unwrap() as i32
        };
        client.run("h", limited(place.pea("gone", "sleep 1000")), io()).await.unwrap();
        let pid = init(&place);
        place.kill();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        place.start().await;
        until("nothing is left of a pea whose init is gone", || place.of_peas().is_empty()).await;
        assert_eq!(client.info("h").await.unwrap().process_ids, [] as [&str; 0]);
        client.run("h", limited(place.pea("stays", "sleep 1000")), io()).await.unwrap();
        client.run("h", place.pea("stays too", "sleep 1000"), io()).await.unwrap();
        place.kill();
        place.start().await;
        client.destroy("h").await.unwrap();
        place.assert_nothing_left("after the destruction").await;

        // A garden that takes nothing over leaves nothing of them either.
        client.create(full_spec(&place)).await.unwrap();
        client.run("h", limited(place.pea("a", "sleep 1000")), io()).await.unwrap();
        client.run("h", place.pea("b", "sleep 1000"), io()).await.unwrap();
        place.kill();
        std::fs::write(place.settings.directory.join("depot/h/going"), "").unwrap();
        place.start().await;
        place.assert_nothing_left("of what was going").await;
        place
    });
}

/// Killed at any moment of starting peas: what has started is there afterwards, of the rest there is nothing.
#[test]
fn a_garden_killed_while_it_starts_peas_leaves_no_halves() {
    in_a_place("a_garden_killed_while_it_starts_peas_leaves_no_halves", async |mut place| {
        for round in 0..12_u64 {
            place.start().await;
            let client = HttpGarden::new(Address::Unix(place.settings.socket.clone()));
            if round == 0 {
                client.create(full_spec(&place)).await.unwrap();
            }
            let specs = (0..6).map(|number| {
                let mut spec = place.pea(&format!("{round}-{number}"), "sleep 1000");
                spec.override_container_limits = (number % 2 == 0).then(ProcessLimits::default);
                spec
            });
            let runs = specs.map(|spec| client.run("h", spec, ProcessIo::default()));
            let running = futures_util::future::join_all(runs);
            _ = tokio::time::timeout(Duration::from_millis(1 + round * 10), running).await;
            place.kill();
        }
        place.start().await;
        let client = HttpGarden::new(Address::Unix(place.settings.socket.clone()));
        // Each running process has what it needs, and nothing else has.
        eventually("as many of all as there are processes", async || {
            let running = client.info("h").await.unwrap().process_ids.len();
            let of_peas = place.of_peas();
            let count = |what: &str| of_peas.iter().filter(|name| name.contains(what)).count();
            let nested = count("/h/pea-") + count("/h@pea-");
            (count(".pea.json") == running && (running == 0) == (nested == 0)).then_some(())
        })
        .await;
        let running = client.info("h").await.unwrap().process_ids;
        println!("{} of 72 had started", running.len());
        for id in running {
            let heard = Heard::attach(&client, &id, None).await;
            heard.process.signal(Signal::Kill).await.unwrap();
            assert_eq!(heard.all().await.0, 137);
        }
        until("nothing is left of peas", || place.of_peas().is_empty()).await;
        place
    });
}
