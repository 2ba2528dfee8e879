//! An auctioneer's file.

use super::{Flag, Nothing, Settings, Special, Table};

pub const TABLE: Table = &[
    // Cells are asked all at once.
    ("auction_runner_workers", Nothing),
    ("bbs_address", Flag("bbs-url")),
    ("bbs_ca_cert_file", Flag("bbs-ca-cert-file")),
    ("bbs_client_cert_file", Flag("bbs-cert-file")),
    ("bbs_client_key_file", Flag("bbs-key-file")),
    ("bbs_client_session_cache_size", Nothing),
    ("bbs_max_idle_conns_per_host", Nothing),
    ("bin_pack_first_fit_weight", Flag("bin-pack-first-fit-weight")),
    ("ca_cert_file", Flag("ca-cert-file")),
    ("cell_state_timeout", Flag("cell-state-timeout")),
    ("communication_timeout", Flag("communication-timeout")),
    ("debug_address", Nothing),
    ("listen_address", Flag("listen")),
    ("lock_retry_interval", Nothing),
    ("lock_ttl", Nothing),
    ("locket_address", Flag("locket")),
    ("locket_ca_cert_file", Flag("locket-ca-cert-file")),
    ("locket_client_cert_file", Flag("locket-cert-file")),
    ("locket_client_keepalive_time", Nothing),
    ("locket_client_keepalive_timeout", Nothing),
    ("locket_client_key_file", Flag("locket-key-file")),
    ("log_level", Flag("log-level")),
    ("loggregator", Nothing),
    ("max_data_string_length", Nothing),
    ("redact_patterns", Nothing),
    ("redact_secrets", Nothing),
    ("rep_ca_cert", Flag("rep-ca-cert-file")),
    ("rep_client_cert", Flag("rep-cert-file")),
    ("rep_client_key", Flag("rep-key-file")),
    ("rep_client_session_cache_size", Nothing),
    // Cells are spoken to with TLS where their presence says so.
    ("rep_require_tls", Nothing),
    ("report_interval", Nothing),
    ("server_cert_file", Flag("cert-file")),
    ("server_key_file", Flag("key-file")),
    ("starting_container_count_maximum", Flag("starting-container-count-maximum")),
    ("starting_container_weight", Flag("starting-container-weight")),
    ("time_format", Nothing),
    ("uuid", Special),
];

/// Who holds the lock, where there is one.
pub fn specials(settings: &Settings) -> Result<Vec<String>, (&'static str, String)> {
    let owner = settings.text("locket_address")?.and(settings.text("uuid")?);
    Ok(owner.map(|uuid| format!("--lock-owner={uuid}")).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_lock_is_held_as_who_the_file_says_where_there_is_a_lock() {
        let flags = |json: serde_json::Value| specials(&Settings(json.as_object().unwrap().clone())).unwrap();
        assert_eq!(flags(json!({"locket_address": "l:8891", "uuid": "me"})), ["--lock-owner=me"]);
        assert_eq!(flags(json!({"uuid": "me"})), [""; 0]);
        assert_eq!(flags(json!({"locket_address": "l:8891"})), [""; 0]);
    }
}
