//! Image layers and cached dependencies on the wire.

use prost::Message;
use serde::{Deserialize, Serialize};

use super::Invalid;
use super::action::check_checksum;
use super::json::*;
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedDependency {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub from: String,
    #[prost(string, tag = "3")]
    pub to: String,
    #[prost(string, tag = "4")]
    pub cache_key: String,
    #[prost(string, tag = "5")]
    pub log_source: String,
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "is_default")]
    pub checksum_algorithm: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub checksum_value: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageLayer {
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub url: String,
    #[prost(string, tag = "3")]
    pub destination_path: String,
    /// 1 shared, 2 exclusive.
    #[prost(int32, tag = "4")]
    #[serde(with = "layer_type")]
    pub layer_type: i32,
    /// 1 tgz, 2 tar, 3 zip.
    #[prost(int32, tag = "5")]
    #[serde(with = "media_type")]
    pub media_type: i32,
    /// 1 sha256, 2 sha512.
    #[prost(int32, tag = "6")]
    #[serde(with = "digest_algorithm", skip_serializing_if = "is_default")]
    pub digest_algorithm: i32,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub digest_value: String,
}

impl TryFrom<CachedDependency> for models::CachedDependency {
    type Error = Invalid;

    fn try_from(wire: CachedDependency) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.from.is_empty(), "from");
        invalid.require(!wire.to.is_empty(), "to");
        check_checksum(&mut invalid, &wire.checksum_algorithm, &wire.checksum_value);
        invalid.or(Self {
            name: wire.name,
            from: wire.from,
            to: wire.to,
            cache_key: wire.cache_key,
            log_source: wire.log_source,
            checksum_algorithm: wire.checksum_algorithm,
            checksum_value: wire.checksum_value,
        })
    }
}

impl From<models::CachedDependency> for CachedDependency {
    fn from(dependency: models::CachedDependency) -> Self {
        Self {
            name: dependency.name,
            from: dependency.from,
            to: dependency.to,
            cache_key: dependency.cache_key,
            log_source: dependency.log_source,
            checksum_algorithm: dependency.checksum_algorithm,
            checksum_value: dependency.checksum_value,
        }
    }
}

impl TryFrom<ImageLayer> for models::ImageLayer {
    type Error = Invalid;

    fn try_from(wire: ImageLayer) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.url.is_empty(), "url");
        invalid.require(!wire.destination_path.is_empty(), "destination_path");
        invalid.require((1..=2).contains(&wire.layer_type), "layer_type");
        let media_type = match wire.media_type {
            1 => Some(models::LayerMediaType::Tgz),
            2 => Some(models::LayerMediaType::Tar),
            3 => Some(models::LayerMediaType::Zip),
            _ => None,
        };
        invalid.require(media_type.is_some(), "media_type");
        let digest = parse_digest(&mut invalid, &wire);
        let kind = match (wire.layer_type, digest) {
            (1, digest) => Some(models::LayerKind::Shared { digest }),
            (2, Some(digest)) => Some(models::LayerKind::Exclusive { digest }),
            _ => None,
        };
        match (kind, media_type) {
            (Some(kind), Some(media_type)) => invalid.or(Self {
                name: wire.name,
                url: wire.url,
                destination_path: wire.destination_path,
                kind,
                media_type,
            }),
            _ => Err(invalid),
        }
    }
}

fn parse_digest(invalid: &mut Invalid, wire: &ImageLayer) -> Option<models::LayerDigest> {
    let exclusive = wire.layer_type == 2;
    let algorithm = match wire.digest_algorithm {
        1 => Some(models::DigestAlgorithm::Sha256),
        2 => Some(models::DigestAlgorithm::Sha512),
        _ => None,
    };
    let value = &wire.digest_value;
    invalid.require(algorithm.is_some() || (value.is_empty() && !exclusive), "digest_algorithm");
    let unsaid = wire.digest_algorithm == 0 && !exclusive;
    invalid.require(!value.is_empty() || unsaid, "digest_value");
    algorithm
        .filter(|_| !value.is_empty())
        .map(|algorithm| models::LayerDigest { algorithm, value: value.clone() })
}

impl From<models::ImageLayer> for ImageLayer {
    fn from(layer: models::ImageLayer) -> Self {
        let (layer_type, digest) = match layer.kind {
            models::LayerKind::Shared { digest } => (1, digest),
            models::LayerKind::Exclusive { digest } => (2, Some(digest)),
        };
        Self {
            name: layer.name,
            url: layer.url,
            destination_path: layer.destination_path,
            layer_type,
            media_type: match layer.media_type {
                models::LayerMediaType::Tgz => 1,
                models::LayerMediaType::Tar => 2,
                models::LayerMediaType::Zip => 3,
            },
            digest_algorithm: digest.as_ref().map_or(0, |digest| match digest.algorithm {
                models::DigestAlgorithm::Sha256 => 1,
                models::DigestAlgorithm::Sha512 => 2,
            }),
            digest_value: digest.map_or_else(String::new, |digest| digest.value),
        }
    }
}

/// Layers of one recipe; exclusive ones need a user to own their files.
pub(super) fn parse_layers(
    invalid: &mut Invalid,
    wire: Vec<ImageLayer>,
    legacy_download_user: &str,
) -> Vec<models::ImageLayer> {
    let needs_user = wire.iter().any(|layer| layer.layer_type == 2);
    let layers = invalid.list(Some("image_layer"), wire);
    invalid.require(!needs_user || !legacy_download_user.is_empty(), "legacy_download_user");
    layers
}
