//! `result.json`: what staging reports to whoever asked for it. Keys and their presence are a contract with the platform.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StagingResult {
    pub lifecycle_metadata: LifecycleMetadata,
    /// `null` when the build failed before it knew.
    pub process_types: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sidecars: Vec<Sidecar>,
    pub execution_metadata: String,
    pub lifecycle_type: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LifecycleMetadata {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub buildpack_key: String,
    pub detected_buildpack: String,
    pub buildpacks: Vec<BuildpackMetadata>,
}

/// What a buildpack says about itself in the `config.yml` of its dependency directory.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct BuildpackMetadata {
    pub key: String,
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<BuildpackConfig>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub output_metadata: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct BuildpackConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub entrypoint_prefix: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Process {
    #[serde(rename = "type")]
    pub kind: String,
    pub command: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sidecar {
    pub name: String,
    pub process_types: Vec<String>,
    pub command: String,
    /// Mebibytes; 0 is not written.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory: i64,
}

fn is_zero(memory: &i64) -> bool {
    *memory == 0
}

/// `staging_info.yml` of the droplet, which is written as JSON.
#[derive(Debug, Serialize)]
pub struct StagingInfo<'a> {
    pub detected_buildpack: &'a str,
    pub start_command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<&'a BuildpackConfig>,
}

impl StagingResult {
    /// The result of these buildpacks; the last one is the app's.
    pub fn new(buildpacks: Vec<BuildpackMetadata>) -> Self {
        let last = buildpacks.last().cloned().unwrap_or_default();
        StagingResult {
            lifecycle_metadata: LifecycleMetadata {
                buildpack_key: last.key,
                detected_buildpack: last.name,
                buildpacks,
            },
            lifecycle_type: "buildpack",
            ..Default::default()
        }
    }

    pub fn web_command(&self) -> &str {
        let types = self.process_types.as_ref();
        types.and_then(|types| types.get("web")).map_or("", String::as_str)
    }

    /// The staging info that belongs to this result.
    pub fn staging_info(&self) -> StagingInfo<'_> {
        let last = self.lifecycle_metadata.buildpacks.last();
        StagingInfo {
            detected_buildpack: &self.lifecycle_metadata.detected_buildpack,
            start_command: self.web_command(),
            config: last.and_then(|buildpack| buildpack.config.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_written_as_the_platform_reads_it() {
        let buildpack: BuildpackMetadata = serde_json::from_value(serde_json::json!({
            "key": "ruby-key", "name": "Ruby", "version": "1.2", "config": {"entrypoint_prefix": "ruby"}
        }))
        .unwrap();
        let mut result = StagingResult::new(vec![buildpack]);
        result.process_types = Some([("web".to_owned(), "serve".to_owned())].into());
        result.processes = vec![Process { kind: "web".into(), command: "serve".into() }];
        result.sidecars = vec![Sidecar {
            name: "s".into(),
            process_types: vec!["web".into()],
            command: "side".into(),
            memory: 10,
        }];
        assert_eq!(
            serde_json::to_string(&result).unwrap(),
            concat!(
                r#"{"lifecycle_metadata":{"buildpack_key":"ruby-key","detected_buildpack":"Ruby","buildpacks":["#,
                r#"{"key":"ruby-key","name":"Ruby","version":"1.2","config":{"entrypoint_prefix":"ruby"}}]},"#,
                r#""process_types":{"web":"serve"},"processes":[{"type":"web","command":"serve"}],"#,
                r#""sidecars":[{"name":"s","process_types":["web"],"command":"side","memory":10}],"#,
                r#""execution_metadata":"","lifecycle_type":"buildpack"}"#
            )
        );
        assert_eq!(
            serde_json::to_string(&result.staging_info()).unwrap(),
            r#"{"detected_buildpack":"Ruby","start_command":"serve","config":{"entrypoint_prefix":"ruby"}}"#
        );
    }

    #[test]
    fn a_failed_build_still_names_its_buildpacks() {
        let result = StagingResult::new(vec![BuildpackMetadata { key: "k".into(), ..Default::default() }]);
        assert_eq!(
            serde_json::to_string(&result).unwrap(),
            concat!(
                r#"{"lifecycle_metadata":{"buildpack_key":"k","detected_buildpack":"","buildpacks":[{"key":"k","name":""}]},"#,
                r#""process_types":null,"execution_metadata":"","lifecycle_type":"buildpack"}"#
            )
        );
    }
}
