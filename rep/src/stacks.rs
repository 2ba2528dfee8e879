//! The preloaded root filesystems of a cell: stack names and the paths by which garden knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use bbs_models::{DigestAlgorithm, ImageLayer, LayerKind, LayerMediaType};
use rep_client::{PRELOADED_LAYER_SCHEME, PRELOADED_SCHEME, split_rootfs};

/// In a root filesystem: which one of its kind it is.
const VERSION_FILE: &[u8] = b"etc/stack-version";
const VERSION_BYTES_MAX: u64 = 256;

/// Stack name to path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stacks(pub BTreeMap<String, String>);

/// What becomes of a droplet given as an image layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LayeringMode {
    /// It is downloaded and unpacked into the container, counting into its disk.
    #[default]
    SingleLayer,
    /// It becomes a layer of the root filesystem.
    TwoLayer,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("preloaded rootfs path not found: {0}")]
pub struct UnknownStack(pub String);

impl Stacks {
    /// Takes in what is in `dir` and below: a file NAME.tar is the stack NAME, whatever that was before. Answers whose names
    /// these are.
    pub fn take_in(&mut self, dir: &Path) -> io::Result<BTreeSet<String>> {
        let mut found = BTreeMap::new();
        find_tars(dir, &mut found)?;
        let names = found.keys().cloned().collect();
        self.0.extend(found);
        Ok(names)
    }

    /// As a cell's presence lists them: NAME@VERSION where this machine can read of what version it is, otherwise NAME.
    pub fn with_versions(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let listed = |(name, path): (&String, &String)| match version(Path::new(path)) {
            Some(version) => format!("{name}@{version}"),
            None => name.clone(),
        };
        self.0.iter().filter(|(name, _)| wanted(name)).map(listed).collect()
    }

    /// The root filesystem as garden is asked for it: the stack's name replaced by its path.
    pub fn resolve(&self, rootfs: &str) -> Result<String, UnknownStack> {
        let (scheme, stack) = split_rootfs(rootfs);
        let path = || self.0.get(stack).ok_or_else(|| UnknownStack(stack.into()));
        match scheme {
            PRELOADED_SCHEME => Ok(path()?.clone()),
            PRELOADED_LAYER_SCHEME => Ok(format!("{scheme}:{}?{}", path()?, query(rootfs))),
            _ => Ok(rootfs.into()),
        }
    }

    /// Back from what garden was asked for to what the LRP or Task desired.
    pub fn unresolve(&self, rootfs: &str) -> String {
        let (scheme, opaque) = split_rootfs(rootfs);
        let stack = |path: &str| self.0.iter().find(|(_, known)| *known == path).map(|(stack, _)| stack);
        match scheme {
            "" => stack(rootfs).map(|stack| format!("{PRELOADED_SCHEME}:{stack}")),
            PRELOADED_LAYER_SCHEME => {
                stack(opaque).map(|stack| format!("{scheme}:{stack}?{}", query(rootfs)))
            }
            _ => None,
        }
        .unwrap_or_else(|| rootfs.into())
    }
}

/// Links are not followed: it ends.
fn find_tars(dir: &Path, found: &mut BTreeMap<String, String>) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let is_tar = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tar"));
        if entry.file_type()?.is_dir() {
            find_tars(&path, found)?;
        } else if let (true, Some(name), Some(path)) =
            (is_tar, path.file_stem().and_then(|name| name.to_str()), path.to_str())
        {
            found.insert(name.to_owned(), path.to_owned());
        }
    }
    Ok(())
}

/// Of a tar that is as it should be; of all else none.
fn version(path: &Path) -> Option<String> {
    // Others than files might never be opened.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut archive = tar::Archive::new(File::open(path).ok()?);
    for entry in archive.entries_with_seek().ok()? {
        let entry = entry.ok()?;
        let name = entry.path_bytes();
        let name = name.strip_prefix(b".").unwrap_or(&name);
        if name.strip_prefix(b"/").unwrap_or(name) == VERSION_FILE {
            let mut version = String::new();
            entry.take(VERSION_BYTES_MAX).read_to_string(&mut version).ok()?;
            return Some(version.trim().to_owned()).filter(|version| !version.is_empty());
        }
    }
    None
}

fn query(url: &str) -> &str {
    let without_fragment = url.split('#').next().unwrap_or_default();
    without_fragment.split_once('?').map_or("", |(_, query)| query)
}

/// In two-layer mode, the first exclusive layer that is a gzipped tar with a SHA-256 digest moves into the URL of a
/// preloaded root filesystem; all other layers stay in the list.
pub fn move_layer_into_rootfs(
    rootfs: &str,
    mut layers: Vec<ImageLayer>,
    mode: LayeringMode,
) -> (String, Vec<ImageLayer>) {
    let stack = match rootfs.split_once(':') {
        Some((PRELOADED_SCHEME, rest)) if mode == LayeringMode::TwoLayer => {
            rest.split(':').next().unwrap_or_default()
        }
        _ => return (rootfs.into(), layers),
    };
    let suitable = |layer: &ImageLayer| match &layer.kind {
        LayerKind::Exclusive { digest } if layer.media_type == LayerMediaType::Tgz => {
            (digest.algorithm == DigestAlgorithm::Sha256).then(|| digest.value.clone())
        }
        _ => None,
    };
    let Some((at, digest)) = layers.iter().enumerate().find_map(|(at, layer)| Some((at, suitable(layer)?)))
    else {
        return (rootfs.into(), layers);
    };
    let layer = layers.remove(at);
    let (url, path, digest) = (escape(&layer.url), escape(&layer.destination_path), escape(&digest));
    let rootfs =
        format!("{PRELOADED_LAYER_SCHEME}:{stack}?layer={url}&layer_path={path}&layer_digest={digest}");
    (rootfs, layers)
}

/// Escapes a query value as Go's `url.QueryEscape` does.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte as char),
            b' ' => escaped.push('+'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::LayerDigest;

    fn stacks() -> Stacks {
        Stacks(BTreeMap::from([("linux".into(), "/rootfs/linux.tar".into())]))
    }

    #[test]
    fn a_stack_is_resolved_to_its_path_and_back() {
        let check = |desired: &str, resolved: &str| {
            assert_eq!(stacks().resolve(desired).unwrap(), resolved);
            assert_eq!(stacks().unresolve(resolved), desired);
        };
        check("preloaded:linux", "/rootfs/linux.tar");
        check(
            "preloaded+layer:linux?layer=u&layer_path=p",
            "preloaded+layer:/rootfs/linux.tar?layer=u&layer_path=p",
        );
        check("docker:///busybox#1", "docker:///busybox#1");
        check("oci:/images/a", "oci:/images/a");
        check("", "");
        assert_eq!(stacks().resolve("preloaded:nt"), Err(UnknownStack("nt".into())));
    }

    fn write_tar(path: &Path, name: &str, content: &[u8]) {
        let mut tar = tar::Builder::new(File::create(path).unwrap());
        let mut header = tar::Header::new_gnu();
        for (name, content) in [("./bin/sh", &[b'x'; 4096][..]), (name, content)] {
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content).unwrap();
        }
        tar.finish().unwrap();
    }

    #[test]
    fn what_lies_in_a_directory_is_offered_too_and_says_of_what_version_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("deep/er.tar")).unwrap();
        let at = |name: &str| dir.path().join(name);
        write_tar(&at("linux.tar"), "./etc/stack-version", b" 1.2.3\n");
        write_tar(&at("deep/er.tar/new.TAR"), "etc/stack-version", b"");
        write_tar(&at("deep/old.tgz"), "etc/stack-version", b"1");
        fs::write(at("broken.tar"), b"this is no tar").unwrap();
        let mut taken = stacks();
        taken.0.insert("kept".into(), "/rootfs/kept.tar".into());
        let extra = taken.take_in(dir.path()).unwrap();
        assert_eq!(extra.iter().collect::<Vec<_>>(), ["broken", "linux", "new"]);
        assert_eq!(taken.resolve("preloaded:linux").unwrap(), at("linux.tar").to_str().unwrap());
        assert_eq!(taken.with_versions(|name| extra.contains(name)), ["broken", "linux@1.2.3", "new"]);
        assert_eq!(taken.with_versions(|name| !extra.contains(name)), ["kept"]);
        assert!(taken.take_in(&at("nowhere")).is_err());
    }

    fn layer(media_type: LayerMediaType, algorithm: DigestAlgorithm) -> ImageLayer {
        let digest = LayerDigest { algorithm, value: "ab".into() };
        ImageLayer {
            name: "droplet".into(),
            url: "http://blobs/d?a=b c".into(),
            destination_path: "/home/vcap".into(),
            kind: LayerKind::Exclusive { digest },
            media_type,
        }
    }

    #[test]
    fn one_droplet_becomes_a_layer_of_the_rootfs() {
        use DigestAlgorithm::*;
        use LayerMediaType::*;
        let check = |rootfs: &str, layers: Vec<ImageLayer>, mode, expected: &str, left: usize| {
            let (moved, layers) = move_layer_into_rootfs(rootfs, layers, mode);
            assert_eq!((moved.as_str(), layers.len()), (expected, left));
        };
        let moved = "preloaded+layer:linux?layer=http%3A%2F%2Fblobs%2Fd%3Fa%3Db+c&layer_path=%2Fhome%2Fvcap&layer_digest=ab";
        let two = || vec![layer(Tgz, Sha256), layer(Tgz, Sha256)];
        check("preloaded:linux", two(), LayeringMode::TwoLayer, moved, 1);
        check("preloaded:linux", two(), LayeringMode::SingleLayer, "preloaded:linux", 2);
        check("docker:///a", two(), LayeringMode::TwoLayer, "docker:///a", 2);
        check("preloaded:linux", vec![layer(Zip, Sha256)], LayeringMode::TwoLayer, "preloaded:linux", 1);
        check("preloaded:linux", vec![layer(Tgz, Sha512)], LayeringMode::TwoLayer, "preloaded:linux", 1);
        let shared = ImageLayer { kind: LayerKind::Shared { digest: None }, ..layer(Tgz, Sha256) };
        check("preloaded:linux", vec![shared, layer(Tgz, Sha256)], LayeringMode::TwoLayer, moved, 1);
    }
}
