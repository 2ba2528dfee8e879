//! Which root filesystems a cell can run: per URL scheme either any, or a fixed set of stack names.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub const PRELOADED_SCHEME: &str = "preloaded";
pub const PRELOADED_LAYER_SCHEME: &str = "preloaded+layer";

/// By URL scheme. JSON: `{"docker": {"type": "arbitrary"}, "preloaded": {"set": {"cflinuxfs4": {}}, "type": "fixed_set"}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootfsProviders(pub BTreeMap<String, RootfsProvider>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootfsProvider {
    Arbitrary,
    FixedSet(BTreeSet<String>),
    /// A kind that this version does not know; it matches nothing.
    Unknown,
}

impl RootfsProviders {
    /// What a cell with these stacks, and any image of these schemes, offers.
    pub fn new<'a>(stacks: impl IntoIterator<Item = &'a str>, arbitrary_schemes: &[String]) -> Self {
        let stacks: BTreeSet<String> = stacks.into_iter().map(str::to_owned).collect();
        let mut providers: BTreeMap<_, _> =
            arbitrary_schemes.iter().map(|scheme| (scheme.clone(), RootfsProvider::Arbitrary)).collect();
        providers.insert(PRELOADED_SCHEME.into(), RootfsProvider::FixedSet(stacks.clone()));
        providers.insert(PRELOADED_LAYER_SCHEME.into(), RootfsProvider::FixedSet(stacks));
        Self(providers)
    }

    pub fn matches(&self, rootfs: &str) -> bool {
        let (scheme, opaque) = split_rootfs(rootfs);
        match self.0.get(scheme) {
            Some(RootfsProvider::Arbitrary) => true,
            Some(RootfsProvider::FixedSet(stacks)) => stacks.contains(opaque),
            Some(RootfsProvider::Unknown) | None => false,
        }
    }
}

/// Scheme and opaque part (without query and fragment) of a root filesystem's URL:
/// `preloaded+layer:cflinuxfs4?layer=…` is `("preloaded+layer", "cflinuxfs4")`. Without a scheme, the first is empty.
pub fn split_rootfs(rootfs: &str) -> (&str, &str) {
    let without_fragment = rootfs.split('#').next().unwrap_or_default();
    let (scheme, rest) = match without_fragment.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
        _ => ("", without_fragment),
    };
    (scheme, rest.split('?').next().unwrap_or_default())
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Go writes a set as a map with empty objects.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Wire {
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<BTreeMap<String, Empty>>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct Empty {}

impl Serialize for RootfsProvider {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, set) = match self {
            RootfsProvider::Arbitrary => ("arbitrary", None),
            RootfsProvider::FixedSet(stacks) => {
                ("fixed_set", Some(stacks.iter().map(|stack| (stack.clone(), Empty {})).collect()))
            }
            RootfsProvider::Unknown => ("", None),
        };
        Wire { kind: kind.into(), set }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RootfsProvider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        Ok(match wire.kind.as_str() {
            "arbitrary" => RootfsProvider::Arbitrary,
            "fixed_set" => RootfsProvider::FixedSet(wire.set.unwrap_or_default().into_keys().collect()),
            _ => RootfsProvider::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn providers() -> RootfsProviders {
        RootfsProviders::new(["cflinuxfs4"], &["docker".into()])
    }

    #[test]
    fn a_rootfs_is_matched_by_its_scheme_and_stack() {
        let check =
            |rootfs: &str, matches: bool| assert_eq!(providers().matches(rootfs), matches, "{rootfs}");
        check("preloaded:cflinuxfs4", true);
        check("preloaded:other", false);
        check("preloaded+layer:cflinuxfs4?layer=http://a/b&layer_path=/&layer_digest=d", true);
        check("docker:///busybox", true);
        check("docker://10.0.0.1:5000/a/b#v2", true);
        check("oci:/images/a", false);
        check("cflinuxfs4", false);
        check("", false);
    }

    #[test]
    fn providers_are_written_as_go_writes_them() {
        let json = r#"{"docker":{"type":"arbitrary"},"preloaded":{"set":{"cflinuxfs4":{}},"type":"fixed_set"},"preloaded+layer":{"set":{"cflinuxfs4":{}},"type":"fixed_set"}}"#;
        assert_eq!(serde_json::to_string(&providers()).unwrap(), json);
        assert_eq!(serde_json::from_str::<RootfsProviders>(json).unwrap(), providers());
    }

    #[test]
    fn an_unknown_kind_is_read_and_matches_nothing() {
        let read: RootfsProviders = serde_json::from_str(r#"{"zip":{"type":"new"}}"#).unwrap();
        assert!(!read.matches("zip:a"));
    }
}
