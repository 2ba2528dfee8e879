//! Lower directories, an upper and a work directory turned into one detached overlay mount.
//!
//! Layers are owned by host ids on disk. For a container with its own user namespace they are seen through one clone of
//! the store's mount whose ids are mapped: no file is copied or changes its owner. The upper directory is a plain one
//! that belongs to the container's ids already. The overlay is made by us, not in the namespace, so that the kernel
//! trusts its `trusted.overlay.*` attributes.
//!
//! Linux 6.13 and newer take layers by descriptor. For older ones the layers are attached in a mount namespace of our
//! own and named there by path; ids of layers can be mapped since Linux 5.19. Which way it is, is tried out once.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use garden_sys::mount::{self, Filesystem, MountAttrFlags};
use garden_sys::secluded::{self, MountFlags, Secluded};
use rustix::fs::{Mode, OFlags};

const EOPNOTSUPP: i32 = 95;
const EINVAL: i32 = 22;
const EPERM: i32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot overlay {layers} layers for {name}: {source}")]
    Overlay { name: String, layers: usize, source: mount::Error },
    #[error("cannot use {} as a layer: {source}", path.display())]
    Layer { path: PathBuf, source: std::io::Error },
    #[error("cannot clone {} to map its ids: {source}", path.display())]
    Clone { path: PathBuf, source: std::io::Error },
    #[error("cannot map ids on {}: its filesystem does not allow it ({source})", path.display())]
    IdsNotMappable { path: PathBuf, source: std::io::Error },
    #[error("cannot overlay {layers} layers for {name} by their paths: {source}{}", hint(source))]
    OverlayByPath { name: String, layers: usize, source: secluded::Error },
    #[error(
        "this kernel cannot make overlays, neither of descriptors ({by_descriptor}) nor of paths: {by_path}"
    )]
    NoOverlay { by_descriptor: Box<Error>, by_path: Box<Error> },
    #[error("cannot make overlays without being root: {0}")]
    NotAllowed(Box<Error>),
}

fn hint(source: &secluded::Error) -> &'static str {
    match source.os_error() {
        Some(EINVAL) => " (layers whose ids are mapped take Linux 5.19 or newer)",
        _ => "",
    }
}

impl Error {
    fn os_error(&self) -> Option<i32> {
        match self {
            Error::Overlay { source, .. } => source.os_error(),
            Error::OverlayByPath { source, .. } => source.os_error(),
            Error::Layer { source, .. }
            | Error::Clone { source, .. }
            | Error::IdsNotMappable { source, .. } => source.raw_os_error(),
            Error::NoOverlay { .. } | Error::NotAllowed(_) => None,
        }
    }
}

/// The layers of one root, topmost first, as its container sees them.
pub struct Lowers<'a> {
    user_namespace: Option<BorrowedFd<'a>>,
    views: Vec<View>,
    layers: Vec<Lower>,
}

/// A directory with the ids mapped; it must be open until the overlay exists: it is dissolved with its descriptor, and
/// what is below it is refused then.
struct View {
    path: PathBuf,
    tree: OwnedFd,
}

/// Clones that were needed until their overlay existed. To close one takes a wait for every processor of the machine, a
/// millisecond or several: not for somebody who waits for a container.
pub struct Spent {
    _trees: Vec<OwnedFd>,
}

struct Lower {
    view: usize,
    /// Below its view.
    name: PathBuf,
    directory: OwnedFd,
}

impl<'a> Lowers<'a> {
    /// Ids are mapped for `user_namespace`, where there is one.
    pub fn new(user_namespace: Option<BorrowedFd<'a>>) -> Lowers<'a> {
        Lowers { user_namespace, views: Vec::new(), layers: Vec::new() }
    }

    /// Adds `name` in `directory` below the layers that are here; all of one directory share its mapping.
    pub fn add(&mut self, directory: &Path, name: &Path) -> Result<(), Error> {
        let view = match self.views.iter().position(|view| view.path == directory) {
            Some(known) => known,
            None => {
                self.views.push(View::of(directory, self.user_namespace)?);
                self.views.len() - 1
            }
        };
        let opened = self.views[view].directory(name)?;
        self.layers.push(Lower { view, name: name.into(), directory: opened });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    pub fn topmost(&self) -> Option<BorrowedFd<'_>> {
        self.layers.first().map(|layer| layer.directory.as_fd())
    }
}

impl View {
    fn of(directory: &Path, user_namespace: Option<BorrowedFd<'_>>) -> Result<View, Error> {
        let path = directory.to_path_buf();
        let tree = mount::clone_mount(directory, false)
            .map_err(|source| Error::Clone { path: path.clone(), source })?;
        if let Some(user_namespace) = user_namespace {
            mount::map_ids(&tree, user_namespace).map_err(|source| match source.raw_os_error() {
                Some(EINVAL | EOPNOTSUPP) => Error::IdsNotMappable { path: path.clone(), source },
                _ => Error::Clone { path: path.clone(), source },
            })?;
        }
        Ok(View { tree, path })
    }

    fn directory(&self, name: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        rustix::fs::openat(&self.tree, name, flags, Mode::empty())
            .map_err(|errno| Error::Layer { path: self.path.join(name), source: errno.into() })
    }
}

/// In a root's directory: what its container writes, and what the overlay needs beside it.
pub const UPPER: &str = "upper";
pub const WORK: &str = "work";

/// How this kernel takes the layers of an overlay.
#[derive(Debug)]
pub enum Overlays {
    ByDescriptor,
    ByPath(Secluded),
}

impl Overlays {
    /// Tries out, below `scratch`, what this kernel can do.
    pub fn probe(scratch: &Path) -> Result<Overlays, Error> {
        let path = |name: &str| scratch.join(name);
        for name in ["lower", UPPER, WORK] {
            std::fs::create_dir_all(path(name))
                .map_err(|source| Error::Layer { path: path(name), source })?;
        }
        let lowers = || {
            let mut lowers = Lowers::new(None);
            lowers.add(&path("lower"), Path::new(""))?;
            Ok(lowers)
        };
        let not_allowed = |error: Error| match error.os_error() {
            Some(EPERM) => Error::NotAllowed(Box::new(error)),
            _ => error,
        };
        let works = |way: Overlays| way.mount("probe", lowers()?, scratch).map(|_| way);
        let by_descriptor = match works(Overlays::ByDescriptor).map_err(not_allowed) {
            Err(error) if !matches!(error, Error::NotAllowed(_)) => error,
            settled => return settled,
        };
        Overlays::by_path().and_then(works).map_err(|by_path| Error::NoOverlay {
            by_descriptor: Box::new(by_descriptor),
            by_path: Box::new(by_path),
        })
    }

    fn by_path() -> Result<Overlays, Error> {
        let failed = |source| Error::OverlayByPath { name: "a probe".into(), layers: 0, source };
        Ok(Overlays::ByPath(Secluded::new().map_err(failed)?))
    }

    /// `lowers` is not empty; `writable` holds [`UPPER`] and [`WORK`]. `name` is what `mount` shows as the source; the
    /// paths it shows begin at `writable`, so that a container learns nothing of the host's.
    pub fn mount(&self, name: &str, lowers: Lowers<'_>, writable: &Path) -> Result<(OwnedFd, Spent), Error> {
        let writable = View::of(writable, None)?;
        let root = self.mount_on(name, &lowers, &writable)?;
        let trees = lowers.views.into_iter().chain([writable]).map(|view| view.tree).collect();
        Ok((root, Spent { _trees: trees }))
    }

    fn mount_on(&self, name: &str, lowers: &Lowers<'_>, writable: &View) -> Result<OwnedFd, Error> {
        let layers = lowers.layers.len();
        match self {
            Overlays::ByDescriptor => {
                let (upper, work) =
                    (writable.directory(Path::new(UPPER))?, writable.directory(Path::new(WORK))?);
                mount_by_descriptor(name, lowers, &upper, &work).map_err(|source| Error::Overlay {
                    name: name.into(),
                    layers,
                    source,
                })
            }
            Overlays::ByPath(secluded) => secluded
                .run(|| mount_by_path(name, lowers, writable))
                .map_err(|source| Error::OverlayByPath { name: name.into(), layers, source }),
        }
    }
}

fn mount_by_descriptor(
    name: &str,
    lowers: &Lowers<'_>,
    upper: &OwnedFd,
    work: &OwnedFd,
) -> Result<OwnedFd, mount::Error> {
    let overlay = Filesystem::open("overlay")?;
    overlay.set_string("source", name)?;
    for lower in &lowers.layers {
        overlay.set_descriptor("lowerdir+", lower.directory.as_fd())?;
    }
    overlay.set_descriptor("upperdir", upper.as_fd())?;
    overlay.set_descriptor("workdir", work.as_fd())?;
    // A root does not outlive the machine's run, so nothing is won by waiting for the disk: not in its programs'
    // fsync, and above all not when it is unmounted, which would write back the whole store.
    overlay.set_flag("volatile")?;
    // Layers and what is written may lie on two filesystems: a file has one device and one number nevertheless.
    overlay.set_string("xino", "on")?;
    overlay.create()?;
    // Containers get their devices from elsewhere.
    overlay.mount(MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// In seclusion. All options must fit on one page, so a layer is called by a number that leads to it: 500 layers, which
/// is the kernel's own limit, take less than half of it.
fn mount_by_path(name: &str, lowers: &Lowers<'_>, writable: &View) -> Result<OwnedFd, secluded::Error> {
    let prepared = |source| secluded::Error::Mount { name: name.into(), source };
    let attach = |view: &View, place: &str| {
        std::fs::create_dir(place).map_err(prepared)?;
        Ok::<_, secluded::Error>(mount::move_mount(view.tree.as_fd(), Path::new(place))?)
    };
    for (number, view) in lowers.views.iter().enumerate() {
        attach(view, &format!("v{number}"))?;
    }
    attach(writable, "w")?;
    let mut options = format!("upperdir=w/{UPPER},workdir=w/{WORK},volatile,xino=on,lowerdir=");
    for (number, lower) in lowers.layers.iter().enumerate() {
        symlink(Path::new(&format!("v{}", lower.view)).join(&lower.name), number.to_string())
            .map_err(prepared)?;
        let colon = if number > 0 { ":" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(options, "{colon}{number}");
    }
    std::fs::create_dir("m").map_err(prepared)?;
    secluded::mount_by_options("overlay", name, &options, MountFlags::NODEV, Path::new("m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways, as far as this kernel has them.
    fn ways(test: &str) -> Vec<Overlays> {
        let scratch = tempfile::tempdir().unwrap();
        match Overlays::probe(scratch.path()) {
            Ok(Overlays::ByDescriptor) => vec![Overlays::ByDescriptor, Overlays::by_path().unwrap()],
            Ok(by_path) => {
                println!("SKIPPED {test} by descriptor: takes Linux 6.13");
                vec![by_path]
            }
            Err(error) => {
                println!("SKIPPED {test}: {error}");
                Vec::new()
            }
        }
    }

    fn read(root: &OwnedFd, name: &str) -> String {
        let file = rustix::fs::openat(root, name, OFlags::RDONLY, Mode::empty()).unwrap();
        std::io::read_to_string(std::fs::File::from(file)).unwrap()
    }

    #[test]
    fn five_hundred_layers_are_one_root_either_way() {
        const LAYERS: usize = 500;
        for way in ways("five_hundred_layers_are_one_root_either_way") {
            let scratch = tempfile::tempdir().unwrap();
            let path = |name: &str| scratch.path().join(name);
            for name in [UPPER, WORK, "elsewhere"] {
                std::fs::create_dir(path(name)).unwrap();
            }
            std::fs::write(path("elsewhere/kept"), "elsewhere").unwrap();
            let mut lowers = Lowers::new(None);
            for number in 0..LAYERS - 1 {
                let name = format!("{number:064}");
                std::fs::create_dir_all(path(&name).join("root")).unwrap();
                if number == 0 || number == LAYERS - 2 {
                    std::fs::write(path(&name).join("root/top"), number.to_string()).unwrap();
                    std::fs::write(path(&name).join("root").join(number.to_string()), "").unwrap();
                }
                lowers.add(scratch.path(), &Path::new(&name).join("root")).unwrap();
            }
            lowers.add(&path("elsewhere"), Path::new("")).unwrap();
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let root = way.mount("many", lowers, scratch.path()).unwrap().0;
            assert_eq!((read(&root, "top"), read(&root, "kept")), ("0".into(), "elsewhere".into()));
            let last = (LAYERS - 2).to_string();
            assert_eq!(read(&root, &last), "");
            let flags = OFlags::CREATE | OFlags::WRONLY;
            rustix::fs::openat(&root, "new", flags, Mode::from_raw_mode(0o600)).unwrap();
            assert!(path(UPPER).join("new").exists());
            assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts, "{way:?}");
        }
    }
}
