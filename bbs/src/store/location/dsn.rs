//! Connection strings as Go's drivers read them, which is how deployments write them.
//!
//! MySQL: `USER:PASSWORD@tcp(HOST:PORT)/DATABASE?NAME=VALUE`, nothing escaped but the database's name.
//! PostgreSQL: a URL, or `host=… user=… password='…' dbname=…`.

use super::text::{Settings, decoded, parse, parse_host};
use super::{BadLocation, Host, MYSQL_PORT, POSTGRES_PORT, Server, Trust};

fn bad(why: impl Into<String>) -> BadLocation {
    BadLocation::ConnectionString(why.into())
}

/// The last `/` ends the server's part, the last `@` before it the login, the first `:` there the user's name.
pub fn mysql(text: &str) -> Result<Server, BadLocation> {
    let slash = text.rfind('/').ok_or_else(|| bad("it has no / before the database's name"))?;
    let (place, rest) = (&text[..slash], &text[slash + 1..]);
    let (database, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (login, address) = place.rsplit_once('@').unwrap_or(("", place));
    let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
    let mut settings = Settings::new(MYSQL_PORT);
    settings.host = Some(mysql_address(address)?);
    settings.user = user.into();
    settings.password = password.map(str::to_owned);
    settings.database = decoded(database)?;
    let mut server = settings.server()?;
    // Go's driver encrypts only when it is told to.
    server.tls.trust = Trust::Off;
    for pair in parameters.split('&') {
        if let Some(("tls", value)) = pair.split_once('=') {
            server.tls.trust = mysql_tls(value)?;
        }
    }
    Ok(server)
}

fn mysql_address(text: &str) -> Result<Host, BadLocation> {
    let Some((network, rest)) = text.split_once('(') else {
        return match text {
            "" | "tcp" => parse_host("127.0.0.1", MYSQL_PORT),
            other => Err(bad(format!("the network {other:?} has no address in parentheses"))),
        };
    };
    let address = rest.strip_suffix(')').ok_or_else(|| bad("the address has no ) at its end"))?;
    match network {
        "tcp" | "tcp4" | "tcp6" => parse_host(address, MYSQL_PORT),
        "unix" => Ok(Host::Socket(address.into())),
        other => Err(bad(format!("the network {other:?} is neither tcp nor unix"))),
    }
}

fn mysql_tls(value: &str) -> Result<Trust, BadLocation> {
    match value {
        "false" | "0" => Ok(Trust::Off),
        "preferred" => Ok(Trust::Prefer),
        "skip-verify" => Ok(Trust::Any),
        "true" | "1" => Ok(Trust::Verified { ca: None, host: true }),
        other => Err(bad(format!("tls={other} is unknown"))),
    }
}

pub fn postgres(text: &str) -> Result<Server, BadLocation> {
    match text.split_once(':') {
        Some(("postgres" | "postgresql", rest)) => parse(rest, POSTGRES_PORT),
        _ => keywords(text),
    }
}

fn keywords(text: &str) -> Result<Server, BadLocation> {
    let mut settings = Settings::new(POSTGRES_PORT);
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=').ok_or_else(|| bad("a keyword has no ="))?;
        let (value, behind) = value(behind.trim_start())?;
        settings.set(key.trim(), value)?;
        rest = behind.trim_start();
    }
    settings.server()
}

/// Up to the next space, or in single quotes; a backslash takes what is behind it as it is.
fn value(text: &str) -> Result<(String, &str), BadLocation> {
    let quoted = text.strip_prefix('\'');
    let text = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            '\'' if quoted.is_some() => return Ok((value, &text[at + 1..])),
            letter if quoted.is_none() && letter.is_whitespace() => return Ok((value, &text[at..])),
            letter => value.push(letter),
        }
    }
    if quoted.is_some() { Err(bad("a quoted value has no end")) } else { Ok((value, "")) }
}
