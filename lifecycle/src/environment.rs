//! The environment an app sees: HOME, TMPDIR, DEPS_DIR, VCAP_APPLICATION completed with what only the instance knows,
//! DATABASE_URL from a bound database. Pure: it takes an environment and gives one; nobody's own is changed.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
};

use serde_json::{Map, Value};

/// An environment. Values need not be UTF-8; the ones edited here are.
pub type Environment = BTreeMap<OsString, OsString>;

#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("Invalid platform options: {0}")]
    PlatformOptions(#[source] serde_json::Error),
    /// Refused rather than ignored: the app would start with references in place of its credentials.
    #[error("Unable to interpolate credhub refs: no client for {0} is built in")]
    Credhub(String),
}

/// Schemes of database URIs and what apps expect instead; empty means unchanged.
const DATABASE_SCHEMES: [(&str, &str); 4] =
    [("mysql", "mysql2"), ("mysql2", "mysql2"), ("postgres", "postgres"), ("postgresql", "postgres")];

/// What the platform's variables become for a buildpack app in `app` (absolute), or, without a directory, for a Docker
/// app.
pub fn for_app(mut environment: Environment, app: Option<&Path>) -> Result<Environment, EnvironmentError> {
    if let Some(app) = app {
        let beside = |name| app.parent().unwrap_or(app).join(name).into_os_string();
        environment.insert("HOME".into(), app.into());
        environment.insert("TMPDIR".into(), beside("tmp"));
        environment.insert("DEPS_DIR".into(), beside("deps"));
    }
    if let Some(completed) = application(&environment) {
        environment.insert("VCAP_APPLICATION".into(), completed.into());
    }
    check_platform_options(&environment)?;
    environment.remove(OsStr::new("VCAP_PLATFORM_OPTIONS"));
    if let Some(uri) = database_uri(text(&environment, "VCAP_SERVICES")) {
        environment.insert("DATABASE_URL".into(), uri.into());
    }
    Ok(environment)
}

fn text<'a>(environment: &'a Environment, name: &str) -> &'a str {
    environment.get(OsStr::new(name)).and_then(|value| value.to_str()).unwrap_or_default()
}

/// VCAP_APPLICATION with host, port, instance_id and instance_index; `None` when there is no JSON object in it.
fn application(environment: &Environment) -> Option<String> {
    let mut application: Map<String, Value> =
        serde_json::from_str(text(environment, "VCAP_APPLICATION")).ok()?;
    application.insert("host".into(), "0.0.0.0".into());
    application.insert("instance_id".into(), text(environment, "INSTANCE_GUID").into());
    for (key, variable) in [("port", "PORT"), ("instance_index", "INSTANCE_INDEX")] {
        if let Ok(number) = text(environment, variable).parse::<i64>() {
            application.insert(key.into(), number.into());
        }
    }
    serde_json::to_string(&application).ok()
}

fn check_platform_options(environment: &Environment) -> Result<(), EnvironmentError> {
    let options = text(environment, "VCAP_PLATFORM_OPTIONS");
    if options.is_empty() {
        return Ok(());
    }
    let options: Value = serde_json::from_str(options).map_err(EnvironmentError::PlatformOptions)?;
    let credhub = options["credhub-uri"].as_str().unwrap_or_default();
    let skipped = !text(environment, "CREDHUB_SKIP_INTERPOLATION").is_empty();
    let referred = text(environment, "VCAP_SERVICES").contains("\"credhub-ref\"");
    if credhub.is_empty() || skipped || !referred {
        return Ok(());
    }
    Err(EnvironmentError::Credhub(credhub.to_owned()))
}

/// The URI of the first bound service that is a database of a known kind.
pub fn database_uri(services: &str) -> Option<String> {
    let services: BTreeMap<String, Vec<Value>> = serde_json::from_str(services).ok()?;
    services.values().flatten().filter_map(|service| service["credentials"]["uri"].as_str()).find_map(|uri| {
        let (scheme, rest) = uri.split_once(':')?;
        let (_, expected) = DATABASE_SCHEMES.iter().find(|(known, _)| *known == scheme)?;
        Some(format!("{expected}:{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn an_app_finds_its_directories_and_itself() {
        let given = environment(&[
            ("VCAP_APPLICATION", r#"{"foo":1}"#),
            ("PORT", "8080"),
            ("INSTANCE_INDEX", "3"),
            ("INSTANCE_GUID", "guid"),
            ("VCAP_PLATFORM_OPTIONS", "{}"),
        ]);
        let seen = for_app(given, Some(Path::new("/home/vcap/app"))).unwrap();
        assert_eq!(text(&seen, "HOME"), "/home/vcap/app");
        assert_eq!(text(&seen, "TMPDIR"), "/home/vcap/tmp");
        assert_eq!(text(&seen, "DEPS_DIR"), "/home/vcap/deps");
        assert_eq!(
            text(&seen, "VCAP_APPLICATION"),
            r#"{"foo":1,"host":"0.0.0.0","instance_id":"guid","instance_index":3,"port":8080}"#
        );
        assert!(!seen.contains_key(OsStr::new("VCAP_PLATFORM_OPTIONS")));
    }

    #[test]
    fn what_is_not_there_is_not_invented() {
        let seen = for_app(environment(&[("VCAP_APPLICATION", "no json")]), None).unwrap();
        assert_eq!(seen, environment(&[("VCAP_APPLICATION", "no json")]));
        let seen = for_app(environment(&[("VCAP_APPLICATION", "{}"), ("PORT", "x")]), None).unwrap();
        assert_eq!(text(&seen, "VCAP_APPLICATION"), r#"{"host":"0.0.0.0","instance_id":""}"#);
    }

    #[test]
    fn a_bound_database_is_named_in_database_url() {
        let services =
            |uri: &str| format!(r#"{{"db":[{{"credentials":{{}}}},{{"credentials":{{"uri":"{uri}"}}}}]}}"#);
        let table = [
            ("mysql://u:p@h/d", Some("mysql2://u:p@h/d")),
            ("mysql2://h", Some("mysql2://h")),
            ("postgresql://h/d", Some("postgres://h/d")),
            ("postgres://h/d", Some("postgres://h/d")),
            ("amqp://h", None),
        ];
        for (uri, expected) in table {
            assert_eq!(database_uri(&services(uri)).as_deref(), expected, "{uri}");
        }
        assert_eq!(database_uri(""), None);
        assert_eq!(database_uri("[]"), None);
    }

    #[test]
    fn credential_references_that_cannot_be_resolved_stop_the_start() {
        let mut given = environment(&[
            ("VCAP_PLATFORM_OPTIONS", r#"{"credhub-uri":"https://credhub"}"#),
            ("VCAP_SERVICES", r#"{"x":[{"credentials":{"credhub-ref":"/x"}}]}"#),
        ]);
        let error = for_app(given.clone(), None).unwrap_err().to_string();
        assert!(error.starts_with("Unable to interpolate credhub refs"), "{error}");
        given.insert("VCAP_PLATFORM_OPTIONS".into(), "{".into());
        let error = for_app(given, None).unwrap_err().to_string();
        assert!(error.starts_with("Invalid platform options"), "{error}");
    }
}
