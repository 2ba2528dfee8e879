//! A Locket's file.

use super::database::{self, DATABASE};
use super::refusal::{FATAL, Keys, UNUSABLE, identity};
use super::shared::{self, LAGER, REPORT};
use super::{Flag, Flags, Refusal, Settings, Table};

pub const TABLES: &[Table] = &[OWN, DATABASE, LAGER, REPORT];

const OWN: Table = &[
    ("ca_file", Flag("ca-cert-file")),
    ("cert_file", Flag("cert-file")),
    ("key_file", Flag("key-file")),
    ("listen_address", Flag("listen")),
];

pub fn specials(settings: &Settings) -> Flags {
    let mut flags = vec!["--log-source=locket".into()];
    flags.extend(database::flags(settings)?);
    flags.extend(shared::loggregator(settings)?);
    Ok(flags)
}

pub fn check(settings: &Settings) -> Result<(), Refusal> {
    let metron = |why| Refusal::new("failed-to-initialize-metron-client", UNUSABLE, why);
    shared::metron(settings).map_err(metron)?;
    database::check(settings)?;
    let keys = Keys { cert: "cert_file", key: "key_file", ca: "ca_file" };
    identity(settings, &keys).map(drop).map_err(|why| Refusal::new("invalid-tls-config", FATAL, why))
}
