//! The keys by which a BBS and a Locket are told of their database.

use std::path::PathBuf;

use ::bbs::Location;

use super::refusal::FATAL;
use super::{Flags, Nothing, Refusal, Settings, Special, Table};

/// The database that is a part of this program: the connection string is the path of its file.
const EMBEDDED: &str = "sqlite";

pub const DATABASE: Table = &[
    ("database_connection_string", Special),
    ("database_driver", Special),
    // Few connections, with limits of their own.
    ("db_connection_timeout", Nothing),
    ("db_operation_timeout", Nothing),
    ("db_read_timeout", Nothing),
    ("db_write_timeout", Nothing),
    // Each write says whether the database is well.
    ("enable_db_health_check", Nothing),
    ("health_check_failure_threshold", Nothing),
    ("health_check_interval", Nothing),
    ("health_check_timeout", Nothing),
    ("max_database_connection_lifetime", Nothing),
    ("max_idle_database_connections", Nothing),
    ("max_open_database_connections", Nothing),
    ("sql_ca_cert_file", Special),
    ("sql_enable_identity_verification", Special),
];

/// Where it is, whoever asks.
fn location(settings: &Settings) -> Result<Location, Refusal> {
    let of = |key| settings.text(key).ok().flatten().unwrap_or_default();
    let (driver, place) = (of("database_driver"), of("database_connection_string"));
    if driver.is_empty() || place.is_empty() {
        return Err(Refusal::new("no-database-configured", FATAL, "no database configured"));
    }
    if driver == EMBEDDED {
        return Ok(Location::Sqlite(place.into()));
    }
    let authority = of("sql_ca_cert_file");
    let authority = (!authority.is_empty()).then(|| PathBuf::from(authority));
    let verifies_identity = settings.is("sql_enable_identity_verification").unwrap_or_default();
    Location::from_upstream(&driver, &place, authority.as_deref(), verifies_identity)
        .map_err(|bad| Refusal::new("failed-to-open-sql", FATAL, bad.to_string()))
}

pub fn check(settings: &Settings) -> Result<(), Refusal> {
    location(settings).map(drop)
}

/// With the password, for this process alone.
pub fn flags(settings: &Settings) -> Flags {
    let told = location(settings).map_err(|refusal| ("database_connection_string", refusal.why))?;
    Ok(vec![format!("--database={}", told.to_secret_url())])
}
