//! An auctioneer's file.

use super::refusal::{FATAL, Keys, identity};
use super::shared::{self, BBS_CLIENT, LAGER, LOCK, LOCKET_CLIENT, REP_CLIENT, REPORT};
use super::{Flag, Flags, Nothing, Refusal, Settings, Table};

pub const TABLES: &[Table] = &[OWN, BBS_CLIENT, LAGER, LOCK, LOCKET_CLIENT, REP_CLIENT, REPORT];

const OWN: Table = &[
    // Cells are asked all at once.
    ("auction_runner_workers", Nothing),
    ("bin_pack_first_fit_weight", Flag("bin-pack-first-fit-weight")),
    ("ca_cert_file", Flag("ca-cert-file")),
    ("cell_state_timeout", Flag("cell-state-timeout")),
    ("communication_timeout", Flag("communication-timeout")),
    ("listen_address", Flag("listen")),
    // The lock is in Locket, always.
    ("locks_locket_enabled", Nothing),
    ("server_cert_file", Flag("cert-file")),
    ("server_key_file", Flag("key-file")),
    ("starting_container_count_maximum", Flag("starting-container-count-maximum")),
    ("starting_container_weight", Flag("starting-container-weight")),
];

pub fn specials(settings: &Settings) -> Flags {
    let mut flags = vec!["--log-source=auctioneer".into()];
    flags.extend(shared::loggregator(settings)?);
    Ok(flags)
}

/// In the order in which a deployment that gets several of them wrong is to hear of them.
pub fn check(settings: &Settings) -> Result<(), Refusal> {
    let says = |key| matches!(settings.text(key), Ok(Some(_)));
    let refused = |word| move |why: String| Refusal::new(word, FATAL, why);
    shared::metron(settings).map_err(refused("failed-to-initialize-metron"))?;
    if !says("bbs_address") {
        return Err(Refusal::new("invalid-bbs-address", FATAL, "bbsAddress is required"));
    }
    shared::lock(settings, "failed-to-connect-to-locket", FATAL)?;
    let bbs = Keys { cert: "bbs_client_cert_file", key: "bbs_client_key_file", ca: "bbs_ca_cert_file" };
    identity(settings, &bbs).map_err(refused("failed-to-configure-secure-BBS-client"))?;
    let own = Keys { cert: "server_cert_file", key: "server_key_file", ca: "ca_cert_file" };
    if [own.cert, own.key, own.ca].into_iter().any(says) {
        identity(settings, &own).map_err(refused("invalid-tls-config"))?;
    }
    Ok(())
}
