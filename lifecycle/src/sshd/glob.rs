//! The paths a pattern stands for, as a shell would expand it: `*`, `?`, `[a-z]` within path components, `~/` in front.
//! A pattern that matches nothing stands for itself.

use std::path::{Path, PathBuf};

const PATHS_MAX: usize = 100_000;

/// The paths of `pattern`, sorted; relative ones stay relative.
pub fn expand(pattern: &str, home: &Path) -> Vec<PathBuf> {
    let pattern = match pattern.strip_prefix('~') {
        Some("") => home.to_string_lossy().into_owned(),
        Some(rest) if rest.starts_with('/') => format!("{}{rest}", home.display()),
        _ => pattern.to_owned(),
    };
    if !pattern.contains(['*', '?', '[']) {
        return vec![pattern.into()];
    }
    let mut paths = vec![PathBuf::from(if pattern.starts_with('/') { "/" } else { "" })];
    for component in pattern.split('/').filter(|component| !component.is_empty()) {
        paths = paths.iter().flat_map(|path| step(path, component)).take(PATHS_MAX).collect();
    }
    if paths.is_empty() {
        return vec![pattern.into()];
    }
    paths.sort();
    paths
}

fn step(path: &Path, component: &str) -> Vec<PathBuf> {
    if !component.contains(['*', '?', '[']) {
        let next = path.join(component);
        return next.symlink_metadata().is_ok().then_some(next).into_iter().collect();
    }
    let directory = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let pattern: Vec<char> = component.chars().collect();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| component.starts_with('.') || !name.starts_with('.'))
        .filter(|name| matches(&pattern, &name.chars().collect::<Vec<_>>()))
        .map(|name| path.join(name))
        .collect()
}

/// Matches with one point to go back to, so that no pattern takes more than quadratic time.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                back = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('[') => {
                if let Some((true, length)) = class(&pattern[p..], name[n]) {
                    (p, n) = (p + length, n + 1);
                    continue;
                }
            }
            Some(c) if *c == '?' || *c == name[n] => {
                (p, n) = (p + 1, n + 1);
                continue;
            }
            _ => {}
        }
        let Some((after_star, from)) = back else {
            return false;
        };
        back = Some((after_star, from + 1));
        (p, n) = (after_star, from + 1);
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether a `[...]` class matches, and its length; `None` when it is not closed.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let start = 1 + usize::from(negated);
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|c| *c == ']')?;
    let mut members = &pattern[start..end];
    let mut found = false;
    while let Some(first) = members.first() {
        match members {
            [low, '-', high, rest @ ..] => {
                found |= (*low..=*high).contains(&c);
                members = rest;
            }
            [_, rest @ ..] => {
                found |= *first == c;
                members = rest;
            }
            [] => break,
        }
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        let table = [
            ("*", "abc", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("?b?", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("*.txt", "a.txt", true),
            ("a[", "a[", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, name, expected) in table {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!(matches(&characters(pattern), &characters(name)), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_stands_for_paths_or_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["a1", "a2", "b", ".hidden"] {
            std::fs::create_dir(root.join(name)).unwrap();
            std::fs::write(root.join(name).join("f"), "").unwrap();
        }
        let names = |pattern: &str| {
            let paths = expand(&format!("{}/{pattern}", root.display()), Path::new("/home"));
            let relative = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
            paths.iter().map(relative).collect::<Vec<_>>()
        };
        assert_eq!(names("a*/f"), ["a1/f", "a2/f"]);
        assert_eq!(names("*"), ["a1", "a2", "b"]);
        assert_eq!(names("x*"), ["x*"]);
        assert_eq!(expand("~/x", Path::new("/home")), [PathBuf::from("/home/x")]);
    }
}
