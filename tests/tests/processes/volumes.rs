//! Volumes of a cell's drivers, as apps meet them: what one writes another reads, also after agents have come and gone.

#[path = "../../../executor/tests/world/volume_driver.rs"]
mod volume_driver;

use volume_driver::VolumeDriver;

use super::*;

/// A cell that looks for drivers in a directory.
fn looking_in(dir: &Path) -> Processes {
    let mut processes = Processes::new();
    processes.rep_flags = vec![processes.flag("volume-driver-dir", dir)];
    processes
}

/// Where a cell that looks in `dir` finds it.
async fn driver_in(dir: &Path) -> VolumeDriver {
    let (driver, address) = VolumeDriver::at_port(dir).await;
    std::fs::write(dir.join("local.json"), json!({ "Addr": format!("http://{address}") }).to_string())
        .unwrap();
    driver
}

fn mounts(driver: &str, mode: &str) -> Value {
    let shared = json!({ "volume_id": "v", "mount_config": "{\"source\":\"here\"}" });
    json!([{ "driver": driver, "container_dir": "/data", "mode": mode, "shared": shared }])
}

fn task(guid: &str, driver: &str, mode: &str, script: &str) -> Value {
    json!({
        "task_guid": guid, "domain": "stories", "rootfs": "preloaded:busybox", "memory_mb": 32, "disk_mb": 32,
        "result_file": "/tmp/result", "volume_mounts": mounts(driver, mode),
        "action": { "run": { "path": "/bin/sh", "args": ["-c", script], "user": "root" } },
    })
}

fn reader(process: &str, driver: &str) -> Value {
    json!({
        "process_guid": process, "domain": "stories", "rootfs": "preloaded:busybox", "instances": 1,
        "memory_mb": 64, "disk_mb": 64, "ports": [8080], "volume_mounts": mounts(driver, "r"),
        "check_definition": { "checks": [{ "tcp_check": { "port": 8080 } }] },
        "action": { "run": { "path": "/bin/sh", "args": ["-c", "exec httpd -f -p 8080 -h /data"], "user": "root" } },
    })
}

fn completed(processes: &mut Processes, guid: &str) -> Value {
    processes.until("the Task is completed", |processes| {
        let tasks = processes.listed(&["tasks"]);
        tasks.into_iter().find(|task| task["task_guid"] == guid && task["state"] == "Completed")
    })
}

fn serves(processes: &mut Processes, instance: &Value) {
    let port = u16::try_from(instance["ports"][0]["host_port"].as_u64().unwrap()).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    processes
        .until("it serves what is in the volume", |_| get(address, "/").filter(|said| said.contains("kept")));
}

#[test]
fn what_a_task_writes_to_a_volume_an_lrp_reads_over_restarts_of_the_rep() {
    let test = "what_a_task_writes_to_a_volume_an_lrp_reads_over_restarts_of_the_rep";
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let driver = runtime.block_on(driver_in(dir.path()));
    // Root of a container is nobody on the host.
    let place = driver.place("v");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    in_six_processes(
        test,
        || looking_in(dir.path()),
        |processes, _| {
            let write = "echo kept > /data/index.html && cp /data/index.html /tmp/result";
            processes.cfdot(&["create-task", &task("writer", "local", "rw", write).to_string()]).worked();
            let written = completed(processes, "writer");
            assert_eq!(
                (&written["failed"], &written["result"]),
                (&json!(false), &json!("kept\n")),
                "{written}"
            );
            processes.cfdot(&["create-desired-lrp", &reader("reader", "local").to_string()]).worked();
            let instance = processes.running_instance_of("reader", "");
            serves(processes, &instance);

            let refused = "touch /data/x 2>/tmp/result; true";
            processes.cfdot(&["create-task", &task("intruder", "local", "r", refused).to_string()]).worked();
            let result = completed(processes, "intruder")["result"].to_string();
            assert!(result.contains("Read-only file system"), "{result}");

            processes.kill("rep");
            processes.start_rep();
            assert_eq!(processes.running_instance_of("reader", ""), instance);
            serves(processes, &instance);
            processes.until("only the reader's is mounted", |_| {
                (driver.mounts().get("v") == Some(&1)).then_some(())
            });
            processes.cfdot(&["delete-desired-lrp", "reader"]).worked();
            processes.until("nothing is mounted", |_| driver.mounts().is_empty().then_some(()));

            processes.cfdot(&["create-desired-lrp", &reader("nowhere", "nfs").to_string()]).worked();
            let why = processes.until("it is placed nowhere", |processes| {
                let lrp = processes.lrp("nowhere");
                lrp["placement_error"].as_str().filter(|why| !why.is_empty()).map(str::to_owned)
            });
            assert_eq!(why, "found no compatible cell with required volume drivers");
            processes.cfdot(&["delete-desired-lrp", "nowhere"]).worked();
        },
    );
}
