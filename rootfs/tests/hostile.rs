//! Layers that mean harm, or are broken: each ends in a named, bounded error, and nothing is written outside.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use common::{Entry, Tar, gzip};
use rootfs::digest::Digest;
use rootfs::unpack::{Error, Expected, Limits, Unpacked, unpack};
use tar::EntryType;

const LIMITS: Limits = Limits { bytes_max: 10_000_000, entries_max: 3_000 };

/// Unpacks below a directory beside which nothing may appear.
fn unpacked(source: &[u8], look: impl FnOnce(&Path)) -> Result<Unpacked, Error> {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("inner/root");
    fs::create_dir_all(&root).unwrap();
    let answer = unpack(source, &Expected::default(), &root, LIMITS, &mut ());
    let beside: Vec<_> = fs::read_dir(scratch.path().join("inner")).unwrap().collect();
    assert_eq!(beside.len(), 1, "something was written outside");
    look(&root);
    answer
}

fn error(source: &[u8]) -> String {
    unpacked(source, |_| {}).unwrap_err().to_string()
}

fn skipped(test: &str) -> bool {
    if !common::is_root() {
        println!("SKIPPED {test}: needs root");
    }
    !common::is_root()
}

#[test]
fn an_entry_that_leads_out_is_named() {
    if skipped("an_entry_that_leads_out_is_named") {
        return;
    }
    for (tar, expected) in [
        (
            Tar::default().file("/etc/passwd", "x"),
            "'/etc/passwd' would be written outside of its root: its path is absolute",
        ),
        (Tar::default().file("../evil", "x"), "'../evil' would be written outside"),
        (Tar::default().file("a/../../evil", "x"), "'a/../../evil' would be written outside"),
        (Tar::default().directory("../evil/", 0o755), "'../evil/' would be written outside"),
        (Tar::default().file("../.wh.root", ""), "would be written outside"),
        (
            Tar::default().symlink("d", "/tmp").file("d/evil", "x"),
            "'d/evil' would be written outside of its root: a symbolic link on its way",
        ),
        (Tar::default().symlink("d", "../..").file("d/evil", "x"), "'d/evil' would be written outside"),
        (Tar::default().symlink("d", "/tmp").file("d/.wh.evil", ""), "'d/evil' would be written outside"),
        (Tar::default().symlink("d", "/tmp").file("d/.wh..wh..opq", ""), "'d' would be written outside"),
        (
            Tar::default().symlink("d", "..").symlink("e", "d/..").file("e/x", "x"),
            "'e/x' would be written outside",
        ),
        (
            Tar::default().hard_link("l", "/etc/passwd"),
            "'l' would be written outside of its root: its hard link leads out",
        ),
        (Tar::default().hard_link("l", "../../etc/passwd"), "its hard link leads out"),
        (Tar::default().symlink("d", "/etc").hard_link("l", "d/passwd"), "'l' would be written outside"),
    ] {
        let shown = error(&tar.bytes());
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    if skipped("what_cannot_be_is_refused_by_name") {
        return;
    }
    for (tar, expected) in [
        (
            Tar::default().hard_link("l", "missing"),
            "'l' cannot be: it is a hard link to 'missing', which is not in this layer",
        ),
        (Tar::default().file("a", "x").file("a/b", "x"), "'a/b' cannot be: its parent 'a' is no directory"),
        (Tar::default().symlink("d", "nowhere").file("d/x", "x"), "'d/x' cannot be"),
        (Tar::default().add(Entry::link("x", EntryType::new(b'?'), "")), "its type '?' is unknown"),
        (Tar::default().symlink("x", ""), "it is a link to nothing"),
        (Tar::default().add(Entry { uid: u64::from(u32::MAX), ..Entry::file("x", b"") }), "is no id"),
        (Tar::default().file("a/.wh.", ""), "it is a whiteout of nothing"),
        (Tar::default().pax(&[("GNU.sparse.major", b"1")]).file("x", ""), "sparse file"),
    ] {
        let shown = error(&tar.bytes());
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn whiteouts_devices_and_duplicates_become_what_an_overlay_understands() {
    if skipped("whiteouts_devices_and_duplicates_become_what_an_overlay_understands") {
        return;
    }
    let tar = Tar::default()
        .file("a/.wh.absent", "")
        .add(Entry::link("dev/null", EntryType::Char, ""))
        .add(Entry { mode: 0o666, ..Entry::link("pipe", EntryType::Fifo, "") })
        .file("twice", "first")
        .file("twice", "second")
        .directory("turned/", 0o755)
        .file("turned/below", "x")
        .file("turned", "into a file")
        .file("back", "file")
        .directory("back/", 0o700)
        .file("gone-and-made/.wh.x", "")
        .directory("gone-and-made/x/", 0o755)
        .file("made-and-gone/x/y", "")
        .file("made-and-gone/.wh.x", "")
        .symlink("link", "/anywhere/at/all")
        .symlink("inside", "a")
        .file("inside/through", "t")
        .hard_link("hard", "twice")
        .bytes();
    let opaque = |path: &Path| {
        let mut value = [0; 8];
        rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..])
            .is_ok_and(|n| &value[..n] == b"y")
    };
    let unpacked = unpacked(&tar, |root| {
        let at = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert!(at("a/absent").file_type().is_char_device() && at("a/absent").rdev() == 0);
        assert!(!root.join("dev/null").exists());
        assert!(at("pipe").file_type().is_fifo() && at("pipe").mode() & 0o7777 == 0o666);
        assert_eq!(fs::read(root.join("twice")).unwrap(), b"second");
        assert_eq!(fs::read(root.join("turned")).unwrap(), b"into a file");
        assert!(at("back").is_dir() && at("back").mode() & 0o7777 == 0o700 && opaque(&root.join("back")));
        assert!(opaque(&root.join("gone-and-made/x")));
        assert!(root.join("made-and-gone/x/y").exists() && opaque(&root.join("made-and-gone/x")));
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/anywhere/at/all"));
        assert_eq!(fs::read(root.join("a/through")).unwrap(), b"t");
        assert_eq!(at("hard").ino(), at("twice").ino());
    });
    let unpacked = unpacked.unwrap();
    assert_eq!(unpacked.devices_skipped, 1);
    assert!(!unpacked.opaque);
    let implied: Vec<String> = unpacked.implied.iter().map(ToString::to_string).collect();
    assert_eq!(implied, ["a", "gone-and-made", "made-and-gone", "made-and-gone/x"]);
}

#[test]
fn attributes_of_extended_headers_are_kept_and_the_overlays_own_are_not() {
    if skipped("attributes_of_extended_headers_are_kept_and_the_overlays_own_are_not") {
        return;
    }
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pairs: &[(&str, &[u8])] = &[
        ("mtime", b"1000000001.5"),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ];
    let long = format!("{}/file", "d".repeat(120));
    let tar = Tar::default()
        .pax(pairs)
        .file("ping", "x")
        .pax(&[("path", long.as_bytes())])
        .file("short", "x")
        .bytes();
    unpacked(&tar, |root| {
        let mut value = [0; 64];
        let path = root.join("ping");
        let length = rustix::fs::getxattr(&path, "security.capability", &mut value[..]).unwrap();
        assert_eq!(&value[..length], capability);
        for attribute in ["trusted.overlay.redirect", "trusted.overlay.opaque"] {
            assert!(rustix::fs::getxattr(&path, attribute, &mut value[..]).is_err());
        }
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000_000_001, 500_000_000));
        assert!(root.join(&long).exists());
    })
    .unwrap();
}

#[test]
fn broken_archives_are_corrupt_and_say_so() {
    if skipped("broken_archives_are_corrupt_and_say_so") {
        return;
    }
    let tar = Tar::default().file("file", &"content ".repeat(10_000)).bytes();
    let zipped = gzip(&tar);
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let mut flipped = zipped.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let mut header = tar.clone();
    header[10] ^= 0xff;
    let cases: [(&str, &[u8]); 6] = [
        ("truncated gzip", &zipped[..zipped.len() - 20]),
        ("truncated zstd", &zstd[..zstd.len() - 5]),
        ("flipped gzip", &flipped),
        ("truncated tar", &tar[..5000]),
        ("wrong checksum", &header),
        ("no tar at all", &[b'x'; 4096]),
    ];
    for (case, bytes) in cases {
        let error = unpacked(bytes, |_| {}).unwrap_err();
        assert!(matches!(error, Error::Corrupt(_)), "{case}: {error}");
    }
    let trailing = [zipped, b"trailing garbage".to_vec()].concat();
    assert!(matches!(unpacked(&trailing, |_| {}), Err(Error::Corrupt(_))));
}

#[test]
fn digests_and_sizes_are_verified() {
    if skipped("digests_and_sizes_are_verified") {
        return;
    }
    let tar = Tar::default().file("file", "content").bytes();
    let zipped = gzip(&tar);
    let right = (Digest::of(&zipped), zipped.len() as u64);
    let check = |source: &[u8], blob: (Digest, u64), diff_id: Digest| {
        let scratch = tempfile::tempdir().unwrap();
        let expected = Expected { blob: Some(blob), diff_id: Some(diff_id) };
        unpack(source, &expected, scratch.path(), LIMITS, &mut ())
    };
    let unpacked = check(&zipped, right.clone(), Digest::of(&tar)).unwrap();
    assert_eq!((unpacked.blob, unpacked.diff_id, unpacked.bytes), (right.0.clone(), Digest::of(&tar), 7));
    let wrong = Digest::of(b"other");
    let other = check(&zipped, (wrong.clone(), right.1), Digest::of(&tar));
    assert!(matches!(other, Err(Error::WrongDigest { .. })), "{other:?}");
    assert!(matches!(check(&zipped, right.clone(), wrong), Err(Error::WrongDiffId { .. })));
    let short = check(&zipped[..zipped.len() - 1], right.clone(), Digest::of(&tar));
    assert!(matches!(short, Err(Error::WrongSize { .. })), "{short:?}");
    let long = check(&[zipped, vec![0; 100]].concat(), right, Digest::of(&tar));
    assert!(matches!(long, Err(Error::WrongSize { .. })), "{long:?}");
}

#[test]
fn bombs_stop_at_the_limits() {
    if skipped("bombs_stop_at_the_limits") {
        return;
    }
    let zeros = vec![0; 20_000_000];
    let large = Tar::default().add(Entry::file("large", &zeros)).bytes();
    for packed in [gzip(&large), zstd::encode_all(&large[..], 1).unwrap()] {
        assert!(packed.len() < 1_000_000);
        assert!(matches!(unpacked(&packed, |_| {}), Err(Error::TooManyBytes { limit: 10_000_000 })));
    }
    let many =
        (0..20).fold(Tar::default(), |tar, n| tar.add(Entry::file(&format!("f{n}"), &zeros[..1_000_000])));
    assert!(matches!(unpacked(&gzip(&many.bytes()), |_| {}), Err(Error::TooManyBytes { .. })));
    let entries = (0..3_001).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    assert!(matches!(unpacked(&entries.bytes(), |_| {}), Err(Error::TooManyEntries { limit: 3_000 })));
    // A few entries that imply directories without number.
    let deep = "d/".repeat(1500);
    let deep = (0..6)
        .fold(Tar::default(), |tar, n| tar.pax(&[("path", format!("{n}/{deep}f").as_bytes())]).file("x", ""));
    assert!(matches!(unpacked(&deep.bytes(), |_| {}), Err(Error::TooManyEntries { .. })));
    // What follows the archive's end is hashed, but not without end.
    let trailing = [Tar::default().file("f", "x").bytes(), zeros.clone()].concat();
    assert!(matches!(unpacked(&gzip(&trailing), |_| {}), Err(Error::TooManyBytes { .. })));
    // Headers are held in memory, so they are bounded, too.
    let header = Tar::default().pax(&[("comment", &zeros[..2_000_000])]).file("f", "x").bytes();
    let error = error(&gzip(&header));
    assert!(error.contains("more than 1048576 bytes of headers"), "{error}");
}

#[test]
fn holes_stay_holes() {
    if skipped("holes_stay_holes") {
        return;
    }
    let mut content = vec![0; 4_000_000];
    content[2_000_000] = 1;
    let tar = Tar::default().add(Entry::file("sparse", &content)).bytes();
    unpacked(&gzip(&tar), |root| {
        let metadata = fs::metadata(root.join("sparse")).unwrap();
        assert_eq!(metadata.len(), 4_000_000);
        assert!(metadata.blocks() * 512 < 200_000, "{} blocks", metadata.blocks());
        assert!(fs::read(root.join("sparse")).unwrap() == content);
    })
    .unwrap();
}

/// A source that breaks in the middle.
struct Breaks(usize);

impl Read for Breaks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::Error::other("the wire was cut"));
        }
        let length = buffer.len().min(self.0);
        buffer[..length].fill(0);
        self.0 -= length;
        Ok(length)
    }
}

#[test]
fn a_source_that_breaks_is_told_from_a_corrupt_one() {
    let scratch = tempfile::tempdir().unwrap();
    let error = unpack(Breaks(100_000), &Expected::default(), scratch.path(), LIMITS, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "it cannot be read: the wire was cut");
}
