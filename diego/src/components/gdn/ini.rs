//! The file by which deployments tell `gdn` what it is to do, turned into flags: `KEY = VALUE` below `[server]` is
//! `--KEY=VALUE`. What the command line says itself goes before the file.
//!
//! Every error names the file and the line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};

use super::flags::{ServerFlags, SetupFlags};

const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
    #[error("--config needs the path of a file")]
    NoPath,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Server,
    Setup,
    Cleanup,
}

impl Section {
    pub fn named(name: &str) -> Option<Section> {
        match name {
            "server" => Some(Section::Server),
            "setup" => Some(Section::Setup),
            "cleanup" => Some(Section::Cleanup),
            _ => None,
        }
    }

    fn command(self) -> clap::Command {
        let command = clap::Command::new("gdn").no_binary_name(true);
        match self {
            Section::Server | Section::Cleanup => ServerFlags::augment_args(command),
            Section::Setup => SetupFlags::augment_args(command),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    line: usize,
    section: Section,
    key: String,
    value: String,
}

/// The flags of `section` in the file, but for those that are `given` on the command line.
pub fn flags(path: &Path, section: Section, given: &[OsString]) -> Result<Vec<OsString>, Error> {
    let text = read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let failed = |line, why| Error::Line { path: path.into(), line, why };
    let entries = parse(&text).map_err(|(line, why)| failed(line, why))?;
    // What is destroyed by `cleanup` is what `server` has made: one section tells of both.
    let has_own = entries.iter().any(|entry| entry.section == section);
    let wanted = if section == Section::Cleanup && !has_own { Section::Server } else { section };
    let mut flags = Vec::new();
    for entry in entries {
        let flag = flag(&entry).map_err(|why| failed(entry.line, why))?;
        if entry.section == wanted && !is_given(given, &entry.key) {
            flags.extend(flag);
        }
    }
    Ok(flags)
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = Vec::new();
    // One byte more than it may have tells that it has more.
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why));
    }
    String::from_utf8(text).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

fn is_given(given: &[OsString], key: &str) -> bool {
    let flag = format!("--{key}");
    given.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        argument.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

fn parse(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let mut section = None;
    let mut entries = Vec::new();
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        if text.is_empty() || text.starts_with([';', '#']) {
            continue;
        }
        if let Some(rest) = text.strip_prefix('[') {
            let name = rest.strip_suffix(']').ok_or((line, "the section does not end with ]".into()))?;
            section = Some(section_of(name).map_err(|why| (line, why))?);
            continue;
        }
        let (key, value) = text.split_once('=').ok_or((line, format!("'{text}' is not KEY = VALUE")))?;
        let section = section.ok_or((line, format!("'{}' stands in no section", key.trim())))?;
        let value = unquoted(value.trim()).map_err(|why| (line, why))?;
        entries.push(Entry { line, section, key: key.trim().to_lowercase(), value });
    }
    Ok(entries)
}

/// `[server]`, or a group of its flags, `[server.Limits]`.
fn section_of(name: &str) -> Result<Section, String> {
    let command = name.split('.').next().unwrap_or_default().trim().to_lowercase();
    Section::named(&command)
        .ok_or_else(|| format!("there is no section '{name}': it is [server], [setup] or [cleanup]"))
}

fn unquoted(value: &str) -> Result<String, String> {
    let Some(inner) = value.strip_prefix('"') else { return Ok(value.into()) };
    let inner = inner.strip_suffix('"').ok_or("the quotation does not end")?;
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(match characters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(other @ ('"' | '\\')) => other,
                _ => return Err("after \\ stands n, t, \" or another \\".into()),
            }),
            '"' => return Err("a \" within a quotation is written \\\"".into()),
            other => text.push(other),
        }
    }
    Ok(text)
}

/// Tried alone, so that what is wrong with it can be told by its line. `None`: a switch that is off.
fn flag(entry: &Entry) -> Result<Option<OsString>, String> {
    let Entry { section, key, value, .. } = entry;
    let command = section.command();
    let found = command.get_arguments().find(|argument| argument.get_long() == Some(key));
    let found = found.ok_or_else(|| format!("unknown option '{key}'"))?;
    let flag = match found.get_action() {
        ArgAction::SetTrue => match value.as_str() {
            "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => format!("--{key}"),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => return Ok(None),
            other => return Err(format!("'{key}' is true or false, not '{other}'")),
        },
        _ => format!("--{key}={value}"),
    };
    match command.try_get_matches_from([&flag]) {
        Ok(_) => Ok(Some(flag.into())),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(first.trim_start_matches("error: ").to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, section: Section, given: &[&str]) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        let name = file.path().display().to_string();
        flags(file.path(), section, &given)
            .map(|flags| flags.into_iter().map(|flag| flag.into_string().unwrap()).collect())
            .map_err(|error| error.to_string().replace(&name, "F"))
    }

    #[test]
    fn a_rendered_file_becomes_flags() {
        let text = "\n[server]\n; containers\n  default-grace-time = 0\n\n# lists\n\
            deny-network = 0.0.0.0/0\n  deny-network=10.0.0.0/8\nimage-plugin-extra-arg = \"--config\"\n\
            additional-host-entry = \"1.2.3.4 a \\\"b\\\"\"\n skip-setup = true\nenable-cpu-throttling = false\n\
            default-rootfs = \n";
        assert_eq!(
            of(text, Section::Server, &[]).unwrap(),
            [
                "--default-grace-time=0",
                "--deny-network=0.0.0.0/0",
                "--deny-network=10.0.0.0/8",
                "--image-plugin-extra-arg=--config",
                "--additional-host-entry=1.2.3.4 a \"b\"",
                "--skip-setup",
                "--default-rootfs=",
            ]
        );
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let text = "[server]\ntag=a\ndeny-network=1.1.1.1/32\ndeny-network=1.1.1.2/32\nmtu=9\n";
        let given = ["--tag=b", "--deny-network", "2.2.2.2/32", "--mtus"];
        assert_eq!(of(text, Section::Server, &given).unwrap(), ["--mtu=9"]);
        assert_eq!(of(text, Section::Setup, &[]).unwrap(), [] as [&str; 0]);
        assert_eq!(of(text, Section::Cleanup, &[]).unwrap().len(), 4);
        assert_eq!(of("[cleanup]\ntag=c\n[server]\ntag=a\n", Section::Cleanup, &[]).unwrap(), ["--tag=c"]);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line() {
        for (text, expected) in [
            ("tag = a", "F:1: 'tag' stands in no section"),
            ("\n[sever]\n", "F:2: there is no section 'sever': it is [server], [setup] or [cleanup]"),
            ("[server\n", "F:1: the section does not end with ]"),
            ("[server]\nnonsense\n", "F:2: 'nonsense' is not KEY = VALUE"),
            ("[server]\n\nno-such = 1\n", "F:3: unknown option 'no-such'"),
            ("[server]\nskip-setup = maybe\n", "F:2: 'skip-setup' is true or false, not 'maybe'"),
            ("[server]\ntag = \"a\n", "F:2: the quotation does not end"),
        ] {
            assert_eq!(of(text, Section::Server, &[]).unwrap_err(), expected, "{text}");
        }
        let error = of("[server]\nmtu = large\n", Section::Server, &[]).unwrap_err();
        assert!(error.starts_with("F:2: invalid value 'large' for '--mtu"), "{error}");
        let error = of("[server]\nnetwork-pool = x\n", Section::Setup, &[]).unwrap_err();
        assert!(error.starts_with("F:2: invalid value 'x'"), "another section is checked, too: {error}");
        let error = flags(Path::new("/none"), Section::Server, &[]).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /none: "), "{error}");
        let error = flags(Path::new("/dev/zero"), Section::Server, &[]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /dev/zero: it is longer than 1048576 bytes");
    }
}
