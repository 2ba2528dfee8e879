//! Images for tests, made of Debian's busybox and whatever a test wants to be wrong with them.

use std::io::Write;

use serde_json::json;
use sha2::{Digest, Sha256};

/// One entry of a layer's tar. Names are taken as they are, hostile ones too.
pub enum Entry {
    Dir(&'static str),
    File(&'static str, Vec<u8>, u32),
    Link(&'static str, &'static str),
}

/// An image with one gzip layer.
pub struct Image {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    format!("sha256:{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Image {
    pub fn of(entries: &[Entry], command: &[&str]) -> Image {
        let tar = tar(entries);
        let layer = gzip(&tar);
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] },
            "config": { "Cmd": command, "Env": ["PATH=/bin"], "ExposedPorts": { "8080/tcp": {} } },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest(&layer), "size": layer.len(),
            }],
        });
        Image { layer, config, manifest: manifest.to_string().into_bytes() }
    }
}

/// A userland with a shell, and a server on `$PORT`.
pub fn busybox_entries() -> Vec<Entry> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("Debian's busybox-static; see tests/tools");
    let mut entries = vec![
        Entry::Dir("bin"),
        Entry::Dir("etc"),
        Entry::Dir("tmp"),
        Entry::File("bin/busybox", busybox, 0o755),
        Entry::File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644),
    ];
    entries.extend(["sh", "httpd", "echo", "sleep", "cat", "true", "ps", "kill", "killall"].map(|applet| {
        let path: &'static str = Box::leak(format!("bin/{applet}").into_boxed_str());
        Entry::Link(path, "busybox")
    }));
    entries
}

pub fn busybox_image(command: &[&str]) -> Image {
    Image::of(&busybox_entries(), command)
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let (name, content): (&str, &[u8]) = match entry {
            Entry::Dir(name) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                (name, &[])
            }
            Entry::File(name, content, mode) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                (name, content)
            }
            Entry::Link(name, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_link_name_literal(target).unwrap();
                (name, &[])
            }
        };
        header.set_size(content.len() as u64);
        // Not `set_path`, which would refuse the names that a hostile image has.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
