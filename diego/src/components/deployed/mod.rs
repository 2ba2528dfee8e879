//! The JSON file by which deployments tell a component what it is to do (`rep -config FILE`), turned into flags.
//!
//! Each component has a table of the keys that deployments render for it: which flag a key is, or why it means nothing
//! here. What the command line says itself goes before the file. A key that is in no table is named on standard error,
//! and has no effect, as ever.

mod auctioneer;
mod refusal;
mod rep;
mod route_emitter;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use refusal::Refusal;
use serde_json::{Map, Value};

const FILE_BYTES_MAX: u64 = 1 << 20;

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
    /// Told in a way of its own, by the component's [`Special`]s.
    Special,
    /// Nothing: what it sets does not exist here, or cannot be set.
    Nothing,
}

use To::{Each, Flag, If, Nothing, Special};

type Table = &'static [(&'static str, To)];
/// The flags of keys that depend on one another or are written in another form; errors name the key.
type Specials = fn(&Settings) -> Result<Vec<String>, (&'static str, String)>;

/// Whether the component can be begun at all with what its file says.
type Check = fn(&Settings) -> Result<(), Refusal>;

/// Subcommands that may be started with such a file.
const COMPONENTS: [(&str, Table, Specials, Check); 3] = [
    ("auctioneer", auctioneer::TABLE, auctioneer::specials, |_| Ok(())),
    ("rep", rep::TABLE, rep::specials, rep::check),
    ("route-emitter", route_emitter::TABLE, route_emitter::specials, |_| Ok(())),
];

/// `SUBCOMMAND [-config FILE] [-FLAG…]` with the file's flags in it; what is none of these components is left alone.
pub fn expand(subcommand: &str, told: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let Some((_, table, specials, check)) = COMPONENTS.iter().find(|(name, ..)| *name == subcommand) else {
        return Ok(told);
    };
    let (config, rest) = split(told)?;
    let Some(path) = config else { return Ok(rest) };
    let settings = Settings::read(&path)?;
    let unknown = settings.unknown(table);
    if !unknown.is_empty() {
        eprintln!("{subcommand}: {}: without effect here: {}", path.display(), unknown.join(", "));
    }
    check(&settings)?;
    let flags = settings.flags(table, *specials).map_err(|(key, why)| Error::Key { path, key, why })?;
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

    fn unknown(&self, table: Table) -> Vec<&str> {
        let is_known = |key: &str| table.iter().any(|(known, _)| *known == key);
        self.0.keys().map(String::as_str).filter(|key| !is_known(key)).collect()
    }

    fn flags(&self, table: Table, specials: Specials) -> Result<Vec<String>, (&'static str, String)> {
        let mut flags = Vec::new();
        for (key, to) in table {
            match to {
                Flag(flag) => flags.extend(self.text(key)?.map(|text| format!("--{flag}={text}"))),
                If(flag) => flags.extend(self.is(key)?.then(|| format!("--{flag}"))),
                Each(flag) => flags.extend(self.list(key)?.iter().map(|text| format!("--{flag}={text}"))),
                Special | Nothing => {}
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
    fn expanded(mut json: Value, san: &str, told: &[&str]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let pair = rcgen::generate_simple_self_signed([san.to_owned()]).unwrap();
        std::fs::write(path("cert"), pair.cert.pem()).unwrap();
        std::fs::write(path("key"), pair.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("other-key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        std::fs::write(path("torn"), pair.cert.pem() + "MIIF\n-----END CERTIFICATE-----\n").unwrap();
        let mut usual = Map::new();
        for (key, value) in
            [("cell_id", "c1"), ("locket_address", "127.0.0.1:8891"), ("cert_file", "DIR/cert")]
        {
            usual.insert(key.into(), value.into());
        }
        usual.insert("key_file".into(), "DIR/key".into());
        usual.insert("ca_cert_file".into(), "DIR/cert".into());
        if let Value::Object(json) = &mut json {
            usual.append(json);
            json.append(&mut usual);
        }
        let dir_name = dir.path().display().to_string();
        std::fs::write(path("config"), json.to_string().replace("DIR", &dir_name)).unwrap();
        let config = ["-config".into(), OsString::from(path("config"))];
        let told = config.into_iter().chain(told.iter().map(OsString::from)).collect();
        let flags = expand("rep", told).map_err(|error| error.to_string().replace(&dir_name, "DIR"))?;
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
        for (component, table, ..) in COMPONENTS {
            let mut keys: Vec<_> = table.iter().map(|(key, _)| *key).collect();
            let count = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), count, "{component}");
            let subcommand = command.find_subcommand(component).unwrap();
            for (key, to) in table {
                let (Flag(flag) | If(flag) | Each(flag)) = to else { continue };
                let known = subcommand.get_arguments().any(|argument| argument.get_long() == Some(flag));
                assert!(known, "{component}: {key}: --{flag}");
            }
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

    #[test]
    fn others_and_no_file_are_left_alone() {
        let told = || vec![OsString::from("-config"), "x".into()];
        assert_eq!(expand("gdn", told()).unwrap(), told());
        assert_eq!(expand("rep", vec!["--zone=z".into()]).unwrap(), [OsString::from("--zone=z")]);
    }
}
