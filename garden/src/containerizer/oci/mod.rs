//! Containers made by an OCI runtime: the same Plan written as a runtime spec ([`spec`]), carried out by a program such as
//! runc. Slower, for those who must have it, and what our own isolation is compared with.
//!
//! ```text
//! blank (user and network namespace) ──▶ RUNTIME create ──▶ start ──▶ garden-init as pid 1 ──Plan──▶ Ready
//! end    pid 1 killed ──▶ RUNTIME delete --force
//! ```
//! From `Ready` on everything is as in other containers: processes, streams and signals go by garden-init's protocol.
//! The runtime is called in a mount namespace of its own, in which alone the root is attached: the host sees no mount and
//! none can be left. What the runtime keeps (its bundle, its state) is in the container's directory of the depot.

mod spec;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use garden_init::{IdRange, Plan};
use garden_sys::process::{self, namespaces};
use garden_sys::{mount, packets};
use rustix::fs::FileType;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::rules::{self, Prepared, Spec};
use super::{Config, DEVICES_ALLOWED};
pub use spec::Refused;
use spec::Surroundings;

const CREATE_DEADLINE: Duration = Duration::from_secs(30);
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// For a killed runtime to be gone; it may be in the middle of something that cannot be interrupted.
const END_TIME: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Where the root and all that is bound into it are while the runtime is called, in each call's own mount namespace: a
/// place that a container's root, who is nobody on the host, can get to. On the host it is an empty directory.
const PLACE: &str = "/run/garden-oci";
const ROOT: &str = "/run/garden-oci/root";
/// Of what the runtime says, as an error repeats it.
const SAID_BYTES_MAX: usize = 2048;
/// Said by runtimes that read the mapping of a user namespace themselves.
const MAPPING_UNWANTED: &str = "both namespace path and mapping specified";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub program: PathBuf,
    pub extra_args: Vec<String>,
}

/// One container as its runtime knows it; enough to take it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub runtime: Runtime,
    /// Everything the runtime keeps of it.
    pub directory: PathBuf,
    pub id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("cannot {act} {}: {source}", path.display())]
    File { act: &'static str, path: PathBuf, source: io::Error },
    #[error("{} {act}: it took longer than {deadline:?}", program.display())]
    Late { program: PathBuf, act: &'static str, deadline: Duration },
    #[error("{} {act}: {said}", program.display())]
    Failed { program: PathBuf, act: &'static str, said: String },
    #[error("the runtime's container has no process")]
    NoProcess,
    #[error("interrupted")]
    Interrupted,
}

type Result<T> = std::result::Result<T, Error>;

fn failed<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File { act, path: path.into(), source }
}

/// A pid 1 that waits for its plan.
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub started: u64,
    /// Our end of its control socket.
    pub socket: OwnedFd,
}

/// What a creation needs besides its instance.
pub struct Wanted<'a> {
    pub config: &'a Config,
    pub spec: &'a Spec,
    pub prepared: &'a Prepared,
    pub first_mount: usize,
    pub blank: i32,
    pub ids: Option<IdRange>,
    pub root: OwnedFd,
    /// Detached, in the order of the prepared ones.
    pub mounts: Vec<OwnedFd>,
}

impl Instance {
    fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    /// Blocking. At an error, [`Instance::delete`] takes away what exists.
    pub fn create(&self, wanted: Wanted<'_>) -> Result<Created> {
        for directory in [&self.bundle(), Path::new(PLACE)] {
            std::fs::create_dir_all(directory).map_err(failed("make", directory))?;
        }
        let (socket, theirs) = packets::pair().map_err(failed("make a socket in", &self.directory))?;
        let outcome = std::thread::scope(|scope| {
            // A thread of its own, because the mount namespace is the thread's and goes with it.
            scope.spawn(|| self.create_apart(&wanted, &theirs)).join().map_err(|_| Error::Interrupted)?
        });
        drop(theirs);
        outcome?;
        let (pid, pidfd, started) = self.process()?;
        Ok(Created { pid, pidfd, started, socket })
    }

    fn create_apart(&self, wanted: &Wanted<'_>, theirs: &OwnedFd) -> Result<()> {
        let place = Path::new(PLACE);
        process::unshare(namespaces::MOUNT).map_err(failed("make a mount namespace for", place))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|errno| failed("make private the mounts around", place)(errno.into()))?;
        rustix::mount::mount("tmpfs", place, "tmpfs", MountFlags::empty(), c"mode=755")
            .map_err(|errno| failed("mount a file system on", place)(errno.into()))?;
        attach(&wanted.root, Path::new(ROOT))?;
        for (index, mount) in wanted.mounts.iter().enumerate() {
            attach(mount, &place_of(index))?;
        }
        let told = self.create_with(wanted, theirs, true);
        match told {
            Err(Error::Failed { said, .. }) if said.contains(MAPPING_UNWANTED) => {
                self.create_with(wanted, theirs, false)?
            }
            other => other?,
        }
        self.call("start", &["start", &self.id], None, CREATE_DEADLINE)
    }

    fn create_with(&self, wanted: &Wanted<'_>, theirs: &OwnedFd, tell_mapping: bool) -> Result<()> {
        let bundle = self.bundle();
        let path = bundle.join("config.json");
        let text = spec_of(wanted, tell_mapping)?.to_string();
        std::fs::write(&path, text).map_err(failed("write", &path))?;
        let stdin = theirs.try_clone().map_err(failed("clone a socket for", &bundle))?;
        let (bundle, pid_file) = (bundle.display().to_string(), self.pid_file().display().to_string());
        let arguments = ["create", "--bundle", &bundle, "--pid-file", &pid_file, &self.id];
        self.call("create", &arguments, Some(stdin), CREATE_DEADLINE)
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("pid")
    }

    fn process(&self) -> Result<(i32, OwnedFd, u64)> {
        let path = self.pid_file();
        let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
        let pid: i32 = text.trim().parse().map_err(|_| Error::NoProcess)?;
        let proc = Path::new("/proc");
        let started = process::start_time(proc, pid).map_err(failed("look into", proc))?;
        let started = started.ok_or(Error::NoProcess)?;
        let known = process::find(proc, pid, started).map_err(failed("look into", proc))?;
        Ok((pid, known.ok_or(Error::NoProcess)?.pidfd, started))
    }

    /// Blocking. Safe to call twice, and where the creation never began.
    pub fn delete(&self) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        self.call("delete", &["delete", "--force", &self.id], None, DELETE_DEADLINE)?;
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &self.directory)(error))
            }
            _ => Ok(()),
        }
    }

    /// The container inherits what the runtime is given, so its words go to a file: a pipe would never end.
    fn call(
        &self,
        act: &'static str,
        arguments: &[&str],
        stdin: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<()> {
        let words = self.directory.join("words");
        let file = File::create(&words).map_err(failed("make", &words))?;
        let more = file.try_clone().map_err(failed("clone", &words))?;
        let program = &self.runtime.program;
        let mut child = Command::new(program)
            .args(&self.runtime.extra_args)
            .arg("--root")
            .arg(self.directory.join("state"))
            .args(arguments)
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(file)
            .stderr(more)
            .process_group(0)
            .spawn()
            .map_err(failed("start", program))?;
        let begun = Instant::now();
        loop {
            match child.try_wait().map_err(failed("wait for", program))? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => return Err(Error::Failed { program: program.clone(), act, said: said(&words) }),
                None if begun.elapsed() > deadline => {
                    end(child);
                    return Err(Error::Late { program: program.clone(), act, deadline });
                }
                None => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }
}

/// Kills a runtime and the children it has, which are in its process group; not what it made to outlive it, which is for
/// [`Instance::delete`].
fn end(mut child: Child) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    // Not reaped yet, so the group is still its own. Fails only where all have ended.
    let _ = kill_process_group(group, Signal::KILL);
    let begun = Instant::now();
    // Those that are still in the group keep its id from being given to another.
    while begun.elapsed() < END_TIME {
        if !matches!(child.try_wait(), Ok(None)) && test_kill_process_group(group).is_err() {
            return;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    if matches!(child.try_wait(), Ok(None)) {
        tracing::warn!(pid = child.id(), "a killed OCI runtime does not end");
        // Whenever it does, somebody must have waited for it.
        std::thread::spawn(move || child.wait());
    }
}

fn place_of(index: usize) -> PathBuf {
    Path::new(PLACE).join(index.to_string())
}

/// On a new file or directory, as the mount is one.
fn attach(mount: &OwnedFd, at: &Path) -> Result<()> {
    let stat =
        rustix::fs::fstat(mount).map_err(|errno| failed("look at what belongs at", at)(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        std::fs::create_dir(at).map_err(failed("make", at))?;
    } else {
        File::create(at).map_err(failed("make", at))?;
    }
    let place = File::open(at).map_err(failed("open", at))?;
    mount::attach(mount, &place).map_err(failed("attach a mount at", at))
}

fn spec_of(wanted: &Wanted<'_>, tell_mapping: bool) -> Result<serde_json::Value> {
    let Wanted { config, spec, prepared, first_mount, blank, ids, root: _, mounts } = wanted;
    let places: Vec<PathBuf> = (0..mounts.len()).map(place_of).collect();
    let init = config.init.canonicalize().map_err(failed("find", &config.init))?;
    let around = Surroundings {
        init: &init,
        root: Path::new(ROOT),
        blank: *blank,
        ids: *ids,
        tell_mapping,
        mounts: &places,
        held: rustix::thread::capabilities(None)
            .map_err(|errno| failed("ask for the capabilities of", Path::new("garden"))(errno.into()))?
            .permitted
            .bits(),
        first_mount: *first_mount,
        cgroup: format!("/{}/{}", config.cgroup_parent, spec.handle),
        limits: rules::cgroup_limits(config, &spec.limits),
        cpu: rules::cpu_limits(config, &spec.limits),
        devices: DEVICES_ALLOWED.iter().map(device).collect(),
    };
    Ok(spec::spec(&prepared.plan, &around)?)
}

/// What garden-init does itself; the mounts, the names and the groups are the runtime's work.
pub fn remaining(plan: &Plan) -> Plan {
    Plan {
        bind_mounts: Vec::new(),
        masked_paths: Vec::new(),
        read_only_paths: Vec::new(),
        // The one descriptor that comes with it.
        listener: plan.listener.map(|_| 0),
        ..plan.clone()
    }
}

/// The end of it, which says why.
fn said(words: &Path) -> String {
    let text = std::fs::read(words).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    text[text.ceil_char_boundary(text.len().saturating_sub(SAID_BYTES_MAX))..].to_owned()
}

fn device(rule: &garden_sys::cgroup::DeviceRule) -> serde_json::Value {
    let mut value = json!({ "allow": true, "type": rule.kind.to_string(), "access": rule.access });
    if let Some(major) = rule.major {
        value["major"] = json!(major);
    }
    if let Some(minor) = rule.minor {
        value["minor"] = json!(minor);
    }
    value
}

/// Groups that only the runtime made: of controllers that are none of ours, below the parent of all containers.
pub fn remove_other_parents(cgroup_root: &Path, parent: &str) {
    for hierarchy in std::fs::read_dir(cgroup_root).into_iter().flatten().flatten() {
        // One that is in use, or that another has taken away, stays or is gone.
        let _ = std::fs::remove_dir(hierarchy.path().join(parent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_hangs_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("child");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let extra_args = vec!["-c".to_owned(), script, "runtime".into()];
        let runtime = Runtime { program: "/bin/sh".into(), extra_args };
        let instance = Instance { runtime, directory: directory.path().into(), id: "h".into() };
        let deadline = Duration::from_millis(300);
        let error = instance.call("create", &["create"], None, deadline).unwrap_err().to_string();
        assert_eq!(error, "/bin/sh create: it took longer than 300ms");
        let status = format!("/proc/{}/status", std::fs::read_to_string(pid).unwrap().trim());
        let ended = std::fs::read_to_string(status).map_or(true, |text| text.contains("State:\tZ"));
        assert!(ended, "its child lives on");
    }
}
