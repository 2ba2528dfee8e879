//! The running `garden-init` that bears blanks: started out of a sealed copy in memory, so that replacing the file, or a
//! container that gets hold of it, changes nothing; started again should it ever end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use garden_init::{Birth, BirthResult, EVENT_BYTES_MAX, EVENT_FDS_MAX, IdRange};
use garden_sys::{packets, process};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::control::Control;
use super::{Error, Result};

/// A blank takes under a millisecond; a machine in trouble longer.
const BIRTH_DEADLINE: Duration = Duration::from_secs(10);

/// A child in its own namespaces, and what garden may know it by.
pub struct Born {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub network_namespace: OwnedFd,
    pub user_namespace: Option<OwnedFd>,
    /// Our end of its control socket.
    pub socket: OwnedFd,
}

/// A child in a container's namespaces but with mounts of its own.
pub struct Joined {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The container's.
    pub user_namespace: Option<OwnedFd>,
    /// Our end of its control socket.
    pub socket: OwnedFd,
}

pub struct Nursery {
    inner: Arc<Inner>,
}

struct Inner {
    program: OwnedFd,
    running: Mutex<Option<Running>>,
}

struct Running {
    /// `Some`, until it is dropped.
    child: Option<Child>,
    control: Control,
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Blanks and containers are not hurt by it. It fails only for one that has ended.
        let _ = child.kill();
        // Without a wait it would stay a zombie; but the kernel may take its time, and nothing else is to wait for that.
        let wait = std::thread::Builder::new().name("nursery-end".into()).spawn(move || child.wait());
        if let Err(error) = wait {
            tracing::error!(%error, "cannot wait for a nursery to end");
        }
    }
}

impl Nursery {
    pub fn new(program: &Path) -> Result<Nursery> {
        let failed = |source| Error::Program { path: program.into(), source };
        let content = std::fs::read(program).map_err(failed)?;
        let program = process::sealed_program("garden-init", &content).map_err(failed)?;
        Ok(Nursery { inner: Arc::new(Inner { program, running: Mutex::new(None) }) })
    }

    pub async fn bear(&self, ids: Option<IdRange>) -> Result<Born> {
        let (socket, theirs) = packets::pair().map_err(failed("make a socket"))?;
        let unprivileged = ids.is_some();
        let (pid, fds) = self.ask(Birth::Container { ids }, vec![theirs]).await?;
        let mut fds = fds.into_iter();
        let (pidfd, network_namespace, user_namespace) = (fds.next(), fds.next(), fds.next());
        match (pidfd, network_namespace) {
            (Some(pidfd), Some(network_namespace)) if unprivileged == user_namespace.is_some() => {
                Ok(Born { pid, pidfd, network_namespace, user_namespace, socket })
            }
            _ => Err(failed("get its descriptors")(std::io::ErrorKind::InvalidData.into())),
        }
    }

    /// `container`: the pidfd of its pid 1.
    pub async fn join(&self, container: BorrowedFd<'_>, privileged: bool) -> Result<Joined> {
        let (socket, theirs) = packets::pair().map_err(failed("make a socket"))?;
        let container = container.try_clone_to_owned().map_err(failed("name a container to it"))?;
        let (pid, fds) = self.ask(Birth::Pea { privileged }, vec![theirs, container]).await?;
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(pidfd), user_namespace) if privileged != user_namespace.is_some() => {
                Ok(Joined { pid, pidfd, user_namespace, socket })
            }
            _ => Err(failed("get its descriptors")(std::io::ErrorKind::InvalidData.into())),
        }
    }

    /// Not cut short by a caller who gives up: the nursery would be out of step. A child that nobody waits for finds the other
    /// end of its socket closed, and ends.
    async fn ask(&self, birth: Birth, fds: Vec<OwnedFd>) -> Result<(i32, Vec<OwnedFd>)> {
        let inner = self.inner.clone();
        let born = tokio::spawn(async move { inner.ask(&birth, &fds).await }).await;
        born.map_err(|error| failed("wait for it")(std::io::Error::other(error)))?
    }
}

impl Inner {
    fn start(&self) -> Result<Running> {
        let failed = |source| Error::Nursery { act: "start it", source };
        let (ours, theirs) = packets::pair().map_err(failed)?;
        let child = Command::new(format!("/proc/self/fd/{}", process::number(&self.program)))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        let control = Control::new(ours, EVENT_BYTES_MAX, EVENT_FDS_MAX).map_err(failed)?;
        Ok(Running { child: Some(child), control })
    }

    /// One at a time: the kernel makes network namespaces one at a time anyway.
    async fn ask(&self, birth: &Birth, fds: &[OwnedFd]) -> Result<(i32, Vec<OwnedFd>)> {
        let mut running = self.running.lock().await;
        // Taken out meanwhile: whoever fails half-way leaves no nursery that is out of step.
        let mut nursery = match running.take() {
            Some(nursery) => nursery,
            None => self.start()?,
        };
        let born = timeout(BIRTH_DEADLINE, ask(&mut nursery.control, birth, fds)).await;
        let born = born.map_err(|_| Error::Late { step: "make new namespaces", deadline: BIRTH_DEADLINE })?;
        if !matches!(born, Err(Error::Nursery { .. })) {
            *running = Some(nursery);
        }
        born
    }
}

fn failed(act: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Nursery { act, source }
}

async fn ask(control: &mut Control, birth: &Birth, fds: &[OwnedFd]) -> Result<(i32, Vec<OwnedFd>)> {
    control.send(birth, fds).await.map_err(failed("ask it"))?;
    let answer = control.receive().await.map_err(failed("hear from it"))?;
    let answer = answer.ok_or_else(|| failed("hear from it")(std::io::ErrorKind::UnexpectedEof.into()))?;
    match serde_json::from_slice(&answer.bytes) {
        Ok(BirthResult::Born { pid }) => Ok((pid, answer.fds)),
        Ok(BirthResult::Failed { message }) => Err(Error::Birth { message }),
        Err(error) => Err(failed("understand it")(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn births_that_nobody_waits_for_do_not_end_the_nursery() {
        let name = "births_that_nobody_waits_for_do_not_end_the_nursery";
        let (Some(init), true) = (crate::gardener::tests::init(), rustix::process::geteuid().is_root())
        else {
            println!("SKIPPED {name}: needs root, and garden-init beside the tests or named by GARDEN_INIT");
            return;
        };
        let nursery = Nursery::new(&init).unwrap();
        let id =
            async || nursery.inner.running.lock().await.as_ref().and_then(|it| Some(it.child.as_ref()?.id()));
        nursery.bear(None).await.unwrap();
        let first = id().await.unwrap();
        for _ in 0..10 {
            assert!(nursery.bear(None).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        nursery.bear(None).await.unwrap();
        assert_eq!(id().await, Some(first));
    }
}
