//! A tar stream into the current directory, as whoever runs this.
//!
//! Owners and special mode bits of the archive do not count; nothing is written beside the directory.

use std::io::{self, BufReader, Read};

/// Bits of a mode that do not survive.
const UMASK: u32 = 0o022;
const READ_BYTES: usize = 256 * 1024;

pub fn unpack(stream: impl Read) -> io::Result<()> {
    let mut archive = tar::Archive::new(BufReader::with_capacity(READ_BYTES, stream));
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_preserve_mtime(true);
    archive.set_mask(UMASK);
    archive.set_overwrite(true);
    archive.unpack(".").map_err(innermost)?;
    // What follows the end of the archive is taken too, so that its writer does not find the pipe closed.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// The tar crate wraps each reason in a sentence about the one before; the first and the last say it.
fn innermost(error: io::Error) -> io::Error {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let (outer, inner) = (error.to_string(), cause.to_string());
    if outer == inner { error } else { io::Error::new(error.kind(), format!("{outer}: {inner}")) }
}
