//! A BBS's file.

use ::bbs::EncryptionKeys;

use super::database::{self, DATABASE};
use super::refusal::{FATAL, Keys, UNUSABLE, identity};
use super::shared::{self, LAGER, LOCK, LOCKET_CLIENT, REP_CLIENT, REPORT};
use super::{Flag, Flags, Itself, Nothing, Refusal, Settings, Special, Table};

pub const TABLES: &[Table] = &[OWN, DATABASE, LAGER, LOCK, LOCKET_CLIENT, REP_CLIENT, REPORT];

const OWN: Table = &[
    ("access_log_path", Nothing),
    // Read with the keys.
    ("active_key_label", Nothing),
    // Which routes are measured; all are.
    ("advanced_metrics", Nothing),
    // Clients find the BBS by the platform's names.
    ("advertise_url", Nothing),
    ("auctioneer_address", Flag("auctioneer-url")),
    ("auctioneer_ca_cert", Flag("auctioneer-ca-cert-file")),
    ("auctioneer_client_cert", Flag("auctioneer-cert-file")),
    ("auctioneer_client_key", Flag("auctioneer-key-file")),
    // The address says whether TLS is spoken.
    ("auctioneer_require_tls", Nothing),
    ("ca_file", Flag("ca-cert-file")),
    // Cells are registered in Locket, always.
    ("cell_registrations_locket_enabled", Nothing),
    ("cert_file", Flag("cert-file")),
    ("communication_timeout", Flag("communication-timeout")),
    ("converge_repeat_interval", Flag("converge-repeat-interval")),
    // One look at everything needs no workers.
    ("convergence_workers", Nothing),
    ("debug_lrp_start_heartbeats", Nothing),
    ("desired_lrp_creation_timeout", Nothing),
    ("enable_access_log", Nothing),
    ("encryption_keys", Itself("encryption-keys")),
    ("expire_completed_task_duration", Flag("expire-completed-task-duration")),
    ("expire_pending_task_duration", Flag("expire-pending-task-duration")),
    ("health_address", Flag("health-address")),
    ("key_file", Flag("key-file")),
    ("kick_task_duration", Flag("kick-task-duration")),
    ("listen_address", Flag("listen")),
    // The lock is in Locket, always.
    ("locks_locket_enabled", Nothing),
    // Left out it is 0, and not what it is without a file.
    ("max_task_retries", Special),
    // What is spoken is never plain.
    ("require_ssl", Nothing),
    ("session_name", Special),
    ("task_callback_workers", Nothing),
    ("update_workers", Nothing),
];

pub fn specials(settings: &Settings) -> Flags {
    let name = settings.text("session_name")?.unwrap_or_else(|| "bbs".into());
    let retries = settings.number("max_task_retries")?;
    let mut flags = vec![format!("--log-source={name}"), format!("--max-task-retries={retries}")];
    flags.extend(database::flags(settings)?);
    flags.extend(shared::loggregator(settings)?);
    Ok(flags)
}

/// In the order in which a deployment that gets several of them wrong is to hear of them.
pub fn check(settings: &Settings) -> Result<(), Refusal> {
    let metron = |why| Refusal::new("failed-to-initialize-metron-client", UNUSABLE, why);
    shared::metron(settings).map_err(metron)?;
    health_address(settings)?;
    encryption(settings).map_err(|why| Refusal::new("cannot-setup-encryption", FATAL, why))?;
    database::check(settings)?;
    auctioneer(settings)?;
    let keys = Keys { cert: "cert_file", key: "key_file", ca: "ca_file" };
    identity(settings, &keys).map_err(|why| Refusal::new("tls-configuration-failed", FATAL, why))?;
    shared::lock(settings, "failed-to-create-locket-client", FATAL)
}

/// Supervisors know no other sign of a BBS that waits for its lock.
fn health_address(settings: &Settings) -> Result<(), Refusal> {
    let told = settings.text("health_address").ok().flatten().unwrap_or_default();
    let Some((_, port)) = told.rsplit_once(':') else {
        let why = format!("address {told}: missing port in address");
        return Err(Refusal::new("failed-invalid-health-address", FATAL, why));
    };
    match port.parse::<u16>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Refusal::new("failed-invalid-health-port", FATAL, format!("{port} is no port"))),
    }
}

/// A deployment that has no keys has lost them.
fn encryption(settings: &Settings) -> Result<(), String> {
    let active = settings.text("active_key_label").ok().flatten().unwrap_or_default();
    let told = settings.within("encryption_keys").map_err(|(key, why)| format!("{key}: {why}"))?;
    let phrase = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let phrases = told.0.iter().map(|(label, value)| (label.clone(), phrase(value)));
    EncryptionKeys::new(&active, phrases).map(drop).map_err(|error| error.to_string())
}

fn auctioneer(settings: &Settings) -> Result<(), Refusal> {
    let says = |key| matches!(settings.text(key), Ok(Some(_)));
    if !says("auctioneer_address") {
        let word = "auctioneer-address-validation-failed";
        return Err(Refusal::new(word, FATAL, "auctioneerAddress is required"));
    }
    let keys =
        Keys { cert: "auctioneer_client_cert", key: "auctioneer_client_key", ca: "auctioneer_ca_cert" };
    if ![keys.cert, keys.key, keys.ca].into_iter().any(says) {
        return Ok(());
    }
    let refused = |why| Refusal::new("failed-to-construct-auctioneer-client", FATAL, why);
    identity(settings, &keys).map(drop).map_err(refused)
}
