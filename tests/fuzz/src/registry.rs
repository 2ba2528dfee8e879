//! What registries, their clients and those who name images send: manifests, configurations, challenges, paths, names.
#![no_main]
#![allow(dead_code)]

#[path = "../../../rootfs/src/registry/auth.rs"]
mod auth;
#[path = "../../../rootfs/src/digest.rs"]
mod digest;
#[path = "../../../rootfs/src/image.rs"]
mod image;
#[path = "../../../rootfs/src/manifest.rs"]
mod manifest;
#[path = "../../../rootfs/src/registry/cache/route.rs"]
mod route;

use image::ImageRef;
use libfuzzer_sys::fuzz_target;
use manifest::{Configuration, Document, LAYERS_MAX, Platform};
use route::Route;

/// What is said of what was sent is for one line of a log.
const ERROR_BYTES_MAX: usize = 8192;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data);
    match kind % 5 {
        0 => manifest(data),
        1 => said(Configuration::parse(data, usize::from(kind / 5))),
        2 => drop(auth::Challenge::parse(text.lines())),
        3 => image(&text),
        _ => path(&text),
    }
});

fn said<T>(answer: Result<T, manifest::Error>) {
    if let Err(error) = answer {
        assert!(error.to_string().len() <= ERROR_BYTES_MAX, "{error}");
    }
}

fn manifest(data: &[u8]) {
    match Document::parse("", data) {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= LAYERS_MAX);
            let sizes = manifest.layers.iter().map(|layer| layer.size);
            sizes.fold(0u64, |sum, size| sum.checked_add(size).expect("sizes can be added up"));
        }
        Ok(Document::Index(index)) => match index.choose(&Platform::of_this_machine()) {
            Ok(chosen) => assert!(index.manifests.contains(chosen)),
            Err(error) => said(Err::<(), _>(error)),
        },
        Err(error) => said(Err::<(), _>(error)),
    }
}

/// A name that is understood is understood the same when we write it.
fn image(text: &str) {
    if let Ok(image) = text.parse::<ImageRef>() {
        let written = image.to_string();
        match written.parse::<ImageRef>() {
            // With everything encoded it may have become too long.
            Err(error) if error.reason.contains("longer than") => {}
            read => assert_eq!(read.ok(), Some(image), "{written}"),
        }
    }
}

/// No path leads anywhere but to a repository by a name that is one.
fn path(text: &str) {
    let (path, registry) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(route) = Route::parse(path) else { return };
    match route.within(Some(registry)) {
        Route::Tags { name } | Route::Manifest { name, .. } | Route::Blob { name, .. } => {
            assert!(!name.contains("..") && !name.starts_with('/'), "{name}");
            route::origin(&name);
        }
        Route::Upload { id, .. } => assert!(!id.contains('/')),
        Route::Ping | Route::NewUpload { .. } => {}
    }
}
