//! The keys that the BBS seals its records with, from a file: passphrases are no business of a command line.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use bbs::EncryptionKeys;
use clap::Args;
use serde::Deserialize;

#[derive(Args)]
#[command(next_help_heading = "Encryption")]
pub struct Encryption {
    /// A JSON file with `encryption_keys`, passphrases by their labels, and `active_key_label`, the one to seal records with;
    /// what a deployment renders for the BBS is such a file. Without it records are not sealed.
    #[arg(long, value_name = "FILE")]
    encryption_keys: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    active_key_label: String,
    #[serde(default)]
    encryption_keys: HashMap<String, String>,
}

impl Encryption {
    pub fn keys(&self) -> Result<Option<EncryptionKeys>> {
        let Some(path) = &self.encryption_keys else { return Ok(None) };
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The cause would quote the file.
        let settings: Settings = serde_json::from_slice(&text).map_err(|error| {
            anyhow::anyhow!("{} is no JSON with encryption keys, at line {}", path.display(), error.line())
        })?;
        let keys = EncryptionKeys::new(&settings.active_key_label, settings.encryption_keys);
        Ok(Some(keys.with_context(|| format!("cannot use the encryption keys in {}", path.display()))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<bool, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        std::fs::write(&path, text).unwrap();
        let keys = Encryption { encryption_keys: Some(path) }.keys();
        keys.map(|keys| keys.is_some()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn keys_are_read_as_deployments_render_them() {
        let config =
            r#"{"listen_address": "x", "active_key_label": "b", "encryption_keys": {"a": "p", "b": "q"}}"#;
        assert_eq!(keys(config), Ok(true));
        let unknown = keys(r#"{"active_key_label": "c", "encryption_keys": {"a": "secret"}}"#).unwrap_err();
        assert!(
            unknown.ends_with("The selected active key must be listed on the encryption keys flag"),
            "{unknown}"
        );
        let refused = keys(r#"{"encryption_keys": {"a": secret}}"#).unwrap_err();
        assert!(refused.ends_with("at line 1") && !refused.contains("secret"), "{refused}");
        assert!(Encryption { encryption_keys: None }.keys().unwrap().is_none());
    }
}
