//! The grammar of user names: which realm, which app or process, which instance.

/// Whom a client wants to be.
#[derive(Clone, Debug, PartialEq)]
pub enum User {
    Diego { process_guid: String, index: u32 },
    Cf { app_guid: String, index: u32 },
}

/// Reads `diego:<process guid>/<index>` or `cf:<app guid>/<index>`.
pub fn parse(user: &str) -> Option<User> {
    let (realm, instance) = user.split_once(':')?;
    let (guid, index) = instance.rsplit_once('/')?;
    if !index.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let index = index.parse().ok()?;
    match realm {
        "diego" => is_process_guid(guid).then(|| User::Diego { process_guid: guid.to_owned(), index }),
        "cf" => is_guid(guid).then(|| User::Cf { app_guid: guid.to_owned(), index }),
        _ => None,
    }
}

fn is_process_guid(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !text.is_empty() && text.bytes().all(allowed)
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_guid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let digits = |part: &&str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_realms_name_an_instance() {
        let diego = User::Diego { process_guid: "some-guid_1".into(), index: 3 };
        assert_eq!(parse("diego:some-guid_1/3"), Some(diego));
        let app_guid = "01234567-89ab-cdef-0123-456789abCDEF".to_owned();
        assert_eq!(parse(&format!("cf:{app_guid}/0")), Some(User::Cf { app_guid, index: 0 }));
    }

    #[test]
    fn anything_else_is_nobody() {
        for user in [
            "",
            "root",
            "diego:",
            "diego:a",
            "diego:a/",
            "diego:a/x",
            "diego:a/-1",
            "diego:a/+1",
            "diego:/0",
            "diego:a b/0",
            "diego:a/b/0",
            "diego:a/99999999999",
            "cf:short/0",
            "vcap:a/0",
            " diego:a/0",
        ] {
            assert_eq!(parse(user), None, "{user}");
        }
    }
}
