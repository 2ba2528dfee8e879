//! Files as block devices. A device made here lets its file go once nobody has the device open and nothing is mounted
//! from it, so a process that is killed leaves none behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";
const BLOCK_DEVICES: &str = "/sys/block";

const CONTROL_GET_FREE: libc::Ioctl = 0x4C82;
const CONFIGURE: libc::Ioctl = 0x4C0A;
const GET_STATUS: libc::Ioctl = 0x4C05;
const SET_CAPACITY: libc::Ioctl = 0x4C07;
const SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;
/// Another process may take the free device before we do.
const TRIES: usize = 64;

/// `loop_info64`.
#[repr(C)]
struct Status {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    key: [u8; 32],
    init: [u64; 2],
}

/// `loop_config`.
#[repr(C)]
struct Configuration {
    file: u32,
    block_bytes: u32,
    status: Status,
    reserved: [u64; 8],
}

/// A device with a file behind it, held open.
#[derive(Debug)]
pub struct LoopDevice {
    pub path: PathBuf,
    device: File,
}

fn status() -> Status {
    // SAFETY: zero is a value of every field.
    unsafe { std::mem::zeroed() }
}

/// A device for `file`, which is open for reading and writing. `direct`: past the page cache, where the file allows it.
pub fn attach(file: &File, direct: bool) -> io::Result<LoopDevice> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let mut refused = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES {
        // SAFETY: the request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), CONTROL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(true).open(&path)?;
        match configure(&device, file, direct) {
            Ok(()) => return Ok(LoopDevice { path, device }),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

fn configure(device: &File, file: &File, direct: bool) -> io::Result<()> {
    let mut status = status();
    status.flags = AUTOCLEAR | if direct { DIRECT_IO } else { 0 };
    let configuration =
        Configuration { file: file.as_raw_fd() as u32, block_bytes: 0, status, reserved: [0; 8] };
    // SAFETY: the request is for this structure, which outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const configuration) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The device that `file` is behind already, if there is one.
pub fn find(file: &File) -> io::Result<Option<LoopDevice>> {
    let metadata = file.metadata()?;
    let wanted = (metadata.dev(), metadata.ino());
    for device in attached()? {
        let (behind, device) = device?;
        if behind == wanted {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// Every device that has a file behind it, with that file's filesystem and number (`st_dev`, `st_ino`), as far as we may
/// open it.
pub fn attached() -> io::Result<impl Iterator<Item = io::Result<((u64, u64), LoopDevice)>>> {
    Ok(fs::read_dir(BLOCK_DEVICES)?
        .filter_map(|entry| entry.and_then(|entry| open_attached(&entry)).transpose()))
}

fn open_attached(entry: &fs::DirEntry) -> io::Result<Option<((u64, u64), LoopDevice)>> {
    // Only a device with a file behind it has this.
    if !entry.path().join("loop").exists() {
        return Ok(None);
    }
    open(&Path::new("/dev").join(entry.file_name()))
}

/// A device, and which file is behind it at this moment; it has none before we let it go.
pub fn open(path: &Path) -> io::Result<Option<((u64, u64), LoopDevice)>> {
    let path = path.to_path_buf();
    let device = match File::options().read(true).write(true).open(&path) {
        Ok(device) => device,
        Err(error) if is_not_the_one(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut status = status();
    // SAFETY: the request is for this structure, which outlives the call.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS, &raw mut status) };
    Ok((answer == 0).then(|| ((status.device, status.inode), LoopDevice { path, device })))
}

/// Let go meanwhile, or not ours to open. Of any other error nothing follows about the device.
fn is_not_the_one(error: &io::Error) -> bool {
    let gone = matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV));
    gone || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

impl LoopDevice {
    /// Reads and writes its file past the page cache from now on; an error where its filesystem cannot do that. What is
    /// dirty in the cache is written first.
    pub fn go_direct(&self) -> io::Result<()> {
        // SAFETY: the request takes a number.
        match unsafe { libc::ioctl(self.device.as_raw_fd(), SET_DIRECT_IO, 1 as libc::c_ulong) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Looks again how large the file is.
    pub fn update_size(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        match unsafe { libc::ioctl(self.device.as_raw_fd(), SET_CAPACITY) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Status>(), size_of::<Configuration>()), (232, 304));
    }

    #[test]
    fn a_device_is_found_by_its_file_and_gone_with_its_last_user() {
        let path = std::env::temp_dir().join(format!("garden-sys-loop-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        fs::remove_file(&path).unwrap();
        let device = match attach(&file, false) {
            Ok(device) => device,
            Err(error) => {
                println!("SKIPPED a_device_is_found_by_its_file_and_gone_with_its_last_user: {error}");
                return;
            }
        };
        let found = find(&file).unwrap().expect("a device");
        assert_eq!(found.path, device.path);
        found.update_size().unwrap();
        drop((found, device));
        // The kernel clears it behind the close.
        for _ in 0..200 {
            if find(&file).unwrap().is_none() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the device is still there");
    }
}
