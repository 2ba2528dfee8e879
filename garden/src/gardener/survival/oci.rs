//! Containers of an OCI runtime, of a garden that was killed.

use super::*;
use crate::gardener::tests::oci::{by, runc};

/// Of a pid 1 that has nothing to do.
const IDLE_TICKS_MAX: u64 = 5;

/// Processor time that a process has used, in clock ticks.
fn ticks(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

impl Place {
    fn recorded_pid(&self) -> String {
        let path = self.settings.directory.join("depot/h/container.json");
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        record["container"]["init"]["pid"].to_string()
    }
}

#[test]
fn a_container_of_an_oci_runtime_outlives_its_gardens() {
    let name = "a_container_of_an_oci_runtime_outlives_its_gardens";
    let Some(program) = runc() else {
        println!("SKIPPED {name}: needs runc");
        return;
    };
    in_a_place(name, async |mut place| {
        place.settings.oci = Some(program);
        place.start().await;
        let client = HttpGarden::new(Address::Unix(place.settings.socket.clone()));
        client.create(by("oci", "h")).await.unwrap();
        let (words, stdin) = tokio::io::duplex(64);
        let reading = ProcessIo { stdin: Some(Box::new(stdin)), ..ProcessIo::default() };
        let script = "while read line; do echo got $line; [ $line = end ] && exit 4; done";
        let process = client.run("h", process("reader", script), reading).await.unwrap();
        let pid = place.recorded_pid();
        for garden in ["second", "third"] {
            place.kill();
            let before = ticks(&pid);
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(ticks(&pid) - before < IDLE_TICKS_MAX, "pid 1 waits for a {garden} garden at rest");
            place.start().await;
            assert_eq!(client.containers(&all()).await.unwrap(), ["h"], "{garden}");
            assert_eq!(client.info("h").await.unwrap().process_ids, ["reader"], "{garden}");
            let new = run(&client, "h", shell("echo new; exit 3"), "").await;
            assert_eq!(new, (3, "new\n".into()), "{garden}");
            assert_eq!(place.recorded_pid(), pid, "{garden}");
        }
        drop((process, words));
        let (mut words, stdin) = tokio::io::duplex(64);
        let reader = Heard::attach(&client, "reader", Some(Box::new(stdin))).await;
        words.write_all(b"end\n").await.unwrap();
        assert_eq!(reader.all().await, (4, "got end\n".into(), String::new()));
        client.destroy("h").await.unwrap();
        place.assert_nothing_left("after its destruction").await;
        place
    });
}
