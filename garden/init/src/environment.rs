//! The environment of a process and the places where its program may be.

use crate::users::User;

pub const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
pub const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// One entry a name, the later one winning; PATH, USER and HOME added where missing. `user_spec` is the user as the
/// process spec names it.
pub fn complete(given: &[String], user_spec: &str, user: &User) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 3);
    for entry in given.iter().filter(|entry| !entry.is_empty() && !entry.contains('\0')) {
        match env.iter_mut().find(|earlier| name(earlier) == name(entry)) {
            Some(earlier) => entry.clone_into(earlier),
            None => env.push(entry.clone()),
        }
    }
    let mut default = |variable: &str, value: &str| {
        if !env.iter().any(|entry| name(entry) == variable) {
            env.push(format!("{variable}={value}"));
        }
    };
    default("PATH", if user.uid == 0 { ROOT_PATH } else { USER_PATH });
    default("USER", if user_spec.is_empty() { "root" } else { user_spec });
    default("HOME", &user.home);
    env
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// Where the program may be, in order: itself when the path has a slash, else in each directory of PATH.
pub fn candidates(path: &str, env: &[String]) -> Vec<String> {
    if path.is_empty() {
        return Vec::new();
    }
    if path.contains('/') {
        return vec![path.into()];
    }
    let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    search
        .split(':')
        .map(|directory| format!("{}/{path}", if directory.is_empty() { "." } else { directory }))
        .collect()
}

/// What a client is told when none of the candidates exists.
pub fn not_found(path: &str) -> String {
    if path.contains('/') {
        format!("exec: \"{path}\": stat {path}: no such file or directory")
    } else {
        format!("exec: \"{path}\": executable file not found in $PATH")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> User {
        User { uid, gid: uid, groups: Vec::new(), home: "/home/it".into() }
    }

    fn check(given: &[&str], spec: &str, uid: u32, expected: &[&str]) {
        let given: Vec<String> = given.iter().map(|entry| entry.to_string()).collect();
        assert_eq!(complete(&given, spec, &user(uid)), expected);
    }

    #[test]
    fn defaults_fill_what_is_missing() {
        check(&[], "", 0, &[&format!("PATH={ROOT_PATH}"), "USER=root", "HOME=/home/it"]);
        check(&[], "vcap", 5, &[&format!("PATH={USER_PATH}"), "USER=vcap", "HOME=/home/it"]);
        check(&["PATH=/x", "USER=me", "HOME=/"], "vcap", 5, &["PATH=/x", "USER=me", "HOME=/"]);
    }

    #[test]
    fn the_later_entry_wins_and_nonsense_is_dropped() {
        check(
            &["A=1", "B=2", "A=3", "", "C=\0", "PATH=", "USER=u", "HOME=h"],
            "",
            0,
            &["A=3", "B=2", "PATH=", "USER=u", "HOME=h"],
        );
    }

    #[test]
    fn programs_are_sought_along_the_path() {
        let env = vec!["PATH=/a::/b".to_string()];
        assert_eq!(candidates("ls", &env), ["/a/ls", "./ls", "/b/ls"]);
        assert_eq!(candidates("./ls", &env), ["./ls"]);
        assert_eq!(candidates("", &env), Vec::<String>::new());
    }
}
