//! A route emitter's file.

use super::shared::{BBS_CLIENT, LAGER};
use super::{Flag, Flags, If, Nothing, Settings, Special, Table};

pub const TABLES: &[Table] = &[OWN, BBS_CLIENT, LAGER];

const OWN: Table = &[
    ("cell_id", Flag("cell-id")),
    ("communication_timeout", Nothing),
    ("debug_address", Nothing),
    ("enable_internal_emitter", Special),
    ("enable_tcp_emitter", Special),
    ("healthcheck_address", Flag("health-address")),
    ("jitter_factor", Flag("jitter-factor")),
    ("lock_retry_interval", Special),
    ("lock_ttl", Special),
    ("locket_address", Special),
    ("locket_ca_cert_file", Special),
    ("locket_client_cert_file", Special),
    ("locket_client_keepalive_time", Nothing),
    ("locket_client_keepalive_timeout", Nothing),
    ("locket_client_key_file", Special),
    ("locket_session_name", Nothing),
    ("loggregator", Nothing),
    ("nats_addresses", Flag("nats-addresses")),
    ("nats_ca_cert_file", Special),
    ("nats_client_cert_file", Special),
    ("nats_client_key_file", Special),
    ("nats_password", Flag("nats-password")),
    ("nats_tls_enabled", Special),
    ("nats_username", Flag("nats-user")),
    ("oauth", Nothing),
    ("register_direct_instance_routes", If("direct-instance-routes")),
    ("report_interval", Nothing),
    // One connection to NATS carries all.
    ("route_emitting_workers", Nothing),
    ("routing_api", Nothing),
    ("sync_interval", Flag("sync-interval")),
    ("tcp_enable_tls", Nothing),
    ("tcp_route_ttl", Nothing),
    ("unregistration_interval", Flag("unregistration-interval")),
    ("unregistration_send_count", Flag("unregistration-send-count")),
    ("uuid", Special),
];

/// What would leave routes untold is refused, not passed over.
pub fn specials(settings: &Settings) -> Flags {
    if settings.is("enable_tcp_emitter")? {
        return Err(("enable_tcp_emitter", "this route emitter cannot tell of TCP routes yet".into()));
    }
    let mut flags = Vec::new();
    if settings.is("nats_tls_enabled")? {
        for (key, flag) in [
            ("nats_ca_cert_file", "nats-ca-cert-file"),
            ("nats_client_cert_file", "nats-cert-file"),
            ("nats_client_key_file", "nats-key-file"),
        ] {
            let file = settings.text(key)?.ok_or((key, "TLS with NATS needs this file".into()))?;
            flags.push(format!("--{flag}={file}"));
        }
    }
    if !settings.is("enable_internal_emitter")? {
        flags.push("--without-internal-routes".into());
    }
    // One that is for a cell works without a lock.
    if settings.text("cell_id")?.is_none()
        && let Some(address) = settings.text("locket_address")?
    {
        flags.push(format!("--locket={address}"));
        for (key, flag) in [
            ("uuid", "lock-owner"),
            ("lock_ttl", "lock-ttl"),
            ("lock_retry_interval", "lock-retry-interval"),
            ("locket_client_cert_file", "locket-cert-file"),
            ("locket_client_key_file", "locket-key-file"),
            ("locket_ca_cert_file", "locket-ca-cert-file"),
        ] {
            flags.extend(settings.text(key)?.map(|text| format!("--{flag}={text}")));
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_depend_on_others() {
        let locket = json!({"locket_address": "l:8891", "uuid": "me", "locket_client_cert_file": "/c",
            "enable_internal_emitter": true});
        let mut of_a_cell = locket.clone();
        of_a_cell["cell_id"] = "cell".into();
        let tls = json!({"nats_tls_enabled": true, "nats_ca_cert_file": "/ca", "nats_client_cert_file": "/c",
            "nats_client_key_file": "/k", "enable_internal_emitter": true});
        for (json, expected) in [
            (json!({}), &["--without-internal-routes"][..]),
            (locket, &["--locket=l:8891", "--lock-owner=me", "--locket-cert-file=/c"]),
            (of_a_cell, &[]),
            (tls, &["--nats-ca-cert-file=/ca", "--nats-cert-file=/c", "--nats-key-file=/k"]),
        ] {
            assert_eq!(specials(&Settings(json.as_object().unwrap().clone())).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn what_would_leave_routes_untold_is_refused_by_name() {
        for (json, key) in [
            (json!({"enable_tcp_emitter": true}), "enable_tcp_emitter"),
            (json!({"nats_tls_enabled": true, "nats_ca_cert_file": "/ca"}), "nats_client_cert_file"),
        ] {
            assert_eq!(specials(&Settings(json.as_object().unwrap().clone())).unwrap_err().0, key);
        }
    }
}
