//! Containers that do not answer, or cannot be killed: errors in time, nobody else held up, and gone once they can be.
//! Needs what `containers` needs.

#[allow(dead_code)]
#[macro_use]
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use garden::containerizer::{Config, Container, Deadlines};
use garden_client::{ProcessIo, ProcessSpec};
use rustix::process::{Pid, Signal as Kill, kill_process};
use tokio::io::AsyncReadExt;
use world::sh;

const SHORT: Duration = Duration::from_millis(400);

fn impatient(config: &mut Config) {
    config.deadlines = Deadlines { answer: SHORT, stop: SHORT, kill: SHORT, stall: SHORT };
}

fn signal(container: &Container, signal: Kill) {
    kill_process(Pid::from_raw(container.pid()).unwrap(), signal).unwrap();
}

/// Done, and not much later than its deadlines.
async fn soon<T>(act: impl Future<Output = T>) -> T {
    tokio::time::timeout(SHORT * 10, act).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_1_that_does_not_answer_holds_nobody_up_and_can_be_destroyed() {
    let world = world!("a_pid_1_that_does_not_answer_holds_nobody_up_and_can_be_destroyed", impatient);
    let stuck = world.start(world.spec()).await;
    let other = world.start(garden::containerizer::Spec { handle: "other".into(), ..world.spec() }).await;
    let running = stuck.run(&sh("sleep 1000"), ProcessIo::default()).await.unwrap();
    signal(&stuck, Kill::STOP);

    let started = Instant::now();
    let error = soon(stuck.run(&sh("true"), ProcessIo::default())).await.err().unwrap().to_string();
    assert_eq!(error, "it took longer than 400ms to start a process");
    assert!(started.elapsed() >= SHORT);
    let tar: &[u8] = &[0; 1 << 20];
    let error = soon(stuck.stream_in("", "/tmp", Box::new(tar))).await.unwrap_err().to_string();
    assert!(error.ends_with("to stream anything more into a container"), "{error}");
    let error = soon(stuck.stream_out("", "/etc")).await.err().unwrap().to_string();
    assert!(error.ends_with("to stream anything more out of a container"), "{error}");
    let error = soon(stuck.stop(false)).await.unwrap_err().to_string();
    assert!(error.ends_with("to kill the processes of a container"), "{error}");
    assert!(stuck.usage().is_ok() && stuck.is_alive());
    assert_eq!(world.run(&other, &sh("exit 3")).await.status, 3, "nobody else is held up");
    // More than its queue and its socket hold.
    let long = || ProcessSpec { env: vec![format!("X={}", "x".repeat(200_000))], ..sh("true") };
    let many = (0..80).map(|_| async { stuck.run(&long(), ProcessIo::default()).await.is_err() });
    assert!(soon(futures_util::future::join_all(many)).await.into_iter().all(|refused| refused));
    soon(stuck.destroy()).await.unwrap();
    assert_eq!(running.wait().await, Ok(137));
    world.end(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_does_not_run_later() {
    let world = world!("what_was_given_up_does_not_run_later", impatient);
    let container = world.start(world.spec()).await;
    signal(&container, Kill::STOP);
    let late = ProcessSpec { id: "late".into(), ..sh("sleep 1000") };
    soon(container.run(&late, ProcessIo::default())).await.err().unwrap();
    signal(&container, Kill::CONT);
    // It works again, and of what was given up nothing is left.
    assert_eq!(world.run(&container, &sh("exit 5")).await.status, 5);
    for _ in 0..200 {
        if !world.output(&container, "ps").await.contains("sleep 1000") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!world.output(&container, "ps").await.contains("sleep 1000"));
    assert_eq!(container.process_ids(), [] as [&str; 0]);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_stream_that_stops_half_way_is_an_error_for_its_reader() {
    let world = world!("a_tar_stream_that_stops_half_way_is_an_error_for_its_reader", impatient);
    let container = world.start(world.spec()).await;
    world.output(&container, "dd if=/dev/zero of=/tmp/big bs=1024 count=8192 2>/dev/null").await;
    let mut tar = container.stream_out("", "/tmp/big").await.unwrap();
    tar.read_exact(&mut [0; 1024]).await.unwrap();
    // The packing child, the only other process.
    for pid in pids(&container).into_iter().filter(|pid| *pid != container.pid()) {
        kill_process(Pid::from_raw(pid).unwrap(), Kill::STOP).unwrap();
    }
    let error = soon(tar.read_to_end(&mut Vec::new())).await.unwrap_err().to_string();
    assert_eq!(error, "the container has sent nothing more for 400ms");
    world.end(container).await;
}

/// Of the container's processes; its groups are named as it is.
fn pids(container: &Container) -> Vec<i32> {
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|of| of == own))
        .collect()
}

/// A group of the freezer of cgroup version 1: what is frozen there dies only when it is thawed.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Option<Freezer> {
        let path =
            Path::new("/sys/fs/cgroup/freezer").join(format!("diego-test-stuck-{}", std::process::id()));
        std::fs::create_dir(&path).ok().map(|()| Freezer(path))
    }

    fn write(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_be_killed_is_told_of_and_destroyed_later() {
    let name = "a_process_that_cannot_be_killed_is_told_of_and_destroyed_later";
    let world = world!("a_process_that_cannot_be_killed_is_told_of_and_destroyed_later", impatient);
    let Some(freezer) = Freezer::new() else {
        println!("SKIPPED {name}: needs the freezer of cgroup version 1");
        return;
    };
    let stuck = world.start(world.spec()).await;
    let process = stuck.run(&sh("sleep 1000"), ProcessIo::default()).await.unwrap();
    for pid in pids(&stuck).into_iter().filter(|pid| *pid != stuck.pid()) {
        freezer.write("cgroup.procs", &pid.to_string());
    }
    freezer.write("freezer.state", "FROZEN");
    let error = soon(stuck.stop(true)).await.unwrap_err().to_string();
    assert!(error.ends_with("to kill the processes of a container"), "{error}");
    for _ in 0..2 {
        let error = soon(stuck.destroy()).await.unwrap_err().to_string();
        assert_eq!(error, "it took longer than 400ms to kill a container");
    }
    let other = world.start(garden::containerizer::Spec { handle: "other".into(), ..world.spec() }).await;
    other.destroy().await.unwrap();
    drop(freezer);
    soon(stuck.destroy()).await.unwrap();
    assert_eq!(process.wait().await, Ok(137));
    world.nothing_left().await;
}
