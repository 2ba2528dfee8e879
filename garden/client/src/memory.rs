//! A garden without containers, for tests of what stands on a garden: scripted processes, recorded calls, failures
//! and delays on request.
//!
//! It holds its callers to the contract (unknown handles are errors, output comes before the exit status) and is
//! deliberately ignorant of root filesystems, networks and limits: those are only recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::*;

/// What can be made to fail or to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Ping,
    Create,
    Destroy,
    List,
    Info,
    Metrics,
    StreamIn,
    StreamOut,
    Run,
    Attach,
    SetProperty,
}

/// What a process does.
#[derive(Debug, Clone)]
pub struct Script {
    stdout: String,
    stderr: String,
    ending: Ending,
    on_terminate: Option<i32>,
    dies_when_killed: bool,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    After(Duration, i32),
    WhenTold,
}

impl Script {
    /// Ends at once, with this status.
    pub fn exits(status: i32) -> Self {
        Script::exits_after(Duration::ZERO, status)
    }

    pub fn exits_after(time: Duration, status: i32) -> Self {
        Script { ending: Ending::After(time, status), ..Script::runs() }
    }

    /// Runs until [`MemoryGarden::exit`] or a signal ends it.
    pub fn runs() -> Self {
        Script {
            stdout: String::new(),
            stderr: String::new(),
            ending: Ending::WhenTold,
            on_terminate: Some(143),
            dies_when_killed: true,
        }
    }

    pub fn out(mut self, text: &str) -> Self {
        self.stdout.push_str(text);
        self
    }

    pub fn err(mut self, text: &str) -> Self {
        self.stderr.push_str(text);
        self
    }

    /// Its status when asked to terminate.
    pub fn on_terminate(mut self, status: i32) -> Self {
        self.on_terminate = Some(status);
        self
    }

    pub fn ignores_terminate(mut self) -> Self {
        self.on_terminate = None;
        self
    }

    /// Not even killing ends it: only its container's end does.
    pub fn ignores_everything(mut self) -> Self {
        self.dies_when_killed = false;
        self.ignores_terminate()
    }
}

/// A container as a test sees it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub spec: ContainerSpec,
    pub properties: Properties,
    /// Every process that was started, in order.
    pub processes: Vec<ProcessSpec>,
    /// What was streamed in and put there, by absolute path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The user of each stream in.
    pub stream_users: Vec<String>,
}

#[derive(Clone, Default)]
pub struct MemoryGarden(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Kept>,
    scripts: BTreeMap<String, Script>,
    failures: Vec<(Call, Error, usize)>,
    held: BTreeSet<Call>,
    wakers: Vec<watch::Sender<bool>>,
    calls: Vec<String>,
    address: Option<IpAddr>,
    network: Option<NetworkNamespace>,
    next_port: u32,
    next_process: u32,
    disk_bytes: Option<u64>,
    /// Counts how often it has gone away.
    departures: watch::Sender<u32>,
    away: bool,
}

#[derive(Default)]
struct Kept {
    seen: Seen,
    ports: Vec<MappedPort>,
    events: Vec<String>,
    metrics: Metrics,
    running: BTreeMap<String, Running>,
}

struct Running {
    path: String,
    script: Script,
    status: watch::Sender<Option<i32>>,
    /// Of who came last.
    stdout: Option<Writer>,
}

const FIRST_PORT: u32 = 61001;
/// Of memory, and of disk unless told otherwise.
const CAPACITY_BYTES: u64 = 64 << 30;

impl MemoryGarden {
    pub fn new() -> Self {
        MemoryGarden::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What containers may take of the disk from now on.
    pub fn set_disk_bytes(&self, bytes: u64) {
        self.lock().disk_bytes = Some(bytes);
    }

    /// What processes of this path do from now on. A path without a script cannot be run.
    pub fn script(&self, path: &str, script: Script) {
        self.lock().scripts.insert(path.to_string(), script);
    }

    /// Makes the next `times` calls fail.
    pub fn fail(&self, call: Call, error: Error, times: usize) {
        self.lock().failures.push((call, error, times));
    }

    /// Makes calls wait until [`MemoryGarden::release`].
    pub fn hold(&self, call: Call) {
        self.lock().held.insert(call);
    }

    pub fn release(&self, call: Call) {
        let mut state = self.lock();
        state.held.remove(&call);
        // Dropped: those who wait look again.
        state.wakers.clear();
    }

    /// The address of every container from now on; 127.0.0.1 otherwise.
    pub fn set_container_ip(&self, address: IpAddr) {
        self.lock().address = Some(address);
    }

    /// Told of every container from now on; nothing otherwise.
    pub fn set_network_namespace(&self, at: NetworkNamespace) {
        self.lock().network = Some(at);
    }

    pub fn put_file(&self, handle: &str, path: &str, content: &[u8]) {
        if let Some(kept) = self.lock().containers.get_mut(handle) {
            kept.seen.files.insert(path.to_string(), content.to_vec());
        }
    }

    pub fn set_metrics(&self, handle: &str, metrics: Metrics) {
        if let Some(kept) = self.lock().containers.get_mut(handle) {
            kept.metrics = metrics;
        }
    }

    /// Adds an event as the container's information shows it.
    pub fn add_event(&self, handle: &str, event: &str) {
        if let Some(kept) = self.lock().containers.get_mut(handle) {
            kept.events.push(event.to_string());
        }
    }

    /// Ends every running process of this path; how many there were.
    pub fn exit(&self, handle: &str, path: &str, status: i32) -> usize {
        let mut state = self.lock();
        let Some(kept) = state.containers.get_mut(handle) else { return 0 };
        let ended = kept.running.values().filter(|running| running.path == path && running.end(status));
        ended.count()
    }

    /// Its process is killed; containers go on. Until it comes back every call finds nobody.
    pub fn go_away(&self) {
        let mut state = self.lock();
        state.away = true;
        state.departures.send_modify(|departures| *departures += 1);
    }

    pub fn come_back(&self) {
        self.lock().away = false;
    }

    /// A process of this path writes to its output; whether anybody takes it.
    pub async fn say(&self, handle: &str, path: &str, text: &str) -> bool {
        let writer = || {
            let mut state = self.lock();
            let kept = state.containers.get_mut(handle)?;
            kept.running.values_mut().find(|running| running.path == path)?.stdout.take()
        };
        let Some(mut writer) = writer() else { return false };
        let said = write(&mut writer, text).await.is_ok();
        let mut state = self.lock();
        let kept = state.containers.get_mut(handle);
        if let Some(running) = kept.and_then(|kept| kept.running.values_mut().find(|r| r.path == path)) {
            running.stdout.get_or_insert(writer);
        }
        said
    }

    /// A container vanishes without anybody having asked.
    pub fn lose(&self, handle: &str) {
        self.lock().destroy(handle);
    }

    pub fn handles(&self) -> Vec<String> {
        self.lock().containers.keys().cloned().collect()
    }

    pub fn seen(&self, handle: &str) -> Option<Seen> {
        self.lock().containers.get(handle).map(|kept| kept.seen.clone())
    }

    /// Paths of the processes that run now.
    pub fn running(&self, handle: &str) -> Vec<String> {
        let state = self.lock();
        let Some(kept) = state.containers.get(handle) else { return Vec::new() };
        let alive = kept.running.values().filter(|running| running.status.borrow().is_none());
        alive.map(|running| running.path.clone()).collect()
    }

    /// What was asked, in order: `create a`, `run a /bin/app`, `signal a /bin/app Terminate`, `destroy a`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Records a call, waits while it is held, and fails if it is to.
    async fn enter(&self, call: Call, record: String) -> Result<()> {
        if self.lock().away {
            return Err(gone());
        }
        self.lock().calls.push(record);
        loop {
            let mut released = {
                let mut state = self.lock();
                if !state.held.contains(&call) {
                    return state.failure(call).map_or(Ok(()), Err);
                }
                let (waker, released) = watch::channel(false);
                state.wakers.push(waker);
                released
            };
            // A sender that is gone has woken us too.
            let _ = released.changed().await;
        }
    }

    fn with<T>(&self, handle: &str, act: impl FnOnce(&mut Kept) -> T) -> Result<T> {
        let mut state = self.lock();
        let kept = state.containers.get_mut(handle);
        kept.map(act).ok_or_else(|| Error::ContainerNotFound { handle: handle.to_string() })
    }
}

impl State {
    fn failure(&mut self, call: Call) -> Option<Error> {
        let position = self.failures.iter().position(|(failing, _, times)| *failing == call && *times > 0)?;
        self.failures[position].2 -= 1;
        Some(self.failures[position].1.clone())
    }

    fn port(&mut self, wanted: NetIn) -> MappedPort {
        let host_port = match wanted.host_port {
            0 => {
                self.next_port += 1;
                FIRST_PORT + self.next_port - 1
            }
            port => port,
        };
        MappedPort { host_port, container_port: wanted.container_port }
    }

    fn destroy(&mut self, handle: &str) -> bool {
        let Some(kept) = self.containers.remove(handle) else { return false };
        kept.end_all(137);
        true
    }
}

impl Running {
    fn end(&self, status: i32) -> bool {
        self.status.send_if_modified(|ended| {
            let alive = ended.is_none();
            ended.get_or_insert(status);
            alive
        })
    }
}

impl Kept {
    fn end_all(&self, status: i32) {
        for running in self.running.values() {
            running.end(status);
        }
    }

    fn info(&self, address: IpAddr) -> ContainerInfo {
        ContainerInfo {
            state: "active".to_string(),
            events: self.events.clone(),
            host_ip: "127.0.0.1".to_string(),
            container_ip: address.to_string(),
            external_ip: "127.0.0.1".to_string(),
            properties: self.seen.properties.clone(),
            mapped_ports: self.ports.clone(),
            process_ids: self.running.keys().cloned().collect(),
            ..ContainerInfo::default()
        }
    }
}

#[async_trait::async_trait]
impl Garden for MemoryGarden {
    async fn ping(&self) -> Result<()> {
        self.enter(Call::Ping, "ping".to_string()).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        if self.lock().away {
            return Err(gone());
        }
        let disk = self.lock().disk_bytes.unwrap_or(CAPACITY_BYTES);
        Ok(Capacity {
            memory_in_bytes: CAPACITY_BYTES,
            disk_in_bytes: disk,
            schedulable_disk_in_bytes: disk,
            max_containers: 250,
        })
    }

    async fn create(&self, spec: ContainerSpec) -> Result<String> {
        self.enter(Call::Create, format!("create {}", spec.handle)).await?;
        let mut state = self.lock();
        let handle = match spec.handle.as_str() {
            "" => format!("memory-{}", state.containers.len()),
            handle => handle.to_string(),
        };
        if state.containers.contains_key(&handle) {
            return Err(Error::Other(format!("Handle '{handle}' already in use")));
        }
        let ports = spec.net_in.iter().map(|wanted| state.port(*wanted)).collect();
        let mut properties = spec.properties.clone();
        properties.extend(state.network.map(|at| (NETWORK_NAMESPACE_PROPERTY.to_string(), at.to_string())));
        let seen = Seen { properties, spec, ..Seen::default() };
        state.containers.insert(handle.clone(), Kept { seen, ports, ..Kept::default() });
        Ok(handle)
    }

    async fn destroy(&self, handle: &str) -> Result<()> {
        self.enter(Call::Destroy, format!("destroy {handle}")).await?;
        match self.lock().destroy(handle) {
            true => Ok(()),
            false => Err(Error::ContainerNotFound { handle: handle.to_string() }),
        }
    }

    async fn containers(&self, properties: &Properties) -> Result<Vec<String>> {
        self.enter(Call::List, "list".to_string()).await?;
        let state = self.lock();
        let has = |kept: &Kept| {
            properties.iter().all(|(name, value)| kept.seen.properties.get(name) == Some(value))
        };
        Ok(state.containers.iter().filter(|(_, kept)| has(kept)).map(|(handle, _)| handle.clone()).collect())
    }

    async fn bulk_info(&self, handles: &[String]) -> Result<BTreeMap<String, Result<ContainerInfo>>> {
        let mut answers = BTreeMap::new();
        for handle in handles {
            answers.insert(handle.clone(), self.info(handle).await);
        }
        Ok(answers)
    }

    async fn bulk_metrics(&self, handles: &[String]) -> Result<BTreeMap<String, Result<Metrics>>> {
        self.enter(Call::Metrics, "metrics".to_string()).await?;
        let measured = |handle: &String| self.with(handle, |kept| kept.metrics.clone());
        Ok(handles.iter().map(|handle| (handle.clone(), measured(handle))).collect())
    }

    async fn stop(&self, handle: &str, kill: bool) -> Result<()> {
        self.lock().calls.push(format!("stop {handle}"));
        let status = if kill { 137 } else { 143 };
        self.with(handle, |kept| kept.end_all(status))
    }

    async fn info(&self, handle: &str) -> Result<ContainerInfo> {
        self.enter(Call::Info, format!("info {handle}")).await?;
        let address = self.lock().address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        self.with(handle, |kept| kept.info(address))
    }

    async fn metrics(&self, handle: &str) -> Result<Metrics> {
        self.enter(Call::Metrics, format!("metrics {handle}")).await?;
        self.with(handle, |kept| kept.metrics.clone())
    }

    async fn stream_in(&self, handle: &str, user: &str, path: &str, mut tar: Reader) -> Result<()> {
        self.enter(Call::StreamIn, format!("stream-in {handle} {path}")).await?;
        let mut bytes = Vec::new();
        let read = tar.read_to_end(&mut bytes).await;
        read.map_err(|error| Error::Other(format!("cannot read the stream: {error}")))?;
        let files = unpack(path, &bytes).map_err(|error| Error::Other(format!("cannot unpack: {error}")))?;
        self.with(handle, |kept| {
            kept.seen.files.extend(files);
            kept.seen.stream_users.push(user.to_string());
        })
    }

    async fn stream_out(&self, handle: &str, _user: &str, path: &str) -> Result<Reader> {
        self.enter(Call::StreamOut, format!("stream-out {handle} {path}")).await?;
        let content = self.with(handle, |kept| kept.seen.files.get(path).cloned())?;
        let content = content.ok_or_else(|| Error::Other(format!("{path}: no such file or directory")))?;
        let tar = pack(path, &content).map_err(|error| Error::Other(error.to_string()))?;
        Ok(Box::new(std::io::Cursor::new(tar)))
    }

    async fn run(&self, handle: &str, spec: ProcessSpec, io: ProcessIo) -> Result<Box<dyn Process>> {
        self.enter(Call::Run, format!("run {handle} {}", spec.path)).await?;
        let (id, script, status) = self.start(handle, spec)?;
        let mut stdout = io.stdout;
        if let Some(stdout) = &mut stdout {
            write(stdout, &script.stdout).await?;
        }
        if let Some(mut stderr) = io.stderr {
            write(&mut stderr, &script.stderr).await?;
        }
        let process = self.process(handle, &id, stdout)?;
        if let Ending::After(time, exit_status) = script.ending {
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                status.send_if_modified(|ended| ended.replace(exit_status).is_none());
            });
        }
        Ok(process)
    }

    async fn attach(&self, handle: &str, process_id: &str, io: ProcessIo) -> Result<Box<dyn Process>> {
        self.enter(Call::Attach, format!("attach {handle}")).await?;
        self.process(handle, process_id, io.stdout)
    }

    async fn net_in(&self, handle: &str, host_port: u32, container_port: u32) -> Result<(u32, u32)> {
        let port = self.lock().port(NetIn { host_port, container_port });
        self.with(handle, |kept| kept.ports.push(port))?;
        Ok((port.host_port, port.container_port))
    }

    async fn bulk_net_out(&self, handle: &str, rules: &[NetOutRule]) -> Result<()> {
        self.with(handle, |kept| kept.seen.spec.net_out.extend_from_slice(rules))
    }

    async fn set_grace_time(&self, handle: &str, grace_time: Duration) -> Result<()> {
        let ns = u64::try_from(grace_time.as_nanos()).unwrap_or(u64::MAX);
        self.with(handle, |kept| kept.seen.spec.grace_time = ns)
    }

    async fn properties(&self, handle: &str) -> Result<Properties> {
        self.with(handle, |kept| kept.seen.properties.clone())
    }

    async fn property(&self, handle: &str, name: &str) -> Result<String> {
        let value = self.with(handle, |kept| kept.seen.properties.get(name).cloned())?;
        value.ok_or_else(|| Error::Other(format!("cannot Get {handle}:{name}")))
    }

    async fn set_property(&self, handle: &str, name: &str, value: &str) -> Result<()> {
        self.enter(Call::SetProperty, format!("set-property {handle} {name}")).await?;
        self.with(handle, |kept| drop(kept.seen.properties.insert(name.to_string(), value.to_string())))
    }

    async fn remove_property(&self, handle: &str, name: &str) -> Result<()> {
        let removed = self.with(handle, |kept| kept.seen.properties.remove(name))?;
        removed.map(drop).ok_or_else(|| Error::Other(format!("cannot Remove {handle}:{name}")))
    }
}

impl MemoryGarden {
    fn start(&self, handle: &str, spec: ProcessSpec) -> Result<(String, Script, watch::Sender<Option<i32>>)> {
        let mut state = self.lock();
        let script = state.scripts.get(&spec.path).cloned();
        state.next_process += 1;
        let id = if spec.id.is_empty() { state.next_process.to_string() } else { spec.id.clone() };
        let kept = state.containers.get_mut(handle);
        let kept = kept.ok_or_else(|| Error::ContainerNotFound { handle: handle.to_string() })?;
        let script = script.ok_or_else(|| Error::ExecutableNotFound(format!("{}: not found", spec.path)))?;
        let (status, _) = watch::channel(None);
        let (path, stdout) = (spec.path.clone(), None);
        let running = Running { path, script: script.clone(), status: status.clone(), stdout };
        kept.running.insert(id.clone(), running);
        kept.seen.processes.push(spec);
        Ok((id, script, status))
    }
}

fn gone() -> Error {
    Error::Disconnected("the garden in memory has gone away".to_string())
}

impl MemoryGarden {
    /// For who listens from now on.
    fn process(&self, handle: &str, id: &str, stdout: Option<Writer>) -> Result<Box<dyn Process>> {
        let found = self.with(handle, |kept| {
            let running = kept.running.get_mut(id)?;
            running.stdout = stdout;
            Some((running.status.subscribe(), running.path.clone()))
        })?;
        let (status, path) = found.ok_or_else(|| Error::ProcessNotFound { process_id: id.to_string() })?;
        let (garden, handle, id) = (self.clone(), handle.to_string(), id.to_string());
        let departures = self.lock().departures.subscribe();
        Ok(Box::new(MemoryProcess { garden, handle, id, path, status, departures }))
    }
}

async fn write(to: &mut Writer, text: &str) -> Result<()> {
    to.write_all(text.as_bytes()).await.map_err(|error| Error::Other(error.to_string()))
}

struct MemoryProcess {
    garden: MemoryGarden,
    handle: String,
    id: String,
    path: String,
    status: watch::Receiver<Option<i32>>,
    departures: watch::Receiver<u32>,
}

#[async_trait::async_trait]
impl Process for MemoryProcess {
    fn id(&self) -> &str {
        &self.id
    }

    async fn wait(&self) -> Result<i32> {
        let (mut status, mut departures) = (self.status.clone(), self.departures.clone());
        let ended = tokio::select! {
            _ = departures.changed() => return Err(gone()),
            ended = status.wait_for(Option::is_some) => ended.map(|status| *status),
        };
        ended.ok().flatten().ok_or_else(|| Error::ProcessNotFound { process_id: self.id.clone() })
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        if self.garden.lock().away {
            return Err(gone());
        }
        self.garden.lock().calls.push(format!("signal {} {} {signal:?}", self.handle, self.path));
        self.garden.with(&self.handle, |kept| {
            let Some(running) = kept.running.get(&self.id) else { return };
            match (signal, running.script.on_terminate) {
                (Signal::Terminate, Some(status)) => running.end(status),
                (Signal::Kill, _) if running.script.dies_when_killed => running.end(137),
                _ => false,
            };
        })
    }

    async fn set_window_size(&self, _size: WindowSize) -> Result<()> {
        Ok(())
    }
}

fn unpack(path: &str, bytes: &[u8]) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(format!("{}/{name}", path.trim_end_matches('/')), content);
        }
    }
    Ok(files)
}

fn pack(path: &str, content: &[u8]) -> std::io::Result<Vec<u8>> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, content)?;
    tar.into_inner()
}
