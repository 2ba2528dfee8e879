//! Paths of the distribution API, and how the names of other registries are part of ours. Pure.
//!
//! A repository of another registry is named `<host>[_<port>]/<repository>` here, because the grammar of names has no
//! place for the colon of a port, and no host has an underscore: `127.0.0.1:5000/app` is `127.0.0.1_5000/app`. A name
//! whose first part is no host (no dot, not `localhost`) is one of our own. Clients that name the registry they mean
//! with `?ns=` (containerd's mirrors do) may leave it out of the path.

use crate::digest::Digest;
use crate::image::{self, Selector};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Ping,
    Tags { name: String },
    Manifest { name: String, selector: Selector },
    Blob { name: String, digest: Digest },
    NewUpload { name: String },
    Upload { name: String, id: String },
}

/// Why a path is none of ours, as the API's error codes have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misroute {
    Unknown,
    Name,
    Digest,
    Tag,
}

impl Route {
    /// `path` follows `/v2/`.
    pub fn parse(path: &str) -> Result<Route, Misroute> {
        if path.is_empty() {
            return Ok(Route::Ping);
        }
        let named = |name: &str| match image::check_repository(name) {
            Ok(()) => Ok(name.to_string()),
            Err(_) => Err(Misroute::Name),
        };
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Ok(Route::Tags { name: named(name)? });
        }
        if let Some((name, id)) = path.rsplit_once("/blobs/uploads") {
            let id = id.strip_prefix('/').unwrap_or(id);
            return match id.is_empty() {
                true => Ok(Route::NewUpload { name: named(name)? }),
                false if id.contains('/') => Err(Misroute::Unknown),
                false => Ok(Route::Upload { name: named(name)?, id: id.into() }),
            };
        }
        if let Some((name, digest)) = path.rsplit_once("/blobs/") {
            let digest = digest.parse().map_err(|_| Misroute::Digest)?;
            return Ok(Route::Blob { name: named(name)?, digest });
        }
        if let Some((name, reference)) = path.rsplit_once("/manifests/") {
            return Ok(Route::Manifest { name: named(name)?, selector: selector(reference)? });
        }
        Err(Misroute::Unknown)
    }

    /// The same with the registry that a client named beside the path.
    pub fn within(self, registry: Option<&str>) -> Route {
        let Some(host) = registry.and_then(encode_host) else { return self };
        let within = |name: String| match origin(&name) {
            Origin::Ours => format!("{host}/{name}"),
            Origin::Upstream { .. } => name,
        };
        match self {
            Route::Tags { name } => Route::Tags { name: within(name) },
            Route::Manifest { name, selector } => Route::Manifest { name: within(name), selector },
            Route::Blob { name, digest } => Route::Blob { name: within(name), digest },
            other => other,
        }
    }
}

fn selector(reference: &str) -> Result<Selector, Misroute> {
    if reference.contains(':') {
        return reference.parse().map(Selector::Digest).map_err(|_| Misroute::Digest);
    }
    image::check_tag(reference).map_err(|_| Misroute::Tag)?;
    Ok(Selector::Tag(reference.into()))
}

/// Whose a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Ours,
    Upstream { host: String, repository: String },
}

pub fn origin(name: &str) -> Origin {
    let Some((first, repository)) = name.split_once('/') else { return Origin::Ours };
    let (host, port) = match first.rsplit_once('_') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, Some(port)),
        _ => (first, None),
    };
    if host != "localhost" && !host.contains('.') && port.is_none() {
        return Origin::Ours;
    }
    let host = port.map_or(host.to_string(), |port| format!("{host}:{port}"));
    Origin::Upstream { host, repository: repository.into() }
}

/// The first part of our name for a registry's repositories; `None`: it has no such name (an IPv6 address).
pub fn encode_host(host: &str) -> Option<String> {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port.parse::<u16>().ok()?)),
        None => (host, None),
    };
    let encoded = match port {
        Some(port) => format!("{name}_{port}"),
        None => name.to_string(),
    };
    image::check_repository(&encoded).ok()?;
    (!encoded.contains('/') && matches!(origin(&format!("{encoded}/x")), Origin::Upstream { .. }))
        .then_some(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(path: &str) -> String {
        match Route::parse(path) {
            Ok(Route::Ping) => "ping".into(),
            Ok(Route::Tags { name }) => format!("tags {name}"),
            Ok(Route::Manifest { name, selector }) => format!("manifest {name} {selector}"),
            Ok(Route::Blob { name, .. }) => format!("blob {name}"),
            Ok(Route::NewUpload { name }) => format!("new {name}"),
            Ok(Route::Upload { name, id }) => format!("upload {name} {id}"),
            Err(misroute) => format!("{misroute:?}"),
        }
    }

    #[test]
    fn every_path_of_the_api_is_known() {
        for (path, expected) in [
            ("", "ping"),
            ("a/b/tags/list", "tags a/b"),
            ("a/manifests/latest", "manifest a latest"),
            ("127.0.0.1_5000/a/b/manifests/v1", "manifest 127.0.0.1_5000/a/b v1"),
            ("a/manifests/sha256:12", "Digest"),
            ("a/manifests/.x", "Tag"),
            ("A/manifests/x", "Name"),
            ("../x/manifests/x", "Name"),
            ("a/blobs/uploads/", "new a"),
            ("a/blobs/uploads", "new a"),
            ("a/blobs/uploads/123", "upload a 123"),
            ("a/blobs/uploads/../x", "Unknown"),
            ("a/blobs/../../etc/passwd", "Digest"),
            ("a", "Unknown"),
        ] {
            assert_eq!(shown(path), expected, "{path}");
        }
        assert_eq!(shown(&format!("a/blobs/{D}")), "blob a");
        assert_eq!(shown(&format!("a/manifests/{D}")), format!("manifest a {D}"));
    }

    #[test]
    fn names_of_registries_go_there_and_back() {
        for (host, encoded) in [
            ("127.0.0.1:5000", Some("127.0.0.1_5000")),
            ("registry.example", Some("registry.example")),
            ("localhost:80", Some("localhost_80")),
            ("registry:5000", Some("registry_5000")),
            ("registry", None),
            ("[::1]:5000", None),
            ("a.b:x", None),
        ] {
            assert_eq!(encode_host(host).as_deref(), encoded, "{host}");
            if let Some(encoded) = encoded {
                let expected = Origin::Upstream { host: host.into(), repository: "a/b".into() };
                assert_eq!(origin(&format!("{encoded}/a/b")), expected);
            }
        }
        for name in ["app", "team/app", "my_team/app"] {
            assert_eq!(origin(name), Origin::Ours, "{name}");
        }
    }

    #[test]
    fn a_registry_named_beside_the_path_counts() {
        let route = Route::parse("library/busybox/tags/list").unwrap();
        let within = Route::Tags { name: "docker.io/library/busybox".into() };
        assert_eq!(route.clone().within(Some("docker.io")), within);
        assert_eq!(within.clone().within(Some("docker.io")), within);
        assert_eq!(route.clone().within(None), route);
    }
}
