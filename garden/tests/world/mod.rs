//! What every test of containers needs: a root file system, a containerizer, sentences.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use garden::containerizer::{Config, Container, Containerizer, IdPool, Result, Spec};
use garden_client::{ProcessIo, ProcessSpec};
use garden_sys::mount;
use tokio::io::AsyncReadExt;

/// Begins a test, in a configuration of its own if one is given, or says why not.
macro_rules! world {
    ($name:literal $(, $configure:expr)?) => {
        match $crate::world::World::with($name, |_config| { $( ($configure)(_config) )? }) {
            Ok(world) => world,
            Err(why) => {
                println!("SKIPPED {}: {why}", $name);
                return;
            }
        }
    };
}

pub struct World {
    pub containerizer: Containerizer,
    /// Root file system of containers.
    pub root: PathBuf,
    /// A directory of the host that containers know nothing of.
    pub outside: PathBuf,
    config: Config,
}

#[derive(Debug)]
pub struct Done {
    pub stdout: String,
    pub stderr: String,
    pub status: i32,
}

pub fn sh(script: &str) -> ProcessSpec {
    ProcessSpec { path: "sh".into(), args: vec!["-c".into(), script.into()], ..ProcessSpec::default() }
}

pub fn user_sh(user: &str, script: &str) -> ProcessSpec {
    ProcessSpec { user: user.into(), ..sh(script) }
}

const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// Id ranges of tests that run at the same time must differ: files in a shared root belong to them.
static WORLDS: AtomicU32 = AtomicU32::new(0);

fn init_program() -> std::result::Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("GARDEN_INIT") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = test.ancestors().nth(2).map(|directory| directory.join("garden-init"));
    beside
        .filter(|path| path.exists())
        .ok_or_else(|| "no garden-init beside the tests; build it, or say where in GARDEN_INIT".into())
}

impl World {
    pub fn with(name: &str, configure: impl FnOnce(&mut Config)) -> std::result::Result<World, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".into());
        }
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            return Err("needs /bin/busybox, static".into());
        }
        let init = init_program()?;
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("garden-{}-{number}", std::process::id()));
        let (root, outside) = (directory.join("root"), directory.join("outside"));
        let base = 0x3000_0000 + number * 0x100_0000;
        make_root(&root, busybox).map_err(|error| format!("cannot make a root: {error}"))?;
        std::fs::create_dir_all(&outside).map_err(|error| error.to_string())?;
        let mut config = Config {
            init,
            cgroup_parent: format!("diego-test-{}-{number}", std::process::id()),
            ids: IdPool::Own { base, ids_per_container: 65_536, containers_max: 16 },
            ..Config::default()
        };
        configure(&mut config);
        let containerizer = Containerizer::new(config.clone()).map_err(|error| format!("{name}: {error}"))?;
        Ok(World { containerizer, root, outside, config })
    }

    pub fn init_program(&self) -> &Path {
        &self.config.init
    }

    pub fn spec(&self) -> Spec {
        Spec { handle: "the-handle".into(), ..Spec::default() }
    }

    pub fn root_mount(&self, user_namespace: Option<BorrowedFd<'_>>) -> OwnedFd {
        let clone = mount::clone_mount(&self.root, false).unwrap();
        if let Some(namespace) = user_namespace {
            mount::map_ids(clone.as_fd(), namespace).unwrap();
        }
        clone
    }

    pub async fn try_start(&self, spec: Spec) -> Result<Container> {
        let blank = self.containerizer.blank(spec.privileged).await?;
        let root = self.root_mount(blank.user_namespace());
        blank.start(spec, root).await
    }

    pub async fn start(&self, spec: Spec) -> Container {
        self.try_start(spec).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn base(&self, _container: &Container) -> u32 {
        match self.config.ids {
            IdPool::Own { base, .. } => base,
            IdPool::Shared(range) => range.base,
        }
    }

    /// A file of a container's control group: of this controller where each has its own hierarchy.
    pub fn cgroup_file(&self, container: &Container, controller: &str, file: &str) -> Option<String> {
        let v1 = self.config.cgroup_root.join(controller);
        let root = if v1.is_dir() { v1 } else { self.config.cgroup_root.clone() };
        let path = root.join(&self.config.cgroup_parent).join(container.handle()).join(file);
        Some(std::fs::read_to_string(path).ok()?.trim().to_string())
    }

    pub async fn run(&self, container: &Container, spec: &ProcessSpec) -> Done {
        self.run_io(container, spec, None).await
    }

    pub async fn run_with(&self, container: &Container, spec: &ProcessSpec, input: &'static str) -> Done {
        self.run_io(container, spec, Some(input)).await
    }

    async fn run_io(&self, container: &Container, spec: &ProcessSpec, input: Option<&'static str>) -> Done {
        let (mut out, stdout) = tokio::io::duplex(1 << 20);
        let (mut err, stderr) = tokio::io::duplex(1 << 20);
        let stdin = input.map(|input| Box::new(input.as_bytes()) as garden_client::Reader);
        let io = ProcessIo { stdin, stdout: Some(Box::new(stdout)), stderr: Some(Box::new(stderr)) };
        let process = container.run(spec, io).await.unwrap_or_else(|error| panic!("{error}"));
        let status = tokio::time::timeout(STEP_DEADLINE, process.wait()).await.expect("it ends").unwrap();
        Done { stdout: available(&mut out).await, stderr: available(&mut err).await, status }
    }

    pub async fn output(&self, container: &Container, script: &str) -> String {
        self.run(container, &sh(script)).await.stdout
    }

    pub async fn end(&self, container: Container) {
        let pid = container.pid();
        container.destroy().await.unwrap();
        // It has ended; its parent may be about to hear of it.
        until("pid 1 is reaped", || !exists(pid)).await;
        self.nothing_left().await;
    }

    /// No process, no control group, no mount.
    pub async fn nothing_left(&self) {
        assert_eq!(self.containerizer.cgroup_names().unwrap(), Vec::<String>::new());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.root.to_str().unwrap()), "{mounts}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // After a failed test, too: whatever is in our groups is ours.
        let root = &self.config.cgroup_root;
        if let Ok(hierarchies) = garden_sys::cgroup::Hierarchies::probe(root) {
            // Some worlds use these, too.
            let hierarchies = hierarchies.with_io_weights(root);
            for name in hierarchies.names(&self.config.cgroup_parent).unwrap_or_default() {
                let _ = hierarchies.cgroup(&self.config.cgroup_parent, &name).remove();
            }
            let _ = hierarchies.remove_parent(&self.config.cgroup_parent);
        }
        if let Some(directory) = self.root.parent() {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// What has been written so far; the other end may stay open in some grandchild.
async fn available(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        match tokio::time::timeout(Duration::from_millis(20), reader.read(&mut chunk)).await {
            Ok(Ok(length)) if length > 0 => bytes.extend_from_slice(&chunk[..length]),
            _ => return String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

fn make_root(root: &Path, busybox: &Path) -> std::io::Result<()> {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/alice"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nseven:x:7:alice\n")?;
    std::os::unix::fs::chown(root.join("home/alice"), Some(1000), Some(1001))?;
    std::fs::set_permissions(root.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
}

const APPLETS: [&str; 34] = [
    "sh", "cat", "echo", "ls", "true", "false", "sleep", "id", "env", "sort", "stat", "head", "tr", "wc",
    "grep", "readlink", "hostname", "mount", "umount", "unshare", "mknod", "touch", "tty", "stty", "ip",
    "kill", "mkdir", "pwd", "ps", "nproc", "dd", "rm", "ln", "chmod",
];

pub fn exists(pid: i32) -> bool {
    garden_sys::process::start_time(Path::new("/proc"), pid).unwrap().is_some()
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < STEP_DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn pss_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub type Builder = tar::Builder<Vec<u8>>;

pub fn tar(fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}

pub fn add(builder: &mut Builder, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o4666);
    builder.append_data(&mut header, name, content).unwrap();
}

/// A name as the header holds it, whatever the library thinks of it.
pub fn add_raw(builder: &mut Builder, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

pub fn add_link(builder: &mut Builder, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, name, target).unwrap();
}

pub fn names(tar: &[u8]) -> String {
    let mut archive = tar::Archive::new(tar);
    let names = archive
        .entries()
        .unwrap()
        .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned());
    names.collect::<Vec<_>>().join(" ")
}
