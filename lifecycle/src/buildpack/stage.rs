//! One staging from end to end, in the order the platform's developers see it. Scripts' output goes straight to this
//! process's own, so that it streams.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use super::{
    fetch::{self, FetchError},
    launch_data::{self, LaunchProcess},
    pack::{Archive, PackError},
    result::{BuildpackMetadata, StagingResult},
    settings::{Settings, is_url},
};
use crate::{
    launch::STAGING_INFO,
    yaml::{self, YamlError},
};

const MISSING_FINALIZE: &str = "Warning: the last buildpack is not compatible with multi-buildpack apps and cannot make use of any dependencies supplied by the buildpacks specified before it";

/// Why staging failed. The texts are matched by platform clients; the codes are what they show for them.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    #[error("None of the buildpacks detected a compatible application")]
    NoneDetected,
    #[error("Failed to compile droplet: {0}")]
    Compile(Box<StagingError>),
    #[error("Failed to build droplet release: {0}")]
    Release(Box<StagingError>),
    #[error("Failed to run all supply scripts: {0}")]
    Supply(Box<StagingError>),
    #[error(
        "Error: one of the buildpacks chosen to supply dependencies does not support multi-buildpack apps"
    )]
    NoSupplyScript,
    #[error("Failed to run finalize script: {0}")]
    Finalize(Box<StagingError>),
    #[error("{0}")]
    Script(ScriptError),
    #[error("malformed buildpack does not contain a /bin dir: {0}")]
    Malformed(String),
    #[error("Failed to read buildpack directory '{0}' for buildpack '{1}'")]
    NoBuildpack(PathBuf, String),
    #[error("buildpack's release output invalid{0}")]
    ReleaseOutput(String),
    #[error("Failed to read command from Procfile: {0}")]
    Procfile(String),
    #[error("{0}: {1}")]
    LaunchYml(PathBuf, YamlError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("Failed to compress droplet filesystem: {0}")]
    Droplet(PackError),
    #[error("Failed to compress build artifacts: {0}")]
    Cache(PackError),
    #[error("Failed to set up filesystem when generating droplet: {0}: {1}")]
    FileSystem(PathBuf, io::Error),
}

/// How one script of a buildpack failed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("cannot run {0}: {1}")]
    Start(PathBuf, io::Error),
    #[error("exit status {0}")]
    Status(i32),
    #[error("signal: {0}")]
    Signal(i32),
}

impl StagingError {
    /// The exit code the platform turns into an error of its own.
    pub fn exit_code(&self) -> u8 {
        match self {
            StagingError::NoneDetected => 222,
            StagingError::Compile(_) => 223,
            StagingError::Release(_) => 224,
            StagingError::Supply(_) | StagingError::NoSupplyScript => 225,
            StagingError::Finalize(_) => 226,
            _ => 1,
        }
    }
}

/// The buildpack that makes the droplet.
struct Selected {
    key: String,
    directory: PathBuf,
    /// What its `detect` said; a name for the buildpack if it gives no other.
    detected: String,
}

struct Staging<'a> {
    settings: &'a Settings,
    /// What becomes the droplet beside the app: `deps`, `profile.d`, staging info. Removed with the value.
    contents: Contents,
    database_url: Option<String>,
}

struct Contents(PathBuf);

impl Drop for Contents {
    fn drop(&mut self) {
        // Staging is over; what cannot be removed goes with the container.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Stages: leaves the droplet, `result.json` and the cache where `settings` says. Scripts find `database_url` in their
/// environment as DATABASE_URL.
pub fn stage(settings: &Settings, database_url: Option<String>) -> Result<(), StagingError> {
    let staging = Staging::set_up(settings, database_url)?;
    fetch::fetch(settings)?;
    staging.clean_cache()?;
    let selected = match settings.skip_detect {
        true => staging.supply()?,
        false => staging.detect().ok_or(StagingError::NoneDetected)?,
    };
    match staging.build(&selected) {
        Ok(result) => staging.write_results(&result)?,
        Err(error) => {
            // The buildpacks' own metadata are wanted for a failed build too; its failure is the one to report.
            let result = StagingResult::new(staging.metadata(&selected.keys(settings)));
            let _ = write_json(&settings.output_metadata, &result);
            return Err(error);
        }
    }
    staging.pack()
}

impl Selected {
    fn keys(&self, settings: &Settings) -> Vec<String> {
        match settings.skip_detect {
            true => settings.buildpack_order.clone(),
            false => vec![self.key.clone()],
        }
    }
}

impl<'a> Staging<'a> {
    fn set_up(settings: &'a Settings, database_url: Option<String>) -> Result<Staging<'a>, StagingError> {
        let contents = std::env::temp_dir().join(format!("contents{}", std::process::id()));
        let staging = Staging { settings, contents: Contents(contents), database_url };
        let parent = |file: &Path| file.parent().unwrap_or(Path::new(".")).to_owned();
        let mut directories = vec![
            parent(&settings.output_droplet),
            parent(&settings.output_metadata),
            settings.final_cache(),
            staging.profile(),
        ];
        let supply = settings.supply_buildpacks();
        directories.extend(supply.iter().map(|key| settings.supply_cache(key)));
        directories.extend((0..=supply.len()).map(|index| staging.deps_of(&settings.deps_index(index))));
        for directory in directories {
            fs::create_dir_all(&directory).map_err(|error| StagingError::FileSystem(directory, error))?;
        }
        Ok(staging)
    }

    fn script(&self, file: &Path) -> Command {
        let mut command = Command::new(file);
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        command
    }

    fn deps(&self) -> PathBuf {
        self.contents.0.join("deps")
    }

    fn deps_of(&self, index: &str) -> PathBuf {
        self.deps().join(index)
    }

    fn profile(&self) -> PathBuf {
        self.contents.0.join("profile.d")
    }

    /// Forgets what buildpacks no longer in use had cached.
    fn clean_cache(&self) -> Result<(), StagingError> {
        let directory = &self.settings.build_artifacts_cache_dir;
        let failed = |error| StagingError::FileSystem(directory.clone(), error);
        let supply = self.settings.supply_buildpacks().iter();
        let mut needed: Vec<_> = supply.map(|key| self.settings.supply_cache(key)).collect();
        needed.push(self.settings.final_cache());
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if needed.contains(&path) {
                continue;
            }
            let removed = match path.is_dir() && !path.is_symlink() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(failed)?;
        }
        Ok(())
    }

    /// Runs `supply` of all but the last buildpack, and selects the last.
    fn supply(&self) -> Result<Selected, StagingError> {
        let wrapped = |error| StagingError::Supply(Box::new(error));
        let mut supplying = Vec::new();
        for key in self.settings.supply_buildpacks() {
            let directory = self.directory(key).map_err(wrapped)?;
            if !directory.join("bin/supply").exists() {
                return Err(StagingError::NoSupplyScript);
            }
            supplying.push((key, directory));
        }
        for (index, (key, directory)) in supplying.into_iter().enumerate() {
            let cache = self.settings.supply_cache(key);
            self.run_supply(&directory, &cache, &self.settings.deps_index(index)).map_err(wrapped)?;
        }
        let key = self.settings.buildpack_order.last().cloned().unwrap_or_default();
        let directory = self.directory(&key).map_err(wrapped)?;
        Ok(Selected { key, directory, detected: String::new() })
    }

    /// The first buildpack whose `detect` says yes.
    fn detect(&self) -> Option<Selected> {
        for key in &self.settings.buildpack_order {
            match self.detect_one(key) {
                Ok(Some(selected)) => return Some(selected),
                Ok(None) => {}
                Err(error) => eprintln!("{error}"),
            }
        }
        None
    }

    fn detect_one(&self, key: &str) -> Result<Option<Selected>, StagingError> {
        let directory = self.directory(key)?;
        let script = directory.join("bin/detect");
        let metadata = script
            .metadata()
            .map_err(|error| StagingError::Script(ScriptError::Start(script.clone(), error)))?;
        if metadata.permissions().mode() & 0o111 != 0o111 {
            println!("WARNING: buildpack script '/bin/detect' is not executable");
        }
        let mut detect = self.script(&script);
        detect.arg(&self.settings.build_dir).stdout(Stdio::piped());
        match run(detect) {
            Ok(output) => Ok(Some(Selected {
                key: key.to_owned(),
                directory,
                detected: output.trim_end_matches(['\r', '\n']).to_owned(),
            })),
            // A "no" is said by the exit status; only a script that cannot run is worth a word.
            Err(ScriptError::Status(_)) => Ok(None),
            Err(error) => Err(StagingError::Script(error)),
        }
    }

    /// The directory of a buildpack that has a `bin`: at one of its places, or in the only directory there.
    fn directory(&self, key: &str) -> Result<PathBuf, StagingError> {
        let mut places = self.settings.buildpack_places(key);
        if !is_url(key) {
            places.push(self.settings.download_place(key));
        }
        let has_bin = |place: &PathBuf| place.join("bin").exists();
        if let Some(place) = places.iter().find(|place| has_bin(place)) {
            return Ok(place.clone());
        }
        let mut there = places.iter().filter(|place| place.is_dir()).peekable();
        if there.peek().is_none() {
            return Err(StagingError::NoBuildpack(places[0].clone(), key.to_owned()));
        }
        there
            .find_map(|place| only_entry(place).filter(has_bin))
            .ok_or_else(|| StagingError::Malformed(key.to_owned()))
    }

    fn run_supply(&self, buildpack: &Path, cache: &Path, index: &str) -> Result<(), StagingError> {
        let mut supply = self.script(&buildpack.join("bin/supply"));
        supply.args([&self.settings.build_dir, cache, &self.deps()]).arg(index);
        run(supply).map(drop).map_err(StagingError::Script)
    }

    fn build(&self, selected: &Selected) -> Result<StagingResult, StagingError> {
        self.finalize(&selected.directory).map_err(|error| StagingError::Compile(Box::new(error)))?;
        let processes = self.processes(selected)?;
        let mut buildpacks = self.metadata(&selected.keys(self.settings));
        if let [only] = &mut buildpacks[..]
            && only.name.is_empty()
        {
            only.name.clone_from(&selected.detected);
        }
        let mut result = StagingResult::new(buildpacks);
        launch_data::fill(&mut result, processes);
        if result.web_command().is_empty() {
            eprintln!("No start command specified by buildpack or via Procfile.");
            eprintln!("App will not start unless a command is provided at runtime.");
        }
        Ok(result)
    }

    /// `supply` and `finalize` of the last buildpack, or `compile` of one that knows no dependencies.
    fn finalize(&self, buildpack: &Path) -> Result<(), StagingError> {
        let cache = self.settings.final_cache();
        let index = self.settings.final_deps_index();
        if buildpack.join("bin/finalize").exists() {
            if buildpack.join("bin/supply").exists() {
                self.run_supply(buildpack, &cache, &index)
                    .map_err(|error| StagingError::Supply(Box::new(error)))?;
            }
            let mut finalize = self.script(&buildpack.join("bin/finalize"));
            finalize.args([&self.settings.build_dir, &cache, &self.deps()]);
            finalize.arg(index).arg(self.profile());
            return run(finalize)
                .map(drop)
                .map_err(|error| StagingError::Finalize(Box::new(StagingError::Script(error))));
        }
        if !self.settings.supply_buildpacks().is_empty() {
            eprintln!("{MISSING_FINALIZE}");
        }
        let unused = self.deps_of(&index);
        fs::remove_dir_all(&unused).map_err(|error| StagingError::FileSystem(unused, error))?;
        let mut compile = self.script(&buildpack.join("bin/compile"));
        compile.args([&self.settings.build_dir, &cache]);
        run(compile).map(drop).map_err(StagingError::Script)
    }

    /// The processes of the app: every buildpack's, then the app's own.
    fn processes(&self, selected: &Selected) -> Result<Vec<LaunchProcess>, StagingError> {
        let supply = self.settings.supply_buildpacks().len();
        let mut processes = Vec::new();
        for index in 0..supply {
            let more = self.launch_yml(&self.settings.deps_index(index))?;
            processes = launch_data::merge(processes, more.unwrap_or_default());
        }
        let last = match self.launch_yml(&self.settings.final_deps_index())? {
            Some(processes) => processes,
            None => launch_data::plain(
                self.release(&selected.directory).map_err(|error| StagingError::Release(Box::new(error)))?,
            ),
        };
        let processes = launch_data::merge(processes, last);
        Ok(launch_data::merge(processes, launch_data::plain(self.procfile()?)))
    }

    fn launch_yml(&self, index: &str) -> Result<Option<Vec<LaunchProcess>>, StagingError> {
        let file = self.deps_of(index).join("launch.yml");
        match fs::read_to_string(&file) {
            Ok(text) => launch_data::read_launch_yml(&text)
                .map(Some)
                .map_err(|error| StagingError::LaunchYml(file, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StagingError::FileSystem(file, error)),
        }
    }

    fn release(&self, buildpack: &Path) -> Result<Vec<(String, String)>, StagingError> {
        let mut release = self.script(&buildpack.join("bin/release"));
        release.arg(&self.settings.build_dir).stdout(Stdio::piped());
        let output = run(release).map_err(StagingError::Script)?;
        yaml::texts_under(&output, "default_process_types")
            .map_err(|error| StagingError::ReleaseOutput(format!(": {error}")))?
            .ok_or_else(|| StagingError::ReleaseOutput(String::new()))
    }

    fn procfile(&self) -> Result<Vec<(String, String)>, StagingError> {
        let text = match fs::read_to_string(self.settings.build_dir.join("Procfile")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StagingError::Procfile(error.to_string())),
        };
        let processes = yaml::texts(&text).ok().flatten();
        processes.ok_or_else(|| StagingError::Procfile("invalid YAML".to_owned()))
    }

    fn metadata(&self, keys: &[String]) -> Vec<BuildpackMetadata> {
        let one = |(index, key): (usize, &String)| {
            let file = self.deps_of(&self.settings.deps_index(index)).join("config.yml");
            // A config that is missing or broken says nothing; the buildpack still has its key.
            let said = fs::read_to_string(file)
                .ok()
                .and_then(|text| yaml::parse_with_texts(&text, &["key", "name", "version"]).ok());
            let mut metadata: BuildpackMetadata =
                said.and_then(|said| serde_json::from_value(said).ok()).unwrap_or_default();
            if metadata.key.is_empty() {
                metadata.key.clone_from(key);
            }
            metadata
        };
        keys.iter().enumerate().map(one).collect()
    }

    fn write_results(&self, result: &StagingResult) -> Result<(), StagingError> {
        write_json(&self.contents.0.join(STAGING_INFO), &result.staging_info())?;
        write_json(&self.settings.output_metadata, result)
    }

    /// The droplet (`app`, `deps`, `profile.d`, `logs`, `tmp`, `staging_info.yml`) and the new cache.
    fn pack(&self) -> Result<(), StagingError> {
        let droplet = || {
            let mut archive = Archive::create(&self.settings.output_droplet)?;
            archive.add(&self.contents.0, "")?;
            archive.add(&self.settings.build_dir, "app")?;
            archive.add_directory("logs", 0o755)?;
            archive.add_directory("tmp", 0o755)?;
            archive.finish()
        };
        droplet().map_err(StagingError::Droplet)?;
        let cache = || {
            let mut archive = Archive::create(&self.settings.output_build_artifacts_cache)?;
            archive.add(&self.settings.build_artifacts_cache_dir, "")?;
            archive.finish()
        };
        cache().map_err(StagingError::Cache)
    }
}

fn only_entry(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?;
    let first = entries.next()?.ok()?.path();
    entries.next().is_none().then_some(first)
}

/// One line of JSON.
fn write_json(file: &Path, value: &impl serde::Serialize) -> Result<(), StagingError> {
    let failed = |error: io::Error| StagingError::FileSystem(file.to_owned(), error);
    let mut text = serde_json::to_string(value).map_err(|error| failed(error.into()))?;
    text.push('\n');
    fs::write(file, text).map_err(failed)
}

/// Runs a script to its end; gives what it wrote when its output is piped.
fn run(mut command: Command) -> Result<String, ScriptError> {
    let program = PathBuf::from(command.get_program());
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| ScriptError::Start(program, error))?;
    match outcome(output.status) {
        None => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(error) => Err(error),
    }
}

fn outcome(status: ExitStatus) -> Option<ScriptError> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(ScriptError::Status(code)),
        (None, signal) => Some(ScriptError::Signal(signal.unwrap_or_default())),
    }
}
