//! Networks beside this process's own, as containers have them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use garden_client::NetworkNamespace;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A process in a network of its own, as a container's first one is.
pub struct Network(Child);

impl Network {
    /// `None`, with a line that says why, where there can be none.
    pub fn start(test: &str) -> Option<Network> {
        if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
            println!("SKIPPED {test}: needs root and /bin/busybox");
            return None;
        }
        let script = "/bin/busybox ip link set lo up && echo ready && exec /bin/busybox sleep 600";
        let mut child = Command::new("/bin/busybox")
            .args(["unshare", "-n", "/bin/busybox", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Network(child))
    }

    pub fn at(&self) -> NetworkNamespace {
        let pid = self.0.id() as i32;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        NetworkNamespace { pid, started }
    }

    /// On a thread that is there, and stays there until it ends.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
