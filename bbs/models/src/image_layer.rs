//! What is put into a container before its first action: layers, and dependencies that the cell caches.

use crate::{Action, DownloadAction, ManyActions};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    pub name: String,
    pub url: String,
    pub destination_path: String,
    pub kind: LayerKind,
    pub media_type: LayerMediaType,
}

/// A shared layer is mounted read-only into many containers; an exclusive one is a copy of this container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerKind {
    Shared { digest: Option<LayerDigest> },
    Exclusive { digest: LayerDigest },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDigest {
    pub algorithm: DigestAlgorithm,
    pub value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestAlgorithm {
    Sha256,
    /// Deprecated; read, and refused by cells that cannot check it.
    Sha512,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerMediaType {
    Tgz,
    Tar,
    Zip,
}

/// Fetched once a cell, mounted read-only at `to`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CachedDependency {
    pub name: String,
    pub from: String,
    pub to: String,
    pub cache_key: String,
    pub log_source: String,
    /// `md5`, `sha1`, `sha256`, or empty for no check.
    pub checksum_algorithm: String,
    pub checksum_value: String,
}

impl DigestAlgorithm {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl LayerDigest {
    fn cache_key(&self) -> String {
        format!("{}:{}", self.algorithm.name(), self.value)
    }
}

/// The shared layers, as the cached dependencies by which a cell provides them.
pub fn shared_layers_as_dependencies(layers: &[ImageLayer]) -> Vec<CachedDependency> {
    layers
        .iter()
        .filter_map(|layer| {
            let LayerKind::Shared { digest } = &layer.kind else { return None };
            Some(CachedDependency {
                name: layer.name.clone(),
                from: layer.url.clone(),
                to: layer.destination_path.clone(),
                cache_key: digest.as_ref().map_or_else(|| layer.url.clone(), LayerDigest::cache_key),
                log_source: String::new(),
                checksum_algorithm: digest.as_ref().map_or("", |digest| digest.algorithm.name()).to_string(),
                checksum_value: digest.as_ref().map_or_else(String::new, |digest| digest.value.clone()),
            })
        })
        .collect()
}

/// The exclusive layers as downloads in parallel, before `then`.
pub fn exclusive_layers_as_downloads(
    layers: &[ImageLayer],
    user: &str,
    then: Option<Action>,
) -> Option<Action> {
    let downloads: Vec<Action> = layers
        .iter()
        .filter_map(|layer| {
            let LayerKind::Exclusive { digest } = &layer.kind else { return None };
            Some(Action::Download(DownloadAction {
                artifact: layer.name.clone(),
                from: layer.url.clone(),
                to: layer.destination_path.clone(),
                cache_key: digest.cache_key(),
                log_source: String::new(),
                user: user.to_string(),
                checksum_algorithm: digest.algorithm.name().to_string(),
                checksum_value: digest.value.clone(),
            }))
        })
        .collect();
    if downloads.is_empty() {
        return then;
    }
    let downloads = Action::Parallel(ManyActions { actions: downloads, log_source: String::new() });
    match then {
        None => Some(downloads),
        Some(then) => {
            Some(Action::Serial(ManyActions { actions: vec![downloads, then], log_source: String::new() }))
        }
    }
}
