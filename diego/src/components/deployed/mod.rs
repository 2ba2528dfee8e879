//! The JSON file by which deployments tell a component what it is to do (`rep -config FILE`), turned into flags.
//!
//! Each component has a table of the keys that deployments render for it: which flag a key is, or why it means nothing
//! here. What the command line says itself goes before the file. A key that is in no table is named on standard error,
//! and has no effect, as ever.

mod auctioneer;
mod bbs;
mod database;
mod locket;
mod refusal;
mod rep;
mod route_emitter;
mod shared;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use refusal::Refusal;
use serde_json::{Map, Value};

const FILE_BYTES_MAX: u64 = 1 << 20;
/// Supervisors know this exit code of a component whose file cannot be read.
pub const UNREADABLE: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("-config needs the path of a file")]
    NoPath,
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is no JSON object: {why}", path.display())]
    Json { path: PathBuf, why: String },
    #[error("{}: {key}: {why}", path.display())]
    Key { path: PathBuf, key: &'static str, why: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What a key becomes.
enum To {
    /// `--FLAG=VALUE`, or nothing for an empty text: so deployments write what they leave out.
    Flag(&'static str),
    /// `--FLAG` if it is true.
    If(&'static str),
    /// `--FLAG=VALUE` for each of a list.
    Each(&'static str),
    /// `--FLAG=FILE` if it is there: the component reads it from the same file.
    Itself(&'static str),
    /// Told in a way of its own, by the component's [`Special`]s.
    Special,
    /// Nothing: what it sets does not exist here, or cannot be set.
    Nothing,
}

use To::{Each, Flag, If, Itself, Nothing, Special};

type Table = &'static [(&'static str, To)];
/// The flags of keys that depend on one another or are written in another form; errors name the key.
type Specials = fn(&Settings) -> Flags;
type Flags = Result<Vec<String>, (&'static str, String)>;

/// Whether the component can be begun at all with what its file says.
type Check = fn(&Settings) -> Result<(), Refusal>;

/// Subcommands that may be started with such a file.
const COMPONENTS: [(&str, &[Table], Specials, Check); 5] = [
    ("auctioneer", auctioneer::TABLES, auctioneer::specials, auctioneer::check),
    ("bbs", bbs::TABLES, bbs::specials, bbs::check),
    ("locket", locket::TABLES, locket::specials, locket::check),
    ("rep", rep::TABLES, rep::specials, rep::check),
    ("route-emitter", route_emitter::TABLES, route_emitter::specials, |_| Ok(())),
];

/// `SUBCOMMAND [-config FILE] [-FLAG…]` with the file's flags in it; what is none of these components is left alone.
pub fn expand(subcommand: &str, told: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let Some((_, tables, specials, check)) = COMPONENTS.iter().find(|(name, ..)| *name == subcommand) else {
        return Ok(told);
    };
    let (config, rest) = split(told)?;
    let Some(path) = config else { return Ok(rest) };
    let settings = Settings::read(&path)?;
    let unknown = settings.unknown(tables);
    if !unknown.is_empty() {
        eprintln!("{subcommand}: {}: without effect here: {}", path.display(), unknown.join(", "));
    }
    check(&settings)?;
    let flags =
        settings.flags(&path, tables, *specials).map_err(|(key, why)| Error::Key { path, key, why })?;
    Ok(joined(flags, rest))
}

/// The file, and the flags beside it.
fn split(told: Vec<OsString>) -> Result<(Option<PathBuf>, Vec<OsString>), Error> {
    let (mut config, mut rest) = (None, Vec::new());
    let mut arguments = told.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        let name = text.trim_start_matches('-');
        match name.split_once('=') {
            Some(("config", path)) if text.starts_with('-') => config = Some(PathBuf::from(path)),
            _ if matches!(text, "-config" | "--config") => {
                config = Some(arguments.next().map(PathBuf::from).ok_or(Error::NoPath)?);
            }
            // Deployments write one dash before a long flag.
            _ if text.starts_with('-') && !text.starts_with("--") && name.len() > 1 => {
                rest.push(format!("--{name}").into());
            }
            _ => rest.push(argument),
        }
    }
    Ok((config, rest))
}

/// What is told beside the file goes before it.
fn joined(mut flags: Vec<String>, rest: Vec<OsString>) -> Vec<OsString> {
    flags.retain(|flag| !rest.iter().any(|told| is_same_flag(flag, told)));
    flags.into_iter().map(OsString::from).chain(rest).collect()
}

fn is_same_flag(flag: &str, told: &OsString) -> bool {
    let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
    told.to_str().is_some_and(|told| name(flag) == name(told))
}

/// What the file says. Absent, `null` and an empty text are one.
struct Settings(Map<String, Value>);

impl Settings {
    fn read(path: &Path) -> Result<Settings, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let json = |why: String| Error::Json { path: path.to_owned(), why };
        serde_json::from_str(&text).map(Settings).map_err(|error| json(error.to_string()))
    }

    fn unknown(&self, tables: &[Table]) -> Vec<&str> {
        let is_known = |key: &str| tables.iter().copied().flatten().any(|(known, _)| *known == key);
        self.0.keys().map(String::as_str).filter(|key| !is_known(key)).collect()
    }

    fn flags(&self, path: &Path, tables: &[Table], specials: Specials) -> Flags {
        let mut flags = Vec::new();
        for (key, to) in tables.iter().copied().flatten() {
            match to {
                Flag(flag) => flags.extend(self.text(key)?.map(|text| format!("--{flag}={text}"))),
                If(flag) => flags.extend(self.is(key)?.then(|| format!("--{flag}"))),
                Each(flag) => flags.extend(self.list(key)?.iter().map(|text| format!("--{flag}={text}"))),
                Itself(flag) if self.0.contains_key(*key) => {
                    flags.push(format!("--{flag}={}", path.display()));
                }
                Itself(_) | Special | Nothing => {}
            }
        }
        flags.extend(specials(self)?);
        Ok(flags)
    }

    /// A text or a number.
    fn text(&self, key: &'static str) -> Result<Option<String>, (&'static str, String)> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err((key, format!("{other} is neither a text nor a number"))),
        }
    }

    /// None is 0.
    fn number(&self, key: &'static str) -> Result<u64, (&'static str, String)> {
        let Some(text) = self.text(key)? else { return Ok(0) };
        text.parse().map_err(|_| (key, format!("{text} is no whole number")))
    }

    fn is(&self, key: &'static str) -> Result<bool, (&'static str, String)> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err((key, format!("{other} is neither true nor false"))),
        }
    }

    fn list(&self, key: &'static str) -> Result<Vec<String>, (&'static str, String)> {
        let text =
            |value: &Value| value.as_str().map(str::to_owned).ok_or((key, format!("{value} is no text")));
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(text).collect(),
            Some(other) => Err((key, format!("{other} is no list"))),
        }
    }

    /// An object's settings; none where it is absent.
    fn within(&self, key: &'static str) -> Result<Settings, (&'static str, String)> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(Settings(Map::new())),
            Some(Value::Object(object)) => Ok(Settings(object.clone())),
            Some(other) => Err((key, format!("{other} is no object"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use serde_json::json;

    use super::*;

    /// The flags of a rep with this in its file, and a certificate for `san`.
    fn expanded(json: Value, san: &str, told: &[&str]) -> Result<Vec<String>, String> {
        let usual = json!({"cell_id": "c1", "locket_address": "127.0.0.1:8891", "cert_file": "DIR/cert",
            "key_file": "DIR/key", "ca_cert_file": "DIR/cert"});
        expanded_of("rep", usual, json, san, told)
    }

    /// Those of a component whose file says the usual and, before that, `json`.
    fn expanded_of(
        component: &str,
        mut usual: Value,
        mut json: Value,
        san: &str,
        told: &[&str],
    ) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let pair = rcgen::generate_simple_self_signed([san.to_owned()]).unwrap();
        std::fs::write(path("cert"), pair.cert.pem()).unwrap();
        std::fs::write(path("key"), pair.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("other-key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        std::fs::write(path("torn"), pair.cert.pem() + "MIIF\n-----END CERTIFICATE-----\n").unwrap();
        if let (Value::Object(json), Value::Object(usual)) = (&mut json, &mut usual) {
            usual.append(json);
            json.append(usual);
        }
        let dir_name = dir.path().display().to_string();
        std::fs::write(path("config"), json.to_string().replace("DIR", &dir_name)).unwrap();
        let config = ["-config".into(), OsString::from(path("config"))];
        let told = config.into_iter().chain(told.iter().map(OsString::from)).collect();
        let flags = expand(component, told).map_err(|error| error.to_string().replace(&dir_name, "DIR"))?;
        Ok(flags.into_iter().map(|flag| flag.into_string().unwrap()).collect())
    }

    #[test]
    fn keys_are_flags_and_the_command_line_goes_first() {
        let json = json!({"zone": "z1", "set_cpu_weight": true, "placement_tags": ["a", "b"],
            "temp_dir": "", "max_log_lines_per_second": 100, "nonsense_of_ours": 1});
        let flags = expanded(json, "127.0.0.1", &["-zone=z2", "-v", "--listen", "x"]).unwrap();
        for flag in ["--cell-id=c1", "--set-cpu-weight", "--placement-tag=a", "--placement-tag=b"] {
            assert!(flags.contains(&flag.to_string()), "{flag} in {flags:?}");
        }
        assert!(flags.contains(&"--max-log-lines-per-second=100".to_string()));
        assert!(flags.ends_with(&["--zone=z2", "-v", "--listen", "x"].map(String::from)), "{flags:?}");
        assert!(
            !flags
                .iter()
                .any(|flag| flag.contains("z1") || flag.contains("temp") || flag.contains("nonsense"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (json, error) in [
            (
                json!([]),
                "DIR/config is no JSON object: invalid type: sequence, expected a map at line 1 column 0",
            ),
            (json!({"zone": []}), "DIR/config: zone: [] is neither a text nor a number"),
            (
                json!({"set_cpu_weight": "yes"}),
                "DIR/config: set_cpu_weight: \"yes\" is neither true nor false",
            ),
            (json!({"placement_tags": "a"}), "DIR/config: placement_tags: \"a\" is no list"),
            (json!({"placement_tags": [1]}), "DIR/config: placement_tags: 1 is no text"),
            (
                json!({"max_cache_size_in_bytes": "big"}),
                "DIR/config: max_cache_size_in_bytes: big is no whole number",
            ),
        ] {
            assert_eq!(expanded(json, "127.0.0.1", &[]).unwrap_err(), error);
        }
        let of =
            |told: &[&str]| expand("rep", told.iter().map(OsString::from).collect()).unwrap_err().to_string();
        assert_eq!(of(&["-config"]), "-config needs the path of a file");
        assert!(of(&["-config=/nowhere/file"]).starts_with("cannot read /nowhere/file: No such file"));
    }

    #[test]
    fn every_key_is_told_once_and_every_flag_is_there() {
        let command = crate::cli::Cli::command();
        for (component, tables, ..) in COMPONENTS {
            let table = || tables.iter().copied().flatten();
            let mut keys: Vec<_> = table().map(|(key, _)| *key).collect();
            let count = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), count, "{component}");
            let subcommand = command.find_subcommand(component).unwrap();
            for (key, to) in table() {
                let (Flag(flag) | If(flag) | Each(flag) | Itself(flag)) = to else { continue };
                let known = subcommand.get_arguments().any(|argument| argument.get_long() == Some(flag));
                assert!(known, "{component}: {key}: --{flag}");
            }
        }
    }

    #[test]
    fn what_has_no_effect_on_a_rep_is_written_down() {
        let written = include_str!("../../../../docs/COMPATIBILITY.md");
        for (key, to) in rep::TABLES.iter().copied().flatten() {
            let told = !matches!(to, Nothing) || written.contains(&format!("`{key}`"));
            assert!(told, "docs/COMPATIBILITY.md does not say why {key} has no effect");
        }
    }

    #[test]
    fn what_a_rep_cannot_be_begun_with_is_refused_in_known_words() {
        let refused = |json, san| expanded(json, san, &[]).unwrap_err();
        for (json, word) in [
            (json!({"cell_id": ""}), "invalid-cell-id"),
            (
                json!({"loggregator": {"loggregator_ca_path": "DIR/cert"}}),
                "failed-to-initialize-metron-client",
            ),
            (json!({"loggregator": 1}), "failed-to-initialize-metron-client"),
            (json!({"cert_file": ""}), "failed-to-configure-secure-BBS-client"),
            (json!({"ca_cert_file": "DIR/none"}), "failed-to-configure-secure-BBS-client"),
            (json!({"key_file": "DIR/other-key"}), "failed-to-configure-secure-BBS-client"),
            (json!({"locket_address": ""}), "invalid-locket-config"),
            (json!({"cert_file": "DIR/torn"}), "tls-configuration-failed"),
        ] {
            let why = refused(json.clone(), "127.0.0.1");
            assert!(why.starts_with(&format!("{word}: ")), "{json}: {why}");
        }
        let why = refused(json!({}), "localhost");
        assert!(why.starts_with("tls-configuration-failed: invalid SAN metadata."), "{why}");
    }

    /// What a deployment renders for each of these.
    fn usual(component: &str) -> Value {
        let mut usual = json!({"loggregator": {}, "uuid": "u-1", "locket_address": "locket:8891",
            "locket_client_cert_file": "DIR/cert", "locket_client_key_file": "DIR/key",
            "locket_ca_cert_file": "DIR/cert"});
        let own = match component {
            "auctioneer" => json!({"bbs_address": "https://bbs:8889", "bbs_ca_cert_file": "DIR/cert",
                "bbs_client_cert_file": "DIR/cert", "bbs_client_key_file": "DIR/key"}),
            _ => json!({"cert_file": "DIR/cert", "key_file": "DIR/key", "ca_file": "DIR/cert",
                "database_driver": "sqlite", "database_connection_string": "/d/x.sqlite",
                "encryption_keys": {"k": "p"}, "active_key_label": "k", "health_address": "127.0.0.1:8890", "auctioneer_address": "https://auctioneer:9016"}),
        };
        usual.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        usual
    }

    #[test]
    fn what_others_cannot_be_begun_with_is_refused_in_known_words() {
        for (component, json, word) in [
            ("bbs", json!({"loggregator": 1}), "failed-to-initialize-metron-client"),
            ("bbs", json!({"health_address": ""}), "failed-invalid-health-address"),
            ("bbs", json!({"health_address": "127.0.0.1:x"}), "failed-invalid-health-port"),
            ("bbs", json!({"encryption_keys": {}}), "cannot-setup-encryption"),
            ("bbs", json!({"active_key_label": "other"}), "cannot-setup-encryption"),
            ("bbs", json!({"database_driver": ""}), "no-database-configured"),
            ("bbs", json!({"database_connection_string": null}), "no-database-configured"),
            ("bbs", json!({"database_driver": "oracle"}), "failed-to-open-sql"),
            ("bbs", json!({"auctioneer_address": ""}), "auctioneer-address-validation-failed"),
            ("bbs", json!({"auctioneer_ca_cert": "DIR/cert"}), "failed-to-construct-auctioneer-client"),
            ("bbs", json!({"key_file": "DIR/other-key"}), "tls-configuration-failed"),
            ("bbs", json!({"locket_address": ""}), "failed-to-create-locket-client"),
            ("bbs", json!({"locket_ca_cert_file": "DIR/none"}), "failed-to-create-locket-client"),
            ("bbs", json!({"uuid": ""}), "invalid-uuid"),
            ("locket", json!({"loggregator": 1}), "failed-to-initialize-metron-client"),
            ("locket", json!({"database_driver": ""}), "no-database-configured"),
            ("locket", json!({"database_driver": "oracle"}), "failed-to-open-sql"),
            ("locket", json!({"ca_file": ""}), "invalid-tls-config"),
            ("auctioneer", json!({"loggregator": 1}), "failed-to-initialize-metron"),
            ("auctioneer", json!({"bbs_address": ""}), "invalid-bbs-address"),
            ("auctioneer", json!({"locket_address": ""}), "failed-to-connect-to-locket"),
            ("auctioneer", json!({"uuid": ""}), "invalid-uuid"),
            ("auctioneer", json!({"bbs_client_key_file": ""}), "failed-to-configure-secure-BBS-client"),
            ("auctioneer", json!({"ca_cert_file": "DIR/cert"}), "invalid-tls-config"),
        ] {
            let why = expanded_of(component, usual(component), json.clone(), "x", &[]).unwrap_err();
            assert!(why.starts_with(&format!("{word}: ")), "{component} {json}: {why}");
        }
    }

    #[test]
    fn what_a_deployment_renders_for_others_is_told() {
        for (component, json, expected) in [
            ("bbs", json!({"session_name": "bbs-2"}), "--log-source=bbs-2"),
            ("bbs", json!({}), "--database=/d/x.sqlite"),
            (
                "bbs",
                json!({"database_driver": "postgres", "database_connection_string": "postgres://u:p@db:5432/diego"}),
                "--database=postgres://u:p@db:5432/diego?sslmode=prefer",
            ),
            ("bbs", json!({}), "--lock-owner=u-1"),
            ("bbs", json!({"lock_ttl": "15s"}), "--lock-ttl=15s"),
            ("bbs", json!({"max_task_retries": 3}), "--max-task-retries=3"),
            ("bbs", json!({}), "--max-task-retries=0"),
            ("bbs", json!({"rep_ca_cert": "/c"}), "--rep-ca-cert-file=/c"),
            ("locket", json!({}), "--log-source=locket"),
            ("locket", json!({"debug_address": "127.0.0.1:17018"}), "--debug-listen=127.0.0.1:17018"),
            ("auctioneer", json!({"time_format": "rfc3339"}), "--log-time-format=rfc3339"),
            ("auctioneer", json!({}), "--bbs-url=https://bbs:8889"),
        ] {
            let flags = expanded_of(component, usual(component), json, "x", &[]).unwrap();
            let seals = flags.iter().any(|flag| flag.starts_with("--encryption-keys=/"));
            assert_eq!(seals, component == "bbs");
            assert!(flags.iter().any(|flag| flag == expected), "{component}: {expected} in {flags:?}");
        }
        let loggregator = json!({"loggregator_use_v2_api": false, "loggregator_ca_path": "DIR/cert",
            "loggregator_cert_path": "DIR/cert", "loggregator_key_path": "DIR/key", "loggregator_api_port": 3458});
        let json = |use_it: bool| {
            let mut told = loggregator.clone();
            told["loggregator_use_v2_api"] = use_it.into();
            json!({ "loggregator": told })
        };
        let told = |json| expanded_of("locket", usual("locket"), json, "x", &[]).unwrap();
        let flag = "--loggregator=127.0.0.1:3458".to_string();
        assert!(told(json(true)).contains(&flag) && !told(json(false)).contains(&flag));
    }

    #[test]
    fn others_and_no_file_are_left_alone() {
        let told = || vec![OsString::from("-config"), "x".into()];
        assert_eq!(expand("gdn", told()).unwrap(), told());
        assert_eq!(expand("rep", vec!["--zone=z".into()]).unwrap(), [OsString::from("--zone=z")]);
    }
}
