//! Servers as URLs: `//USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`, the same for both kinds of server.

use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{BadLocation, Host, Server, Tls, Trust};

fn bad(why: impl Into<String>) -> BadLocation {
    BadLocation::ConnectionString(why.into())
}

/// What stands behind the scheme and its colon.
pub fn parse(rest: &str, default_port: u16) -> Result<Server, BadLocation> {
    let rest = rest.strip_prefix("//").ok_or_else(|| bad("a URL has // behind its scheme"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(decoded(password)?)),
        None => (login, None),
    };
    let mut settings = Settings::new(default_port);
    settings.host = Some(parse_host(host, default_port)?);
    settings.user = decoded(user)?;
    settings.password = password;
    settings.database = decoded(database)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        settings.set(&decoded(key)?, decoded(value)?)?;
    }
    settings.server()
}

pub fn decoded(text: &str) -> Result<String, BadLocation> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| bad("it is not UTF-8"))?;
    Ok(text.into_owned())
}

/// `NAME`, `NAME:PORT`, `[ADDRESS]:PORT`, or the path of a socket, escaped or not.
pub fn parse_host(text: &str, default_port: u16) -> Result<Host, BadLocation> {
    let text = decoded(text)?;
    if text.starts_with('/') {
        return Ok(Host::Socket(text.into()));
    }
    if text.contains(',') {
        return Err(bad("several hosts are not supported"));
    }
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
        None => text.split_once(':').unwrap_or((&text, "")),
    };
    let port = if port.is_empty() { default_port } else { parse_port(port)? };
    let name = if name.is_empty() { "localhost" } else { name };
    Ok(Host::Tcp { name: name.into(), port })
}

pub fn parse_port(text: &str) -> Result<u16, BadLocation> {
    text.parse().map_err(|_| bad(format!("{text:?} is no port")))
}

/// What is known of a server while its settings are read, in whatever order they come.
#[derive(Default)]
pub struct Settings {
    pub host: Option<Host>,
    pub port: u16,
    pub user: String,
    pub password: Option<String>,
    pub database: String,
    mode: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    connections_max: Option<u32>,
}

impl Settings {
    pub fn new(port: u16) -> Settings {
        Settings { port, ..Settings::default() }
    }

    /// The names are those of PostgreSQL's clients; what has no meaning here has no effect.
    pub fn set(&mut self, key: &str, value: String) -> Result<(), BadLocation> {
        match key {
            "host" => self.host = Some(parse_host(&value, self.port)?),
            "port" => self.set_port(parse_port(&value)?),
            "user" => self.user = value,
            "password" => self.password = Some(value),
            "dbname" | "database" => self.database = value,
            "sslmode" | "ssl-mode" => self.mode = Some(value),
            "sslrootcert" | "ssl-ca" => self.ca = Some(value.into()),
            "sslcert" | "ssl-cert" => self.cert = Some(value.into()),
            "sslkey" | "ssl-key" => self.key = Some(value.into()),
            "connections_max" => {
                let number =
                    value.parse().map_err(|_| bad(format!("connections_max is {value:?}, no number")))?;
                self.connections_max = Some(number);
            }
            _ => {}
        }
        Ok(())
    }

    fn set_port(&mut self, number: u16) {
        self.port = number;
        if let Some(Host::Tcp { port, .. }) = &mut self.host {
            *port = number;
        }
    }

    pub fn server(self) -> Result<Server, BadLocation> {
        let trust = trust(self.mode.as_deref(), self.ca)?;
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(bad("a client's certificate and its key go together")),
        };
        if self.database.is_empty() {
            return Err(bad("it names no database"));
        }
        let port = self.port;
        Ok(Server {
            host: self.host.unwrap_or_else(|| Host::Tcp { name: "localhost".into(), port }),
            user: self.user,
            password: self.password,
            database: self.database,
            tls: Tls { trust, identity },
            connections_max: self.connections_max,
        })
    }
}

/// `require` with an authority is `verify-ca`: so PostgreSQL's clients have it.
fn trust(mode: Option<&str>, ca: Option<PathBuf>) -> Result<Trust, BadLocation> {
    match (mode, ca) {
        (Some("disable"), _) => Ok(Trust::Off),
        (None | Some("" | "allow" | "prefer"), None) => Ok(Trust::Prefer),
        (Some("require"), None) => Ok(Trust::Any),
        (Some("verify-full" | "verify-identity"), ca) => Ok(Trust::Verified { ca, host: true }),
        (Some("verify-ca"), ca) | (None | Some("" | "allow" | "prefer" | "require"), ca) => {
            Ok(Trust::Verified { ca, host: false })
        }
        (Some(other), _) => Err(bad(format!("sslmode {other:?} is unknown"))),
    }
}

fn mode_name(trust: &Trust) -> &'static str {
    match trust {
        Trust::Off => "disable",
        Trust::Prefer => "prefer",
        Trust::Any => "require",
        Trust::Verified { host: false, .. } => "verify-ca",
        Trust::Verified { host: true, .. } => "verify-full",
    }
}

/// The URL of which [`parse`] makes the same server.
pub fn url(scheme: &str, server: &Server) -> String {
    let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = |path: &PathBuf| escaped(&path.to_string_lossy());
    let password = server.password.iter().map(|text| format!(":{}", escaped(text))).collect::<String>();
    let host = match &server.host {
        Host::Socket(socket) => path(socket),
        host => host.to_string(),
    };
    let mut url =
        format!("{scheme}://{}{password}@{host}/{}", escaped(&server.user), escaped(&server.database));
    url.push_str(&format!("?sslmode={}", mode_name(&server.tls.trust)));
    if let Trust::Verified { ca: Some(ca), .. } = &server.tls.trust {
        url.push_str(&format!("&sslrootcert={}", path(ca)));
    }
    if let Some((cert, key)) = &server.tls.identity {
        url.push_str(&format!("&sslcert={}&sslkey={}", path(cert), path(key)));
    }
    if let Some(number) = server.connections_max {
        url.push_str(&format!("&connections_max={number}"));
    }
    url
}
