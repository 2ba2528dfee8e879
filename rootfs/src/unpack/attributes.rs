//! What an entry of an archive says about its file (owner, mode, time, extended attributes), read and set.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use tar::Entry;

use super::Error;
use super::entry::Place;
use super::extract::{failed, impossible};

/// By this the kernel's overlay knows a directory that hides what is below it.
pub const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// What an entry says about the file it makes.
pub struct Attributes {
    pub owner: Option<rustix::fs::Uid>,
    pub group: Option<rustix::fs::Gid>,
    pub mode: Mode,
    pub modified: Timespec,
    extended: Vec<(String, Vec<u8>)>,
}

pub fn attributes(place: &Place, entry: &mut Entry<'_, impl Read>) -> Result<Attributes, Error> {
    let wrong = |error: io::Error| impossible(place, error.to_string());
    let header = entry.header();
    let old = header.as_old();
    let mode = number(&old.mode, || header.mode().map(u64::from)).map_err(wrong)? & 0o7777;
    let mode = Mode::from_raw_mode(u32::try_from(mode).unwrap_or(0));
    let owner = id(number(&old.uid, || header.uid()).map_err(wrong)?, place)?;
    let group = id(number(&old.gid, || header.gid()).map_err(wrong)?, place)?;
    let mut modified =
        Timespec { tv_sec: seconds(number(&old.mtime, || header.mtime()).map_err(wrong)?), tv_nsec: 0 };
    let mut extended = Vec::new();
    for extension in entry.pax_extensions().map_err(wrong)?.into_iter().flatten() {
        let extension = extension.map_err(wrong)?;
        let Ok(key) = extension.key() else { continue };
        if key == "mtime" {
            modified = extension.value().ok().and_then(time).unwrap_or(modified);
        } else if key.starts_with("GNU.sparse.") {
            return Err(impossible(place, "it is a sparse file in a form that is not understood".into()));
        } else if let Some(name) = key.strip_prefix("SCHILY.xattr.").filter(|name| is_allowed(name)) {
            extended.push((name.to_string(), extension.value_bytes().to_vec()));
        }
    }
    Ok(Attributes {
        owner: Some(rustix::fs::Uid::from_raw(owner)),
        group: Some(rustix::fs::Gid::from_raw(group)),
        mode,
        modified,
        extended,
    })
}

/// What a layer may say about its files. `trusted.overlay.*` would steer the overlay itself.
fn is_allowed(attribute: &str) -> bool {
    attribute.starts_with("user.") || attribute == "security.capability"
}

/// A field that was left blank is zero, as every other reader of tars takes it.
fn number(field: &[u8], read: impl FnOnce() -> io::Result<u64>) -> io::Result<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { read() }
}

fn id(id: u64, place: &Place) -> Result<u32, Error> {
    // The highest means "none" to the kernel.
    match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(impossible(place, format!("its owner {id} is no id"))),
    }
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(0)
}

/// `seconds.fraction`, as extended headers have it.
fn time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let tv_nsec = digits.parse().ok()?;
    // Before the epoch the fraction would count backwards; such files do not need it.
    Some(Timespec { tv_sec, tv_nsec: if text.starts_with('-') { 0 } else { tv_nsec } })
}

pub fn set_attributes(node: BorrowedFd<'_>, place: &Place, attributes: &Attributes) -> Result<(), Error> {
    let failed = |errno: Errno| failed(place, errno.into());
    // Changing the owner clears setuid bits and capabilities, so it comes first.
    rustix::fs::fchown(node, attributes.owner, attributes.group).map_err(failed)?;
    rustix::fs::fchmod(node, attributes.mode).map_err(failed)?;
    for (name, value) in &attributes.extended {
        match rustix::fs::fsetxattr(node, name.as_str(), value, XattrFlags::empty()) {
            // Not every filesystem keeps users' attributes; images do not depend on them.
            Err(Errno::OPNOTSUPP) if name.starts_with("user.") => {}
            answer => answer.map_err(failed)?,
        }
    }
    Ok(())
}

/// Owner and time of what cannot be opened: links and pipes.
pub fn set_attributes_of_node(
    parent: BorrowedFd<'_>,
    name: &[u8],
    place: &Place,
    attributes: &Attributes,
) -> Result<(), Error> {
    let times = Timestamps { last_access: attributes.modified, last_modification: attributes.modified };
    rustix::fs::chownat(parent, name, attributes.owner, attributes.group, AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW))
        .map_err(|errno| failed(place, errno.into()))
}

pub fn set_opaque(directory: BorrowedFd<'_>, place: &Place) -> Result<(), Error> {
    rustix::fs::fsetxattr(directory, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
        .map_err(|errno| failed(place, errno.into()))
}
