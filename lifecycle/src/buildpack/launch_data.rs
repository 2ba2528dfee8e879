//! The processes of an app, gathered from buildpacks' `launch.yml`, the last buildpack's `release` output and the app's
//! Procfile. Later sources replace earlier processes of the same type. Pure.

use serde::Deserialize;
use serde_json::Value;

use super::result::{Process, Sidecar, StagingResult};
use crate::yaml::{self, YamlError};

/// One process as `launch.yml` describes it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct LaunchProcess {
    #[serde(rename = "type")]
    pub kind: String,
    pub command: String,
    pub platforms: Platforms,
    pub limits: Limits,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Platforms {
    pub cloudfoundry: CloudFoundry,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct CloudFoundry {
    pub sidecar_for: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Limits {
    pub memory: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LaunchYml {
    processes: Vec<LaunchProcess>,
}

/// The processes of a `launch.yml`.
pub fn read_launch_yml(text: &str) -> Result<Vec<LaunchProcess>, YamlError> {
    match yaml::parse(text)? {
        Value::Null => Ok(Vec::new()),
        document => Ok(serde_json::from_value::<LaunchYml>(document)?.processes),
    }
}

/// Processes without anything but a command, as Procfiles and `release` give them.
pub fn plain(commands: Vec<(String, String)>) -> Vec<LaunchProcess> {
    let process = |(kind, command)| LaunchProcess { kind, command, ..Default::default() };
    commands.into_iter().map(process).collect()
}

/// `first` with each process of `second` in the place of the one of its type, or behind.
pub fn merge(mut first: Vec<LaunchProcess>, second: Vec<LaunchProcess>) -> Vec<LaunchProcess> {
    for process in second {
        match first.iter_mut().find(|earlier| earlier.kind == process.kind) {
            Some(earlier) => *earlier = process,
            None => first.push(process),
        }
    }
    first
}

/// Puts the processes into the result, sidecars apart.
pub fn fill(result: &mut StagingResult, processes: Vec<LaunchProcess>) {
    let types = result.process_types.get_or_insert_default();
    for process in processes {
        let sidecar_for = process.platforms.cloudfoundry.sidecar_for;
        if sidecar_for.is_empty() {
            types.insert(process.kind.clone(), process.command.clone());
            result.processes.push(Process { kind: process.kind, command: process.command });
        } else {
            result.sidecars.push(Sidecar {
                name: process.kind,
                process_types: sidecar_for,
                command: process.command,
                memory: process.limits.memory,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_sources_replace_and_sidecars_stand_apart() {
        let launch = read_launch_yml(
            "---\nprocesses:\n- type: web\n  command: first\n- type: agent\n  command: watch\n  limits: {memory: 32}\n  platforms:\n    cloudfoundry:\n      sidecar_for: [web, worker]\n",
        )
        .unwrap();
        let procfile = plain(vec![("web".into(), "second".into()), ("worker".into(), "w".into())]);
        let mut result = StagingResult::new(Vec::new());
        fill(&mut result, merge(launch, procfile));
        assert_eq!(result.web_command(), "second");
        let kinds: Vec<_> = result.processes.iter().map(|process| process.kind.as_str()).collect();
        assert_eq!(kinds, ["web", "worker"]);
        let sidecar = &result.sidecars[0];
        assert_eq!((sidecar.name.as_str(), sidecar.memory), ("agent", 32));
        assert_eq!(sidecar.process_types, ["web", "worker"]);
    }
}
