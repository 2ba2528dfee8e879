//! The images that are pulled: files of the Debian packages on this machine, and a layer of 4 GB, as OCI layouts.
//!
//! Layers are written as they are compressed: nothing of them is ever held whole.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const PACKAGES: &str = "/var/lib/dpkg/info";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Files of packages, in the packages' order, as much as `bytes` of content.
pub fn debian_files(bytes: u64) -> Result<Vec<PathBuf>> {
    let mut lists: Vec<PathBuf> = std::fs::read_dir(PACKAGES)
        .context("no Debian packages on this machine")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "list"))
        .collect();
    lists.sort();
    let (mut files, mut seen, mut total) = (Vec::new(), BTreeSet::new(), 0);
    for list in lists {
        for line in std::fs::read_to_string(list)?.lines().filter(|line| line.starts_with("/usr/")) {
            let path = PathBuf::from(line);
            let Ok(metadata) = path.symlink_metadata() else { continue };
            // One file alone should not be a layer.
            let fits = metadata.is_dir() || metadata.is_symlink() || metadata.len() < bytes / 16;
            if fits && seen.insert(path.clone()) {
                total += if metadata.is_file() { metadata.len() } else { 0 };
                files.push(path);
            }
        }
        if total >= bytes {
            return Ok(files);
        }
    }
    bail!("the packages of this machine hold {total} bytes only")
}

/// An image under construction: an OCI layout.
pub struct Layout {
    path: PathBuf,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
}

impl Layout {
    pub fn new(path: &Path) -> Result<Layout> {
        std::fs::create_dir_all(path.join("blobs/sha256"))?;
        Ok(Layout { path: path.into(), layers: Vec::new(), diff_ids: Vec::new() })
    }

    pub fn add_layer(&mut self, write: impl FnOnce(&mut dyn Write) -> Result<()>, level: u32) -> Result<()> {
        let new = self.path.join("new");
        let compressed = Hashed::new(BufWriter::new(File::create(&new)?));
        let mut content = Hashed::new(GzEncoder::new(compressed, Compression::new(level)));
        write(&mut content)?;
        let (encoder, diff_id, _) = content.finish();
        let (mut file, digest, size) = encoder.finish()?.finish();
        file.flush()?;
        std::fs::rename(new, self.blob(&digest))?;
        self.layers.push(json!({"mediaType": LAYER, "digest": format!("sha256:{digest}"), "size": size}));
        self.diff_ids.push(format!("sha256:{diff_id}"));
        Ok(())
    }

    pub fn finish(self) -> Result<PathBuf> {
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids}});
        let (digest, size) = self.put(&config)?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": self.layers,
            "config": {"mediaType": CONFIG, "digest": digest, "size": size}});
        let (digest, size) = self.put(&manifest)?;
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": digest, "size": size,
            "annotations": {"org.opencontainers.image.ref.name": "1"}}]});
        std::fs::write(self.path.join("index.json"), index.to_string())?;
        std::fs::write(self.path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
        Ok(self.path)
    }

    fn put(&self, value: &Value) -> Result<(String, usize)> {
        let text = value.to_string();
        let digest = hex(&Sha256::digest(&text));
        std::fs::write(self.blob(&digest), &text)?;
        Ok((format!("sha256:{digest}"), text.len()))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.path.join("blobs/sha256").join(digest)
    }

    /// Of the layers, compressed.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().filter_map(|layer| layer["size"].as_u64()).sum()
    }
}

/// Cuts files into `count` parts of about the same content.
pub fn parts(files: &[PathBuf], count: usize) -> Vec<&[PathBuf]> {
    let size = |path: &PathBuf| path.symlink_metadata().map_or(0, |metadata| metadata.len());
    let each = files.iter().map(size).sum::<u64>() / count as u64;
    let (mut parts, mut rest) = (Vec::new(), files);
    while parts.len() + 1 < count {
        let mut total = 0;
        let cut = rest.iter().position(|path| {
            total += size(path);
            total >= each
        });
        let (part, left) = rest.split_at(cut.map_or(rest.len(), |at| at + 1));
        parts.push(part);
        rest = left;
    }
    parts.push(rest);
    parts
}

/// Writes files as a tar, under the names they have here.
pub fn tar_of(files: &[PathBuf], out: &mut dyn Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    let mut entered = BTreeSet::new();
    for path in files {
        let metadata = path.symlink_metadata()?;
        // As image builders do: what is above a file is in its layer, too.
        let above: Vec<&Path> = path.ancestors().skip(usize::from(!metadata.is_dir())).collect();
        for directory in above.into_iter().rev().skip(1) {
            if entered.insert(directory.to_path_buf()) {
                builder.append_dir(directory.strip_prefix("/")?, directory)?;
            }
        }
        if metadata.is_file() || metadata.is_symlink() {
            let name = path.strip_prefix("/")?;
            builder.append_path_with_name(path, name).with_context(|| path.display().to_string())?;
        }
    }
    builder.finish()?;
    Ok(())
}

/// `count` files of `bytes` each, of text that is no zeros and compresses well.
pub fn large(count: usize, bytes: u64, out: &mut dyn Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    for number in 0..count {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("part-{number}"), Text(0).take(bytes))?;
    }
    builder.finish()?;
    Ok(())
}

struct Text(u64);

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in buffer.iter_mut() {
            *byte = b"a layer of four gigabytes, written once\n"[(self.0 % 40) as usize];
            self.0 += 1;
        }
        Ok(buffer.len())
    }
}

/// Hashes and counts what is written through it.
struct Hashed<W> {
    inner: W,
    state: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Hashed<W> {
        Hashed { inner, state: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.state.finalize()), self.bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.state.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
