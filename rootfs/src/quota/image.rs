//! A filesystem in a file, mounted where only this process reaches it.
//!
//! ```text
//! <store>/roots-<run of the machine>.{ext4,btrfs} ──loop device──▶ a detached mount, reached by its descriptor
//! ```
//! Nothing of it appears in the host's mount table. Once this process has ended, however it did, and no container lives
//! from it any more, the kernel takes mount and device away. While containers live, the next start finds the device and
//! mounts the same filesystem again.
//!
//! What containers write does not outlive the machine's run. So neither does the filesystem: it needs no barriers, no
//! repair, and no trust in what a power cut left; the next run makes a new one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use garden_sys::loop_device::{self, LoopDevice};
use garden_sys::mount::{self, Filesystem, MountAttrFlags};
use rootfs_ledger::{Marks, Space};
use rustix::fs::{Mode, OFlags};

use super::Unavailable;

/// Where mkfs is, when the service's PATH leaves out root's programs.
const MKFS_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
pub const BYTES_MIN: u64 = 256 << 20;
const COMMIT_SECONDS: &str = "5";
const PROBE_BYTES: u64 = 4 << 20;
const PREFIX: &str = "roots-";
const SECTOR_BYTES: u64 = 512;
const ALIGNMENT: u64 = 1 << 20;

/// How much of the disk roots are to have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// `None`: half of what is free.
    pub bytes: Option<u64>,
    /// What other processes on the disk are promised already.
    pub elsewhere: u64,
}

impl Wanted {
    /// As much of it as a disk has.
    pub fn of(self, space: Space) -> u64 {
        let most = Marks::of(space.total).room(space.taken().saturating_add(self.elsewhere));
        self.bytes.unwrap_or(space.free.saturating_sub(self.elsewhere) / 2).min(most)
    }
}

/// What the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With project quotas.
    Ext4,
    Btrfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Btrfs => "btrfs",
        }
    }

    /// Who makes one, and how.
    fn mkfs(self) -> (&'static str, &'static [&'static str]) {
        match self {
            // Nothing is written ahead of its use, for the file is sparse. What is kept free is no container's: overlays
            // do without it.
            Kind::Ext4 => (
                "mkfs.ext4",
                &[
                    "-q",
                    "-F",
                    "-b",
                    "4096",
                    "-I",
                    "256",
                    "-i",
                    "8192",
                    "-m",
                    "5",
                    "-O",
                    "project,quota,^has_journal,^resize_inode",
                    "-E",
                    "lazy_itable_init=1,nodiscard",
                ],
            ),
            // Small nodes: what a root takes beside its files' content is counted in them.
            Kind::Btrfs => {
                ("mkfs.btrfs", &["--quiet", "--data", "single", "--metadata", "single", "--nodesize", "4096"])
            }
        }
    }

    fn file(self, store: &Path) -> PathBuf {
        store.join(format!("{PREFIX}{}.{}", crate::layers::boot_id(), self.name()))
    }

    /// Where it is attached on kernels that want that.
    fn target(self, store: &Path) -> PathBuf {
        store.join(match self {
            Kind::Ext4 => "mounted-ext4",
            Kind::Btrfs => "mounted",
        })
    }

    fn filesystem(self, device: &LoopDevice) -> Result<OwnedFd, mount::Error> {
        let filesystem = Filesystem::open(self.name())?;
        filesystem.set_path("source", &device.path)?;
        match self {
            Kind::Ext4 => {
                // What is deleted inside is room on the host again. Tables are not zeroed ahead: the file has none of them.
                for flag in ["prjquota", "nobarrier", "discard", "noinit_itable"] {
                    filesystem.set_flag(flag)?;
                }
            }
            Kind::Btrfs => {
                // Written in place, as elsewhere: a file that fits into its limit can be written again and again.
                for flag in ["nodatacow", "nobarrier"] {
                    filesystem.set_flag(flag)?;
                }
                // What is deleted inside is room on the host again, and soon room inside: freed with the next commit.
                filesystem.set_string("discard", "async")?;
                filesystem.set_string("commit", COMMIT_SECONDS)?;
            }
        }
        filesystem.create()?;
        filesystem.mount(MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME)
    }
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Image {
    /// Closed, the mount is dissolved; it is only good for that and to be put somewhere.
    mount: OwnedFd,
    top: OwnedFd,
    reach: PathBuf,
    /// In the host's mount table after all, on kernels that cannot clone a mount which is not.
    attached: Option<PathBuf>,
    pub bytes: u64,
    pub path: PathBuf,
}

impl Image {
    /// Opens the filesystem of this run of the machine, made if there is none. `wanted`: how large it may become.
    /// `lived_in`: what [`lived_in`] said; then it is never made anew.
    pub fn open(store: &Path, kind: Kind, wanted: Wanted, lived_in: bool) -> Result<Image, Unavailable> {
        let path = kind.file(store);
        remove_earlier(store).map_err(at("remove earlier filesystems in", store))?;
        if path.try_exists().map_err(at("look for", &path))? {
            match Image::mount(store, kind, &path) {
                Ok(image) => return Ok(image),
                Err(error) if lived_in => return Err(error),
                // Nothing in it is lost that could be had: a container that lived from it would hold it mounted.
                Err(error) => tracing::error!(%error, "making a new filesystem for roots"),
            }
        }
        make(&path, kind, size(store, wanted)?)?;
        Image::mount(store, kind, &path)
    }

    fn mount(store: &Path, kind: Kind, path: &Path) -> Result<Image, Unavailable> {
        let file = File::options().read(true).write(true).open(path).map_err(at("open", path))?;
        let bytes = file.metadata().map_err(at("look at", path))?.len();
        let device = match loop_device::find(&file).map_err(at("find the loop device of", path))? {
            Some(device) => device,
            // Past the page cache: the pages of the filesystem inside are cached already.
            None => loop_device::attach(&file, true).map_err(at("make a loop device of", path))?,
        };
        let mount = kind
            .filesystem(&device)
            .map_err(|source| Unavailable::Mount { path: path.display().to_string(), source })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(&mount, ".", flags, Mode::empty());
        let top = top.map_err(io::Error::from).map_err(at("open the filesystem in", path))?;
        let mut image = Image {
            reach: PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
            mount,
            top,
            attached: None,
            bytes,
            path: path.into(),
        };
        if mount::clone_mount(&image.reach, false).is_err() {
            image
                .attach(&kind.target(store))
                .map_err(|source| Unavailable::Mount { path: path.display().to_string(), source })?;
        }
        Ok(image)
    }

    /// Before Linux 6.15 only what is mounted somewhere can be cloned, and clones are what overlays are made of.
    fn attach(&mut self, target: &Path) -> Result<(), mount::Error> {
        let made = fs::create_dir_all(target);
        made.map_err(|source| mount::Error::Move { path: target.into(), source })?;
        // Left by a process that was killed.
        mount::unmount(target)?;
        mount::move_mount(self.mount.as_fd(), target)?;
        tracing::info!(path = %target.display(), "the filesystem for roots is mounted in the host's mount table");
        self.reach = target.into();
        self.attached = Some(target.into());
        Ok(())
    }

    /// The filesystem's top directory as this process reaches it.
    pub fn directory(&self) -> &Path {
        &self.reach
    }

    /// Says where it is not as large as it was asked for.
    pub fn compare(&self, wanted: Option<u64>) {
        if let Some(wanted) = wanted
            && wanted.abs_diff(self.bytes) >= ALIGNMENT
        {
            let (path, bytes) = (self.path.display(), self.bytes);
            tracing::warn!(%path, bytes, wanted, "the filesystem for roots keeps its size until the machine starts again");
        }
    }

    /// Of the store's disk, in bytes.
    pub fn taken(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.blocks() * SECTOR_BYTES)
    }

    pub fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(path) = &self.attached
            && let Err(error) = mount::unmount(path)
        {
            tracing::warn!(%error, "cannot unmount the filesystem for roots");
        }
    }
}

/// Whether containers may live from the filesystem of this run of the machine: they hold its device, and nobody else
/// does as long as no process has the store open.
pub fn lived_in(store: &Path, kind: Kind) -> Result<bool, Unavailable> {
    let path = kind.file(store);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at("open", &path)(error)),
    };
    let device = loop_device::find(&file).map_err(at("find the loop device of", &path))?;
    Ok(device.is_some())
}

pub fn at(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Unavailable + use<> {
    let path = path.display().to_string();
    move |source| Unavailable::Image { act, path, source }
}

/// Whether this machine can have one of a kind, tried on a small one, once in the life of the process: kernels know only
/// by trying whether they have the quotas of an ext4.
pub fn probe(store: &Path, kind: Kind) -> Result<(), Unavailable> {
    static OUTCOMES: [OnceLock<Option<String>>; 2] = [const { OnceLock::new() }; 2];
    let outcome =
        OUTCOMES[kind as usize].get_or_init(|| try_out(store, kind).err().map(|error| error.to_string()));
    match outcome {
        None => Ok(()),
        Some(reason) => Err(Unavailable::NotHere { kind: kind.name(), reason: reason.clone() }),
    }
}

fn try_out(store: &Path, kind: Kind) -> Result<(), Unavailable> {
    let path = store.join(format!("{PREFIX}probe-{:016x}", rand::random::<u64>()));
    let tried = make(&path, kind, PROBE_BYTES).and_then(|()| {
        let file = File::options().read(true).write(true).open(&path).map_err(at("open", &path))?;
        let device = loop_device::attach(&file, false).map_err(at("make a loop device of", &path))?;
        let mounted = kind.filesystem(&device);
        mounted.map(drop).map_err(|source| Unavailable::Mount { path: path.display().to_string(), source })
    });
    // The next start removes it otherwise.
    _ = fs::remove_file(&path);
    tried
}

/// Filesystems of earlier runs of the machine, and halves of this one.
fn remove_earlier(store: &Path) -> io::Result<()> {
    let current = [Kind::Ext4, Kind::Btrfs].map(|kind| kind.file(store));
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && !current.contains(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What is wanted, but no more than the disk has.
fn size(store: &Path, wanted: Wanted) -> Result<u64, Unavailable> {
    let space = Space::of(store).map_err(at("measure", store))?;
    let bytes = wanted.of(space);
    if let Some(wanted) = wanted.bytes
        && bytes < wanted
    {
        tracing::warn!(
            wanted,
            bytes,
            "the disk is too small for the filesystem for roots as it was asked for"
        );
    }
    match bytes {
        BYTES_MIN.. => Ok(bytes - bytes % ALIGNMENT),
        _ => Err(Unavailable::TooSmall { bytes, min: BYTES_MIN }),
    }
}

/// Whole or not at all. Sparse: it takes of the disk what is written into it.
fn make(path: &Path, kind: Kind, bytes: u64) -> Result<(), Unavailable> {
    let new = path.with_extension("new");
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
    file.and_then(|file| file.set_len(bytes)).map_err(at("make", &new))?;
    let (program, options) = kind.mkfs();
    let made = mkfs(&new, program, options).and_then(|()| fs::rename(&new, path).map_err(at("rename", &new)));
    if made.is_err() {
        // The next start removes it otherwise.
        _ = fs::remove_file(&new);
    }
    made
}

/// Makes a filesystem in a file.
pub fn mkfs<'a>(
    path: &Path,
    name: &'static str,
    options: impl IntoIterator<Item = &'a (impl AsRef<std::ffi::OsStr> + 'a)>,
) -> Result<(), Unavailable> {
    let mut programs = MKFS_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    let program = programs.find(|program| program.exists()).unwrap_or(name.into());
    let output = Command::new(program).args(options).arg(path).stdin(Stdio::null()).output();
    let output = output.map_err(|source| Unavailable::NoProgram { program: name, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing").to_string();
    Err(Unavailable::NotMade { program: name, path: path.display().to_string(), said })
}
