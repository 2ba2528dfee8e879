//! What a registry wants before it answers: the `WWW-Authenticate` header, parsed. Pure.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    /// A token is to be had at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first challenge of the headers that we can answer.
    pub fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Result<Challenge, String> {
        let mut seen = Vec::new();
        for header in headers {
            let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                return Ok(Challenge::Basic);
            }
            if scheme.eq_ignore_ascii_case("bearer") {
                return bearer(parameters(rest));
            }
            seen.push(scheme.chars().take(40).collect::<String>());
        }
        Err(format!("neither Basic nor Bearer but '{}'", seen.join(", ")))
    }
}

fn bearer(mut parameters: BTreeMap<String, String>) -> Result<Challenge, String> {
    let realm = parameters.remove("realm").ok_or("Bearer without a realm")?;
    if !realm.starts_with("https://") && !realm.starts_with("http://") {
        return Err(format!("Bearer with the realm '{realm}'"));
    }
    Ok(Challenge::Bearer { realm, service: parameters.remove("service"), scope: parameters.remove("scope") })
}

/// `key="value with, commas",key=value`.
fn parameters(mut rest: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted),
            None => match after.split_once(',') {
                Some((value, next)) => (value.trim().to_string(), next),
                None => (after.trim().to_string(), ""),
            },
        };
        parameters.insert(key, value);
        rest = next;
    }
    parameters
}

/// What stands before the closing quote, and what follows it.
fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str) -> String {
        match Challenge::parse([header]) {
            Ok(Challenge::Basic) => "basic".into(),
            Ok(Challenge::Bearer { realm, service, scope }) => {
                format!("{realm} {} {}", service.unwrap_or_default(), scope.unwrap_or_default())
            }
            Err(reason) => reason,
        }
    }

    #[test]
    fn challenges_are_understood_as_registries_write_them() {
        for (header, expected) in [
            (r#"Basic realm="x""#, "basic"),
            ("basic", "basic"),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                "https://auth.docker.io/token registry.docker.io repository:a/b:pull",
            ),
            (
                r#"Bearer realm="http://127.0.0.1/t", service=plain , scope="a:b:pull,push""#,
                "http://127.0.0.1/t plain a:b:pull,push",
            ),
            (r#"bearer REALM="https://h/\"q\"""#, "https://h/\"q\"  "),
            (r#"Bearer service="x""#, "Bearer without a realm"),
            (r#"Bearer realm="file:///etc""#, "Bearer with the realm 'file:///etc'"),
            ("Negotiate", "neither Basic nor Bearer but 'Negotiate'"),
            (r#"Bearer realm="https://unclosed"#, "https://unclosed  "),
        ] {
            assert_eq!(check(header), expected, "{header}");
        }
        assert_eq!(Challenge::parse(["Negotiate", "Basic realm=x"]), Ok(Challenge::Basic));
    }
}
