//! Logs as JSON lines in the form that Diego's tools read: timestamp, level, source, message, data.
//!
//! Code logs with `tracing`'s macros. The source is the component, told from the crate that logged. Everything a line
//! says besides its message is in `data`.

use std::io::Write;
use std::sync::Mutex;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::{Layer, filter::Targets, reload};

/// Bytes of one value of `data`; what is longer is cut.
pub const DATA_STRING_BYTES_MAX: usize = 4 * 1024;

/// The crate of the program that all components are in.
const PROGRAM: &str = "diego";

/// How lines look where it is not as usual.
#[derive(Debug, Clone, Default)]
pub struct Style {
    /// The source of every line, whichever part of the process speaks: the name by which its deployment knows it.
    pub process: Option<String>,
    /// The source `.0` is called `.1`: a component that goes by its established name.
    pub renamed: Option<(&'static str, &'static str)>,
    pub timestamps: Timestamps,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Timestamps {
    /// `"timestamp":"2026-11-22T…Z"` with `"level":"info"`.
    #[default]
    Rfc3339,
    /// `"timestamp":"1700000000.123456789"` with `"log_level":1`.
    UnixEpoch,
}

/// Changes from what level on this process logs, while it runs.
#[derive(Debug, Clone, Default)]
pub struct LevelSwitch(Option<reload::Handle<Targets, Registry>>);

impl LevelSwitch {
    /// As it is told at debug addresses: by name, letter or number. The level's name, or why there is none.
    ///
    /// Nothing here is ever worse than an error, so that `fatal` silences everything.
    pub fn set_told(&self, text: &str) -> Result<&'static str, String> {
        let (name, filter) = level(text)?;
        self.set(filter);
        Ok(name)
    }

    /// Every source of ours alike. Without effect where this process's logs go elsewhere.
    pub fn set(&self, level: LevelFilter) {
        let Some(switch) = &self.0 else { return };
        if switch.reload(of_ours(level)).is_err() {
            tracing::warn!("cannot change the level of the log");
        }
    }
}

/// Libraries that say what passes through them, tokens and all: they are heard only when they are named.
const TALKATIVE: [&str; 10] =
    ["h2", "hyper", "hyper_util", "reqwest", "russh", "rustls", "sqlx", "tonic", "tower", "tungstenite"];

fn of_ours(level: LevelFilter) -> Targets {
    let of_others = level.min(LevelFilter::WARN);
    Targets::new().with_default(level).with_targets(TALKATIVE.map(|name| (name, of_others)))
}

fn level(text: &str) -> Result<(&'static str, LevelFilter), String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "" => Err("log level cannot be empty".into()),
        "0" | "d" | "debug" => Ok(("debug", LevelFilter::DEBUG)),
        "1" | "i" | "info" => Ok(("info", LevelFilter::INFO)),
        "2" | "w" | "warn" => Ok(("warn", LevelFilter::WARN)),
        "3" | "e" | "error" => Ok(("error", LevelFilter::ERROR)),
        "4" | "f" | "fatal" => Ok(("fatal", LevelFilter::OFF)),
        other => Err(format!("invalid log level: {}", other.chars().take(40).collect::<String>())),
    }
}

/// Sends this process's logs to `output`. `filter` is a level (`info`) or directives (`info,garden=debug`).
/// Only the first call of a process has an effect.
pub fn init(filter: &str, output: Box<dyn Write + Send>) -> LevelSwitch {
    init_styled(filter, output, Style::default())
}

pub fn init_styled(filter: &str, output: Box<dyn Write + Send>, style: Style) -> LevelSwitch {
    let filter = match filter.parse::<LevelFilter>() {
        Ok(level) => of_ours(level),
        Err(_) => filter.parse().unwrap_or_else(|_| of_ours(LevelFilter::INFO)),
    };
    let (filter, switch) = reload::Layer::new(filter);
    let lines = Lines { output: Mutex::new(output), style }.with_filter(filter);
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
    LevelSwitch(Some(switch))
}

struct Lines {
    output: Mutex<Box<dyn Write + Send>>,
    style: Style,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let now = jiff::Timestamp::now();
        let mut line = line(&self.style, metadata.target(), *metadata.level(), fields, now).to_string();
        line.push('\n');
        // A log that cannot be written must not stop the work it tells of.
        if let Ok(mut output) = self.output.lock() {
            let _ = output.write_all(line.as_bytes());
        }
    }
}

fn line(style: &Style, target: &str, level: Level, fields: Fields, now: jiff::Timestamp) -> Value {
    let own = match (&style.process, source(target)) {
        // What the program says of itself, its process says.
        (Some(process), own) if own == PROGRAM => process.clone(),
        (_, own) => own,
    };
    let source = match style.renamed {
        Some((from, to)) if own == from => to.to_owned(),
        _ => own,
    };
    // `started` of the bbs is `bbs.started`, which tools wait for; a sentence stays a sentence.
    let mut message = within(&source, fields.message.unwrap_or_default());
    let source = match &style.process {
        Some(process) => {
            message = within(process, message);
            process.clone()
        }
        None => source,
    };
    let (name, number) = match level {
        Level::ERROR => ("error", 2),
        Level::WARN | Level::INFO => ("info", 1),
        _ => ("debug", 0),
    };
    match style.timestamps {
        Timestamps::Rfc3339 => json!({
            "timestamp": now.to_string(),
            "level": name,
            "source": source,
            "message": message,
            "data": fields.data,
        }),
        Timestamps::UnixEpoch => json!({
            "timestamp": format!("{}.{:09}", now.as_second(), now.subsec_nanosecond()),
            "log_level": number,
            "source": source,
            "message": message,
            "data": fields.data,
        }),
    }
}

fn within(source: &str, message: String) -> String {
    let whole = message.contains(' ') || message.starts_with(&format!("{source}."));
    if whole { message } else { format!("{source}.{message}") }
}

/// The component a module path belongs to: `brain::ssh_proxy::session` is the ssh-proxy.
fn source(target: &str) -> String {
    let mut parts = target.split("::");
    let first = parts.next().unwrap_or_default();
    let named = match first {
        "brain" => parts.next().unwrap_or(first),
        "bbs" if parts.next() == Some("locket") => "locket",
        other => other,
    };
    named.replace('_', "-")
}

#[derive(Default)]
struct Fields {
    message: Option<String>,
    data: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
            name => drop(self.data.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, cut(format!("{value:?}")).into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, cut(value.to_owned()).into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        self.put(field, cut(text).into());
    }
}

fn cut(mut text: String) -> String {
    if text.len() > DATA_STRING_BYTES_MAX {
        text.truncate(text.floor_char_boundary(DATA_STRING_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_line_is_its_component() {
        for (target, expected) in [
            ("bbs::http", "bbs"),
            ("bbs::locket::server", "locket"),
            ("brain::ssh_proxy::session", "ssh-proxy"),
            ("garden", "garden"),
        ] {
            assert_eq!(source(target), expected, "{target}");
        }
    }

    #[test]
    fn a_level_has_a_name_a_letter_and_a_number() {
        for (text, expected) in
            [("0", "debug"), ("D", "debug"), (" info\n", "info"), ("e", "error"), ("FATAL", "fatal")]
        {
            assert_eq!(level(text).unwrap().0, expected, "{text}");
        }
        assert_eq!(level(" "), Err("log level cannot be empty".into()));
        assert_eq!(level("loud"), Err("invalid log level: loud".into()));
    }

    #[test]
    fn libraries_are_not_heard_for_a_level_of_ours() {
        let heard = |filter: LevelFilter, target, level| of_ours(filter).would_enable(target, &level);
        assert!(heard(LevelFilter::DEBUG, "bbs::http", Level::DEBUG));
        assert!(!heard(LevelFilter::DEBUG, "h2::codec", Level::DEBUG));
        assert!(heard(LevelFilter::DEBUG, "h2::codec", Level::WARN));
        assert!(!heard(LevelFilter::OFF, "h2::codec", Level::ERROR));
    }

    #[test]
    fn a_word_becomes_the_message_tools_wait_for_and_a_sentence_stays() {
        let said = |message: &str| {
            let fields = Fields { message: Some(message.into()), ..Fields::default() };
            let line = line(&Style::default(), "bbs", Level::INFO, fields, jiff::Timestamp::now());
            line["message"].as_str().unwrap().to_owned()
        };
        assert_eq!(said("started"), "bbs.started");
        assert_eq!(said("bbs.started"), "bbs.started");
        assert_eq!(said("cannot accept a connection"), "cannot accept a connection");
    }

    #[test]
    fn a_component_may_go_by_another_name_and_count_seconds() {
        let style = Style {
            renamed: Some(("garden", "guardian")),
            timestamps: Timestamps::UnixEpoch,
            ..Style::default()
        };
        let fields = Fields { message: Some("started".into()), ..Fields::default() };
        let now = jiff::Timestamp::new(1_700_000_000, 12).unwrap();
        let line = line(&style, "garden::http", Level::WARN, fields, now);
        assert_eq!(
            line,
            json!({
                "timestamp": "1700000000.000000012", "log_level": 1, "source": "guardian",
                "message": "guardian.started", "data": {},
            })
        );
    }

    #[test]
    fn a_process_may_speak_with_one_voice() {
        let style = Style { process: Some("rep".into()), ..Style::default() };
        for (target, said, expected) in [
            ("rep::harmonizer", "started", "rep.started"),
            ("rep", "rep.started", "rep.started"),
            ("executor::cache", "download-began", "rep.executor.download-began"),
            ("executor", "executor.download-began", "rep.executor.download-began"),
            ("executor", "a download began", "a download began"),
            ("diego::components", "invalid-cell-id", "rep.invalid-cell-id"),
        ] {
            let fields = Fields { message: Some(said.into()), ..Fields::default() };
            let line = line(&style, target, Level::INFO, fields, jiff::Timestamp::now());
            assert_eq!((line["source"].as_str(), line["message"].as_str()), (Some("rep"), Some(expected)));
        }
    }
}
