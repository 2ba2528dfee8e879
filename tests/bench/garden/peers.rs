//! The others: runtimes from the distribution, given the same root and as little else as they will take.
//!
//! crun refuses a host with control groups of both versions. It is run where the second's directory is covered, in a
//! mount namespace of its own: a copy of this program there ([`RUNNER`]) starts it and takes the time.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub const RUNNER: &str = "run-for-peer";
const CGROUP: &str = "/diego-bench";
/// Apart from those of ours.
const FIRST_ID: u32 = 1_811_939_328;

/// Runs it to its end and says how long that took.
fn time(program: &str, args: &[String]) -> Result<Duration> {
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let status = child.wait()?;
    let took = began.elapsed();
    if !status.success() {
        bail!("{program} {args:?} ended with {status}");
    }
    Ok(took)
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| arg.to_string()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A bundle whose process is `args`: what the runtime itself would write, with a user namespace.
fn bundle(runtime: &str, directory: &Path, root: &Path, args: &[&str]) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let file = directory.join("config.json");
    if file.exists() {
        std::fs::remove_file(&file)?;
    }
    let made = Command::new(runtime).arg("spec").current_dir(directory).status()?;
    if !made.success() {
        bail!("{runtime} spec: {made}");
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(args);
    config["root"] = json!({ "path": text(root), "readonly": true });
    let ids = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": 65_536 }]);
    config["linux"]["uidMappings"] = ids.clone();
    config["linux"]["gidMappings"] = ids;
    config["linux"]["cgroupsPath"] =
        json!(format!("{CGROUP}/{}", text(Path::new(directory.file_name().unwrap_or_default()))));
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("a spec without namespaces")?;
    namespaces.push(json!({ "type": "user" }));
    std::fs::write(&file, serde_json::to_vec(&config)?)?;
    Ok(())
}

pub struct Crun {
    runner: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    state: PathBuf,
    bundle: PathBuf,
}

impl Crun {
    pub fn new(work: &Path, root: &Path) -> Result<Crun> {
        let (state, directory) = (work.join("crun"), work.join("bundle-crun"));
        bundle("crun", &directory, root, &["/bin/true"])?;
        let cover = "[ ! -d /sys/fs/cgroup/unified ] || mount -t tmpfs none /sys/fs/cgroup/unified; exec \"$0\" \"$1\"";
        let this = std::env::current_exe()?;
        let mut runner = Command::new("unshare")
            .args(["--mount", "sh", "-c", cover, &text(&this), RUNNER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let (commands, answers) = (runner.stdin.take(), runner.stdout.take());
        let (commands, answers) = commands.zip(answers).context("no pipes to the runner")?;
        Ok(Crun { runner, commands, answers: BufReader::new(answers), state, bundle: directory })
    }

    pub fn cycle(&mut self, round: usize) -> Result<Duration> {
        let (state, bundle) = (text(&self.state), text(&self.bundle));
        let id = format!("bench-crun-{round}");
        let args = ["crun", "--root", &state, "run", "--bundle", &bundle, &id];
        writeln!(self.commands, "{}", serde_json::to_string(&args)?)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim().parse() {
            Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
            Err(_) => bail!("crun: {}", answer.trim()),
        }
    }
}

impl Drop for Crun {
    fn drop(&mut self) {
        // At the end of its input it ends; being killed first is as good.
        let _ = self.runner.kill();
        let _ = self.runner.wait();
        remove_cgroups();
    }
}

/// The copy of this program that runs what it reads, a JSON array a line, and answers with nanoseconds.
pub fn serve() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let args: Vec<String> = serde_json::from_str(&line?)?;
        let Some((program, args)) = args.split_first() else { bail!("no program") };
        match time(program, args) {
            Ok(took) => println!("{}", took.as_nanos()),
            Err(error) => println!("{error:#}"),
        }
    }
    Ok(())
}

pub struct Runc {
    state: PathBuf,
    work: PathBuf,
    root: PathBuf,
}

impl Runc {
    pub fn new(work: &Path, root: &Path) -> Result<Runc> {
        let runc = Runc { state: work.join("runc"), work: work.into(), root: root.into() };
        bundle("runc", &work.join("bundle-runc"), root, &["/bin/true"])?;
        Ok(runc)
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let mut args = strings(&["--root", &text(&self.state)]);
        args.extend(strings(more));
        args
    }

    pub fn cycle(&self, round: usize) -> Result<Duration> {
        let bundle = text(&self.work.join("bundle-runc"));
        time("runc", &self.args(&["run", "--bundle", &bundle, &format!("bench-runc-{round}")]))
    }

    pub fn running(&self, id: &str) -> Result<RunningRunc<'_>> {
        let directory = self.work.join("bundle-runc-sleep");
        bundle("runc", &directory, &self.root, &["/bin/sleep", "1000000"])?;
        time("runc", &self.args(&["run", "--detach", "--bundle", &text(&directory), id]))?;
        Ok(RunningRunc { runc: self, id: id.into() })
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        remove_cgroups();
    }
}

pub struct RunningRunc<'a> {
    runc: &'a Runc,
    id: String,
}

impl RunningRunc<'_> {
    pub fn exec(&self) -> Result<Duration> {
        time("runc", &self.runc.args(&["exec", &self.id, "/bin/true"]))
    }
}

impl Drop for RunningRunc<'_> {
    fn drop(&mut self) {
        let _ = time("runc", &self.runc.args(&["delete", "--force", &self.id]));
    }
}

/// Empty by now; what another still uses stays.
fn remove_cgroups() {
    for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(controller.path().join(&CGROUP[1..]));
    }
    let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&CGROUP[1..]));
}

/// containerd with its own state, and its client.
pub struct Ctr {
    daemon: Child,
    socket: String,
    image: String,
}

impl Ctr {
    pub fn start(work: &Path) -> Result<Ctr> {
        let directory = work.join("containerd");
        std::fs::create_dir_all(&directory)?;
        let socket = text(&directory.join("socket"));
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
            text(&directory.join("root")),
            text(&directory.join("state")),
        );
        std::fs::write(directory.join("config.toml"), config)?;
        let log = std::fs::File::create(directory.join("log"))?;
        let daemon = Command::new("containerd")
            .args(["--config", &text(&directory.join("config.toml"))])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let ctr = Ctr { daemon, socket, image: "bench.local/web:1".into() };
        super::wait_until("containerd", || ctr.ctr(&["version"]).is_ok())?;
        ctr.import(work)?;
        Ok(ctr)
    }

    fn import(&self, work: &Path) -> Result<()> {
        let (layout, archive) = (work.join("layout"), work.join("layout.tar"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/image");
        time(&text(&script), &strings(&["oci", &text(&layout)]))?;
        time("tar", &strings(&["-C", &text(&layout), "-cf", &text(&archive), "."]))?;
        self.ctr(&["image", "import", "--index-name", &self.image, &text(&archive)]).map(drop)
    }

    fn ctr(&self, args: &[&str]) -> Result<Duration> {
        let mut all = strings(&["--address", &self.socket]);
        all.extend(strings(args));
        time("ctr", &all)
    }

    pub fn cycle(&self, round: usize) -> Result<Duration> {
        let (id, group) = (format!("bench-ctr-{round}"), format!("{CGROUP}/ctr-{round}"));
        self.ctr(&["run", "--rm", "--cgroup", &group, &self.image, &id, "/bin/true"])
    }
}

impl Drop for Ctr {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.daemon.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.daemon.wait();
        remove_cgroups();
    }
}
