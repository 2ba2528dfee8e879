//! A root filesystem as a directory: busybox, and the directories that runtimes mount on.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In a directory `root` of `work`.
pub fn userland(work: &Path) -> io::Result<PathBuf> {
    let root = work.join("root");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/image");
    let status = Command::new(&script).arg("rootfs").arg(&root).status()?;
    if !status.success() {
        return Err(io::Error::other(format!(
            "{} cannot make a root filesystem: {status}",
            script.display()
        )));
    }
    Ok(root)
}
