//! How an app starts: from `launcher <app directory> <start command> <metadata>` to the one program that the launcher
//! becomes. Buildpack apps run their profile scripts and then the command; Docker apps run entrypoint and command of
//! their image. Deciding is pure; [`Start::execute`] replaces this process.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use crate::{environment::Environment, words, yaml};

/// Where a droplet says how it starts, relative to the directory the launcher is started in.
pub const STAGING_INFO: &str = "staging_info.yml";

/// The shells looked for, in this order.
const BASH: &str = "/bin/bash";
const SH: &str = "/bin/sh";

/// What staging left in the droplet.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct StagingInfo {
    pub detected_buildpack: String,
    pub start_command: String,
    pub config: Option<StagingConfig>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct StagingConfig {
    pub entrypoint_prefix: String,
}

/// What staging found in an image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct DockerMetadata {
    #[serde(default)]
    pub cmd: Vec<String>,
    #[serde(default)]
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub workdir: String,
}

/// Which kind of app the arguments speak of.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Buildpack,
    Docker(DockerMetadata),
}

/// The program to become.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    pub directory: PathBuf,
    pub program: PathBuf,
    /// With the program's own name in front.
    pub arguments: Vec<OsString>,
    /// Lines to print before, as the profile script would.
    pub lines: &'static [&'static str],
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("Invalid metadata - {0}")]
    Metadata(#[source] serde_json::Error),
    #[error("Invalid staging info - {0}")]
    StagingInfo(String),
    #[error("no start command specified or detected in droplet")]
    NoDropletCommand,
    #[error("No start command found or specified")]
    NoImageCommand,
    #[error("Failed to resolve path: exec: {0:?}: executable file not found in $PATH")]
    NotFound(String),
    #[error(
        "cannot run {0:?}: the container has no shell (neither {BASH} nor {SH}) and the command needs one"
    )]
    NoShell(String),
    #[error("Couldn't change directories to {0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    #[error("Failed to run: {0}: {1}")]
    Run(PathBuf, #[source] io::Error),
}

/// Reads the metadata argument. Droplets carry none, or the old `start_command` and `process_types`; images carry an
/// object with their cmd and entrypoint. An empty object is an image's unless a droplet lies in this directory.
pub fn kind(metadata: &str, droplet_here: bool) -> Result<Kind, LaunchError> {
    if metadata.trim().is_empty() || metadata.starts_with('-') {
        return Ok(Kind::Buildpack);
    }
    let value: serde_json::Value = serde_json::from_str(metadata).map_err(LaunchError::Metadata)?;
    let has = |key| value.get(key).is_some();
    if has("start_command") || has("process_types") {
        return Ok(Kind::Buildpack);
    }
    if droplet_here && !has("cmd") && !has("entrypoint") {
        return Ok(Kind::Buildpack);
    }
    serde_json::from_value(value).map(Kind::Docker).map_err(LaunchError::Metadata)
}

/// Reads `staging_info.yml`; what is not there says nothing.
pub fn staging_info(file: &Path) -> Result<StagingInfo, LaunchError> {
    let invalid = |why: &dyn std::fmt::Display| LaunchError::StagingInfo(why.to_string());
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(StagingInfo::default()),
        Err(error) => return Err(invalid(&error)),
    };
    // Our own and most others are JSON, which is quicker to read.
    if let Ok(read) = serde_json::from_str(&text) {
        return Ok(read);
    }
    let value = yaml::parse(&text)
        .map_err(|error| invalid(&format!("failed to unmarshal {STAGING_INFO}: {error}")))?;
    serde_json::from_value(value)
        .map_err(|error| invalid(&format!("failed to unmarshal {STAGING_INFO}: {error}")))
}

/// What of a root file system the decision depends on.
pub trait Root {
    fn is_file(&self, path: &Path) -> bool;
    /// Whether a directory has any entry.
    fn has_entries(&self, directory: &Path) -> bool;
    /// The file an unqualified program name leads to.
    fn find_program(&self, name: &str) -> Option<PathBuf>;
}

/// The start of a droplet in `app` (absolute).
pub fn buildpack(
    app: &Path,
    start_command: &str,
    staged: &StagingInfo,
    root: &dyn Root,
) -> Result<Start, LaunchError> {
    let command = match start_command {
        "" => staged.start_command.as_str(),
        given => given,
    };
    if command.is_empty() {
        return Err(LaunchError::NoDropletCommand);
    }
    let prefix = staged.config.as_ref().map_or("", |config| config.entrypoint_prefix.as_str());
    let Some(shell) = shell(root) else {
        return without_shell(app, command, root);
    };
    let name = shell.file_name().unwrap_or(shell.as_os_str()).to_owned();
    let (script, lines) = if prefix.is_empty() && !has_profile(app, root) {
        // Nothing to source: one shell less to start.
        (None, &LINES[..])
    } else {
        let default = format!("{} -c", name.to_string_lossy());
        let entrypoint = if prefix.is_empty() { &default } else { prefix };
        (Some(profile_script(entrypoint)), &[][..])
    };
    let mut arguments = vec![name, "-c".into()];
    match script {
        None => arguments.push(command.into()),
        Some(script) => {
            arguments.extend([script.into(), "launcher".into(), app.into(), command.into()]);
        }
    }
    Ok(Start { directory: app.to_owned(), program: shell.to_owned(), arguments, lines })
}

/// What is printed on the way, so that developers see where their scripts end and their app begins.
const LINES: [&str; 2] = ["Invoking pre-start scripts.", "Invoking start command."];

fn shell(root: &dyn Root) -> Option<&'static Path> {
    [BASH, SH].map(Path::new).into_iter().find(|shell| root.is_file(shell))
}

fn has_profile(app: &Path, root: &dyn Root) -> bool {
    let beside = app.parent().unwrap_or(app).join("profile.d");
    root.has_entries(&beside)
        || root.has_entries(&app.join(".profile.d"))
        || root.is_file(&app.join(".profile"))
}

/// Sources the platform's, then the buildpacks', then the app's own profile, and becomes the start command. Scripts
/// are written for bash; where there is only sh they get sh.
fn profile_script(entrypoint: &str) -> String {
    let [before, after] = LINES;
    format!(
        r#"cd "$1" || exit 4
echo '{before}'
for env_file in ../profile.d/* .profile.d/*; do
  if [ -f "$env_file" ]; then case "$env_file" in .profile.d/*) env_file="./$env_file";; esac; . "$env_file"; fi
done
if [ -f .profile ]; then . ./.profile; fi
shift
echo '{after}'
exec {entrypoint} "$@"
"#
    )
}

/// In a root without any shell a command that needs none is still run.
fn without_shell(app: &Path, command: &str, root: &dyn Root) -> Result<Start, LaunchError> {
    let no_shell = || LaunchError::NoShell(command.to_owned());
    let split = words::split(command)
        .filter(|split| !split.needs_shell && !split.words.is_empty())
        .ok_or_else(no_shell)?;
    Ok(Start {
        directory: app.to_owned(),
        program: find(&split.words[0], app, root)?,
        arguments: split.words.into_iter().map(OsString::from).collect(),
        lines: &LINES,
    })
}

/// The start of an image: the user's command through the image's shell, or entrypoint and command as they stand.
pub fn docker(start_command: &str, metadata: &DockerMetadata, root: &dyn Root) -> Result<Start, LaunchError> {
    let directory = match metadata.workdir.as_str() {
        "" => PathBuf::from("/"),
        workdir => PathBuf::from(workdir),
    };
    if !start_command.is_empty() {
        if !root.is_file(Path::new(SH)) {
            let mut start = without_shell(&directory, start_command, root)?;
            start.lines = &[];
            return Ok(start);
        }
        return Ok(Start {
            directory,
            program: SH.into(),
            arguments: vec![SH.into(), "-c".into(), start_command.into()],
            lines: &[],
        });
    }
    let words: Vec<_> = metadata.entrypoint.iter().chain(&metadata.cmd).collect();
    let Some((first, rest)) = words.split_first() else {
        return Err(LaunchError::NoImageCommand);
    };
    let program = find(first, &directory, root)?;
    let mut arguments = vec![program.clone().into_os_string()];
    arguments.extend(rest.iter().map(OsString::from));
    Ok(Start { directory, program, arguments, lines: &[] })
}

fn find(name: &str, directory: &Path, root: &dyn Root) -> Result<PathBuf, LaunchError> {
    let found = match name.contains('/') {
        true => Some(directory.join(name)).filter(|path| root.is_file(path)),
        false => root.find_program(name),
    };
    found.ok_or_else(|| LaunchError::NotFound(name.to_owned()))
}

impl Start {
    /// Becomes the program; returns only when that fails.
    pub fn execute(&self, environment: &Environment) -> LaunchError {
        if let Err(error) = std::env::set_current_dir(&self.directory) {
            return LaunchError::Directory(self.directory.clone(), error);
        }
        for line in self.lines {
            println!("{line}");
        }
        let mut command = Command::new(&self.program);
        if let Some((name, rest)) = self.arguments.split_first() {
            command.arg0(name).args(rest);
        }
        let error = command.env_clear().envs(environment).exec();
        LaunchError::Run(self.program.clone(), error)
    }
}

/// The root this process lives in, with the PATH programs are looked for in.
pub struct ThisRoot {
    pub path: OsString,
}

impl Root for ThisRoot {
    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }

    fn has_entries(&self, directory: &Path) -> bool {
        std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
    }

    fn find_program(&self, name: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        std::env::split_paths(&self.path).map(|directory| directory.join(name)).find(|file| {
            file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files; a path ending in `/` is a directory with something in it.
    struct Files(&'static [&'static str]);

    impl Root for Files {
        fn is_file(&self, path: &Path) -> bool {
            self.0.iter().any(|file| Path::new(file) == path && !file.ends_with('/'))
        }
        fn has_entries(&self, directory: &Path) -> bool {
            self.0.iter().any(|file| file.ends_with('/') && Path::new(file) == directory)
        }
        fn find_program(&self, name: &str) -> Option<PathBuf> {
            Some(Path::new("/bin").join(name)).filter(|file| self.is_file(file))
        }
    }

    const APP: &str = "/home/vcap/app";

    fn staged(command: &str, prefix: Option<&str>) -> StagingInfo {
        StagingInfo {
            start_command: command.to_owned(),
            config: prefix.map(|prefix| StagingConfig { entrypoint_prefix: prefix.to_owned() }),
            ..Default::default()
        }
    }

    fn words(start: &Start) -> Vec<String> {
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        start.arguments.iter().map(text).collect()
    }

    #[test]
    fn metadata_tells_droplets_from_images() {
        let docker =
            |cmd: &str| Kind::Docker(DockerMetadata { cmd: vec![cmd.to_owned()], ..Default::default() });
        assert_eq!(kind("", false).unwrap(), Kind::Buildpack);
        assert_eq!(kind("-credhubRetryDelay=0s", false).unwrap(), Kind::Buildpack);
        assert_eq!(kind(r#"{"start_command":"x"}"#, false).unwrap(), Kind::Buildpack);
        assert_eq!(
            kind(r#"{"cmd":["a"],"ports":[{"Port":1,"Protocol":"tcp"}]}"#, true).unwrap(),
            docker("a")
        );
        assert_eq!(kind("{}", true).unwrap(), Kind::Buildpack);
        assert_eq!(kind("{}", false).unwrap(), Kind::Docker(DockerMetadata::default()));
        assert!(kind("{", false).unwrap_err().to_string().starts_with("Invalid metadata - "));
    }

    #[test]
    fn a_given_command_wins_over_the_staged_one() {
        let root = Files(&["/bin/bash", "/bin/sh"]);
        let command = |given, found| {
            buildpack(Path::new(APP), given, &staged(found, None), &root).map(|start| words(&start))
        };
        assert_eq!(command("mine", "staged").unwrap(), ["bash", "-c", "mine"]);
        assert_eq!(command("", "staged").unwrap(), ["bash", "-c", "staged"]);
        assert!(matches!(command("", ""), Err(LaunchError::NoDropletCommand)));
    }

    #[test]
    fn profiles_are_sourced_by_the_best_shell_there_is() {
        for profile in ["/home/vcap/profile.d/", "/home/vcap/app/.profile.d/", "/home/vcap/app/.profile"] {
            let files: &'static [&'static str] = vec!["/bin/sh", profile].leak();
            let start = buildpack(Path::new(APP), "run", &staged("", None), &Files(files)).unwrap();
            let words = words(&start);
            assert_eq!((&*words[0], &*words[1]), ("sh", "-c"));
            assert!(words[2].ends_with("exec sh -c \"$@\"\n"), "{}", words[2]);
            assert_eq!(words[3..], ["launcher", APP, "run"]);
        }
    }

    #[test]
    fn a_buildpack_may_put_its_own_entrypoint_in_front() {
        let root = Files(&["/bin/bash"]);
        let start = buildpack(Path::new(APP), "web", &staged("", Some("ruby launcher.rb")), &root).unwrap();
        assert!(words(&start)[2].ends_with("exec ruby launcher.rb \"$@\"\n"));
    }

    #[test]
    fn a_root_without_a_shell_runs_plain_commands() {
        let root = Files(&["/home/vcap/app/server", "/bin/tool"]);
        let start = |command| buildpack(Path::new(APP), command, &staged("", None), &root);
        assert_eq!(words(&start("./server '-a b'").unwrap()), ["./server", "-a b"]);
        assert_eq!(start("tool").unwrap().program, Path::new("/bin/tool"));
        assert!(matches!(start("server && x"), Err(LaunchError::NoShell(_))));
        assert!(matches!(start("missing"), Err(LaunchError::NotFound(_))));
    }

    #[test]
    fn images_start_as_docker_starts_them() {
        let root = Files(&["/bin/sh", "/bin/serve", "/srv/run"]);
        let metadata = |entrypoint: &[&str], cmd: &[&str], workdir: &str| DockerMetadata {
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            workdir: workdir.to_owned(),
        };
        let both = metadata(&["serve", "-x"], &["a"], "/srv");
        let start = docker("", &both, &root).unwrap();
        assert_eq!(words(&start), ["/bin/serve", "-x", "a"]);
        assert_eq!(start.directory, Path::new("/srv"));
        let start = docker("my command", &both, &root).unwrap();
        assert_eq!(words(&start), ["/bin/sh", "-c", "my command"]);
        let start = docker("", &metadata(&[], &["./run"], "/srv"), &root).unwrap();
        assert_eq!(start.program, Path::new("/srv/./run"));
        assert!(matches!(docker("", &metadata(&[], &[], ""), &root), Err(LaunchError::NoImageCommand)));
        assert!(matches!(docker("", &metadata(&[], &["x"], ""), &root), Err(LaunchError::NotFound(_))));
    }
}
