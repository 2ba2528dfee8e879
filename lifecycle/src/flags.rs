//! Command-line flags as the platform's clients send them: `-name=value`, `-name value`, `--name=value`, `--name value`,
//! switches alone or with `=true`/`=false`, durations such as `1m30s`. The first word that is no flag ends them.
//!
//! It knows no sub-commands and no short forms: the four lifecycle programs have none, and each byte of them is copied
//! into every container.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

/// The flags one program knows, each with its default.
pub struct FlagSet {
    program: &'static str,
    flags: Vec<Flag>,
}

struct Flag {
    name: &'static str,
    value: Value,
    usage: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Switch(bool),
    Duration(Duration),
    Number(i64),
}

/// What was given on the command line, with defaults for the rest.
#[derive(Debug)]
pub struct Parsed {
    values: BTreeMap<&'static str, Value>,
    /// The words after the flags.
    pub rest: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum FlagError {
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    NeedsArgument(String),
    #[error("invalid value {value:?} for flag -{name}: {why}")]
    Invalid { name: String, value: String, why: &'static str },
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// `-h` or `-help`: the text to show.
    #[error("{0}")]
    Help(String),
}

impl FlagSet {
    pub fn new(program: &'static str) -> Self {
        FlagSet { program, flags: Vec::new() }
    }

    pub fn text(self, name: &'static str, default: &str, usage: &'static str) -> Self {
        self.with(name, Value::Text(default.to_owned()), usage)
    }

    pub fn switch(self, name: &'static str, default: bool, usage: &'static str) -> Self {
        self.with(name, Value::Switch(default), usage)
    }

    pub fn duration(self, name: &'static str, default: Duration, usage: &'static str) -> Self {
        self.with(name, Value::Duration(default), usage)
    }

    pub fn number(self, name: &'static str, default: i64, usage: &'static str) -> Self {
        self.with(name, Value::Number(default), usage)
    }

    fn with(mut self, name: &'static str, value: Value, usage: &'static str) -> Self {
        self.flags.push(Flag { name, value, usage });
        self
    }

    /// Reads `arguments` (without the program's name).
    pub fn parse(&self, arguments: impl IntoIterator<Item = String>) -> Result<Parsed, FlagError> {
        let mut values: BTreeMap<_, _> =
            self.flags.iter().map(|flag| (flag.name, flag.value.clone())).collect();
        let mut words = arguments.into_iter();
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            let Some((name, attached)) = split(&word)? else {
                if word != "--" {
                    rest.push(word);
                }
                rest.extend(words);
                break;
            };
            let flag = self.find(name)?;
            let given = match (attached, &flag.value) {
                (Some(value), _) => value.to_owned(),
                (None, Value::Switch(_)) => "true".to_owned(),
                (None, _) => words.next().ok_or_else(|| FlagError::NeedsArgument(name.to_owned()))?,
            };
            values.insert(flag.name, flag.read(given)?);
        }
        Ok(Parsed { values, rest })
    }

    /// Reads the command line of this process; on an error says why and ends it with 2, as flag parsers of this kind do.
    pub fn parse_or_exit(&self) -> Parsed {
        match self.parse(std::env::args().skip(1)) {
            Ok(parsed) => parsed,
            Err(FlagError::Help(text)) => {
                eprint!("{text}");
                std::process::exit(0)
            }
            Err(error) => {
                eprintln!("{error}");
                eprint!("{}", self.usage());
                std::process::exit(2)
            }
        }
    }

    pub fn usage(&self) -> String {
        let mut text = format!("Usage of {}:\n", self.program);
        for flag in &self.flags {
            let (kind, default) = match &flag.value {
                Value::Text(default) => (" string", format!("{default:?}")),
                Value::Switch(default) => ("", default.to_string()),
                Value::Duration(default) => (" duration", format_duration(*default)),
                Value::Number(default) => (" int", default.to_string()),
            };
            let _ = writeln!(text, "  -{}{kind}\n    \t{} (default {default})", flag.name, flag.usage);
        }
        text
    }

    fn find(&self, name: &str) -> Result<&Flag, FlagError> {
        if let Some(flag) = self.flags.iter().find(|flag| flag.name == name) {
            return Ok(flag);
        }
        Err(match name {
            "h" | "help" => FlagError::Help(self.usage()),
            _ => FlagError::Unknown(name.to_owned()),
        })
    }
}

/// The name and the attached value of a flag; `None` when the word is no flag (or is the `--` that ends them).
fn split(word: &str) -> Result<Option<(&str, Option<&str>)>, FlagError> {
    let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let name = name.strip_prefix('-').unwrap_or(name);
    if name.is_empty() {
        return Ok(None);
    }
    if name.starts_with(['-', '=']) {
        return Err(FlagError::Syntax(word.to_owned()));
    }
    Ok(Some(match name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (name, None),
    }))
}

impl Flag {
    fn read(&self, given: String) -> Result<Value, FlagError> {
        let read = match &self.value {
            Value::Text(_) => Ok(Value::Text(given.clone())),
            Value::Switch(_) => match given.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Switch(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Switch(false)),
                _ => Err("not a boolean"),
            },
            Value::Duration(_) => parse_duration(&given).map(Value::Duration).ok_or("not a duration"),
            Value::Number(_) => given.parse().map(Value::Number).map_err(|_| "not a number"),
        };
        read.map_err(|why| FlagError::Invalid { name: self.name.to_owned(), value: given, why })
    }
}

impl Parsed {
    /// Asking for a flag that was never declared, or as another kind, is a slip of the program itself.
    fn value(&self, name: &str) -> &Value {
        self.values.get(name).expect("flag is declared")
    }

    pub fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Value::Text(text) => text,
            other => unreachable!("-{name} is declared as {other:?}"),
        }
    }

    pub fn switch(&self, name: &str) -> bool {
        matches!(self.value(name), Value::Switch(true))
    }

    pub fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Duration(duration) => *duration,
            other => unreachable!("-{name} is declared as {other:?}"),
        }
    }

    pub fn number(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Number(number) => *number,
            other => unreachable!("-{name} is declared as {other:?}"),
        }
    }

    /// The names of the text flags left empty, in alphabetical order.
    pub fn empty_texts(&self) -> Vec<&'static str> {
        let empty = |value: &Value| matches!(value, Value::Text(text) if text.is_empty());
        self.values.iter().filter(|(_, value)| empty(value)).map(|(name, _)| *name).collect()
    }
}

/// Nanoseconds of each unit a duration may be written in; longer names first where one begins another.
const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads `0`, `300ms`, `1h15m30.5s`. Negative durations have no use here and are refused.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanoseconds = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|length| *length > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        let (name, scale) = UNITS.iter().find(|(name, _)| unit(&rest[digits..]) == *name)?;
        nanoseconds += number * scale;
        rest = &rest[digits + name.len()..];
    }
    let whole = !text.is_empty() && nanoseconds.is_finite() && nanoseconds < i64::MAX as f64;
    whole.then(|| Duration::from_nanos(nanoseconds.round() as u64))
}

fn unit(rest: &str) -> &str {
    let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    &rest[..end]
}

/// Writes `1h2m3.5s`, `1m0s`, `1.5s`, `300ms`, `0s`: the form that messages of the platform show.
pub fn format_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    match nanoseconds {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{nanoseconds}ns"),
        1_000..1_000_000 => return format!("{}µs", nanoseconds as f64 / 1e3),
        1_000_000..1_000_000_000 => return format!("{}ms", nanoseconds as f64 / 1e6),
        _ => {}
    }
    let seconds = duration.as_secs();
    let last = (seconds % 60) as f64 + f64::from(duration.subsec_nanos()) / 1e9;
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{last}s"),
        (0, minutes) => format!("{minutes}m{last}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{last}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> FlagSet {
        FlagSet::new("program")
            .text("port", "8080", "the port")
            .switch("skipDetect", false, "skip")
            .duration("timeout", Duration::from_secs(1), "how long")
            .number("attempts", 3, "how often")
    }

    fn parse(line: &str) -> Result<Parsed, FlagError> {
        set().parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn one_dash_and_two_dashes_with_and_without_equals_mean_the_same() {
        for line in ["-port=1", "-port 1", "--port=1", "--port 1"] {
            assert_eq!(parse(line).unwrap().text("port"), "1", "{line}");
        }
        assert_eq!(parse("").unwrap().text("port"), "8080");
        assert_eq!(parse("-port=a=b").unwrap().text("port"), "a=b");
        assert_eq!(parse("-attempts -2").unwrap().number("attempts"), -2);
    }

    #[test]
    fn a_switch_takes_no_word_after_it() {
        let parsed = parse("-skipDetect app start").unwrap();
        assert!(parsed.switch("skipDetect"));
        assert_eq!(parsed.rest, ["app", "start"]);
        assert!(!parse("-skipDetect=false").unwrap().switch("skipDetect"));
    }

    #[test]
    fn flags_end_at_the_first_other_word_or_at_two_dashes() {
        assert_eq!(parse("app -port=1").unwrap().rest, ["app", "-port=1"]);
        assert_eq!(parse("-- -port=1").unwrap().rest, ["-port=1"]);
        assert_eq!(parse("- x").unwrap().rest, ["-", "x"]);
    }

    #[test]
    fn wrong_flags_are_refused_by_name() {
        let says = |line| parse(line).unwrap_err().to_string();
        assert_eq!(says("-colour=red"), "flag provided but not defined: -colour");
        assert_eq!(says("-port"), "flag needs an argument: -port");
        assert_eq!(says("---port"), "bad flag syntax: ---port");
        assert_eq!(says("-timeout=soon"), "invalid value \"soon\" for flag -timeout: not a duration");
        assert!(says("-help").starts_with("Usage of program:\n  -port string"));
    }

    #[test]
    fn durations_read_and_write_alike() {
        let table = [
            ("0", 0, "0s"),
            ("300ms", 300_000_000, "300ms"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("60s", 60_000_000_000, "1m0s"),
            ("1h15m30.5s", 4_530_500_000_000, "1h15m30.5s"),
            ("10us", 10_000, "10µs"),
            ("7ns", 7, "7ns"),
        ];
        for (text, nanoseconds, written) in table {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.as_nanos(), nanoseconds, "{text}");
            assert_eq!(format_duration(duration), written);
        }
        for text in ["", "5", "s", "-1s", "1x", "1.1.1s", "99999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
