//! A mount namespace with nothing of the machine in it, for what the kernel does only by path: mounts made there show
//! in nobody's tree and are gone with the thread that made them, however that ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub use rustix::mount::MountFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::mount::{self, Filesystem, MountAttrFlags};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make a mount namespace of our own: {0}")]
    Make(#[source] io::Error),
    #[error("cannot enter our mount namespace: {0}")]
    Enter(#[source] io::Error),
    #[error("cannot mount {name} by its options: {source}")]
    Mount { name: String, source: io::Error },
    #[error(transparent)]
    Step(#[from] mount::Error),
}

impl Error {
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Error::Make(source) | Error::Enter(source) | Error::Mount { source, .. } => source.raw_os_error(),
            Error::Step(error) => error.os_error(),
        }
    }
}

/// Where each act has its scratch directory, which is also where it begins.
const SCRATCH: &str = "/scratch";

#[derive(Debug)]
pub struct Secluded {
    namespace: OwnedFd,
}

impl Secluded {
    /// Pins no mount of the machine: its root is an empty directory in memory.
    pub fn new() -> Result<Secluded, Error> {
        let namespace = on_a_thread(empty_namespace).map_err(Error::Make)??;
        Ok(Secluded { namespace })
    }

    /// Runs `act` on a thread of its own, in a copy of the namespace, in an empty directory in memory. What it leaves
    /// mounted goes with the thread, but for what it returns a descriptor of.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        let namespace = self.namespace.as_fd();
        on_a_thread(move || {
            enter_copy(namespace).map_err(Error::Enter)?;
            memory()?.put(Path::new(SCRATCH))?;
            rustix::process::chdir(SCRATCH).map_err(|errno| Error::Enter(errno.into()))?;
            act()
        })
        .map_err(Error::Enter)?
    }
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mountns".into()).spawn_scoped(scope, act)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn enter_copy(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only this thread's idea of directories is unshared, memory and descriptors are not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
    // SAFETY: as above; the copy is of two mounts in memory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(())
}

struct Memory(OwnedFd);

impl Memory {
    fn put(&self, target: &Path) -> Result<(), Error> {
        Ok(mount::move_mount(self.0.as_fd(), target)?)
    }
}

fn memory() -> Result<Memory, Error> {
    let tmpfs = Filesystem::open("tmpfs")?;
    tmpfs.set_string("mode", "0700")?;
    tmpfs.create()?;
    Ok(Memory(tmpfs.mount(MountAttrFlags::empty())?))
}

fn empty_namespace() -> Result<OwnedFd, Error> {
    let made = |errno: rustix::io::Errno| Error::Make(errno.into());
    // SAFETY: as in `enter_copy`; the thread ends with this function.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.map_err(made)?;
    let namespace = File::open("/proc/thread-self/ns/mnt").map_err(Error::Make)?;
    // Before anything is mounted: what is shared with the machine would appear there.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(made)?;
    let root = memory()?;
    root.put(Path::new("/"))?;
    rustix::process::fchdir(&root.0).map_err(made)?;
    rustix::process::pivot_root(".", ".").map_err(made)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(made)?;
    rustix::process::chdir("/").map_err(made)?;
    std::fs::create_dir(SCRATCH).map_err(Error::Make)?;
    Ok(namespace.into())
}

/// The system call of old, all options in one string of at most a page, paths as this thread finds them; the answer is
/// a detached mount. For use in [`Secluded::run`]: `place` is a directory there.
pub fn mount_by_options(
    filesystem: &str,
    name: &str,
    options: &str,
    flags: MountFlags,
    place: &Path,
) -> Result<OwnedFd, Error> {
    let refused = |source: io::Error| Error::Mount { name: format!("{filesystem} {name}"), source };
    let options = std::ffi::CString::new(options).map_err(|error| refused(error.into()))?;
    rustix::mount::mount(name, place, filesystem, flags, options.as_c_str())
        .map_err(|errno| refused(errno.into()))?;
    mount::clone_mount(place, false).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_seclusion_shows_nowhere_and_outlives_it_by_descriptor() {
        let secluded = match Secluded::new() {
            Ok(secluded) => secluded,
            Err(error) => {
                println!(
                    "SKIPPED what_is_mounted_in_seclusion_shows_nowhere_and_outlives_it_by_descriptor: {error}"
                );
                return;
            }
        };
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (seen, kept) = secluded
            .run(|| {
                let seen: Vec<_> = std::fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name()).collect();
                std::fs::create_dir("place").unwrap();
                let kept = mount_by_options("tmpfs", "x", "mode=700", MountFlags::empty(), "place".as_ref())?;
                std::fs::write("place/file", "kept").unwrap();
                Ok((seen, kept))
            })
            .unwrap();
        assert_eq!(seen, ["scratch"]);
        let mut content = String::new();
        let flags = rustix::fs::OFlags::RDONLY;
        let file = rustix::fs::openat(&kept, "file", flags, rustix::fs::Mode::empty()).unwrap();
        io::Read::read_to_string(&mut File::from(file), &mut content).unwrap();
        assert_eq!(content, "kept");
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        assert!(Path::new("/proc").exists(), "only that thread left the machine's tree");
    }
}
