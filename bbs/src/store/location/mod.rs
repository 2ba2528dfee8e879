//! Where the database is: a file, or a server, how to come in, and how much of its certificate is believed.
//!
//! Pure: nothing is opened. What is written for people never holds the password.

mod dsn;
mod text;

use std::fmt::{self, Debug, Display, Formatter};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub const POSTGRES_PORT: u16 = 5432;
pub const MYSQL_PORT: u16 = 3306;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Sqlite(PathBuf),
    Postgres(Server),
    /// MySQL or MariaDB.
    Mysql(Server),
}

#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    pub host: Host,
    pub user: String,
    pub password: Option<String>,
    pub database: String,
    pub tls: Tls,
    /// Connections that Locket may have open at once; the BBS needs one. `None`: as many as are usual.
    pub connections_max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Tcp {
        name: String,
        port: u16,
    },
    /// For MySQL the socket, for PostgreSQL the directory that it is in.
    Socket(PathBuf),
}

/// What is asked of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    pub trust: Trust,
    /// Certificate and key that the server is shown.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Trust {
    Off,
    /// Encrypted if the server can do that, whoever it is.
    #[default]
    Prefer,
    /// Encrypted, whoever it is.
    Any,
    /// Encrypted, with a certificate of this authority (or of one that the machine trusts), for this host if `host`.
    Verified {
        ca: Option<PathBuf>,
        host: bool,
    },
}

impl Tls {
    /// What has to be read for it.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let ca = match &self.trust {
            Trust::Verified { ca, .. } => ca.as_ref(),
            _ => None,
        };
        ca.into_iter().chain(self.identity.iter().flat_map(|(cert, key)| [cert, key]))
    }
}

/// Why a text is no place of a database. The password is not in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLocation {
    #[error("invalid-driver-name: {0:?} is neither mysql nor postgres")]
    Driver(String),
    #[error("invalid-db-connection-string: {0}")]
    ConnectionString(String),
}

impl Location {
    /// From what deployments render: `database_driver`, `database_connection_string`, `sql_ca_cert_file` and
    /// `sql_enable_identity_verification`. The connection strings are those that Go's drivers read.
    pub fn from_upstream(
        driver: &str,
        connection_string: &str,
        ca_file: Option<&Path>,
        verifies_identity: bool,
    ) -> Result<Location, BadLocation> {
        let mut location = match driver {
            "mysql" => Location::Mysql(dsn::mysql(connection_string)?),
            "postgres" => Location::Postgres(dsn::postgres(connection_string)?),
            other => return Err(BadLocation::Driver(other.into())),
        };
        let (Location::Mysql(server) | Location::Postgres(server)) = &mut location else {
            return Ok(location);
        };
        if let Some(ca) = ca_file {
            server.tls.trust = Trust::Verified { ca: Some(ca.into()), host: verifies_identity };
        }
        Ok(location)
    }

    /// A text that [`Location::from_str`] reads as the same place. **The password is in it.**
    pub fn to_secret_url(&self) -> String {
        match self {
            Location::Sqlite(path) => path.display().to_string(),
            Location::Postgres(server) => text::url("postgres", server),
            Location::Mysql(server) => text::url("mysql", server),
        }
    }
}

/// `postgres://…`, `postgresql://…`, `mysql://…`, `sqlite:PATH`, or the path of an SQLite file.
impl FromStr for Location {
    type Err = BadLocation;

    fn from_str(text: &str) -> Result<Location, BadLocation> {
        match text.split_once(':') {
            Some(("postgres" | "postgresql", rest)) => {
                text::parse(rest, POSTGRES_PORT).map(Location::Postgres)
            }
            Some(("mysql" | "mariadb", rest)) => text::parse(rest, MYSQL_PORT).map(Location::Mysql),
            Some(("sqlite", path)) => Ok(Location::Sqlite(path.into())),
            _ if text.is_empty() => Err(BadLocation::ConnectionString("it is empty".into())),
            _ => Ok(Location::Sqlite(text.into())),
        }
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Location {
        Location::Sqlite(path)
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Location {
        Location::Sqlite(path.into())
    }
}

/// As errors name it: `the database file /x`, `the PostgreSQL database diego at db:5432`.
impl Display for Location {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (kind, server) = match self {
            Location::Sqlite(path) => return write!(f, "the database file {}", path.display()),
            Location::Postgres(server) => ("PostgreSQL", server),
            Location::Mysql(server) => ("MySQL", server),
        };
        write!(f, "the {kind} database {} at {}", server.database, server.host)
    }
}

impl Display for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp { name, port } if name.contains(':') => write!(f, "[{name}]:{port}"),
            Host::Tcp { name, port } => write!(f, "{name}:{port}"),
            Host::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Without the password: settings are logged.
impl Debug for Server {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("host", &self.host)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
