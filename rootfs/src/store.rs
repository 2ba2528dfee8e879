//! The store: images pulled into it, roots mounted from it.
//!
//! ```text
//! <dir>/lock                     held while a process uses the store
//! <dir>/layers/<hex>/            see `layers`
//! <dir>/images/<hex>.json        an image by its digest: its layers and how it is run
//! <dir>/roots-….{ext4,btrfs}     a filesystem for what containers write, see `quota`
//! <dir>/disks-…/                 filesystems for one container each, see `quota::disks`
//! <dir>/roots/<name>/            the same, where there is no such filesystem, see `roots`
//! <dir>/tmp/                     under way or being removed; emptied at every start
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diego_base::directory;
use rootfs_ledger::{Ledger, Space};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::chores::Chores;
use crate::digest::Digest;
use crate::flight::Flights;
use crate::gc::Collector;
use crate::image::ImageRef;
use crate::layers::{LayerRecord, Layers, Pins, ROOT};
use crate::manifest::ImageConfig;
use crate::overlay::{self, Overlays};
use crate::pull::{LayerFlight, Progress};
use crate::quota::{self, Areas, Plain};
use crate::registry::{Client, Credentials, Policy};
use crate::room::{self, RootsTenant};
use crate::roots::{self, Roots};
use crate::sizes::Sizes;
use crate::stack::{Inherited, Layer, Lower, Opened, inherited};
use crate::unpack::Limits;
use crate::{layout, manifest, registry, unpack};

pub use crate::roots::{BaseIds, DiskLimit, DiskScope, DiskUsage, RootMount};

/// Of files that are being written.
const HALF: &str = ".new";
const LOCK: &str = "lock";
/// Of a directory that is a store's own: what is half done there is removed when it is opened, and what may have been.
const MARK: &str = ".store";
/// Who was killed may have left a child between its fork and its exec, which lets go of the lock a moment later.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Layers fetched and unpacked at a time, of all images.
pub const LAYERS_AT_ONCE_MAX: usize = 4;

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
    /// Clients look for how it begins.
    #[error(
        "layers exceed disk quota {bytes}/{limit} bytes: image {image} takes {bytes} bytes, more than the disk limit of \
         {limit} bytes, and would need a limit of {bytes} bytes at least"
    )]
    ImageExceedsLimit { image: String, bytes: u64, limit: u64 },
    #[error(
        "layers exceed disk quota {inodes}/{limit} inodes: image {image} has {inodes} files, more than the limit of \
         {limit}, and would need a limit of {inodes} at least"
    )]
    ImageExceedsInodes { image: String, inodes: u64, limit: u64 },
    #[error(transparent)]
    Room(#[from] rootfs_ledger::Error),
    #[error(transparent)]
    NotOwn(#[from] directory::Refused),
    /// The process is ending.
    #[error("interrupted: {reason}")]
    Interrupted { reason: String },
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
    #[error(transparent)]
    Quota(#[from] quota::Unavailable),
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
    pub quota: quota::Config,
    /// The account of the disk that the store shares with others; `None`: its own.
    pub ledger: Option<Ledger>,
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
    /// As it was asked for.
    #[serde(default)]
    pub name: String,
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
    pub inherited: Vec<Inherited>,
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
    /// What layers may still take.
    pub room_bytes: u64,
    /// What all roots together may take.
    pub roots_bytes: u64,
}

/// Pulls since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub failures: AtomicU64,
    /// Of those that succeeded, hits too.
    pub milliseconds: AtomicU64,
}

/// The same as figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PullFigures {
    /// Every layer was here already.
    pub hits: u64,
    pub misses: u64,
    pub failures: u64,
    pub seconds: f64,
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
    pub areas: Arc<Areas>,
    pub sizes: Arc<Sizes>,
    pub roots: Mutex<Roots>,
    /// Handles whose roots are being made, not entered as yet. Locked last.
    pub making: Mutex<BTreeSet<String>>,
    pub overlays: Result<Overlays, Unmountable>,
    pub chores: Arc<Chores>,
    pub ledger: Ledger,
    pub collector: Arc<Collector>,
    pub pulls: Pulls,
    _roots_tenant: Arc<RootsTenant>,
    _lock: fs::File,
}

pub(crate) type ImageFlights = Flights<(ImageRef, Option<Credentials>), Result<Image, Arc<Error>>, Progress>;

impl Store {
    /// Opens the store in `directory`, made if it is not there, and removes what an earlier process left half done.
    /// Blocking. Roots that nobody lives in any more are for [`Store::recover`].
    pub fn open(directory: &Path, config: Config) -> Result<Store, Error> {
        directory::claim(directory, MARK)?;
        // Layers hold setuid programs of images: no other user of this machine may get at them.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
            .map_err(disk("close", directory))?;
        let lock = lock(directory)?;
        let images = directory.join("images");
        fs::create_dir_all(&images).and_then(|()| remove_halves(&images)).map_err(disk("make", &images))?;
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
        let client = Client::new(config.registries.clone())?;
        let chores = Arc::new(Chores::start(layers.clone()));
        let plain = directory.join("roots");
        let plain = Plain::open(plain.clone(), layers.scratch_directory(), chores.clone())
            .map_err(disk("open", &plain))?;
        let ledger = room::ledger(config.ledger.as_ref(), directory)?;
        let elsewhere = ledger.elsewhere()?;
        let areas = Arc::new(Areas::open(directory, &config.quota, plain, &chores, elsewhere)?);
        let collector = Arc::new(Collector { layers: layers.clone(), images });
        let roots_tenant = Arc::new(RootsTenant { areas: areas.clone() });
        ledger.register(&collector);
        ledger.register(&roots_tenant);
        let roots = roots::read(&areas, &layers)?;
        let known = layers.by_last_use().map_err(disk("read", directory))?;
        chores.make_durable(known.into_iter().map(|(_, layer)| layer.id).collect());
        let inner = Inner {
            directory: directory.into(),
            client,
            layers,
            image_flights: Flights::default(),
            layer_flights: Flights::default(),
            places: tokio::sync::Semaphore::new(LAYERS_AT_ONCE_MAX),
            areas,
            sizes: Arc::default(),
            roots: Mutex::new(roots),
            making: Mutex::default(),
            overlays,
            chores,
            ledger,
            collector,
            pulls: Pulls::default(),
            _roots_tenant: roots_tenant,
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
        let began = std::time::Instant::now();
        let fetched = AtomicU64::new(0);
        let counting = |report: Progress| {
            if let Progress::Resolved { .. } = report {
                fetched.store(1, Ordering::Relaxed);
            }
            progress(report);
        };
        let pulled = crate::pull::pull(&self.inner, image, credentials, &counting).await;
        let (pulls, missed) = (&self.inner.pulls, fetched.load(Ordering::Relaxed) > 0);
        let figure = match (&pulled, missed) {
            (Err(_), _) => &pulls.failures,
            (Ok(_), true) => &pulls.misses,
            (Ok(_), false) => &pulls.hits,
        };
        figure.fetch_add(1, Ordering::Relaxed);
        if pulled.is_ok() {
            let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            pulls.milliseconds.fetch_add(took, Ordering::Relaxed);
        }
        pulled
    }

    pub fn pull_figures(&self) -> PullFigures {
        let pulls = &self.inner.pulls;
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        PullFigures {
            hits: read(&pulls.hits),
            misses: read(&pulls.misses),
            failures: read(&pulls.failures),
            seconds: read(&pulls.milliseconds) as f64 / 1000.0,
        }
    }

    /// What the store takes, from its records and the filesystem's own figures. Blocking.
    pub fn store_usage(&self) -> Result<StoreUsage, Error> {
        let directory = &self.inner.directory;
        let layers = self.inner.layers.by_last_use().map_err(disk("read", self.inner.layers.directory()))?;
        let in_use = self.inner.layers.pinned();
        let space = Space::of(directory).map_err(disk("measure", directory))?;
        Ok(StoreUsage {
            layers: layers.len(),
            layer_bytes: layers.iter().map(|(_, layer)| layer.bytes).sum(),
            unused_bytes: layers.iter().filter(|(_, l)| !in_use.contains(&l.id)).map(|(_, l)| l.bytes).sum(),
            roots: self.roots().len(),
            disk_bytes: space.total,
            disk_free_bytes: space.free,
            room_bytes: self.inner.ledger.room()?,
            roots_bytes: self.capacity()?,
        })
    }

    /// What all roots together may take, in bytes: less than was meant for them when others have filled the disk
    /// meanwhile, and even all that is unused could not make up for it. Where nobody counts what roots have written, that
    /// is as taken as what others have. Blocking.
    pub fn capacity(&self) -> Result<u64, Error> {
        let directory = &self.inner.directory;
        let area = &self.inner.areas.chosen;
        let Some(bytes) = area.capacity() else { return Ok(self.inner.ledger.can_keep(u64::MAX)?) };
        let promised = self.inner.areas.promised().map_err(disk("measure", directory))?;
        let missing = promised - self.inner.ledger.can_keep(promised)?;
        Ok(bytes.saturating_sub(missing))
    }

    /// The account of the disk that the store is on.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    /// Waits until everything that was unmounted or collected is removed from the disk, and what was pulled is on it. Blocking.
    pub fn settle(&self) {
        self.inner.chores.settle();
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
            let (bytes, entries, opaque) =
                record.as_ref().map_or((0, 0, false), |record| (record.bytes, record.entries, record.opaque));
            let (implied, with_whiteouts) =
                record.map(|record| (record.implied, record.with_whiteouts)).unwrap_or_default();
            let root = match &lower {
                Lower::Stored(id) => self.layers.path(id).join(ROOT),
                Lower::Directory(path) => path.clone(),
            };
            (Layer { lower, bytes, entries, opaque }, Opened { root, implied, with_whiteouts, opaque })
        });
        let (layers, mut opened): (Vec<Layer>, Vec<Opened>) = layers.unzip();
        opened.reverse();
        let inherited = inherited(&opened).map_err(disk("read", path))?;
        let record = ImageRecord { digest: digests[0].clone(), name: name.into(), layers, config, inherited };
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        for digest in digests {
            let path = self.image_path(digest);
            write_whole(&path, &bytes).map_err(disk("write", &path))?;
        }
        let ImageRecord { digest, layers, config, inherited, .. } = record;
        Ok(Image { digest, name: name.into(), layers, config, inherited, _pins: Arc::new(pins) })
    }
}

pub(crate) fn stored(layers: &[Layer]) -> Vec<Digest> {
    layers
        .iter()
        .filter_map(|layer| match &layer.lower {
            Lower::Stored(id) => Some(id.clone()),
            Lower::Directory(_) => None,
        })
        .collect()
}

fn lock(directory: &Path) -> Result<fs::File, Error> {
    let path = directory.join(LOCK);
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(disk("open", &path))?;
    let started = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse { path: directory.into() }),
            Err(errno) => return Err(Error::Disk { act: "lock", path, source: errno.into() }),
        }
    }
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(HALF);
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // It takes room that somebody may be waiting for; the next start tries again.
        let _ = fs::remove_file(&new);
    }
    written
}

/// What a process that was killed had half written.
fn remove_halves(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.as_os_str().as_encoded_bytes().ends_with(HALF.as_bytes()) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
