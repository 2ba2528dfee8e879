//! Log lines as the platform's components write them: one JSON object a line on standard output.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Level {
    Debug,
    Info,
    Error,
    Fatal,
}

#[derive(Clone, Copy, Debug)]
pub struct Log {
    least: Level,
}

impl Log {
    /// Logs everything from the level of this name up.
    pub fn new(level: &str) -> Option<Log> {
        let least = match level {
            "debug" => Level::Debug,
            "info" => Level::Info,
            "error" => Level::Error,
            "fatal" => Level::Fatal,
            _ => return None,
        };
        Some(Log { least })
    }

    pub fn debug(&self, message: &str, data: Value) {
        self.write(Level::Debug, message, data);
    }

    pub fn info(&self, message: &str, data: Value) {
        self.write(Level::Info, message, data);
    }

    pub fn error(&self, message: &str, error: &dyn std::fmt::Display) {
        self.write(Level::Error, message, json!({ "error": error.to_string() }));
    }

    fn write(&self, level: Level, message: &str, data: Value) {
        if level < self.least {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = json!({
            "timestamp": format!("{}.{:09}", now.as_secs(), now.subsec_nanos()),
            "source": "sshd",
            "message": format!("sshd.{message}"),
            "log_level": level as u8,
            "data": data,
        });
        println!("{line}");
    }
}
