//! The store: images pulled into it, roots mounted from it.
//!
//! ```text
//! <dir>/lock                     held while a process uses the store
//! <dir>/layers/<hex>/            see `layers`
//! <dir>/images/<hex>.json        an image by its digest: its layers and how it is run
//! <dir>/roots/<name>/            root.json, upper/, work/: what one container has written
//! <dir>/tmp/                     under way or being removed; emptied at every start
//! ```
//! What a root may write is not bounded here yet: [`DiskLimit`] refuses an image that is too large for the limit, and
//! [`Store::usage`] says what was written; the kernel's quota that stops the write itself comes with `quota`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode};
use serde::{Deserialize, Serialize};

use crate::chores::Chores;
use crate::digest::Digest;
use crate::flight::Flights;
use crate::image::ImageRef;
use crate::layers::{LayerRecord, Layers, Pins, ROOT};
use crate::manifest::ImageConfig;
use crate::overlay::{self, Lowers, Overlays};
use crate::pull::{LayerFlight, Progress};
use crate::registry::{Client, Credentials, Policy};
use crate::stack::{Inherited, Layer, Lower, Opened, inherited, stack};
use crate::unpack::Limits;
use crate::{layout, manifest, registry, tree, unpack};

/// Layers fetched and unpacked at a time, of all images.
pub const LAYERS_AT_ONCE_MAX: usize = 4;
const HANDLE_BYTES_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Layout(#[from] layout::Error),
    #[error("image {image} cannot be used: {source}")]
    Manifest { image: String, source: manifest::Error },
    #[error("layer {layer} of image {image} cannot be used: {source}")]
    Layer { image: String, layer: String, source: unpack::Error },
    #[error("there is no preloaded root filesystem '{name}', only: {}", known.join(", "))]
    NotPreloaded { name: String, known: Vec<String> },
    #[error("the root filesystem {} cannot be used: {reason}", path.display())]
    BadPreloaded { path: PathBuf, reason: String },
    #[error("layer {url} cannot be fetched: {reason}")]
    Fetch { url: String, reason: String },
    #[error("image {image} takes {bytes} bytes, more than the disk limit of {limit} bytes")]
    ImageExceedsLimit { image: String, bytes: u64, limit: u64 },
    #[error("cannot {act} {}: {source}", path.display())]
    Disk { act: &'static str, path: PathBuf, source: io::Error },
    #[error("the store {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("'{handle}' is no name for a root")]
    InvalidHandle { handle: String },
    #[error("a root for '{handle}' exists already")]
    HandleTaken { handle: String },
    #[error("there is no root for '{handle}'")]
    UnknownHandle { handle: String },
    #[error(transparent)]
    Overlay(#[from] overlay::Error),
    #[error(transparent)]
    Unmountable(#[from] Unmountable),
    /// The answer of a pull that several waited for.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// The error itself, also where several got it.
    pub fn root(&self) -> &Error {
        match self {
            Error::Shared(error) => error.root(),
            other => other,
        }
    }
}

pub(crate) fn disk(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Disk { act, path, source }
}

#[derive(Debug, Clone, Default)]
pub struct Config {
    pub registries: Policy,
    /// `preloaded:NAME` to a directory or a tar.
    pub preloaded: BTreeMap<String, PathBuf>,
    /// Of each layer.
    pub limits: Limits,
}

/// A pulled image. Its layers stay in the store at least as long as this value lives.
#[derive(Debug, Clone)]
pub struct Image {
    /// Of the manifest; of its path for a directory, which has none.
    pub digest: Digest,
    /// As it was asked for.
    pub name: String,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
    pub(crate) inherited: Vec<Inherited>,
    pub(crate) _pins: Arc<Pins>,
}

impl Image {
    /// Uncompressed file content of all layers; without that of directories used where they lie.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }
}

/// What is remembered of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub digest: Digest,
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
    pub inherited: Vec<Inherited>,
}

/// How much a root may take. 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimit {
    pub bytes: u64,
    pub inodes: u64,
    pub scope: DiskScope,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskScope {
    /// The image counts.
    #[default]
    Total,
    /// Only what the container writes counts.
    Exclusive,
}

/// The host ids of a container's user and group 0; 0 and 0 without a user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseIds {
    pub uid: u32,
    pub gid: u32,
}

/// A root ready to be put somewhere with `move_mount`; gone when it is dropped before.
#[derive(Debug)]
pub struct RootMount {
    pub fd: OwnedFd,
    /// On the host: what the container writes lands here.
    pub upper: PathBuf,
    /// Of the image.
    pub image_bytes: u64,
}

/// What a root takes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub exclusive_bytes: u64,
    pub exclusive_inodes: u64,
    /// With the image.
    pub total_bytes: u64,
    pub total_inodes: u64,
}

/// What the whole store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    pub layers: usize,
    /// File content of all layers.
    pub layer_bytes: u64,
    /// Of layers that no image being pulled and no root needs.
    pub unused_bytes: u64,
    pub roots: usize,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RootRecord {
    handle: String,
    layers: Vec<Digest>,
    image_bytes: u64,
    image_inodes: u64,
}

#[derive(Debug)]
struct Root {
    record: RootRecord,
    _pins: Pins,
}

#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// Why roots cannot be mounted here.
#[derive(Debug, Clone, thiserror::Error)]
#[error("roots cannot be mounted here: {0}")]
pub struct Unmountable(String);

pub(crate) struct Inner {
    pub directory: PathBuf,
    pub config: Config,
    pub client: Client,
    pub layers: Arc<Layers>,
    pub image_flights: ImageFlights,
    pub layer_flights: Flights<Digest, LayerFlight, Progress>,
    pub places: tokio::sync::Semaphore,
    roots: Mutex<BTreeMap<String, Root>>,
    overlays: Result<Overlays, Unmountable>,
    pub chores: Chores,
    _lock: fs::File,
}

pub(crate) type ImageFlights = Flights<(ImageRef, Option<Credentials>), Result<Image, Arc<Error>>, Progress>;

impl Store {
    /// Opens the store in `directory`, made if it is not there, and removes what an earlier process left half done.
    /// Blocking. Roots that nobody lives in any more are for [`Store::recover`].
    pub fn open(directory: &Path, config: Config) -> Result<Store, Error> {
        fs::create_dir_all(directory).map_err(disk("make", directory))?;
        // Layers hold setuid programs of images: no other user of this machine may get at them.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
            .map_err(disk("close", directory))?;
        let lock = lock(directory)?;
        for name in ["images", "roots"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).map_err(disk("make", &path))?;
        }
        let layers = Arc::new(Layers::open(directory).map_err(disk("open", directory))?);
        let overlays =
            Overlays::probe(&directory.join("tmp/probe")).map_err(|error| Unmountable(error.to_string()));
        match &overlays {
            Ok(Overlays::ByDescriptor) => {
                tracing::info!(store = %directory.display(), "layers are mounted by descriptor")
            }
            Ok(Overlays::ByPath(_)) => {
                tracing::info!(store = %directory.display(), "layers are mounted by path: this kernel is older than 6.13")
            }
            Err(Unmountable(reason)) => {
                tracing::warn!(store = %directory.display(), reason, "roots cannot be mounted")
            }
        }
        let roots = read_roots(directory, &layers)?;
        let client = Client::new(config.registries.clone())?;
        let chores = Chores::start(layers.clone());
        let known = layers.by_last_use().map_err(disk("read", directory))?;
        chores.make_durable(known.into_iter().map(|(_, layer)| layer.id).collect());
        let inner = Inner {
            directory: directory.into(),
            client,
            layers,
            image_flights: Flights::default(),
            layer_flights: Flights::default(),
            places: tokio::sync::Semaphore::new(LAYERS_AT_ONCE_MAX),
            roots: Mutex::new(roots),
            overlays,
            chores,
            config,
            _lock: lock,
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Why this machine cannot mount roots (not root, no overlay), if it cannot.
    pub fn unmountable(&self) -> Option<&str> {
        self.inner.overlays.as_ref().err().map(|Unmountable(reason)| reason.as_str())
    }

    /// Makes an image ready to be mounted, fetching what is not here yet. Dropping the future stops it.
    pub async fn pull(
        &self,
        image: &ImageRef,
        credentials: Option<Credentials>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, Error> {
        crate::pull::pull(&self.inner, image, credentials, progress).await
    }

    /// Stacks an image's layers under a new upper directory, which belongs to `base`. With `user_namespace` the layers'
    /// ids are mapped into it. Blocking, but short: what it takes does not depend on the image's size.
    pub fn mount(
        &self,
        handle: &str,
        image: &Image,
        user_namespace: Option<BorrowedFd<'_>>,
        base: BaseIds,
        limit: DiskLimit,
    ) -> Result<RootMount, Error> {
        check_limit(image, limit)?;
        let record = RootRecord {
            handle: handle.into(),
            layers: stored(&image.layers),
            image_bytes: image.bytes(),
            image_inodes: 0,
        };
        let path = self.reserve(handle, record)?;
        let mounted = self.mount_at(&path, handle, image, user_namespace, base);
        if mounted.is_err()
            && let Err(error) = self.unmount(handle)
        {
            tracing::warn!(handle, %error, "cannot remove what a failed mount left");
        }
        mounted
    }

    /// Enters a root under its handle: from here on [`Store::unmount`] undoes all.
    fn reserve(&self, handle: &str, record: RootRecord) -> Result<PathBuf, Error> {
        let path = self.root_path(handle)?;
        let mut roots = self.roots();
        if roots.contains_key(handle) {
            return Err(Error::HandleTaken { handle: handle.into() });
        }
        let pins = self.inner.layers.pin(record.layers.clone());
        fs::create_dir(&path).map_err(disk("make", &path))?;
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        write_whole(&path.join("root.json"), &bytes).map_err(disk("write", &path))?;
        roots.insert(handle.into(), Root { record, _pins: pins });
        Ok(path)
    }

    fn mount_at(
        &self,
        path: &Path,
        handle: &str,
        image: &Image,
        user_namespace: Option<BorrowedFd<'_>>,
        base: BaseIds,
    ) -> Result<RootMount, Error> {
        let (upper, work) = (path.join(overlay::UPPER), path.join(overlay::WORK));
        for directory in [&upper, &work] {
            fs::create_dir(directory).map_err(disk("make", directory))?;
        }
        let overlays = self.inner.overlays.as_ref().map_err(Clone::clone)?;
        let lowers = self.lowers(&image.layers, user_namespace)?;
        dress(&upper, lowers.topmost(), &image.inherited, base).map_err(disk("prepare", &upper))?;
        let fd = overlays.mount(handle, &lowers, path)?;
        Ok(RootMount { fd, upper, image_bytes: image.bytes() })
    }

    /// Never empty.
    fn lowers<'a>(
        &self,
        layers: &[Layer],
        user_namespace: Option<BorrowedFd<'a>>,
    ) -> Result<Lowers<'a>, Error> {
        let mut lowers = Lowers::new(user_namespace);
        for lower in stack(layers) {
            match lower {
                Lower::Stored(id) => {
                    lowers.add(self.inner.layers.directory(), &Path::new(id.hex()).join(ROOT))?
                }
                Lower::Directory(path) => lowers.add(path, Path::new(""))?,
            }
        }
        if lowers.is_empty() {
            // An image without layers: the overlay wants one nevertheless.
            let empty = self.inner.directory.join("empty");
            fs::create_dir_all(&empty).map_err(disk("make", &empty))?;
            lowers.add(&empty, Path::new(""))?;
        }
        Ok(lowers)
    }

    /// Removes what a root has written. The mount itself goes with its last user. Safe to call twice, and for a root
    /// that never came to be. The files are removed behind the answer.
    pub fn unmount(&self, handle: &str) -> Result<(), Error> {
        let path = self.root_path(handle)?;
        let trash = self.inner.layers.trash();
        // The rename comes first: while the name is taken, nobody can make a root of that name.
        match fs::rename(&path, &trash) {
            Ok(()) => self.inner.chores.remove(trash),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Disk { act: "remove", path, source }),
        }
        self.roots().remove(handle);
        Ok(())
    }

    /// Removes every root but those of `live` handles; the answer names the removed ones.
    pub fn recover(&self, live: &BTreeSet<String>) -> Result<Vec<String>, Error> {
        let known: Vec<String> = self.roots().keys().cloned().collect();
        let mut removed = Vec::new();
        for handle in known.into_iter().filter(|handle| !live.contains(handle)) {
            self.unmount(&handle)?;
            removed.push(handle);
        }
        Ok(removed)
    }

    pub fn handles(&self) -> Vec<String> {
        self.roots().keys().cloned().collect()
    }

    /// What a root has written. Blocking, and walks the upper directory: not for every second.
    pub fn usage(&self, handle: &str) -> Result<DiskUsage, Error> {
        let unknown = || Error::UnknownHandle { handle: handle.into() };
        let record = self.roots().get(handle).map(|root| root.record.clone()).ok_or_else(unknown)?;
        let upper = self.root_path(handle)?.join(overlay::UPPER);
        let written = tree::usage(&upper).map_err(disk("measure", &upper))?;
        Ok(DiskUsage {
            exclusive_bytes: written.bytes,
            exclusive_inodes: written.inodes,
            total_bytes: written.bytes + record.image_bytes,
            total_inodes: written.inodes + record.image_inodes,
        })
    }

    /// What the store takes, from its records and the filesystem's own figures. Blocking.
    pub fn store_usage(&self) -> Result<StoreUsage, Error> {
        let directory = &self.inner.directory;
        let layers = self.inner.layers.by_last_use().map_err(disk("read", self.inner.layers.directory()))?;
        let in_use = self.inner.layers.pinned();
        let filesystem = rustix::fs::statvfs(directory).map_err(|e| disk("measure", directory)(e.into()))?;
        Ok(StoreUsage {
            layers: layers.len(),
            layer_bytes: layers.iter().map(|(_, layer)| layer.bytes).sum(),
            unused_bytes: layers.iter().filter(|(_, l)| !in_use.contains(&l.id)).map(|(_, l)| l.bytes).sum(),
            roots: self.roots().len(),
            disk_bytes: filesystem.f_blocks * filesystem.f_frsize,
            disk_free_bytes: filesystem.f_bavail * filesystem.f_frsize,
        })
    }

    /// Waits until everything that was unmounted or collected is removed from the disk, and what was pulled is on it. Blocking.
    pub fn settle(&self) {
        self.inner.chores.settle();
    }

    fn root_path(&self, handle: &str) -> Result<PathBuf, Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        let valid = !handle.is_empty()
            && handle.len() <= HANDLE_BYTES_MAX
            && !handle.starts_with('.')
            && handle.bytes().all(plain);
        match valid {
            true => Ok(self.inner.directory.join("roots").join(handle)),
            false => Err(Error::InvalidHandle { handle: handle.chars().take(100).collect() }),
        }
    }

    fn roots(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Root>> {
        self.inner.roots.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("images").join(format!("{}.json", digest.hex()))
    }

    /// An image that is here with all its layers.
    pub fn known(&self, digest: &Digest, name: &str) -> Option<Image> {
        let record: ImageRecord = serde_json::from_slice(&fs::read(self.image_path(digest)).ok()?).ok()?;
        let ids = stored(&record.layers);
        // Pinned first, looked for then: so the collector cannot come between.
        let pins = self.layers.pin(ids.clone());
        if !ids.iter().all(|id| self.layers.get(id).is_some()) {
            return None;
        }
        Some(Image {
            digest: record.digest,
            name: name.into(),
            layers: record.layers,
            config: record.config,
            inherited: record.inherited,
            _pins: Arc::new(pins),
        })
    }

    /// Marks an image as used now.
    pub fn touch(&self, image: &Image) {
        stored(&image.layers).iter().for_each(|id| self.layers.touch(id));
    }

    /// Puts unpacked layers together, and remembers them under each of `digests`, the manifest's own first.
    pub fn assemble(
        &self,
        name: &str,
        digests: &[Digest],
        config: ImageConfig,
        layers: Vec<(Lower, Option<LayerRecord>)>,
        pins: Pins,
    ) -> Result<Image, Error> {
        let path = self.layers.directory();
        let layers = layers.into_iter().map(|(lower, record)| {
            let (bytes, opaque, implied) = match record {
                Some(record) => (record.bytes, record.opaque, record.implied),
                None => (0, false, Vec::new()),
            };
            let root = match &lower {
                Lower::Stored(id) => self.layers.path(id).join(ROOT),
                Lower::Directory(path) => path.clone(),
            };
            (Layer { lower, bytes, opaque }, Opened { root, implied })
        });
        let (layers, mut opened): (Vec<Layer>, Vec<Opened>) = layers.unzip();
        opened.reverse();
        let inherited = inherited(&opened).map_err(disk("read", path))?;
        let record = ImageRecord { digest: digests[0].clone(), layers, config, inherited };
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        for digest in digests {
            let path = self.image_path(digest);
            write_whole(&path, &bytes).map_err(disk("write", &path))?;
        }
        let ImageRecord { digest, layers, config, inherited } = record;
        Ok(Image { digest, name: name.into(), layers, config, inherited, _pins: Arc::new(pins) })
    }
}

fn stored(layers: &[Layer]) -> Vec<Digest> {
    layers
        .iter()
        .filter_map(|layer| match &layer.lower {
            Lower::Stored(id) => Some(id.clone()),
            Lower::Directory(_) => None,
        })
        .collect()
}

fn check_limit(image: &Image, limit: DiskLimit) -> Result<(), Error> {
    let bytes = image.bytes();
    match limit {
        DiskLimit { bytes: most, scope: DiskScope::Total, .. } if most > 0 && bytes > most => {
            Err(Error::ImageExceedsLimit { image: image.name.clone(), bytes, limit: most })
        }
        _ => Ok(()),
    }
}

/// Gives the upper directory the looks of the root below it, and makes the directories that come before all layers.
fn dress(
    upper: &Path,
    topmost: Option<BorrowedFd<'_>>,
    inherited: &[Inherited],
    base: BaseIds,
) -> io::Result<()> {
    let topmost = topmost.ok_or(io::ErrorKind::NotFound)?;
    let root = rustix::fs::statat(topmost, "", AtFlags::EMPTY_PATH)?;
    // Seen through the view, its owner is the container's already.
    let owner = Some(rustix::fs::Uid::from_raw(root.st_uid));
    let group = Some(rustix::fs::Gid::from_raw(root.st_gid));
    rustix::fs::chown(upper, owner, group)?;
    fs::set_permissions(upper, fs::Permissions::from_mode(root.st_mode & 0o7777))?;
    for directory in inherited {
        let path = upper.join(&directory.path);
        fs::create_dir(&path)?;
        rustix::fs::chownat(
            CWD,
            &path,
            Some(rustix::fs::Uid::from_raw(base.uid.saturating_add(directory.uid))),
            Some(rustix::fs::Gid::from_raw(base.gid.saturating_add(directory.gid))),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(directory.mode))?;
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<fs::File, Error> {
    let path = directory.join("lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(disk("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: directory.into() }),
        Err(errno) => Err(Error::Disk { act: "lock", path, source: errno.into() }),
    }
}

fn read_roots(directory: &Path, layers: &Arc<Layers>) -> Result<BTreeMap<String, Root>, Error> {
    let path = directory.join("roots");
    let mut roots = BTreeMap::new();
    for entry in fs::read_dir(&path).map_err(disk("read", &path))? {
        let path = entry.map_err(disk("read", &path))?.path();
        let record = fs::read(path.join("root.json")).map_err(drop);
        match record.and_then(|bytes| serde_json::from_slice::<RootRecord>(&bytes).map_err(drop)) {
            Ok(record) => {
                let pins = layers.pin(record.layers.clone());
                roots.insert(record.handle.clone(), Root { record, _pins: pins });
            }
            // Killed between making the directory and writing the record: nothing was mounted from it.
            Err(()) => tree::remove(&path).map_err(disk("remove", &path))?,
        }
    }
    Ok(roots)
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}
