//! What the tests of images share: tars, images and layouts built by hand, and a user namespace to look from.
#![allow(dead_code)]

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rootfs::digest::Digest;
use serde_json::{Value, json};

/// A tar written entry by entry, also such as no tool would write.
#[derive(Default)]
pub struct Tar {
    builder: Option<tar::Builder<Vec<u8>>>,
}

pub struct Entry<'a> {
    pub path: &'a str,
    pub kind: tar::EntryType,
    pub content: &'a [u8],
    pub link: &'a str,
    pub mode: u32,
    pub uid: u64,
}

impl<'a> Entry<'a> {
    pub fn file(path: &'a str, content: &'a [u8]) -> Entry<'a> {
        Entry { path, kind: tar::EntryType::Regular, content, link: "", mode: 0o644, uid: 0 }
    }

    pub fn directory(path: &'a str, mode: u32) -> Entry<'a> {
        Entry { path, kind: tar::EntryType::Directory, content: b"", link: "", mode, uid: 0 }
    }

    pub fn link(path: &'a str, kind: tar::EntryType, link: &'a str) -> Entry<'a> {
        Entry { path, kind, content: b"", link, mode: 0o777, uid: 0 }
    }
}

impl Tar {
    pub fn add(mut self, entry: Entry<'_>) -> Tar {
        let mut header = tar::Header::new_gnu();
        // Written as they are: the crate's own setters refuse what we want to test.
        let name = &mut header.as_old_mut().name;
        name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.uid);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        let builder = self.builder.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        builder.append(&header, entry.content).unwrap();
        self
    }

    pub fn pax(mut self, pairs: &[(&str, &[u8])]) -> Tar {
        let builder = self.builder.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        builder.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    pub fn file(self, path: &str, content: &str) -> Tar {
        self.add(Entry::file(path, content.as_bytes()))
    }

    pub fn directory(self, path: &str, mode: u32) -> Tar {
        self.add(Entry::directory(path, mode))
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.add(Entry::link(path, tar::EntryType::Symlink, target))
    }

    pub fn hard_link(self, path: &str, target: &str) -> Tar {
        self.add(Entry::link(path, tar::EntryType::Link, target))
    }

    pub fn bytes(self) -> Vec<u8> {
        self.builder.unwrap_or_else(|| tar::Builder::new(Vec::new())).into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in memory: its blobs by digest, and the manifest's own.
pub struct BuiltImage {
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of the uncompressed `layers`, compressed by turns with gzip, zstd and not at all.
pub fn image(layers: &[Vec<u8>], config: Value) -> BuiltImage {
    let mut blobs = Vec::new();
    let mut descriptors = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let (suffix, blob) = match number % 3 {
            0 => ("+gzip", gzip(layer)),
            1 => ("+zstd", zstd::encode_all(&layer[..], 1).unwrap()),
            _ => ("", layer.clone()),
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        descriptors.push(json!({"mediaType": media_type, "digest": Digest::of(&blob), "size": blob.len()}));
        blobs.push((Digest::of(&blob), blob));
    }
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": Digest::of(&config), "size": config.len()}, "layers": descriptors});
    blobs.push((Digest::of(&config), config));
    let manifest = serde_json::to_vec(&manifest).unwrap();
    BuiltImage { digest: Digest::of(&manifest), manifest, blobs }
}

impl BuiltImage {
    /// Writes an OCI layout with this one image.
    pub fn write_layout(&self, path: &Path, tag: &str) {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, blob) in self.blobs.iter().map(|(d, b)| (d, b)).chain([(&self.digest, &self.manifest)]) {
            std::fs::write(blobs.join(digest.hex()), blob).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "digest": self.digest,
            "size": self.manifest.len(), "annotations": {"org.opencontainers.image.ref.name": tag}}]});
        std::fs::write(path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A process in a user namespace whose ids start at `base`, and where it looks around for us.
pub struct Namespace {
    child: Child,
    pub user: OwnedFd,
}

impl Namespace {
    pub fn new(base: u32) -> Namespace {
        let mut child = Command::new("unshare")
            .args(["--user", "--mount", "--propagation", "unchanged", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proc = format!("/proc/{}", child.id());
        let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
        for _ in 0..2000 {
            if std::fs::read_link(format!("{proc}/ns/user")).is_ok_and(|theirs| theirs != ours) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for map in ["uid_map", "gid_map"] {
            if let Err(error) = std::fs::write(format!("{proc}/{map}"), format!("0 {base} 65536")) {
                let _ = child.kill();
                panic!("cannot map ids: {error}");
            }
        }
        let user = std::fs::File::open(format!("{proc}/ns/user")).unwrap().into();
        Namespace { child, user }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A mount put on a directory for the time of a test.
pub struct Mounted<'a>(pub &'a Path);

impl<'a> Mounted<'a> {
    pub fn on(path: &'a Path, mount: &rootfs::RootMount) -> Mounted<'a> {
        std::fs::create_dir_all(path).unwrap();
        garden_sys::mount::move_mount(std::os::fd::AsFd::as_fd(&mount.fd), path).unwrap();
        Mounted(path)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = garden_sys::mount::unmount(self.0);
    }
}
