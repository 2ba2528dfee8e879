//! Manifests, indexes and image configurations: JSON from a registry turned into what we use of it. Pure.
//!
//! Docker schema 2 and OCI say the same with other media types. Schema 1 has no configuration and no diff-ids, so that
//! nothing of it can be verified: it is refused, and so are foreign layers and artifacts that are no container image.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
pub const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The kernel refuses an overlay of more.
pub const LAYERS_MAX: usize = 500;
/// Of one layer's blob; so that sums of sizes are sums.
pub const LAYER_BYTES_MAX: u64 = 1 << 40;

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What we tell a registry that we understand.
pub const ACCEPTED: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("its manifest is not valid: {0}")]
    Invalid(String),
    #[error(
        "its manifest has the old schema 1, which cannot be verified: push the image again with a current client"
    )]
    Schema1,
    #[error("it is not a container image but '{0}'")]
    NotAnImage(String),
    #[error("it is not there for {wanted}, only for {}", offered.join(", "))]
    NoSuchPlatform { wanted: String, offered: Vec<String> },
    #[error("it has {found} layers, more than the {LAYERS_MAX} that can be mounted")]
    TooManyLayers { found: usize },
    #[error("its layer {digest} is a foreign one ({media_type}), which no registry may hand out")]
    ForeignLayer { digest: Digest, media_type: String },
    #[error("its layer {digest} is said to have {size} bytes, more than any may")]
    LayerTooLarge { digest: Digest, size: u64 },
    #[error("its layer {digest} has the unknown type '{media_type}'")]
    UnknownLayer { digest: Digest, media_type: String },
    #[error("its configuration names {diff_ids} layers, its manifest {layers}")]
    LayersDiffer { layers: usize, diff_ids: usize },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// Of this machine, by the names that images use.
    pub fn of_this_machine() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: String::new() }
    }

    fn suits(&self, wanted: &Platform) -> bool {
        // `v8` is all there is of arm64.
        let variant = self.variant.is_empty() || self.variant == wanted.variant || self.variant == "v8";
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// What a registry answers to "give me this image".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// One image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// `media_type` is the answer's header; the document's own says more, and the fields present say the rest.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Document, Error> {
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| Error::Invalid(error.to_string()))?;
        let media_type = if raw.media_type.is_empty() { media_type } else { &raw.media_type };
        if raw.schema_version == Some(1)
            || media_type.contains("manifest.v1+") && media_type.contains("docker")
        {
            return Err(Error::Schema1);
        }
        match raw {
            RawDocument { manifests: Some(manifests), .. } => Ok(Document::Index(Index { manifests })),
            RawDocument { artifact_type, config: Some(config), layers: Some(layers), .. } => {
                manifest(&artifact_type, config, layers).map(Document::Manifest)
            }
            _ => Err(Error::Invalid("neither an image nor a list of images".into())),
        }
    }
}

fn manifest(artifact_type: &str, config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest, Error> {
    if !matches!(config.media_type.as_str(), DOCKER_CONFIG | OCI_CONFIG) {
        let kind = if artifact_type.is_empty() { config.media_type } else { artifact_type.into() };
        return Err(Error::NotAnImage(kind));
    }
    if layers.len() > LAYERS_MAX {
        return Err(Error::TooManyLayers { found: layers.len() });
    }
    if config.size > CONFIG_BYTES_MAX {
        return Err(Error::Invalid(format!("a configuration of {} bytes", config.size)));
    }
    layers.iter().try_for_each(check_layer)?;
    Ok(Manifest { config, layers })
}

/// Which compression a layer has is told by its first bytes; here only what is no layer is refused.
fn check_layer(layer: &Descriptor) -> Result<(), Error> {
    let media_type = layer.media_type.as_str();
    if layer.size > LAYER_BYTES_MAX {
        return Err(Error::LayerTooLarge { digest: layer.digest.clone(), size: layer.size });
    }
    if media_type.contains("nondistributable") || media_type.contains(".foreign.") {
        return Err(Error::ForeignLayer { digest: layer.digest.clone(), media_type: media_type.into() });
    }
    let known = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
    let suffix = known.iter().find_map(|prefix| media_type.strip_prefix(prefix));
    match suffix {
        Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => Ok(()),
        _ => Err(Error::UnknownLayer { digest: layer.digest.clone(), media_type: media_type.into() }),
    }
}

impl Index {
    /// The image for `wanted`. Entries that are no images (attestations) have the platform `unknown`.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, Error> {
        let platform = |entry: &Descriptor| entry.platform.clone().unwrap_or_default();
        let mut suitable = self.manifests.iter().filter(|entry| platform(entry).suits(wanted));
        if let Some(entry) = suitable.next() {
            return Ok(entry);
        }
        // A list of one without a word on platforms is what simple tools write.
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let mut offered: Vec<String> =
            self.manifests.iter().take(20).map(|e| platform(e).to_string()).collect();
        offered.retain(|platform| platform != "unknown/unknown");
        if offered.is_empty() {
            offered.push("nothing".into());
        }
        Err(Error::NoSuchPlatform { wanted: wanted.to_string(), offered })
    }
}

/// What an image says about how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// A name, an id, or `user:group`; empty: root.
    pub user: String,
    pub workdir: String,
    /// TCP ports, ascending.
    pub ports: Vec<u16>,
}

/// An image's configuration blob: how to run it, and what its layers hash to once uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub run: ImageConfig,
    pub diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConfiguration {
    #[serde(deserialize_with = "null_is_default")]
    config: RawRun,
    #[serde(deserialize_with = "null_is_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawRun {
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRootfs {
    #[serde(deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Configuration {
    /// `layers` is how many the manifest names.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Configuration, Error> {
        let raw: RawConfiguration = serde_json::from_slice(bytes)
            .map_err(|error| Error::Invalid(format!("its configuration: {error}")))?;
        let diff_ids = raw.rootfs.diff_ids;
        if diff_ids.len() != layers {
            return Err(Error::LayersDiffer { layers, diff_ids: diff_ids.len() });
        }
        let ports: BTreeSet<u16> = raw.config.exposed_ports.keys().filter_map(|key| tcp_port(key)).collect();
        let run = ImageConfig {
            env: raw.config.env,
            entrypoint: raw.config.entrypoint,
            cmd: raw.config.cmd,
            user: raw.config.user,
            workdir: raw.config.working_dir,
            ports: ports.into_iter().collect(),
        };
        Ok(Configuration { run, diff_ids })
    }
}

/// `8080/tcp` or `8080`.
fn tcp_port(key: &str) -> Option<u16> {
    match key.split_once('/') {
        Some((port, "tcp")) => port.parse().ok(),
        Some(_) => None,
        None => key.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image(layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},
                "layers":[{{"mediaType":"{layer_type}","digest":"{D}","size":3}}]}}"#
        )
    }

    fn parsed(media_type: &str, text: &str) -> String {
        match Document::parse(media_type, text.as_bytes()) {
            Ok(Document::Index(index)) => format!("index of {}", index.manifests.len()),
            Ok(Document::Manifest(manifest)) => format!("image of {}", manifest.layers.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn images_and_indexes_are_told_apart_by_what_they_hold() {
        let layer = "application/vnd.oci.image.layer.v1.tar+zstd";
        assert_eq!(parsed(OCI_MANIFEST, &image(layer)), "image of 1");
        assert_eq!(
            parsed("text/plain", &image("application/vnd.docker.image.rootfs.diff.tar.gzip")),
            "image of 1"
        );
        assert_eq!(parsed(OCI_INDEX, r#"{"schemaVersion":2,"manifests":[]}"#), "index of 0");
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let many: Vec<String> = (0..501)
            .map(|_| {
                format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{D}","size":1}}"#)
            })
            .collect();
        let many = format!(
            r#"{{"config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},"layers":[{}]}}"#,
            many.join(",")
        );
        for (text, reason) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_string(), "schema 1"),
            ("{".to_string(), "not valid"),
            ("{}".to_string(), "neither an image nor a list"),
            ("[]".to_string(), "not valid"),
            (image("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), "foreign"),
            (image("application/vnd.oci.image.layer.nondistributable.v1.tar"), "foreign"),
            (image("text/html"), "unknown type"),
            (image("x").replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json"), "helm"),
            (many, "501 layers"),
            (image("x").replace(&D[7..], "../../../etc"), "not a digest"),
            (image("x").replace("\"size\":3", "\"size\":-3"), "not valid"),
            (image("x").replace("\"size\":3", "\"size\":18446744073709551615"), "more than any may"),
            (format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)), "not valid"),
        ] {
            let answer = parsed(OCI_MANIFEST, &text);
            assert!(answer.contains(reason), "{reason}: {answer}");
        }
    }

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().map(|platform| {
            let mut parts = platform.split('/').map(String::from);
            let os = parts.next().unwrap_or_default();
            let architecture = parts.next().unwrap_or_default();
            Descriptor {
                media_type: OCI_MANIFEST.into(),
                digest: Digest::of(platform.as_bytes()),
                size: 1,
                platform: Some(Platform { os, architecture, variant: parts.next().unwrap_or_default() }),
                annotations: BTreeMap::new(),
            }
        });
        Index { manifests: manifests.collect() }
    }

    #[test]
    fn the_image_for_this_platform_is_chosen() {
        let wanted = |architecture: &str| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
        };
        let index =
            index(&["windows/amd64", "linux/arm/v7", "linux/arm64/v8", "linux/amd64", "unknown/unknown"]);
        assert_eq!(index.choose(&wanted("amd64")).unwrap().digest, Digest::of(b"linux/amd64"));
        assert_eq!(index.choose(&wanted("arm64")).unwrap().digest, Digest::of(b"linux/arm64/v8"));
        let error = index.choose(&wanted("s390x")).unwrap_err().to_string();
        assert_eq!(
            error,
            "it is not there for linux/s390x, only for windows/amd64, linux/arm/v7, linux/arm64/v8, linux/amd64"
        );
    }

    #[test]
    fn a_configuration_with_nulls_is_read() {
        let text = format!(
            r#"{{"architecture":"amd64","config":{{"Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"User":"1:2",
            "WorkingDir":"/w","ExposedPorts":{{"8080/tcp":{{}},"53/udp":{{}},"22":{{}}}}}},"rootfs":{{"diff_ids":["{D}"]}}}}"#
        );
        let configuration = Configuration::parse(text.as_bytes(), 1).unwrap();
        assert_eq!(configuration.run.cmd, ["sh"]);
        assert_eq!(configuration.run.ports, [22, 8080]);
        assert_eq!(configuration.run.user, "1:2");
        let error = Configuration::parse(text.as_bytes(), 2).unwrap_err();
        assert_eq!(error.to_string(), "its configuration names 1 layers, its manifest 2");
        assert!(Configuration::parse(b"{\"config\":null}", 0).unwrap().run.cmd.is_empty());
    }
}
