//! Where roots lie, and who stops the write that exceeds a root's limit.
//!
//! ```text
//! project the store's own filesystem, XFS or ext4, where it counts for projects; each root a project of its own
//! ext4    a filesystem in a file of the store, made for this; the same
//! btrfs   another, for kernels without those quotas; each root a subvolume with a quota group of its own
//! disks   each root a filesystem of its own, an ext4 in a file, for what all those before cannot hold
//! plain   directories of the store; limits are refused or accounted, but no write is stopped
//! ```
//! What is there is tried in this order at the start, and logged. A btrfs counts no inodes: beside one, roots with a limit of
//! them are disks, all others subvolumes. Layers stay outside: they are shared, and an overlay
//! whose layers lie on another filesystem than what is written tells files of both apart by number (`st_ino`), which
//! subvolumes of one btrfs do not.

mod btrfs;
mod disks;
mod image;
mod plain;
mod project;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chores::Chores;
use crate::store::{Error, disk};
use image::{Kind, Wanted};

pub(crate) use plain::Plain;

#[derive(Debug, Clone, Default)]
pub struct Config {
    pub backend: Backend,
    /// What roots may take together, in bytes; `None`: half of what is free, and not promised to others, when they are first
    /// made room for.
    pub image_bytes: Option<u64>,
    /// A limit of inodes that the filesystem for all roots cannot hold is not held, instead of by a filesystem for that root.
    pub ignore_inode_limits: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// The first that works.
    #[default]
    Auto,
    /// An error where it does not work.
    Project,
    /// The same.
    Ext4,
    /// The same.
    Btrfs,
    /// The same.
    Disks,
    Plain,
}

/// Of what a container writes; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limit {
    pub bytes: u64,
    pub inodes: u64,
    /// Of the image, which are made in the root before the limit holds and do not count.
    pub directories: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub bytes: u64,
    /// 0 where nobody counts them.
    pub inodes: u64,
}

/// A directory that holds roots, one directory each.
pub(crate) trait Quota: std::fmt::Debug + Send + Sync {
    /// For paths; it may lie in a mount that only this process reaches.
    fn directory(&self) -> &Path;
    /// Where in it a root's `upper` and `work` are to be.
    fn inside(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }
    /// Makes the directory of a root, without a limit as yet; `limit` is the one that it will have. AlreadyExists where there
    /// is one.
    fn make(&self, name: &str, limit: Limit) -> io::Result<()>;
    /// Of what is written from now on.
    fn limit(&self, name: &str, limit: Limit) -> io::Result<()>;
    /// So many small files of ours are about to be made in it, which are not to count.
    fn make_room_for(&self, _: &str, _files: u64) -> io::Result<()> {
        Ok(())
    }
    fn written(&self, name: &str) -> io::Result<Written>;
    /// Takes a root away at once for who looks; what it took is freed behind the answer. Nothing there is no error.
    fn discard(&self, name: &str) -> io::Result<()>;
    /// Whether the kernel holds roots to their limits.
    fn enforces(&self) -> bool;
    /// Whether it does so for inodes, too.
    fn counts_inodes(&self) -> bool {
        false
    }
    /// What roots may take together, in bytes; `None`: as much as the store's disk has.
    fn capacity(&self) -> Option<u64> {
        None
    }
    /// What roots take of the store's disk, in bytes; 0 where that is not known without a walk.
    fn taken(&self) -> io::Result<u64> {
        Ok(0)
    }
    /// How much of the store's disk roots may still take beyond what they take already, in bytes.
    fn promised(&self) -> io::Result<u64> {
        Ok(0)
    }
    /// Waits a moment for the room of discarded roots, when there is none left for a new one.
    fn reclaim(&self) {}
    /// What the filesystem keeps accounts of, ours and others'.
    fn groups(&self) -> io::Result<usize> {
        Ok(0)
    }
}

/// All places of one store where roots may lie.
#[derive(Debug)]
pub(crate) struct Areas {
    /// Of new roots.
    pub chosen: Arc<dyn Quota>,
    /// Of those with a limit of inodes, where the chosen one counts none.
    pub counting: Option<Arc<dyn Quota>>,
    /// Where earlier starts put their roots, where that is elsewhere.
    pub earlier: Vec<Arc<dyn Quota>>,
}

impl Areas {
    pub fn open(
        store: &Path,
        config: &Config,
        plain: Plain,
        chores: &Arc<Chores>,
        elsewhere: u64,
    ) -> Result<Areas, Error> {
        let size = Wanted { bytes: config.image_bytes, elsewhere };
        let lived_in = |kind| image::lived_in(store, kind);
        let living = [(Kind::Ext4, lived_in(Kind::Ext4)?), (Kind::Btrfs, lived_in(Kind::Btrfs)?)];
        let (home, by_project) = home(store, config.backend, size, plain)?;
        let mut chosen = by_project.then(|| home.clone());
        let (mut earlier, mut reasons) = (Vec::new(), Vec::new());
        for (kind, lived_in) in living {
            let wanted = chosen.is_none() && wants(config.backend, kind, &living);
            if !wanted && !lived_in {
                continue;
            }
            match open(store, size, kind, lived_in, chores) {
                Ok(area) if wanted => chosen = Some(area),
                Ok(area) => earlier.push(area),
                // To go on without it would be to forget them, and to withdraw the layers under them.
                Err(error) if lived_in => return Err(Unavailable::LivedIn { source: Box::new(error) }.into()),
                Err(error) if config.backend != Backend::Auto => return Err(error.into()),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        let disks = Self::open_disks(store, config, size, chosen.as_ref(), chores, &mut reasons)?;
        let mut counting = None;
        match disks {
            Some(disks) if !wants_disks(config, chosen.as_ref()) => earlier.push(disks),
            Some(disks) if chosen.is_some() => counting = Some(disks),
            disks => chosen = chosen.or(disks),
        }
        match &chosen {
            Some(chosen) if Arc::ptr_eq(chosen, &home) => {}
            Some(_) => earlier.push(home.clone()),
            None if reasons.is_empty() => {}
            None => {
                let reason = reasons.join("; ");
                tracing::warn!(store = %store.display(), reason, "disk limits are accounted, not enforced");
            }
        }
        Ok(Areas { chosen: chosen.unwrap_or(home), counting, earlier })
    }

    /// Filesystems for one root each: where something is to be held that nothing else holds, or roots of an earlier start
    /// live in theirs.
    fn open_disks(
        store: &Path,
        config: &Config,
        size: Wanted,
        chosen: Option<&Arc<dyn Quota>>,
        chores: &Arc<Chores>,
        reasons: &mut Vec<String>,
    ) -> Result<Option<Arc<dyn Quota>>, Error> {
        let wanted = wants_disks(config, chosen);
        let lived_in = disks::exists(store)?;
        let bytes_alone = chosen.is_some_and(|chosen| !chosen.counts_inodes());
        if !wanted && !lived_in {
            disks::remove_earlier(store).map_err(disk("remove earlier filesystems in", store))?;
            if bytes_alone {
                tracing::warn!(store = %store.display(), "limits of inodes are not held, as was asked for");
            }
            return Ok(None);
        }
        match disks::Disks::open(store, size, chores) {
            Ok(disks) => {
                if wanted && bytes_alone {
                    tracing::info!(store = %store.display(), "limits of inodes are enforced by an ext4 for each root that has one");
                } else if wanted {
                    tracing::info!(store = %store.display(), backend = "disks", "{disks}");
                }
                Ok(Some(Arc::new(disks)))
            }
            Err(error) if lived_in => Err(Unavailable::LivedIn { source: Box::new(error) }.into()),
            Err(error) if config.backend == Backend::Disks => Err(error.into()),
            Err(error) => {
                if bytes_alone {
                    let reason = error.to_string();
                    tracing::warn!(store = %store.display(), reason, "limits of inodes are not held");
                }
                reasons.push(error.to_string());
                Ok(None)
            }
        }
    }

    /// Where a root with such a limit goes first.
    pub fn counting(&self, inodes: u64) -> Option<&Arc<dyn Quota>> {
        self.counting.as_ref().filter(|_| (1..=disks::INODES_MAX).contains(&inodes))
    }

    /// What new roots were promised of the disk and have not taken, in bytes: one promise, wherever they are.
    pub fn promised(&self) -> io::Result<u64> {
        let beside = self.counting.as_ref().map_or(Ok(0), |counting| counting.taken())?;
        Ok(self.chosen.promised()?.saturating_sub(beside))
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Quota>> {
        std::iter::once(&self.chosen).chain(&self.counting).chain(&self.earlier)
    }
}

/// Whether new roots may be put into a filesystem of a kind. What containers live from is gone on with, as long as nobody
/// says otherwise: two such files would be two parts of one disk.
fn wants(backend: Backend, kind: Kind, living: &[(Kind, bool)]) -> bool {
    let none_lives = living.iter().all(|(_, lived_in)| !lived_in);
    match backend {
        Backend::Auto => none_lives || living.contains(&(kind, true)),
        Backend::Ext4 => kind == Kind::Ext4,
        Backend::Btrfs => kind == Kind::Btrfs,
        Backend::Project | Backend::Disks | Backend::Plain => false,
    }
}

/// Whether new roots may be filesystems of their own.
fn wants_disks(config: &Config, chosen: Option<&Arc<dyn Quota>>) -> bool {
    match (config.backend, chosen) {
        (Backend::Disks, _) => true,
        (Backend::Auto, None) => true,
        (Backend::Auto | Backend::Btrfs, Some(chosen)) => {
            !chosen.counts_inodes() && !config.ignore_inode_limits
        }
        _ => false,
    }
}

/// A filesystem in a file.
fn open(
    store: &Path,
    size: Wanted,
    kind: Kind,
    lived_in: bool,
    chores: &Arc<Chores>,
) -> Result<Arc<dyn Quota>, Unavailable> {
    let area: Arc<dyn Quota> = match kind {
        Kind::Ext4 => {
            let project = project::Project::in_a_file(store, size, lived_in, chores)?;
            tracing::info!(store = %store.display(), backend = "ext4", "{project}");
            Arc::new(project)
        }
        Kind::Btrfs => {
            let btrfs = btrfs::Btrfs::open(store, size, lived_in)?;
            tracing::info!(store = %store.display(), backend = "btrfs", "{btrfs}");
            Arc::new(btrfs)
        }
    };
    Ok(area)
}

/// The store's own directory of roots, and whether projects hold them to their limits.
fn home(store: &Path, backend: Backend, size: Wanted, plain: Plain) -> Result<(Arc<dyn Quota>, bool), Error> {
    if matches!(backend, Backend::Plain | Backend::Ext4 | Backend::Btrfs | Backend::Disks) {
        return Ok((Arc::new(plain), false));
    }
    match project::probe(store) {
        Ok(filesystem) => {
            let project = project::Project::open(plain, filesystem, size)?;
            tracing::info!(store = %store.display(), backend = "project", "{project}");
            Ok((Arc::new(project), true))
        }
        Err(error) if backend == Backend::Project => Err(error.into()),
        Err(error) => {
            let reason = error.to_string();
            tracing::debug!(store = %store.display(), reason, "no project quotas");
            Ok((Arc::new(plain), false))
        }
    }
}

/// Names of all roots of an area.
pub(crate) fn names(area: &dyn Quota) -> Result<Vec<String>, Error> {
    let directory = area.directory();
    let entries = std::fs::read_dir(directory).map_err(disk("read", directory))?;
    let name = |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(disk("read", directory))
}

/// Why a filesystem for roots cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("cannot limit roots without being root")]
    NotRoot,
    #[error("the filesystem of {path} has no project quotas (mount option prjquota): {source}")]
    NoProjects { path: String, source: io::Error },
    #[error("there is no {kind} for roots here: {reason}")]
    NotHere { kind: &'static str, reason: String },
    #[error("this kernel has no btrfs")]
    NoBtrfs,
    #[error(
        "cannot run {program} (Debian packages e2fsprogs, btrfs-progs) to make a filesystem for roots: {source}"
    )]
    NoProgram { program: &'static str, source: io::Error },
    #[error("{program} cannot make a filesystem for roots in {path}: {said}")]
    NotMade { program: &'static str, path: String, said: String },
    #[error("a filesystem for roots of {bytes} bytes is too small: it takes {min} at least")]
    TooSmall { bytes: u64, min: u64 },
    #[error("cannot {act} {path}: {source}")]
    Image { act: &'static str, path: String, source: io::Error },
    #[error("cannot mount the filesystem for roots in {path}: {source}")]
    Mount { path: String, source: garden_sys::mount::Error },
    #[error(
        "containers may live on the filesystem for roots of an earlier start, which cannot be opened: {source}"
    )]
    LivedIn { source: Box<Unavailable> },
    #[error("cannot {act} on the filesystem for roots: {source}")]
    Quota { act: &'static str, source: io::Error },
}

impl Unavailable {
    /// With the kind of its cause, by which a full disk is known.
    fn into_io(self) -> io::Error {
        let kind = match &self {
            Unavailable::Image { source, .. } | Unavailable::Quota { source, .. } => source.kind(),
            Unavailable::Mount { source, .. } => source
                .os_error()
                .map_or(io::ErrorKind::Other, |code| io::Error::from_raw_os_error(code).kind()),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}
