//! Keys that several components' files share, each group in one table.

use super::{Flag, Nothing, Refusal, Settings, Special, Table};
use crate::components::deployed::refusal::{Keys, identity};

/// What is logged, and how.
pub const LAGER: Table = &[
    ("log_level", Flag("log-level")),
    ("max_data_string_length", Nothing),
    // Nothing that is logged holds a secret.
    ("redact_patterns", Nothing),
    ("redact_secrets", Nothing),
    ("time_format", Flag("log-time-format")),
];

/// Who is told of metrics, and where a component is looked into.
pub const REPORT: Table = &[
    ("debug_address", Flag("debug-listen")),
    ("loggregator", Special),
    ("report_interval", Flag("report-interval")),
];

pub const LOCKET_CLIENT: Table = &[
    ("locket_address", Flag("locket")),
    ("locket_ca_cert_file", Flag("locket-ca-cert-file")),
    ("locket_client_cert_file", Flag("locket-cert-file")),
    // Connections are pinged, always.
    ("locket_client_keepalive_time", Nothing),
    ("locket_client_keepalive_timeout", Nothing),
    ("locket_client_key_file", Flag("locket-key-file")),
];

/// The lock of those of whom one works.
pub const LOCK: Table = &[
    ("lock_retry_interval", Flag("lock-retry-interval")),
    ("lock_ttl", Flag("lock-ttl")),
    ("uuid", Flag("lock-owner")),
];

pub const BBS_CLIENT: Table = &[
    ("bbs_address", Flag("bbs-url")),
    ("bbs_ca_cert_file", Flag("bbs-ca-cert-file")),
    ("bbs_client_cert_file", Flag("bbs-cert-file")),
    ("bbs_client_key_file", Flag("bbs-key-file")),
    ("bbs_client_session_cache_size", Nothing),
    ("bbs_max_idle_conns_per_host", Nothing),
];

pub const REP_CLIENT: Table = &[
    ("rep_ca_cert", Flag("rep-ca-cert-file")),
    ("rep_client_cert", Flag("rep-cert-file")),
    ("rep_client_key", Flag("rep-key-file")),
    ("rep_client_session_cache_size", Nothing),
    // Cells are spoken to with TLS where their presence says so.
    ("rep_require_tls", Nothing),
];

/// A forwarder that is not there yet is waited for; one that cannot be spoken to is not.
pub fn metron(settings: &Settings) -> Result<(), String> {
    let told = settings.within("loggregator").map_err(|(key, why)| format!("{key}: {why}"))?;
    if !is_forwarded(&told) {
        return Ok(());
    }
    let keys = Keys { cert: "loggregator_cert_path", key: "loggregator_key_path", ca: "loggregator_ca_path" };
    identity(&told, &keys).map(drop)
}

/// Older deployments say by a key whether they have a forwarder that can be spoken to.
fn is_forwarded(told: &Settings) -> bool {
    let has_authority = matches!(told.text("loggregator_ca_path"), Ok(Some(_)));
    has_authority && told.0.get("loggregator_use_v2_api") != Some(&false.into())
}

pub fn loggregator(settings: &Settings) -> super::Flags {
    let told = settings.within("loggregator")?;
    if !is_forwarded(&told) {
        return Ok(vec![]);
    }
    let (Some(ca), Some(port)) = (told.text("loggregator_ca_path")?, told.text("loggregator_api_port")?)
    else {
        return Ok(vec![]);
    };
    let host = told.text("loggregator_api_host")?.unwrap_or_else(|| "127.0.0.1".into());
    let mut flags = vec![format!("--loggregator={host}:{port}"), format!("--loggregator-ca-cert-file={ca}")];
    for (key, flag) in [
        ("loggregator_cert_path", "loggregator-cert-file"),
        ("loggregator_key_path", "loggregator-key-file"),
        ("loggregator_job_origin", "loggregator-origin"),
        ("loggregator_source_id", "loggregator-source-id"),
        ("loggregator_instance_id", "loggregator-instance-id"),
        ("loggregator_batch_max_size", "loggregator-batch-max-size"),
    ] {
        flags.extend(told.text(key)?.map(|text| format!("--{flag}={text}")));
    }
    Ok(flags)
}

/// The Locket whose lock says which of several works, and as whom this one holds it.
pub fn lock(settings: &Settings, word: &'static str, code: u8) -> Result<(), Refusal> {
    let says = |key| matches!(settings.text(key), Ok(Some(_)));
    if !says("locket_address") {
        return Err(Refusal::new(word, code, "the file says no locket_address"));
    }
    let keys =
        Keys { cert: "locket_client_cert_file", key: "locket_client_key_file", ca: "locket_ca_cert_file" };
    identity(settings, &keys).map_err(|why| Refusal::new(word, code, why))?;
    if !says("uuid") {
        return Err(Refusal::new("invalid-uuid", code, "invalid-uuid-from-config"));
    }
    Ok(())
}
