//! Which directories make up a root, and in which order: layers in, a value out that [`crate::overlay`] carries out.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::unpack::{self, Place};

/// Directories of one image whose attributes are taken from lower layers; further ones keep what they have.
const INHERITED_MAX: usize = 4096;

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub lower: Lower,
    /// Of file content; 0 where it is not known.
    pub bytes: u64,
    #[serde(default)]
    pub entries: u64,
    /// Nothing below it shows through.
    pub opaque: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lower {
    /// In the store, by its digest.
    Stored(Digest),
    /// A directory that is used where it lies.
    Directory(PathBuf),
}

/// What the overlay stacks, the topmost first. An image may list a layer twice, the overlay may not: the upper one
/// hides all of the lower one.
pub fn stack(layers: &[Layer]) -> Vec<&Lower> {
    let mut seen = BTreeSet::new();
    let mut stacked = Vec::new();
    for layer in layers.iter().rev() {
        if seen.insert(&layer.lower) {
            stacked.push(&layer.lower);
        }
        if layer.opaque {
            break;
        }
    }
    stacked
}

/// A directory that the overlay would not show as it is meant, so it is made in the upper directory, which comes before
/// all. Either the topmost layer holding it has no entry for it: its looks are those it has in a lower layer. Or it has
/// whiteouts, and no other layer has it: such a directory is listed as it lies there, with the names of what is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub path: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// When it was changed last: seconds and nanoseconds.
    #[serde(default)]
    pub modified: Option<(i64, i64)>,
}

/// An unpacked layer as this module looks at it: its root, and which of its directories were only implied.
pub struct Opened {
    pub root: PathBuf,
    pub implied: Vec<String>,
    /// Which of them hold whiteouts.
    pub with_whiteouts: Vec<String>,
    /// As [`Layer::opaque`].
    pub opaque: bool,
}

/// The same, being looked at.
struct View<'a> {
    root: OwnedFd,
    implied: BTreeSet<&'a str>,
    opaque: bool,
}

enum Looks {
    Absent,
    /// There, but not a directory: it hides what is below.
    Hides,
    Directory(Inherited),
}

/// The directories to make in a root's upper directory, parents first. `layers` is topmost first.
pub fn inherited(layers: &[Opened]) -> std::io::Result<Vec<Inherited>> {
    let wanted: BTreeSet<&str> = layers.iter().flat_map(|l| &l.implied).map(String::as_str).collect();
    let with_whiteouts: BTreeSet<&str> =
        layers.iter().flat_map(|l| &l.with_whiteouts).map(String::as_str).collect();
    if with_whiteouts.is_empty() && (wanted.is_empty() || layers.len() < 2) {
        return Ok(Vec::new());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut views = Vec::new();
    for layer in layers {
        let root = rustix::fs::openat(CWD, &layer.root, flags, Mode::empty())?;
        let implied = layer.implied.iter().map(String::as_str).collect();
        views.push(View { root, implied, opaque: layer.opaque });
    }
    let mut found = BTreeMap::new();
    for path in wanted.into_iter().take(INHERITED_MAX) {
        if let Some((depth, inherited)) = topmost(&views, true, path)
            && depth > 0
        {
            found.insert(path.to_string(), inherited);
        }
    }
    for path in with_whiteouts.into_iter().filter(|path| !path.is_empty()).take(INHERITED_MAX) {
        if !found.contains_key(path)
            && let Some(inherited) = of_one_layer(&views, path)
        {
            found.insert(path.to_string(), inherited);
        }
    }
    let above: BTreeSet<String> = found.keys().flat_map(|path| parents(path)).collect();
    for path in above {
        // One that no layer has an entry for looks as the unpacker made it, in whichever layer comes first.
        let looks = || topmost(&views, true, &path).or_else(|| topmost(&views, false, &path));
        if !found.contains_key(&path)
            && let Some((_, inherited)) = looks()
        {
            found.insert(path, inherited);
        }
    }
    Ok(found.into_values().collect())
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| path[..at].to_string()).collect()
}

/// The looks of `path` in the topmost layer that has an entry for it, and how many layers above it only imply it; or, if
/// `entry` is not wanted, in the topmost that has it at all.
fn topmost(layers: &[View<'_>], entry: bool, path: &str) -> Option<(usize, Inherited)> {
    let mut above = 0;
    for layer in layers {
        match looks(&layer.root, path) {
            Looks::Absent => {}
            Looks::Hides => return None,
            Looks::Directory(_) if entry && layer.implied.contains(path) => above += 1,
            Looks::Directory(inherited) => return Some((above, inherited)),
        }
        if layer.opaque || hides_below(&layer.root, path) {
            return None;
        }
    }
    None
}

/// The looks of `path` where one layer alone makes up what is seen of it.
fn of_one_layer(layers: &[View<'_>], path: &str) -> Option<Inherited> {
    let mut found = None;
    for layer in layers {
        match looks(&layer.root, path) {
            Looks::Absent => {}
            Looks::Hides => break,
            Looks::Directory(_) if found.is_some() => return None,
            Looks::Directory(inherited) => found = Some(inherited),
        }
        if layer.opaque || hides_below(&layer.root, path) {
            break;
        }
    }
    found
}

/// Whether a layer's own directory there, or one above it, lets nothing of lower layers through.
fn hides_below(root: &OwnedFd, path: &str) -> bool {
    let prefixes = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]);
    for prefix in prefixes {
        match is_opaque(root, prefix) {
            // Nothing is below it either.
            None => return false,
            Some(true) => return true,
            Some(false) => {}
        }
    }
    false
}

/// `None`: it is no directory of this layer.
fn is_opaque(root: &OwnedFd, path: &str) -> Option<bool> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let mut value = [0; 8];
    let length = rustix::fs::fgetxattr(&directory, unpack::OPAQUE_ATTRIBUTE, &mut value[..]);
    Some(length.is_ok_and(|length| &value[..length] == b"y"))
}

fn looks(root: &OwnedFd, path: &str) -> Looks {
    let Ok(place) = Place::parse(path.as_bytes()) else { return Looks::Absent };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let stat = rustix::fs::openat2(root, place.bytes(), flags, Mode::empty(), resolve)
        .and_then(|node| rustix::fs::statat(&node, "", AtFlags::EMPTY_PATH));
    match stat {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            let mode = stat.st_mode & 0o7777;
            Looks::Directory(Inherited {
                path: path.into(),
                mode,
                uid: stat.st_uid,
                gid: stat.st_gid,
                modified: Some((stat.st_mtime, stat.st_mtime_nsec as i64)),
            })
        }
        Ok(_) | Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Looks::Hides,
        Err(_) => Looks::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn check(layers: &str, expected: &str) {
        let layers: Vec<Layer> = layers
            .split_whitespace()
            .map(|name| Layer {
                lower: Lower::Directory(name.trim_end_matches('!').into()),
                bytes: 0,
                entries: 0,
                opaque: name.ends_with('!'),
            })
            .collect();
        let stacked: Vec<String> = stack(&layers)
            .into_iter()
            .map(|lower| match lower {
                Lower::Directory(path) => path.display().to_string(),
                Lower::Stored(digest) => digest.to_string(),
            })
            .collect();
        assert_eq!(stacked.join(" "), expected);
    }

    #[test]
    fn layers_are_stacked_topmost_first_and_once() {
        check("", "");
        check("a b c", "c b a");
        check("a b a", "a b");
        check("a a a", "a");
        check("a b! c", "c b");
        check("a b!", "b");
    }

    #[test]
    fn a_directory_that_no_layer_has_an_entry_for_is_made_all_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = |name: &str, implied: &[&str]| {
            let root = scratch.path().join(name);
            std::fs::create_dir_all(root.join("usr/share")).unwrap();
            Opened {
                root,
                implied: implied.iter().map(|path| path.to_string()).collect(),
                with_whiteouts: Vec::new(),
                opaque: false,
            }
        };
        // Some tools write files without the directories above them.
        let found = inherited(&[layer("upper", &["usr", "usr/share"]), layer("base", &["usr"])]).unwrap();
        let found: Vec<&str> = found.iter().map(|inherited| inherited.path.as_str()).collect();
        assert_eq!(found, ["usr", "usr/share"], "parents first");
    }

    #[test]
    fn a_directory_without_an_entry_looks_as_in_the_layer_below() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = |name: &str, directory: &str, mode: u32, implied: &[&str]| {
            let root = scratch.path().join(name);
            std::fs::create_dir_all(root.join(directory)).unwrap();
            std::fs::set_permissions(root.join(directory), std::fs::Permissions::from_mode(mode)).unwrap();
            Opened {
                root,
                implied: implied.iter().map(|path| path.to_string()).collect(),
                with_whiteouts: Vec::new(),
                opaque: false,
            }
        };
        let base = layer("base", "var/tmp", 0o1777, &[]);
        let upper = layer("upper", "var/tmp/new", 0o755, &["var", "var/tmp", "var/tmp/new"]);
        let found = inherited(&[upper, base]).unwrap();
        let found: Vec<String> = found.iter().map(|i| format!("{} {:o}", i.path, i.mode)).collect();
        assert_eq!(found, ["var 755", "var/tmp 1777"]);
    }
}
