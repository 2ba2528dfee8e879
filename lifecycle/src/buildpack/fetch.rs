//! Buildpacks that are not yet directories: zip archives by HTTP(S) or from a local file, repositories by `git`.
//!
//! An archive is foreign input: it may name no file outside its directory, and what it unpacks to is bounded.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::settings::{Settings, is_url, is_zip_file, url_path};

const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// An offline buildpack with every version of its language is 1-2 GB.
const ARCHIVE_BYTES_MAX: u64 = 8 << 30;
const UNPACKED_BYTES_MAX: u64 = 32 << 30;
const LINK_BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("Failed to download buildpack '{url}': {why}")]
    Download { url: String, why: String },
    #[error("Failed to extract buildpack '{buildpack}': {source}")]
    Extract { buildpack: String, source: ExtractError },
    #[error("Failed to clone git repository at {url}: {why}")]
    Clone { url: String, why: String },
}

#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("{0}")]
    Archive(#[from] zip::result::ZipError),
    #[error("{path}: {source}")]
    Write { path: String, source: io::Error },
    #[error("{0:?} leads out of the archive's directory")]
    Outside(String),
    #[error("it unpacks to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
}

/// Makes a directory of every buildpack that is an address or a local archive.
pub fn fetch(settings: &Settings) -> Result<(), FetchError> {
    for key in &settings.buildpack_order {
        if !is_url(key) {
            if let Some(archive) = local_archive(settings, key) {
                extract(key, &archive, &settings.download_place(key))?;
            }
            continue;
        }
        let destination = settings.download_place(key);
        if url_path(key).ends_with(".zip") {
            let size = download_and_extract(key, &destination, settings.skip_cert_verify)?;
            println!("Downloaded buildpack `{key}` ({})", byte_size(size));
        } else {
            clone(key, &destination)?;
        }
    }
    Ok(())
}

/// A buildpack that lies in the buildpacks directory as an archive, with or without `.zip` behind its name.
pub fn local_archive(settings: &Settings, key: &str) -> Option<PathBuf> {
    let with_suffix = |place: PathBuf| {
        let mut named = place.clone().into_os_string();
        named.push(".zip");
        [place, named.into()]
    };
    let places = settings.buildpack_places(key);
    places.into_iter().flat_map(with_suffix).find(|place| is_zip_file(place))
}

fn extract(buildpack: &str, archive: &Path, destination: &Path) -> Result<(), FetchError> {
    extract_zip(archive, destination)
        .map_err(|source| FetchError::Extract { buildpack: buildpack.to_owned(), source })
}

fn download_and_extract(url: &str, destination: &Path, skip_cert_verify: bool) -> Result<u64, FetchError> {
    let refuse = |why: String| FetchError::Download { url: url.to_owned(), why };
    let archive = destination.with_extension("zip.part");
    let parent = archive.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|error| refuse(format!("{}: {error}", parent.display())))?;
    let outcome = download(url, &archive, skip_cert_verify)
        .map_err(refuse)
        .and_then(|size| extract(url, &archive, destination).map(|()| size));
    // The archive is of no use once unpacked, and of less when it could not be.
    let _ = fs::remove_file(&archive);
    outcome
}

/// One download in a runtime of its own: the rest of the builder waits for it anyway.
fn download(url: &str, file: &Path, skip_cert_verify: bool) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    // Refused only when a provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .timeout(DOWNLOAD_TIMEOUT)
            .tls_danger_accept_invalid_certs(skip_cert_verify)
            .build()
            .map_err(|error| whole_cause(&error))?;
        let response = client.get(url).send().await.map_err(|error| whole_cause(&error))?;
        if !response.status().is_success() {
            return Err(format!("status code {}", response.status().as_u16()));
        }
        save(response, file).await
    })
}

async fn save(mut response: reqwest::Response, file: &Path) -> Result<u64, String> {
    let unwritable = |error: io::Error| format!("{}: {error}", file.display());
    let mut output = File::create(file).map_err(unwritable)?;
    let mut size = 0;
    while let Some(piece) = response.chunk().await.map_err(|error| whole_cause(&error))? {
        size += piece.len() as u64;
        if size > ARCHIVE_BYTES_MAX {
            return Err(format!("it is larger than {ARCHIVE_BYTES_MAX} bytes"));
        }
        output.write_all(&piece).map_err(unwritable)?;
    }
    Ok(size)
}

/// An error with its causes: "error sending request" alone helps nobody.
fn whole_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Unpacks a zip archive with its modes and symbolic links.
fn extract_zip(archive: &Path, destination: &Path) -> Result<(), ExtractError> {
    let opened = File::open(archive).map_err(|source| unwritable(archive, source))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(opened))?;
    make_directory(destination)?;
    let mut budget = UNPACKED_BYTES_MAX;
    // Links come last, so that no entry is written through one.
    let mut links = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(inside) = entry.enclosed_name() else {
            return Err(ExtractError::Outside(entry.name().to_owned()));
        };
        let path = destination.join(&inside);
        if entry.is_dir() {
            make_directory(&path)?;
        } else if entry.is_symlink() {
            let mut target = String::new();
            (&mut entry)
                .take(LINK_BYTES_MAX)
                .read_to_string(&mut target)
                .map_err(|source| unwritable(&path, source))?;
            links.push((inside, target));
        } else {
            let mode = entry.unix_mode().unwrap_or(0o644);
            budget = extract_file(&mut entry, &path, mode, budget)?;
        }
    }
    links.into_iter().try_for_each(|(inside, target)| make_link(destination, &inside, &target))
}

fn extract_file(entry: &mut impl Read, path: &Path, mode: u32, budget: u64) -> Result<u64, ExtractError> {
    make_directory(path.parent().unwrap_or(path))?;
    let mut write = || {
        let mut file = File::create(path)?;
        let written = io::copy(&mut entry.take(budget + 1), &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
        Ok(written)
    };
    let written = write().map_err(|source| unwritable(path, source))?;
    budget.checked_sub(written).ok_or(ExtractError::TooLarge)
}

/// A link may point anywhere below the destination, by a relative path that never climbs above it.
fn make_link(destination: &Path, inside: &Path, target: &str) -> Result<(), ExtractError> {
    use std::path::Component;
    let outside = || ExtractError::Outside(format!("{} -> {target}", inside.display()));
    let mut depth = inside.components().count() as i64 - 1;
    for component in Path::new(target).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth -= 1,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(outside()),
        }
        if depth < 0 {
            return Err(outside());
        }
    }
    let path = destination.join(inside);
    make_directory(path.parent().unwrap_or(&path))?;
    symlink(target, &path).map_err(|source| unwritable(&path, source))
}

fn make_directory(path: &Path) -> Result<(), ExtractError> {
    fs::create_dir_all(path).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: io::Error) -> ExtractError {
    ExtractError::Write { path: path.display().to_string(), source }
}

/// Clones the newest commit (of the branch behind `#`), or the whole history where a server refuses shallow clones.
fn clone(url: &str, destination: &Path) -> Result<(), FetchError> {
    let (repository, branch) = url.split_once('#').unwrap_or((url, ""));
    let mut why = String::new();
    for depth in [&["--depth", "1"][..], &[]] {
        // A clone that failed half-way leaves a directory behind; none at all is fine too.
        let _ = fs::remove_dir_all(destination);
        let mut git = Command::new("git");
        git.arg("clone").args(depth).args(["--recursive", repository]).arg(destination);
        if !branch.is_empty() {
            git.args(["-b", branch]);
        }
        match git.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => why = format!("cannot run git: {error}"),
        }
    }
    Err(FetchError::Clone { url: repository.to_owned(), why })
}

/// `1.5M`, `10K`, `7B`: sizes as the platform prints them.
fn byte_size(bytes: u64) -> String {
    for (unit, shift) in [("T", 40), ("G", 30), ("M", 20), ("K", 10)] {
        if bytes >= 1 << shift {
            let value = format!("{:.1}", bytes as f64 / f64::from(1u32 << (shift - 10)) / 1024.0);
            return format!("{}{unit}", value.strip_suffix(".0").unwrap_or(&value));
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    fn archive(fill: impl FnOnce(&mut zip::ZipWriter<File>)) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = zip::ZipWriter::new(File::create(directory.path().join("a.zip")).unwrap());
        fill(&mut writer);
        writer.finish().unwrap();
        directory
    }

    fn extract(directory: &tempfile::TempDir) -> Result<(), ExtractError> {
        extract_zip(&directory.path().join("a.zip"), &directory.path().join("out"))
    }

    #[test]
    fn an_archive_keeps_modes_and_links() {
        let plain = SimpleFileOptions::default();
        let directory = archive(|zip| {
            zip.start_file("bin/detect", plain.unix_permissions(0o755)).unwrap();
            zip.write_all(b"#!/bin/sh\n").unwrap();
            zip.add_symlink("bin/compile", "detect", plain).unwrap();
        });
        extract(&directory).unwrap();
        let bin = directory.path().join("out/bin");
        let mode = bin.join("detect").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_link(bin.join("compile")).unwrap(), Path::new("detect"));
    }

    #[test]
    fn an_archive_writes_nothing_outside_its_directory() {
        let plain = SimpleFileOptions::default();
        let climbing = archive(|zip| {
            zip.start_file("../evil", plain).unwrap();
        });
        assert!(matches!(extract(&climbing), Err(ExtractError::Outside(_))));
        assert!(!climbing.path().join("evil").exists());
        for target in ["/etc", "../../x", "a/../../../x"] {
            let linking = archive(|zip| zip.add_symlink("bin/l", target, plain).unwrap());
            assert!(matches!(extract(&linking), Err(ExtractError::Outside(_))), "{target}");
        }
    }

    #[test]
    fn sizes_are_short() {
        let table = [(7, "7B"), (10 << 10, "10K"), (3 << 19, "1.5M"), (5 << 30, "5G"), (2 << 40, "2T")];
        for (bytes, text) in table {
            assert_eq!(byte_size(bytes), text);
        }
    }
}
