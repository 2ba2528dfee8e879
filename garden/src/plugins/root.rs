//! From what an image plugin has made to a root that can be given to a container: its mounts are made in a mount
//! namespace of their own, so that the host never sees them and nothing is left of them whatever happens.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use garden_sys::mount;
use garden_sys::process::{self, namespaces};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::image::{Made, Mount};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {act} {object}: {source}")]
    Failed { act: &'static str, object: String, source: io::Error },
    #[error("an image plugin may ask for overlay, tmpfs and bind mounts, not for a mount of type '{0}'")]
    Kind(String),
    #[error("'{0}' is no place for a mount")]
    Destination(String),
    #[error("interrupted")]
    Interrupted,
}

type Result<T> = std::result::Result<T, Error>;

fn failed(act: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Failed { act, object: object.to_string(), source }
}

/// A detached mount of the root with everything in it. Blocking.
pub fn assemble(made: &Made) -> Result<OwnedFd> {
    if made.mounts.is_empty() {
        return clone(&made.root);
    }
    std::thread::scope(|scope| {
        // A thread of its own, because the namespace is the thread's and goes with it.
        scope.spawn(|| assemble_apart(made)).join().map_err(|_| Error::Interrupted)?
    })
}

fn clone(root: &Path) -> Result<OwnedFd> {
    mount::clone_mount(root, true).map_err(failed("take the root", root.display()))
}

fn assemble_apart(made: &Made) -> Result<OwnedFd> {
    process::unshare(namespaces::MOUNT).map_err(failed("make", "a mount namespace"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| failed("make private", "the mounts")(errno.into()))?;
    made.mounts.iter().try_for_each(|mount| add(&made.root, mount))?;
    clone(&made.root)
}

fn add(root: &Path, wanted: &Mount) -> Result<()> {
    let Mount { destination, kind, source, options } = wanted;
    let binds = kind == "bind" || options.iter().any(|option| option == "bind" || option == "rbind");
    if binds {
        let mount = mount::clone_mount(source.as_ref(), options.iter().any(|option| option == "rbind"))
            .map_err(failed("bind", source))?;
        if options.iter().any(|option| option == "ro") {
            mount::set_attributes(&mount, mount::MountAttrFlags::MOUNT_ATTR_RDONLY, true)
                .map_err(failed("make read-only", source))?;
        }
        let stat = rustix::fs::fstat(&mount).map_err(|errno| failed("look at", source)(errno.into()))?;
        let file = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        return mount::attach(&mount, place(root, destination, file)?).map_err(failed("mount", destination));
    }
    if kind != "overlay" && kind != "tmpfs" {
        return Err(Error::Kind(kind.clone()));
    }
    let place = place(root, destination, false)?;
    let (flags, rest) = split(options);
    let target = format!("/proc/thread-self/fd/{}", place.as_raw_fd());
    let text = std::ffi::CString::new(rest).map_err(|error| failed("mount", destination)(error.into()))?;
    mount(source.as_str(), target, kind.as_str(), flags, text.as_c_str())
        .map_err(|errno| failed("mount", destination)(errno.into()))
}

fn split(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let rest = options.iter().filter(|option| {
        flags |= match option.as_str() {
            "ro" => MountFlags::RDONLY,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "relatime" => MountFlags::RELATIME,
            "rw" | "suid" | "dev" | "exec" | "defaults" => MountFlags::empty(),
            _ => return true,
        };
        false
    });
    let rest = rest.map(String::as_str).collect::<Vec<_>>().join(",");
    (flags, rest)
}

/// Opened as the container itself would resolve it; made when it is missing.
fn place(root: &Path, destination: &str, file: bool) -> Result<OwnedFd> {
    let parts: Vec<&str> = destination.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if !destination.starts_with('/') || parts.contains(&"..") {
        return Err(Error::Destination(destination.into()));
    }
    let open = || -> rustix::io::Result<OwnedFd> {
        let mut at = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let top = at.try_clone().map_err(|_| rustix::io::Errno::MFILE)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for (index, part) in parts.iter().enumerate() {
            let path = parts[..=index].join("/");
            let find =
                || rustix::fs::openat2(&top, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
            at = match find() {
                Err(rustix::io::Errno::NOENT) => {
                    make(&at, part, file && index + 1 == parts.len())?;
                    find()?
                }
                found => found?,
            };
        }
        Ok(at)
    };
    open().map_err(|errno| failed("find a place at", destination)(errno.into()))
}

fn make(at: &OwnedFd, name: &str, file: bool) -> rustix::io::Result<()> {
    if file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        return rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o644)).map(drop);
    }
    rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_kernel_are_told_from_those_of_the_file_system() {
        let options = ["ro", "lowerdir=/a:/b", "nosuid", "rw", "userxattr"].map(String::from);
        let (flags, rest) = split(&options);
        assert_eq!(
            (flags, rest.as_str()),
            (MountFlags::RDONLY | MountFlags::NOSUID, "lowerdir=/a:/b,userxattr")
        );
    }

    #[test]
    fn a_place_is_never_outside() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        place(dir.path(), "/out/made", false).unwrap();
        assert!(dir.path().join("etc/made").is_dir());
        place(dir.path(), "/a/b/file", true).unwrap();
        assert!(dir.path().join("a/b/file").is_file());
        for bad in ["relative", "/../up", "/a/../../b"] {
            assert!(place(dir.path(), bad, false).is_err(), "{bad}");
        }
    }
}
