//! Who a user of a process spec is, by the container's own `/etc/passwd` and `/etc/group`, as text.
//!
//! `name`, `uid`, `name:group`, `uid:gid`. A number always is an id, found or not; a name must be found.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Its text is what clients of Garden match on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    User(String),
    Group(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::User(name) => {
                write!(f, "unable to find user {name}: no matching entries in passwd file")
            }
            Unknown::Group(name) => {
                write!(f, "unable to find group {name}: no matching entries in group file")
            }
        }
    }
}

impl std::error::Error for Unknown {}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are not entries are passed over.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// `passwd` and `group`: the files' text, empty when there is none.
pub fn look_up(spec: &str, passwd: &str, group: &str) -> Result<User, Unknown> {
    let (user_part, group_part) = match spec.split_once(':') {
        Some((user, group)) => (user, group),
        None => (spec, ""),
    };
    let number: Option<u32> = user_part.parse().ok();
    let found = passwd_entries(passwd).find(|entry| match (user_part, number) {
        ("", _) => entry.uid == 0,
        (_, Some(uid)) => entry.uid == uid,
        (name, None) => entry.name == name,
    });
    let mut user = match (&found, number) {
        (Some(entry), _) => {
            User { uid: entry.uid, gid: entry.gid, groups: Vec::new(), home: entry.home.into() }
        }
        (None, Some(uid)) => User { uid, gid: 0, groups: Vec::new(), home: "/".into() },
        (None, None) if user_part.is_empty() || (user_part == "root" && passwd.is_empty()) => {
            User { uid: 0, gid: 0, groups: Vec::new(), home: "/".into() }
        }
        (None, None) => return Err(Unknown::User(user_part.into())),
    };
    if !group_part.is_empty() {
        user.gid = look_up_group(group_part, group)?;
    } else if let Some(entry) = found {
        user.groups = group_entries(group)
            .filter(|group| group.members.split(',').any(|member| member == entry.name))
            .map(|group| group.gid)
            .take(GROUPS_MAX)
            .collect();
    }
    if user.home.is_empty() {
        user.home = "/".into();
    }
    Ok(user)
}

/// Supplementary groups of one user; the kernel's own limit is 65536.
pub const GROUPS_MAX: usize = 1024;

fn look_up_group(part: &str, group: &str) -> Result<u32, Unknown> {
    if let Ok(gid) = part.parse() {
        return Ok(gid);
    }
    group_entries(group)
        .find(|entry| entry.name == part)
        .map(|entry| entry.gid)
        .ok_or_else(|| Unknown::Group(part.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# comment\nvcap:x:2000:2001:,,,:/home/vcap:/bin/bash\nbare:x:7:8::\n";
    const GROUP: &str = "root:x:0:\nvcap:x:2001:\nadm:x:4:vcap,bare\ndialout:x:20:vcap\n";

    fn check(spec: &str, expected: Result<(u32, u32, &[u32], &str), &str>) {
        let got = look_up(spec, PASSWD, GROUP);
        match (got, expected) {
            (Ok(user), Ok((uid, gid, groups, home))) => {
                assert_eq!(
                    (user.uid, user.gid, &user.groups[..], &user.home[..]),
                    (uid, gid, groups, home),
                    "{spec}"
                )
            }
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text, "{spec}"),
            (got, _) => panic!("{spec}: {got:?}"),
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        check("", Ok((0, 0, &[], "/root")));
        check("root", Ok((0, 0, &[], "/root")));
        check("vcap", Ok((2000, 2001, &[4, 20], "/home/vcap")));
        check("2000", Ok((2000, 2001, &[4, 20], "/home/vcap")));
        check("5:6", Ok((5, 6, &[], "/")));
        check("5", Ok((5, 0, &[], "/")));
        check("vcap:adm", Ok((2000, 4, &[], "/home/vcap")));
        check("vcap:17", Ok((2000, 17, &[], "/home/vcap")));
        check("bare", Ok((7, 8, &[4], "/")));
    }

    #[test]
    fn the_unknown_are_named() {
        check("alice", Err("unable to find user alice: no matching entries in passwd file"));
        check("vcap:devil", Err("unable to find group devil: no matching entries in group file"));
        check("-1", Err("unable to find user -1: no matching entries in passwd file"));
        check("4294967296", Err("unable to find user 4294967296: no matching entries in passwd file"));
    }

    #[test]
    fn a_root_without_files_has_root_and_numbers() {
        assert_eq!(look_up("root", "", "").unwrap().uid, 0);
        assert_eq!(look_up("", "", "").unwrap().uid, 0);
        assert_eq!(look_up("12:13", "", "").unwrap().gid, 13);
        assert!(look_up("vcap", "", "").is_err());
    }
}
