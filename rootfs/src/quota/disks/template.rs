//! The filesystem that one root has as its own: which file it takes, and how it is made to have room for exactly what a
//! limit says. Made once for each pair of limits, and copied from then on.
//!
//! No filesystem can be asked for a number of inodes or of blocks exactly. So each is made a little too large, and what is
//! too much is taken by files that are in no container's way: empty ones, and one that is as long as the rest.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use garden_sys::loop_device::{self, LoopDevice};
use garden_sys::mount::{self, Filesystem, MountAttrFlags};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::{Limit, Unavailable, image};

pub const BLOCK_BYTES: u64 = 4096;
const INODE_BYTES: u64 = 256;
/// Of one group of blocks, which has a table of inodes of its own; what it and its copies of the superblock take.
pub const GROUP_BYTES: u64 = 128 << 20;
const GROUP_OVERHEAD_BYTES: u64 = 32 << 10;
const GROUP_INODES_MAX: u64 = 32_000;
/// A last group that has not much more than its tables is left out by mkfs.
const LAST_GROUP_BYTES_MIN: u64 = 2 << 20;
/// The kernel keeps a part of the blocks for its own needs, and up to so many bytes.
const KEPT_PART: u64 = 49;
const KEPT_BYTES_MAX: u64 = 16 << 20;
/// Above all other, so that there is something to give: for files of ours, and for directories of the image that are made in
/// each root. Few images have more of these, and theirs are made with so many more, in steps.
const SPARE_INODES: u64 = 96;
const SPARE_DIRECTORIES: u64 = 64;
const DIRECTORIES_STEP: u64 = 1024;
const SPARE_BYTES: u64 = 2 << 20;
/// One inode for so many bytes, where nobody limits them.
const BYTES_PER_INODE: u64 = 8192;
const INODES_MIN: u64 = 1024;
/// Of one container; beyond them no filesystem is made.
pub const INODES_MAX: u64 = 16 << 20;
const BYTES_MAX: u64 = 1 << 40;
/// What is made before the limit is set, `upper`, `work`, and what an overlay makes in there when it is mounted; most are
/// directories, with a block each. Only so that nothing is left to be done then.
const OVERLAY_INODES: u64 = 6;
const OVERLAY_BLOCKS: u64 = 5;
/// Inside; containers see `upper` alone.
const KEPT: &str = "kept";
/// In it, beside empty files.
const BLOCKS: &str = "blocks";
/// To take blocks may take one more for the list of them.
const SETTLE_TRIES: usize = 8;
/// Templates that are kept; those used longest ago go.
const TEMPLATES_MAX: usize = 32;
const HALF: &str = "new";
/// A child of this process that has not begun its program yet holds what we have closed.
const LET_GO_PATIENCE: Duration = Duration::from_secs(5);
const LET_GO_PAUSE: Duration = Duration::from_millis(1);
const COPY_BYTES: usize = 64 << 10;

/// What a container may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Whole blocks.
    pub bytes: u64,
    pub inodes: u64,
    /// Of the image, beside those there is room for in every one; they are nothing that the container writes.
    pub directories: u64,
}

impl Shape {
    /// `capacity`: what all may take together; more is promised to none.
    pub fn of(limit: Limit, capacity: u64) -> Shape {
        let most = capacity.clamp(BLOCK_BYTES, BYTES_MAX);
        let bytes = if limit.bytes == 0 { most } else { limit.bytes.min(most) };
        let bytes = bytes - bytes % BLOCK_BYTES;
        let inodes = match limit.inodes {
            0 => (bytes / BYTES_PER_INODE).clamp(INODES_MIN, INODES_MAX),
            inodes => inodes.min(INODES_MAX),
        };
        let directories = limit.directories.saturating_sub(SPARE_DIRECTORIES);
        Shape { bytes, inodes, directories: directories.next_multiple_of(DIRECTORIES_STEP) }
    }

    /// Of the file, which says by it what it holds.
    pub fn name(self) -> String {
        let Shape { bytes, inodes, directories } = self;
        if directories == 0 {
            format!("disk-{bytes}-{inodes}")
        } else {
            format!("disk-{bytes}-{inodes}-{directories}")
        }
    }

    pub fn parse(name: &str) -> Option<Shape> {
        let numbers: Vec<u64> =
            name.strip_prefix("disk-")?.split('-').map(str::parse).collect::<Result<_, _>>().ok()?;
        match numbers[..] {
            [bytes, inodes] => Some(Shape { bytes, inodes, directories: 0 }),
            [bytes, inodes, directories] if directories > 0 => Some(Shape { bytes, inodes, directories }),
            _ => None,
        }
    }

    fn inodes_made(self) -> u64 {
        self.inodes + OVERLAY_INODES + SPARE_INODES + self.directories
    }

    /// The file's length. Sparse: it takes of the disk what is written into it.
    fn file_bytes(self) -> u64 {
        let inodes = self.inodes_made();
        let content = self.bytes + inodes * INODE_BYTES + SPARE_BYTES + self.directories * BLOCK_BYTES;
        let content = content + (content / KEPT_PART).min(KEPT_BYTES_MAX);
        let groups = (content / GROUP_BYTES + 1).max(inodes.div_ceil(GROUP_INODES_MAX));
        let bytes = (content + groups * GROUP_OVERHEAD_BYTES).max((groups - 1) * GROUP_BYTES + 1);
        let last_min = (inodes / groups + 16) * INODE_BYTES + LAST_GROUP_BYTES_MIN;
        let bytes = bytes + last_min.saturating_sub(bytes % GROUP_BYTES);
        bytes.next_multiple_of(1 << 20)
    }

    fn mkfs(self, file: &Path) -> Result<(), Unavailable> {
        let inodes = self.inodes_made().to_string();
        let options = [
            "-q",
            "-F",
            "-b",
            "4096",
            "-I",
            "256",
            "-N",
            &inodes,
            "-m",
            "0",
            "-O",
            "^has_journal,^resize_inode",
            "-E",
            "lazy_itable_init=1,nodiscard",
        ];
        image::mkfs(file, "mkfs.ext4", &options)
    }
}

/// Mounted nowhere as yet. Neither journal nor barriers: it does not outlive the machine's run. Without `discard`, with
/// which each file that is removed waits for a hole in ours, half a millisecond.
pub fn mount(device: &LoopDevice) -> Result<OwnedFd, mount::Error> {
    let filesystem = Filesystem::open("ext4")?;
    filesystem.set_path("source", &device.path)?;
    for flag in ["nobarrier", "noinit_itable"] {
        filesystem.set_flag(flag)?;
    }
    filesystem.create()?;
    filesystem.mount(MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME)
}

/// The free ones of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    pub blocks: u64,
    pub inodes: u64,
}

impl Free {
    pub fn bytes(self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    pub fn of(top: &Path) -> io::Result<Free> {
        let filesystem = rustix::fs::statvfs(top)?;
        Ok(Free { blocks: filesystem.f_bavail, inodes: filesystem.f_ffree })
    }
}

/// Leaves exactly so much free.
pub fn settle(top: &Path, wanted: Free) -> io::Result<()> {
    settle_inodes(top, wanted.inodes)?;
    settle_blocks(top, wanted.blocks)
}

fn settle_inodes(top: &Path, wanted: u64) -> io::Result<()> {
    let free = Free::of(top)?.inodes;
    let kept = top.join(KEPT);
    if free < wanted {
        let missing = usize::try_from(wanted - free).unwrap_or(usize::MAX);
        let is_empty_one = |entry: &fs::DirEntry| entry.file_name() != BLOCKS;
        let given = fs::read_dir(&kept)?.filter(|entry| entry.as_ref().map_or(true, is_empty_one));
        for entry in given.take(missing) {
            fs::remove_file(entry?.path())?;
        }
        return Ok(());
    }
    let mut more = free - wanted;
    for number in 0u64.. {
        if more == 0 {
            break;
        }
        match File::options().write(true).create_new(true).open(kept.join(number.to_string())) {
            Ok(_) => more -= 1,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn settle_blocks(top: &Path, wanted: u64) -> io::Result<()> {
    let kept = File::options().write(true).create(true).truncate(false).open(top.join(KEPT).join(BLOCKS))?;
    for _ in 0..SETTLE_TRIES {
        let (free, length) = (Free::of(top)?.blocks, kept.metadata()?.len());
        if free > wanted {
            let more = (free - wanted) * BLOCK_BYTES;
            rustix::fs::fallocate(&kept, FallocateFlags::empty(), length, more)?;
        } else if free < wanted && length > 0 {
            kept.set_len(length.saturating_sub((wanted - free) * BLOCK_BYTES))?;
        } else {
            break;
        }
    }
    Ok(())
}

/// One file for each shape that was asked for, ready to be copied.
#[derive(Debug)]
pub struct Templates {
    directory: PathBuf,
    /// One at a time: who waits for the same one finds it made.
    making: Mutex<()>,
}

impl Templates {
    pub fn open(directory: PathBuf) -> io::Result<Templates> {
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == HALF) {
                fs::remove_file(path)?;
            }
        }
        Ok(Templates { directory, making: Mutex::default() })
    }

    /// A filesystem of a shape in a new file.
    pub fn copy(&self, shape: Shape, to: &Path) -> Result<File, Unavailable> {
        let copy = File::options().read(true).write(true).create_new(true).mode(0o600).open(to);
        let copy = copy.map_err(image::at("make", to))?;
        let template = self.template(shape)?;
        copy_sparse(template, &copy).map_err(image::at("copy a filesystem to", to))?;
        Ok(copy)
    }

    fn template(&self, shape: Shape) -> Result<File, Unavailable> {
        let path = self.directory.join(shape.name());
        if let Some(template) = open(&path)? {
            return Ok(template);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = open(&path)? {
            return Ok(template);
        }
        let new = path.with_extension(HALF);
        let made = make(shape, &new)
            .and_then(|()| fs::rename(&new, &path).map_err(image::at("rename", &new)))
            .and_then(|()| File::open(&path).map_err(image::at("open", &path)));
        if made.is_err() {
            // The next start removes it otherwise.
            _ = fs::remove_file(&new);
        }
        self.forget_oldest().map_err(image::at("tidy", &self.directory))?;
        made
    }

    fn forget_oldest(&self) -> io::Result<()> {
        let entries = fs::read_dir(&self.directory)?;
        let by_use = entries.map(|entry| {
            let entry = entry?;
            Ok((entry.metadata()?.modified()?, entry.path()))
        });
        let mut by_use = by_use.collect::<io::Result<Vec<_>>>()?;
        by_use.sort();
        let too_many = by_use.len().saturating_sub(TEMPLATES_MAX);
        by_use.into_iter().take(too_many).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// Marked as used now, where it is there.
fn open(path: &Path) -> Result<Option<File>, Unavailable> {
    match File::open(path) {
        Ok(template) => {
            // Only its place in the line of those that go.
            _ = template.set_modified(SystemTime::now());
            Ok(Some(template))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(image::at("open", path)(error)),
    }
}

fn make(shape: Shape, path: &Path) -> Result<(), Unavailable> {
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(image::at("make", path))?;
    file.set_len(shape.file_bytes()).map_err(image::at("make", path))?;
    shape.mkfs(path)?;
    let device = loop_device::attach(&file, false).map_err(image::at("make a loop device of", path))?;
    let mounted = mount(&device);
    let mounted =
        mounted.map_err(|source| Unavailable::Mount { path: path.display().to_string(), source })?;
    drop(device);
    furnish(shape, &mounted).map_err(image::at("prepare the filesystem in", path))?;
    drop(mounted);
    // Only when nobody has it mounted is all of it in the file.
    wait_until_let_go(&file).map_err(image::at("unmount", path))
}

fn furnish(shape: Shape, mounted: &OwnedFd) -> io::Result<()> {
    let top = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
    fs::create_dir(top.join(KEPT))?;
    let wanted =
        Free { blocks: shape.bytes / BLOCK_BYTES + OVERLAY_BLOCKS, inodes: shape.inodes + OVERLAY_INODES };
    // So that it is there, and counts.
    drop(File::create(top.join(KEPT).join(BLOCKS))?);
    settle(&top, wanted)?;
    let free = Free::of(&top)?;
    if free != wanted {
        return Err(io::Error::other(format!("{free:?} is left instead of {wanted:?}")));
    }
    Ok(())
}

fn wait_until_let_go(file: &File) -> io::Result<()> {
    let began = Instant::now();
    while loop_device::find(file)?.is_some() {
        if began.elapsed() > LET_GO_PATIENCE {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        std::thread::sleep(LET_GO_PAUSE);
    }
    Ok(())
}

/// Holes stay holes.
fn copy_sparse(mut from: File, mut to: &File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    let (mut at, mut buffer) = (0, vec![0; COPY_BYTES]);
    while let Some(held) = held(&from, at)? {
        from.seek(SeekFrom::Start(held.start))?;
        to.seek(SeekFrom::Start(held.start))?;
        at = held.start;
        while at < held.end {
            let part = buffer.len().min(usize::try_from(held.end - at).unwrap_or(usize::MAX));
            from.read_exact(&mut buffer[..part])?;
            to.write_all(&buffer[..part])?;
            at += part as u64;
        }
    }
    Ok(())
}

/// The next part of a file that is no hole. `None`: nothing but a hole is left.
pub fn held(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(begin) => Ok(Some(begin..rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(begin))?)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_files_name_says_what_it_holds() {
        for directories in [0, 1024] {
            let shape = Shape { bytes: 64 * MIB, inodes: 200_000, directories };
            assert_eq!(Shape::parse(&shape.name()), Some(shape));
        }
        for name in
            ["root.json", "disk-", "disk-5", "disk-5-", "disk--5", "disk-a-b", "disk-5-5-0", "disk-5-5-5-5"]
        {
            assert_eq!(Shape::parse(name), None, "{name}");
        }
    }

    #[test]
    fn no_limit_is_what_all_have_together() {
        let shape = |bytes, inodes, directories| {
            let shape = Shape::of(Limit { bytes, inodes, directories }, 100 * MIB + 5);
            (shape.bytes, shape.inodes, shape.directories)
        };
        assert_eq!(shape(10 * MIB + 1, 7, 64), (10 * MIB, 7, 0));
        assert_eq!(shape(0, 7, 65), (100 * MIB, 7, 1024));
        assert_eq!(shape(500 * MIB, 0, 4096), (100 * MIB, 12_800, 4096));
    }

    /// Of any size; without mounting one, this is what mkfs says of it.
    #[test]
    fn every_shape_is_a_filesystem_that_mkfs_makes_with_room_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        let sizes = [256 << 10, MIB, 10 * MIB, 100 * MIB, 127 * MIB, 129 * MIB, 1 << 30, 20 << 30, 300 << 30];
        for bytes in sizes {
            for (inodes, directories) in
                [(16, 0), (1000, 4096), (31_990, 0), (65_000, 1024), (200_000, 0), (3_000_000, 0)]
            {
                let shape = Shape { bytes, inodes, directories };
                let path = scratch.path().join(shape.name());
                File::create(&path).unwrap().set_len(shape.file_bytes()).unwrap();
                match shape.mkfs(&path) {
                    Err(Unavailable::NoProgram { .. }) => {
                        return println!("SKIPPED every_shape_is_a_filesystem: no mkfs.ext4");
                    }
                    made => made.unwrap(),
                }
                let mut superblock = [0; 1024];
                std::os::unix::fs::FileExt::read_exact_at(&File::open(&path).unwrap(), &mut superblock, 1024)
                    .unwrap();
                let number = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
                let (free_blocks, free_inodes) = (u64::from(number(12)), u64::from(number(16)));
                assert!(
                    free_inodes >= inodes + directories + OVERLAY_INODES + 64,
                    "{shape:?}: {free_inodes}"
                );
                let kept = (free_blocks * BLOCK_BYTES / 50).min(KEPT_BYTES_MAX);
                let room = free_blocks * BLOCK_BYTES - kept;
                assert!(room >= bytes + directories * BLOCK_BYTES + MIB, "{shape:?}: {room}");
                fs::remove_file(path).unwrap();
            }
        }
    }
}
