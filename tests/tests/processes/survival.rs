//! Agents of a cell come and go, told to stop or killed; what runs on the cell does not notice, and nobody else does.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;

use super::*;

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Told,
    Killed,
}

const ENDS: [End; 3] = [End::Told, End::Killed, End::Killed];
/// Agents are killed so many times at any moment; with this variable, so many times as it says.
const KILLS: &str = "DIEGO_KILLS";
const KILLS_USUALLY: u32 = 4;
/// What was under way when an agent was killed may have to wait until the BBS looks at everything again.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

impl Processes {
    fn end(&mut self, name: &'static str, end: End) {
        match end {
            End::Told => assert_eq!(self.stop(name), Some(0), "{name}\n{}", self.ends_of_logs()),
            End::Killed => self.kill(name),
        }
    }

    pub(super) fn lrp(&self, process: &str) -> Value {
        self.listed(&["actual-lrps", "-p", process]).pop().unwrap_or_default()
    }

    /// As an upgrade does it: under the same names there are other files, while what was made of the old ones runs.
    fn exchange_programs(&mut self) {
        let programs = diego(self.dir.path()).get_program().to_owned();
        let (from, to) = (Path::new(&programs).parent().unwrap(), self.path("programs"));
        std::fs::create_dir_all(&to).unwrap();
        for name in ["diego", "garden-init"] {
            let new = to.join("new");
            std::fs::copy(from.join(name), &new).unwrap();
            std::fs::rename(new, to.join(name)).unwrap();
        }
        self.apart = true;
    }

    /// What an instance says of itself: which process of which machine it is.
    fn says(&mut self, instance: &Value) -> String {
        let port = instance["ports"][0]["host_port"].as_u64().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        let answer =
            self.until("the instance answers", |_| get(address, "/").filter(|said| said.contains("200 OK")));
        answer.lines().last().unwrap_or_default().to_owned()
    }

    /// A connection to an instance that has more to say on it.
    fn begins_to_ask(&self, instance: &Value) -> TcpStream {
        let port = u16::try_from(instance["ports"][0]["host_port"].as_u64().unwrap()).unwrap();
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n").unwrap();
        connection
    }

    fn logs(&self, log_guid: &str) -> String {
        get(self.addresses["rep"], &format!("/v1/logs/{log_guid}?lines=1000")).unwrap_or_default()
    }

    /// Names of what is written down of containers, and of containers.
    fn left(&self) -> Vec<PathBuf> {
        let dirs = ["rep-state/containers", "garden/depot"].map(|dir| self.path(dir));
        let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
        let of_a_container =
            |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
        entries.filter(of_a_container).map(|entry| entry.path()).collect()
    }

    fn empty_the_cell(&mut self) {
        for lrp in self.listed(&["desired-lrps"]) {
            self.cfdot(&["delete-desired-lrp", lrp["process_guid"].as_str().unwrap()]).worked();
        }
        self.until_within(LONG_PATIENCE, "nothing is left on the cell", |processes| {
            let gone = processes.listed(&["actual-lrps"]).is_empty() && processes.left().is_empty();
            gone.then_some(())
        });
    }
}

/// A server whose every process says something else, and beside it one that talks.
fn lasting() -> Value {
    let serve = "cat /proc/sys/kernel/random/uuid > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let talk = "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done";
    json!({
        "process_guid": "lasting", "domain": "stories", "log_guid": "lasting", "log_source": "APP",
        "rootfs": "preloaded:busybox", "instances": 1, "memory_mb": 64, "disk_mb": 64, "ports": [8080],
        "start_timeout_ms": 60000,
        "check_definition": { "checks": [{ "tcp_check": { "port": 8080, "interval_ms": 500 } }] },
        "setup": { "run": { "path": "/bin/sh", "args": ["-c", "echo set up"], "user": "root" } },
        "action": { "run": { "path": "/bin/sh", "args": ["-c", serve], "user": "root" } },
        "sidecars": [{ "action": { "run": { "path": "/bin/sh", "args": ["-c", talk], "user": "root" } } }],
    })
}

/// Its process ends when the file is there.
fn waiting_task(guid: &str) -> Value {
    let wait = "echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; echo done > /tmp/result";
    json!({
        "task_guid": guid, "domain": "stories", "rootfs": "preloaded:busybox", "log_guid": "tasks",
        "memory_mb": 32, "disk_mb": 32, "result_file": "/tmp/result",
        "action": { "timeout": { "timeout_ms": 600000, "action":
            { "run": { "path": "/bin/sh", "args": ["-c", wait], "user": "root" } } } },
    })
}

fn crashing() -> Value {
    json!({
        "process_guid": "crashing", "domain": "stories", "rootfs": "preloaded:busybox", "instances": 1,
        "memory_mb": 32, "disk_mb": 32,
        "action": { "run": { "path": "/bin/sh", "args": ["-c", "sleep 1; exit 3"], "user": "root" } },
    })
}

/// Puts an empty file into a container.
fn touch(socket: PathBuf, handle: &str, name: &str) {
    use garden_client::Garden;
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    tar.append_data(&mut header, name, &b""[..]).unwrap();
    let tar = Box::new(std::io::Cursor::new(tar.into_inner().unwrap()));
    let garden = garden_client::HttpGarden::new(garden_client::Address::Unix(socket));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(garden.stream_in(handle, "root", "/tmp", tar)).unwrap();
}

/// The highest number that it was heard to say.
fn ticks(logs: &str) -> Option<u32> {
    let said = logs.lines().filter_map(|line| line.split("tick ").nth(1));
    said.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).max()
}

/// Everything an agent may have to do with, then the agents end and come back, each time in another way.
fn what_runs_does_not_notice(processes: &mut Processes, agents: &[&'static str]) {
    for spec in [lasting(), crashing()] {
        processes.cfdot(&["create-desired-lrp", &spec.to_string()]).worked();
    }
    processes.cfdot(&["create-task", &waiting_task("once").to_string()]).worked();
    let instance = processes.running_instance_of("lasting", "");
    let said = processes.says(&instance);
    processes
        .until("the Task has begun", |processes| processes.logs("tasks").contains("begun").then_some(()));
    for end in ENDS {
        let heard = processes.until("it talks", |processes| ticks(&processes.logs("lasting")));
        let mut connection = processes.begins_to_ask(&instance);
        if processes.apart {
            processes.exchange_programs();
        }
        agents.iter().for_each(|agent| processes.end(agent, end));
        assert_eq!(processes.lrp("lasting"), instance, "without an agent, {end:?}");
        for agent in agents.iter().rev() {
            match *agent {
                "rep" => processes.start_rep(),
                "gdn" => processes.start_garden(),
                _ => processes.start_cell(),
            }
        }
        processes.until("it is heard again", |processes| {
            ticks(&processes.logs("lasting")).filter(|now| *now > heard)
        });
        assert_eq!(processes.lrp("lasting"), instance, "after {agents:?} were {end:?}");
        assert_eq!(processes.says(&instance), said);
        connection.write_all(b"\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.lines().last(), Some(said.as_str()), "connections do not pass through the agent");
        assert!(!processes.logs("lasting").contains("set up"), "what is done is not done again");
        assert_eq!(processes.listed(&["cells"]).len(), 1);
    }
    touch(processes.path("garden.sock"), "once", "go");
    let ended = processes.until("the Task is completed", |processes| {
        processes.listed(&["tasks", "-d", "stories"]).into_iter().find(|task| task["state"] == "Completed")
    });
    assert_eq!((&ended["failed"], &ended["result"]), (&json!(false), &json!("done\n")), "{ended}");
    processes.cfdot(&["delete-task", "once"]).worked();
    let crashes = |processes: &Processes| processes.lrp("crashing")["crash_count"].as_u64();
    processes
        .until("what crashes goes on crashing", |processes| crashes(processes).filter(|count| *count >= 3));
    processes.empty_the_cell();
}

/// A garden that leaves its containers to the next one, too.
fn keeping() -> Processes {
    let mut processes = Processes::new();
    processes.garden_flags.clear();
    processes
}

#[test]
fn instances_outlive_their_rep() {
    in_six_processes("instances_outlive_their_rep", Processes::new, |processes, _| {
        what_runs_does_not_notice(processes, &["rep"]);
    });
}

#[test]
fn instances_outlive_their_cell_and_its_programs() {
    let one_cell = || {
        let mut processes = keeping();
        processes.one_cell = true;
        processes.exchange_programs();
        processes
    };
    in_six_processes("instances_outlive_their_cell_and_its_programs", one_cell, |processes, _| {
        what_runs_does_not_notice(processes, &["cell"]);
    });
}

#[test]
fn instances_outlive_garden_under_a_living_rep() {
    in_six_processes("instances_outlive_garden_under_a_living_rep", keeping, |processes, _| {
        processes.cfdot(&["create-desired-lrp", &lasting().to_string()]).worked();
        let instance = processes.running_instance_of("lasting", "");
        let said = processes.says(&instance);
        for end in ENDS {
            let heard = processes.until("it talks", |processes| ticks(&processes.logs("lasting")));
            processes.end("gdn", end);
            assert_eq!(processes.says(&instance), said, "it needs no garden");
            processes.start_garden();
            processes.until("it is heard again", |processes| {
                ticks(&processes.logs("lasting")).filter(|now| *now > heard + 5)
            });
            assert_eq!(processes.lrp("lasting"), instance, "{end:?}");
        }
        processes.empty_the_cell();
    });
}

/// Counts who came, by the name they gave.
struct Witness {
    port: u16,
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Witness {
    fn listen() -> Witness {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let witness = Witness { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
        let seen = witness.seen.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut line = String::new();
                _ = BufReader::new(&stream).read_line(&mut line);
                if let Some(name) = line.split(' ').nth(1) {
                    *seen.lock().unwrap().entry(name.trim_start_matches('/').to_owned()).or_default() += 1;
                }
                _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
            }
        });
        witness
    }

    fn seen(&self, name: &str) -> u32 {
        self.seen.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

/// Tells the witness that it runs, and then takes a moment.
fn witnessed_task(guid: &str, port: u16) -> Value {
    let tell = format!(
        "host=$(/bin/busybox ip route | /bin/busybox sed -n 's/.*via \\([0-9.]*\\).*/\\1/p'); \
         /bin/busybox wget -q -O /dev/null http://$host:{port}/{guid} || exit 9; /bin/busybox sleep 0.3"
    );
    json!({
        "task_guid": guid, "domain": "stories", "rootfs": "preloaded:busybox", "memory_mb": 16, "disk_mb": 16,
        "action": { "run": { "path": "/bin/sh", "args": ["-c", tell], "user": "root" } },
    })
}

fn come_and_go(processes: &mut Processes, round: u32) {
    if round > 0 {
        processes.cfdot(&["delete-desired-lrp", &format!("short-{}", round - 1)]).worked();
    }
    let short = json!({
        "process_guid": format!("short-{round}"), "domain": "stories", "rootfs": "preloaded:busybox",
        "instances": 1, "memory_mb": 16, "disk_mb": 16, "ports": [8080],
        "action": { "run": { "path": "/bin/sh", "args": ["-c", "exec sleep 1000"], "user": "root" } },
    });
    processes.cfdot(&["create-desired-lrp", &short.to_string()]).worked();
}

fn tasks_end(processes: &mut Processes) -> Vec<Value> {
    processes.until_within(LONG_PATIENCE, "all Tasks end", |processes| {
        let tasks = processes.listed(&["tasks", "-d", "stories"]);
        // What found no cell when there was none would have to wait for long.
        for task in tasks.iter().filter(|task| task["state"] == "Pending") {
            processes.cfdot(&["cancel-task", task["task_guid"].as_str().unwrap()]);
        }
        tasks.iter().all(|task| task["state"] == "Completed").then_some(tasks)
    })
}

#[test]
fn agents_killed_at_any_moment_run_nothing_twice_and_leave_nothing() {
    let with_host = || {
        let mut processes = keeping();
        processes.garden_flags = vec!["--allow-host-access".into()];
        processes
    };
    let name = "agents_killed_at_any_moment_run_nothing_twice_and_leave_nothing";
    in_six_processes(name, with_host, |processes, _| {
        let kills = std::env::var(KILLS).map_or(KILLS_USUALLY, |kills| kills.parse().unwrap());
        let witness = Witness::listen();
        processes.cfdot(&["create-desired-lrp", &lasting().to_string()]).worked();
        let instance = processes.running_instance_of("lasting", "");
        let said = processes.says(&instance);
        for round in 0..kills {
            come_and_go(processes, round);
            let task = witnessed_task(&format!("task-{round}"), witness.port);
            processes.cfdot(&["create-task", &task.to_string()]).worked();
            // From before anything has happened until all has.
            std::thread::sleep(Duration::from_millis(u64::from(round * 173 % 900)));
            let agents: &[&'static str] = [&["rep"][..], &["gdn"], &["rep", "gdn"]][round as usize % 3];
            agents.iter().for_each(|agent| processes.kill(agent));
            if agents.contains(&"gdn") {
                processes.start_garden();
            }
            if agents.contains(&"rep") {
                processes.start_rep();
            }
            assert_eq!(processes.lrp("lasting"), instance, "round {round}");
        }
        for task in tasks_end(processes) {
            let guid = task["task_guid"].as_str().unwrap();
            let (seen, failed) = (witness.seen(guid), task["failed"] == json!(true));
            println!("{guid} ran {seen} times, {}", task["failure_reason"]);
            assert!(seen == 1 || (failed && seen == 0), "{guid} ran {seen} times: {task}");
            processes.cfdot(&["delete-task", guid]).worked();
        }
        assert_eq!((processes.lrp("lasting"), processes.says(&instance)), (instance.clone(), said));
        processes.empty_the_cell();
    });
}
