//! How the wire's messages look as JSON: the names and the nulls that Go clients print and read.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Go clients send `null` for an empty list or map.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list that is `null` when empty.
pub(super) mod null_or_list {
    use super::*;

    pub fn serialize<S: Serializer, T: Serialize>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        if list.is_empty() { serializer.serialize_none() } else { list.serialize(serializer) }
    }

    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        null_is_default(deserializer)
    }
}

/// `#[serde(with = …)]` for a number of an enum that is a name in JSON.
macro_rules! enum_names {
    ($module:ident, $what:literal, [$($name:literal = $number:literal),* $(,)?]) => {
        pub(super) mod $module {
            use super::*;

            const NAMES: &[(&str, i32)] = &[$(($name, $number)),*];

            pub fn serialize<S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
                match NAMES.iter().find(|(_, known)| known == number) {
                    Some((name, _)) => serializer.serialize_str(name),
                    None => serializer.serialize_str(&number.to_string()),
                }
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
                let name = String::deserialize(deserializer)?;
                NAMES
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, number)| *number)
                    .ok_or_else(|| serde::de::Error::custom(format!(concat!("invalid ", $what, ": {}"), name)))
            }
        }
    };
}

enum_names!(presence, "presence", ["ORDINARY" = 0, "EVACUATING" = 1, "SUSPECT" = 2]);
enum_names!(preferred_address, "preferred address", ["UNKNOWN" = 0, "INSTANCE" = 1, "HOST" = 2]);
enum_names!(
    task_state,
    "state",
    ["Invalid" = 0, "Pending" = 1, "Running" = 2, "Completed" = 3, "Resolving" = 4]
);
enum_names!(digest_algorithm, "digest_algorithm", ["DigestAlgorithmInvalid" = 0, "SHA256" = 1, "SHA512" = 2]);
enum_names!(media_type, "media_type", ["MediaTypeInvalid" = 0, "TGZ" = 1, "TAR" = 2, "ZIP" = 3]);
enum_names!(layer_type, "type", ["LayerTypeInvalid" = 0, "SHARED" = 1, "EXCLUSIVE" = 2]);
enum_names!(dynamic_value, "dynamic value", ["DynamicValueInvalid" = 0, "INDEX" = 1, "INSTANCE_GUID" = 2]);

/// The one-of that wraps `routable`: `null`, or an object with the value under `routable`.
pub(super) mod routable {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Wrapped {
        #[serde(alias = "Routable")]
        routable: bool,
    }

    pub fn serialize<S: Serializer>(routable: &Option<bool>, serializer: S) -> Result<S::Ok, S::Error> {
        routable.map(|routable| Wrapped { routable }).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.routable))
    }
}

/// The same in an event's `before` and `after`, where the value stands under `Routable` and false is left out.
pub(super) mod changed_routable {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Wrapped {
        #[serde(rename = "Routable", alias = "routable", default, skip_serializing_if = "is_default")]
        routable: bool,
    }

    pub fn serialize<S: Serializer>(routable: &Option<bool>, serializer: S) -> Result<S::Ok, S::Error> {
        routable.map(|routable| Wrapped { routable }).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.routable))
    }
}
