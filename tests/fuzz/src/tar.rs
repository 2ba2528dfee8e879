//! Archives: a layer of an image, and what is streamed into a container. Nothing lands beside the directory given.
//!
//! Started as root it becomes nobody first: in a container the archive of a user can do what the user can, and here it
//! should not be more.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../../garden/init/src/attributes.rs"]
mod attributes;
#[path = "../../../rootfs/src/digest.rs"]
mod digest;
#[path = "../../../rootfs/src/unpack/mod.rs"]
mod layer;
#[path = "../../../garden/init/src/siphon.rs"]
mod siphon;
#[path = "../../../garden/init/src/source.rs"]
mod source;
#[path = "../../../garden/init/src/sparse.rs"]
mod sparse;
#[path = "../../../garden/init/src/unpack.rs"]
mod stream;
#[path = "../../../rootfs/src/tree.rs"]
mod tree;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use layer::{Expected, Limits};
use libfuzzer_sys::fuzz_target;

const NOBODY: u32 = 65_534;

fuzz_target!(|data: &[u8]| {
    let world = world();
    let root = world.join("root");
    std::fs::create_dir(&root).unwrap();
    let Some((&kind, data)) = data.split_first() else { return clear(&root) };
    if kind % 2 == 0 {
        let limits = Limits { bytes_max: 1 << 20, entries_max: 1_000, ..Limits::default() };
        // Most archives are refused; how is not the question here.
        let _ = layer::unpack(data, &Expected::default(), &root, limits, &mut ());
    } else {
        std::env::set_current_dir(&root).unwrap();
        stream_in(data);
        std::env::set_current_dir("/").unwrap();
    }
    clear(&root);
    let beside: Vec<_> = std::fs::read_dir(world).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["canary"], "something landed outside");
    assert_eq!(std::fs::read(world.join("canary")).unwrap(), b"alive");
});

/// All that the stream needs of pid 1.
mod pid1 {
    pub fn pipe() -> std::io::Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
        Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
    }
}

/// Out of a pipe, as in a container.
fn stream_in(data: &[u8]) {
    let (read, write) = pid1::pipe().unwrap();
    std::thread::scope(|scope| {
        // An archive that is refused is not read to its end.
        scope.spawn(move || _ = std::io::Write::write_all(&mut std::fs::File::from(write), data));
        let _ = stream::unpack(read.into());
    });
}

fn world() -> &'static Path {
    static WORLD: OnceLock<PathBuf> = OnceLock::new();
    WORLD.get_or_init(|| {
        let world = std::env::temp_dir().join(format!("diego-fuzz-tar-{}", std::process::id()));
        std::fs::create_dir(&world).unwrap();
        std::fs::write(world.join("canary"), "alive").unwrap();
        // Whoever refuses an archive closes the pipe it comes by; a program of Rust's own would not end of that.
        // SAFETY: plain system calls, before anything else runs.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // SAFETY: likewise.
        if unsafe { libc::geteuid() } == 0 {
            std::os::unix::fs::chown(&world, Some(NOBODY), Some(NOBODY)).unwrap();
            let limit = libc::rlimit { rlim_cur: 64 << 20, rlim_max: 64 << 20 };
            // SAFETY: likewise.
            let became = unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
                libc::setgroups(0, std::ptr::null()) | libc::setgid(NOBODY) | libc::setuid(NOBODY)
            };
            assert_eq!(became, 0, "cannot become nobody");
        }
        world
    })
}

fn clear(root: &Path) {
    use std::os::unix::fs::PermissionsExt;
    // Directories may have come without the right to empty them.
    fn open(directory: &Path) {
        let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open(&entry.path());
            }
        }
    }
    open(root);
    std::fs::remove_dir_all(root).unwrap();
}
