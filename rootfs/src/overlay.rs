//! Lower directories, an upper and a work directory turned into one detached overlay mount.
//!
//! Layers are owned by host ids on disk. For a container with its own user namespace they are seen through one clone of
//! the store's mount whose ids are mapped: no file is copied or changes its owner. The upper directory is a plain one
//! that belongs to the container's ids already. The overlay is made by us, not in the namespace, so that the kernel
//! trusts its `trusted.overlay.*` attributes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use garden_sys::mount::{self, Filesystem, MountAttrFlags};
use rustix::fs::{Mode, OFlags};

use crate::digest::Digest;
use crate::layers::ROOT;

const EOPNOTSUPP: i32 = 95;
const EBADF: i32 = 9;
const EINVAL: i32 = 22;
const EPERM: i32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot overlay {layers} layers for {name}: {source}")]
    Overlay { name: String, layers: usize, source: mount::Error },
    #[error("cannot use {} as a layer: {source}", path.display())]
    Layer { path: PathBuf, source: std::io::Error },
    #[error("cannot clone {} to map its ids: {source}", path.display())]
    Clone { path: PathBuf, source: mount::Error },
    #[error("cannot map ids on {}: its filesystem does not allow it ({source})", path.display())]
    IdsNotMappable { path: PathBuf, source: mount::Error },
    #[error("this kernel cannot make overlays: {0}")]
    NoOverlay(#[source] mount::Error),
    #[error("this kernel's overlay takes no layers by descriptor (Linux 6.13 or newer does): {0}")]
    NoLayerDescriptors(#[source] mount::Error),
    #[error("cannot make overlays without being root: {0}")]
    NotAllowed(#[source] mount::Error),
}

/// A directory of layers as one container sees it.
pub struct View {
    tree: OwnedFd,
    path: PathBuf,
}

impl View {
    /// All layers below `directory`, with ids mapped for `user_namespace` where there is one.
    pub fn of(directory: &Path, user_namespace: Option<BorrowedFd<'_>>) -> Result<View, Error> {
        let path = directory.to_path_buf();
        let tree =
            mount::open_tree(directory).map_err(|source| Error::Clone { path: path.clone(), source })?;
        if let Some(user_namespace) = user_namespace {
            mount::map_ids(tree.as_fd(), user_namespace).map_err(|source| match source.os_error() {
                Some(EINVAL | EOPNOTSUPP) => Error::IdsNotMappable { path: path.clone(), source },
                _ => Error::Clone { path: path.clone(), source },
            })?;
        }
        Ok(View { tree, path })
    }

    /// One stored layer.
    pub fn layer(&self, id: &Digest) -> Result<OwnedFd, Error> {
        self.directory(&Path::new(id.hex()).join(ROOT))
    }

    fn directory(&self, name: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.tree, name, flags, Mode::empty())
            .map_err(|errno| Error::Layer { path: self.path.join(name), source: errno.into() })
    }

    /// The directory itself as a layer.
    pub fn whole(self) -> OwnedFd {
        self.tree
    }
}

/// In a root's directory: what its container writes, and what the overlay needs beside it.
pub const UPPER: &str = "upper";
pub const WORK: &str = "work";

/// `lowers` is topmost first and not empty; `writable` holds [`UPPER`] and [`WORK`]. `name` is what `mount` shows as the
/// source; the paths it shows begin at `writable`, so that a container learns nothing of the host's.
pub fn mount(name: &str, lowers: &[OwnedFd], writable: &Path) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Overlay { name: name.into(), layers: lowers.len(), source };
    let writable = View::of(writable, None)?;
    let (upper, work) = (writable.directory(Path::new(UPPER))?, writable.directory(Path::new(WORK))?);
    let overlay = Filesystem::open("overlay").map_err(failed)?;
    overlay.set_string("source", name).map_err(failed)?;
    for lower in lowers {
        overlay.set_descriptor("lowerdir+", lower.as_fd()).map_err(failed)?;
    }
    overlay.set_descriptor("upperdir", upper.as_fd()).map_err(failed)?;
    overlay.set_descriptor("workdir", work.as_fd()).map_err(failed)?;
    // A root does not outlive the machine's run, so nothing is won by waiting for the disk: not in its programs'
    // fsync, and above all not when it is unmounted, which would write back the whole store.
    overlay.set_flag("volatile").map_err(failed)?;
    overlay.create().map_err(failed)?;
    // Containers get their devices from elsewhere.
    overlay.mount(MountAttrFlags::MOUNT_ATTR_NODEV).map_err(failed)
}

/// Tries out, below `scratch`, what [`mount`] needs of the kernel.
pub fn probe(scratch: &Path) -> Result<(), Error> {
    let path = |name: &str| scratch.join(name);
    for name in ["lower", UPPER, WORK] {
        std::fs::create_dir_all(path(name)).map_err(|source| Error::Layer { path: path(name), source })?;
    }
    let lower = View::of(&path("lower"), None).map_err(explain)?.whole();
    mount("probe", &[lower], scratch).map(drop).map_err(explain)
}

fn explain(error: Error) -> Error {
    match error {
        Error::Overlay { source, .. } | Error::Clone { source, .. } => match (&source, source.os_error()) {
            (_, Some(EPERM)) => Error::NotAllowed(source),
            (mount::Error::FsConfig { .. }, Some(EOPNOTSUPP | EBADF | EINVAL)) => {
                Error::NoLayerDescriptors(source)
            }
            _ => Error::NoOverlay(source),
        },
        other => other,
    }
}
