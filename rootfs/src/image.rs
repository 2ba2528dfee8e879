//! Where an image comes from: the URIs that desired work carries, parsed once into a value that cannot be wrong.
//!
//! ```text
//! docker://HOST[:PORT]/REPOSITORY[:TAG|#TAG][@sha256:…]   a registry; HOST is known by a dot, a port or `localhost`
//! docker:///REPOSITORY[#TAG]                              the default registry
//! oci:///PATH[:TAG]                                       an OCI layout directory
//! preloaded:NAME | preloaded:/PATH                        a root filesystem on this machine, a directory or a tar
//! preloaded+layer:NAME?layer=URL&layer_path=/P&layer_digest=SHA256   the same with one layer (a droplet) on it
//! /PATH                                                   a directory or tar on this machine
//! ```
//! Nothing is looked up here: whether the image exists is for who pulls it to say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::Digest;

/// A repository's longest name, from the distribution API.
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
const URI_BYTES_MAX: usize = 4096;
const DEFAULT_TAG: &str = "latest";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{uri}' names no image: {reason}")]
pub struct InvalidImage {
    pub uri: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageRef {
    Registry(Reference),
    /// An OCI layout directory; without a tag it must hold one image.
    Layout {
        path: PathBuf,
        tag: Option<String>,
    },
    Preloaded(Preloaded),
    PreloadedWithLayer {
        base: Preloaded,
        layer: RemoteLayer,
    },
}

/// A root filesystem that is on this machine already.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Preloaded {
    /// Looked up in the store's configuration.
    Name(String),
    Path(PathBuf),
}

/// One layer fetched from a URL (a droplet), laid over a root below `path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteLayer {
    pub url: String,
    /// Where in the root the layer's content lands; absolute.
    pub path: PathBuf,
    /// Of the layer's bytes as they are fetched.
    pub digest: Digest,
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `host` or `host:port`; `None`: the default registry.
    pub host: Option<String>,
    pub repository: String,
    pub selector: Selector,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Tag(tag) => f.write_str(tag),
            Selector::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        let separator = match self.selector {
            Selector::Tag(_) => ':',
            Selector::Digest(_) => '@',
        };
        write!(f, "{}{separator}{}", self.repository, self.selector)
    }
}

impl fmt::Display for Preloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Preloaded::Name(name) => f.write_str(name),
            Preloaded::Path(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageRef::Registry(reference @ Reference { host: Some(_), .. }) => {
                write!(f, "docker://{reference}")
            }
            ImageRef::Registry(reference) => write!(f, "docker:///{reference}"),
            ImageRef::Layout { path, tag: None } => write!(f, "oci://{}", path.display()),
            ImageRef::Layout { path, tag: Some(tag) } => write!(f, "oci://{}:{tag}", path.display()),
            ImageRef::Preloaded(base) => write!(f, "preloaded:{base}"),
            ImageRef::PreloadedWithLayer { base, layer } => write!(
                f,
                "preloaded+layer:{base}?layer={}&layer_path={}&layer_digest={}",
                encoded(&layer.url),
                encoded(&layer.path.to_string_lossy()),
                layer.digest.hex()
            ),
        }
    }
}

impl FromStr for ImageRef {
    type Err = InvalidImage;

    fn from_str(uri: &str) -> Result<ImageRef, InvalidImage> {
        let invalid = |reason: String| InvalidImage { uri: uri.chars().take(200).collect(), reason };
        if uri.len() > URI_BYTES_MAX {
            return Err(invalid(format!("it is longer than {URI_BYTES_MAX} bytes")));
        }
        if uri.chars().any(|char| char.is_control() || char == ' ') {
            return Err(invalid("it holds blanks or control characters".into()));
        }
        if uri.starts_with('/') {
            return absolute(uri).map(|path| ImageRef::Preloaded(Preloaded::Path(path))).map_err(invalid);
        }
        match uri.split_once(':') {
            Some(("docker", rest)) => docker(rest).map(ImageRef::Registry),
            Some(("oci", rest)) => layout(rest),
            Some(("preloaded", rest)) => preloaded(rest).map(ImageRef::Preloaded),
            Some(("preloaded+layer", rest)) => preloaded_with_layer(rest),
            _ => Err("it begins with none of docker://, oci:///, preloaded:, preloaded+layer:, /".into()),
        }
        .map_err(invalid)
    }
}

/// What follows `docker:`.
fn docker(rest: &str) -> Result<Reference, String> {
    let rest = rest.strip_prefix("//").ok_or("docker: must be followed by //")?;
    let (rest, fragment) = match rest.split_once('#') {
        Some((rest, tag)) => (rest, Some(tag)),
        None => (rest, None),
    };
    let (host, path) = match rest.split_once('/') {
        Some(("", path)) => (None, path),
        Some((host, path)) if is_host(host) => (Some(parse_host(host)?), path),
        // A name without a registry, as the docker command takes it.
        _ => (None, rest),
    };
    let (path, digest) = match path.split_once('@') {
        Some((path, digest)) => (path, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        None => (path, None),
    };
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, fragment),
    };
    if tag.is_some() && fragment.is_some() && tag != fragment {
        return Err("it gives a tag twice".into());
    }
    check_repository(repository)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let selector = match digest {
        // A digest says more than a tag beside it.
        Some(digest) => Selector::Digest(digest),
        None => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).into()),
    };
    Ok(Reference { host, repository: repository.into(), selector })
}

/// The rule by which `busybox/tools` is a repository and `registry.example/tools` is one of a registry.
fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':', '['])
}

fn parse_host(text: &str) -> Result<String, String> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let valid = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-'),
    };
    if !valid {
        return Err(format!("'{text}' is not the host of a registry"));
    }
    if let Some(port) = port {
        port.parse::<u16>().map_err(|_| format!("'{port}' is not a port"))?;
    }
    Ok(text.to_ascii_lowercase())
}

/// The grammar of the distribution API: components of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
pub(crate) fn check_repository(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it names no repository".into());
    }
    if name.len() > REPOSITORY_BYTES_MAX {
        return Err(format!("the repository's name is longer than {REPOSITORY_BYTES_MAX} bytes"));
    }
    match name.split('/').all(is_component) {
        true => Ok(()),
        false if name.bytes().any(|b| b.is_ascii_uppercase()) => {
            Err(format!("repository '{name}' must be lower-case"))
        }
        false => Err(format!("'{name}' is not the name of a repository")),
    }
}

fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let runs = text.as_bytes().split(|b| !alphanumeric(*b));
    let ends = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
    let separators_are_single = text
        .split(|c: char| alphanumeric_char(c))
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'));
    runs.count() > 0 && ends(text.as_bytes().first()) && ends(text.as_bytes().last()) && separators_are_single
}

fn alphanumeric_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

pub(crate) fn check_tag(tag: &str) -> Result<(), String> {
    let valid = !tag.is_empty()
        && tag.len() <= TAG_BYTES_MAX
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid { Ok(()) } else { Err(format!("'{tag}' is not a tag")) }
}

/// What follows `oci:`.
fn layout(rest: &str) -> Result<ImageRef, String> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    Ok(ImageRef::Layout { path: absolute(path)?, tag: tag.map(Into::into) })
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    match path.starts_with('/') {
        true if path.split('/').any(|component| component == "..") => {
            Err(format!("path '{path}' leads out with '..'"))
        }
        // Two slashes would be read as the beginning of a URI's authority.
        true => Ok(Path::new("/").join(path.trim_start_matches('/'))),
        false => Err(format!("path '{path}' is not absolute")),
    }
}

fn preloaded(text: &str) -> Result<Preloaded, String> {
    let text = text.strip_prefix("//").unwrap_or(text);
    if text.starts_with('/') {
        return absolute(text).map(Preloaded::Path);
    }
    let valid = !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    match valid {
        true => Ok(Preloaded::Name(text.into())),
        false => Err(format!("'{text}' is neither the name of a stack nor an absolute path")),
    }
}

/// What follows `preloaded+layer:`.
fn preloaded_with_layer(rest: &str) -> Result<ImageRef, String> {
    let (base, query) = rest.split_once('?').ok_or("it has no ?layer=…")?;
    let base = preloaded(base)?;
    let (mut url, mut path, mut digest) = (None, None, None);
    for pair in query_pairs(query) {
        let (key, value) = pair?;
        match key {
            "layer" => url = Some(value),
            "layer_path" => path = Some(value),
            "layer_digest" => digest = Some(value),
            _ => {}
        }
    }
    let url = url.ok_or("it has no layer=…")?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(format!("layer '{url}' is not an http or https URL"));
    }
    let path = absolute(&path.ok_or("it has no layer_path=…")?)?;
    let digest = digest.ok_or("it has no layer_digest=…")?;
    let digest = digest.strip_prefix("sha256:").unwrap_or(&digest);
    let digest = Digest::from_hex(digest).map_err(|error| error.to_string())?;
    Ok(ImageRef::PreloadedWithLayer { base, layer: RemoteLayer { url, path, digest } })
}

/// The pairs of a query. A `layer` URL is sent as it is, not encoded, and may have a query of its own: a piece that
/// does not begin with one of our keys belongs to the value before it.
fn query_pairs(query: &str) -> impl Iterator<Item = Result<(&str, String), String>> {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for piece in query.split('&') {
        match piece.split_once('=') {
            Some((key @ ("layer" | "layer_path" | "layer_digest"), value)) => pairs.push((key, value.into())),
            _ => {
                if let Some((_, value)) = pairs.last_mut() {
                    *value = format!("{value}&{piece}");
                }
            }
        }
    }
    pairs.into_iter().map(|(key, value)| {
        // A URL that was not encoded as a whole keeps its own escapes.
        if key == "layer" && value.contains("://") {
            return Ok((key, value));
        }
        decoded(&value).map(|value| (key, value))
    })
}

fn decoded(text: &str) -> Result<String, String> {
    let bad = || format!("'{text}' is not percent-encoded text");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(bad)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = &tail[2..];
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text),
        _ => Err(bad()),
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            // The colon as well: a URL that shows its `://` is taken as it stands.
            b'%' | b'&' | b'#' | b'?' | b'+' | b':' | 0x80.. => format!("%{b:02X}"),
            _ => char::from(b).to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(uri: &str) -> String {
        match uri.parse::<ImageRef>() {
            Ok(image) => format!("{image}"),
            Err(error) => error.reason,
        }
    }

    #[test]
    fn every_form_of_a_registry_image_is_understood() {
        let pinned = format!("docker://127.0.0.1:5000/app@sha256:{HEX}");
        let both = format!("docker://127.0.0.1:5000/app:v1@sha256:{HEX}");
        for (uri, canonical) in [
            ("docker:///busybox", "docker:///busybox:latest"),
            ("docker:///onsi/grace-busybox", "docker:///onsi/grace-busybox:latest"),
            ("docker:///org/image#tag", "docker:///org/image:tag"),
            ("docker:///busybox:1.26.1", "docker:///busybox:1.26.1"),
            ("docker://busybox", "docker:///busybox:latest"),
            ("docker://cloudfoundry/grace", "docker:///cloudfoundry/grace:latest"),
            ("docker://index.docker.io/busybox", "docker://index.docker.io/busybox:latest"),
            ("docker://registry.example/a/b#v1.2", "docker://registry.example/a/b:v1.2"),
            ("docker://Registry.Example:443/a", "docker://registry.example:443/a:latest"),
            ("docker://localhost/a", "docker://localhost/a:latest"),
            ("docker://127.0.0.1:5000/a__b/c-d:x", "docker://127.0.0.1:5000/a__b/c-d:x"),
            ("docker://[::1]:5000/a", "docker://[::1]:5000/a:latest"),
            ("docker://c:1/127.0.0.1_5000/a:x", "docker://c:1/127.0.0.1_5000/a:x"),
            (&pinned, &pinned),
            (&both, &pinned),
        ] {
            assert_eq!(shown(uri), canonical, "{uri}");
        }
    }

    #[test]
    fn images_on_this_machine_are_understood() {
        for (uri, canonical) in [
            ("oci:///a/b", "oci:///a/b"),
            ("oci:///a/b:v1", "oci:///a/b:v1"),
            ("preloaded:cflinuxfs4", "preloaded:cflinuxfs4"),
            ("preloaded:/var/stack.tar", "preloaded:/var/stack.tar"),
            ("/var/rootfs", "preloaded:/var/rootfs"),
            ("//var/rootfs", "preloaded:/var/rootfs"),
        ] {
            assert_eq!(shown(uri), canonical, "{uri}");
        }
    }

    #[test]
    fn a_layer_on_a_stack_keeps_its_url_whole() {
        let uri = format!(
            "preloaded+layer:cflinuxfs4?layer=https://blobs.example/d?sig=a%2Fb&exp=1&layer_path=/home/vcap&layer_digest={HEX}"
        );
        let ImageRef::PreloadedWithLayer { base, layer } = uri.parse().unwrap() else { panic!() };
        assert_eq!(base, Preloaded::Name("cflinuxfs4".into()));
        assert_eq!(layer.url, "https://blobs.example/d?sig=a%2Fb&exp=1");
        assert_eq!(layer.path, PathBuf::from("/home/vcap"));
        assert_eq!(layer.digest.hex(), HEX);
    }

    #[test]
    fn what_names_no_image_is_refused_with_its_reason() {
        for (uri, reason) in [
            ("", "begins with none"),
            ("http://x/y", "begins with none"),
            ("docker:busybox", "followed by //"),
            ("docker://", "names no repository"),
            ("docker:///", "names no repository"),
            ("docker://host:5000/", "names no repository"),
            ("docker://host:99999/a", "not a port"),
            ("docker://ho_st.x/a", "not the host"),
            ("docker:///Busy", "must be lower-case"),
            ("docker:///a//b", "not the name of a repository"),
            ("docker:///../etc", "not the name of a repository"),
            ("docker:///a...b", "not the name of a repository"),
            ("docker:///a:b:c", "not the name of a repository"),
            ("docker:///a:", "not a tag"),
            ("docker:///a:x#y", "tag twice"),
            ("docker:///a@sha256:12", "not a digest"),
            ("docker:///a b", "blanks"),
            ("oci://relative", "not absolute"),
            ("oci:///a/../b", "leads out"),
            ("preloaded:", "neither the name"),
            ("preloaded:../x", "neither the name"),
            ("/a/../b", "leads out"),
            ("preloaded+layer:x", "no ?layer="),
            ("preloaded+layer:x?layer=ftp://a&layer_path=/&layer_digest=1", "not an http"),
        ] {
            let shown = shown(uri);
            assert!(shown.contains(reason), "{uri}: {shown}");
        }
    }
}
