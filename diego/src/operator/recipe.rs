//! What the CLI desires: the LRPs and Tasks for an image, a droplet, a staging. Pure.

use bbs_models::{
    Action, CachedDependency, Check, CheckDefinition, DesiredLrp, DownloadAction, EmitProgressAction,
    EnvironmentVariable, ManyActions, Routes, RunAction, TaskDefinition, UploadAction,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Everything the CLI desires is in this domain.
pub const DOMAIN: &str = "diego-cli";
pub const SSH_PORT: u16 = 2222;
/// Where the lifecycle programs are inside a container.
const LIFECYCLE_DIR: &str = "/tmp/lifecycle";
const HOME: &str = "/home/vcap";

/// What an image says of itself, as the registry cache tells it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub workdir: String,
    pub ports: Vec<u16>,
}

/// What a user may say of an app, whatever it is made of.
#[derive(Debug, Clone)]
pub struct App {
    pub name: String,
    pub instances: u32,
    pub memory_mb: u32,
    pub disk_mb: u32,
    pub env: Vec<EnvironmentVariable>,
    /// Instead of what the image or droplet says.
    pub command: Option<String>,
    pub port: Option<u16>,
    pub check: HealthCheck,
    pub hostname: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum HealthCheck {
    Port,
    Http(String),
    Process,
}

/// The keys by which an app's instances take ssh.
pub struct SshKeys {
    pub host_private_pem: String,
    pub host_fingerprint: String,
    pub user_private_pem: String,
    pub user_authorized_key: String,
}

/// The port an app listens on, told or guessed.
pub fn port(app: &App, image: &ImageConfig) -> u16 {
    app.port.or(image.ports.first().copied()).unwrap_or(8080)
}

pub fn image_lrp(
    app: &App,
    pinned: &str,
    image: &ImageConfig,
    keys: &SshKeys,
    file_server: &str,
) -> DesiredLrp {
    let metadata = json!({
        "entrypoint": image.entrypoint, "cmd": image.cmd, "workdir": image.workdir, "user": image.user,
    });
    let launch = RunAction {
        path: format!("{LIFECYCLE_DIR}/launcher"),
        args: vec!["app".into(), app.command.clone().unwrap_or_default(), metadata.to_string()],
        env: pairs(&image.env),
        user: user_or_root(&image.user),
        log_source: "APP".into(),
        ..RunAction::default()
    };
    let port = port(app, image);
    let lrp = DesiredLrp::new(&app.name, DOMAIN, pinned, with_sshd(launch, &user_or_root(&image.user), keys));
    finish(lrp, app, port, keys, file_server)
}

pub fn droplet_lrp(
    app: &App,
    stack: &str,
    droplet_url: &str,
    keys: &SshKeys,
    file_server: &str,
) -> DesiredLrp {
    let fetch = Action::Download(DownloadAction {
        artifact: "droplet".into(),
        from: droplet_url.into(),
        to: HOME.into(),
        cache_key: format!("droplet-{}", app.name),
        user: "vcap".into(),
        ..DownloadAction::default()
    });
    let launch = RunAction {
        path: format!("{LIFECYCLE_DIR}/launcher"),
        args: vec!["app".into(), app.command.clone().unwrap_or_default(), String::new()],
        dir: HOME.into(),
        user: "vcap".into(),
        log_source: "APP".into(),
        ..RunAction::default()
    };
    let port = port(app, &ImageConfig::default());
    let action = with_sshd(launch, "vcap", keys);
    let mut lrp = DesiredLrp::new(&app.name, DOMAIN, format!("preloaded:{stack}"), action);
    lrp.setup = Some(fetch);
    finish(lrp, app, port, keys, file_server)
}

/// Where a staging takes from and puts to.
pub struct Staging<'a> {
    pub app: &'a str,
    pub stack: &'a str,
    pub source_url: &'a str,
    /// Name and URL of each buildpack, in order.
    pub buildpacks: &'a [(String, String)],
    /// One buildpack was named: it must not decline.
    pub skip_detect: bool,
    pub droplet_url: &'a str,
    pub file_server: &'a str,
    pub env: Vec<EnvironmentVariable>,
}

pub const STAGING_RESULT: &str = "/tmp/result.json";

pub fn staging_task(staging: &Staging<'_>) -> TaskDefinition {
    let download = |artifact: &str, from: &str, to: String| {
        let (artifact, from) = (artifact.to_owned(), from.to_owned());
        Action::Download(DownloadAction { artifact, from, to, user: "vcap".into(), ..Default::default() })
    };
    let mut steps = vec![download("app package", staging.source_url, "/tmp/app".into())];
    steps.extend(
        staging
            .buildpacks
            .iter()
            .map(|(key, url)| download(&format!("buildpack {key}"), url, format!("/tmp/buildpacks/{key}"))),
    );
    let order: Vec<_> = staging.buildpacks.iter().map(|(key, _)| key.as_str()).collect();
    let build = Action::Run(RunAction {
        path: format!("{LIFECYCLE_DIR}/builder"),
        args: vec![
            "-buildpackOrder".into(),
            order.join(","),
            format!("-skipDetect={}", staging.skip_detect),
            "-buildDir=/tmp/app".into(),
            "-buildpacksDir=/tmp/buildpacks".into(),
            "-outputDroplet=/tmp/droplet".into(),
            format!("-outputMetadata={STAGING_RESULT}"),
            "-outputBuildArtifactsCache=/tmp/output-cache".into(),
            "-buildArtifactsCacheDir=/tmp/cache".into(),
        ],
        env: staging.env.clone(),
        user: "vcap".into(),
        ..RunAction::default()
    });
    steps.push(Action::EmitProgress(EmitProgressAction {
        action: Box::new(build),
        start_message: "Staging...".into(),
        success_message: "Staging complete".into(),
        failure_message_prefix: "Staging failed".into(),
        log_source: String::new(),
    }));
    steps.push(Action::Upload(UploadAction {
        artifact: "droplet".into(),
        from: "/tmp/droplet".into(),
        to: staging.droplet_url.into(),
        user: "vcap".into(),
        ..UploadAction::default()
    }));
    let recipe = Action::Serial(ManyActions { actions: steps, log_source: "STG".into() });
    let mut task = TaskDefinition::new(format!("preloaded:{}", staging.stack), recipe);
    task.memory_mb = 1024;
    task.disk_mb = 4096;
    task.log_guid = staging.app.into();
    task.log_source = "STG".into();
    task.result_file = STAGING_RESULT.into();
    task.cached_dependencies = vec![lifecycle(staging.file_server)];
    task
}

pub fn image_task(pinned: &str, image: &ImageConfig, command: &[String], name: &str) -> TaskDefinition {
    let words: Vec<String> = match command {
        [] => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        command => command.to_vec(),
    };
    let (path, args) =
        words.split_first().map(|(path, args)| (path.clone(), args.to_vec())).unwrap_or_default();
    let run = RunAction {
        path,
        args,
        env: pairs(&image.env),
        dir: image.workdir.clone(),
        user: user_or_root(&image.user),
        log_source: "TASK".into(),
        ..RunAction::default()
    };
    let mut task = TaskDefinition::new(pinned, Action::Run(run));
    task.log_guid = name.into();
    task.log_source = "TASK".into();
    task
}

/// The app and its ssh daemon live and die together.
fn with_sshd(launch: RunAction, user: &str, keys: &SshKeys) -> Action {
    let sshd = RunAction {
        path: format!("{LIFECYCLE_DIR}/diego-sshd"),
        args: vec![
            format!("-address=0.0.0.0:{SSH_PORT}"),
            format!("-hostKey={}", keys.host_private_pem),
            format!("-authorizedKey={}", keys.user_authorized_key),
            "-inheritDaemonEnv".into(),
            "-logLevel=fatal".into(),
        ],
        env: launch.env.clone(),
        user: user.into(),
        suppress_log_output: true,
        log_source: "SSH".into(),
        ..RunAction::default()
    };
    let actions = vec![Action::Run(launch), Action::Run(sshd)];
    Action::Codependent(ManyActions { actions, log_source: String::new() })
}

fn finish(mut lrp: DesiredLrp, app: &App, port: u16, keys: &SshKeys, file_server: &str) -> DesiredLrp {
    lrp.log_guid = app.name.clone();
    lrp.log_source = "CELL".into();
    lrp.instances = app.instances;
    lrp.memory_mb = app.memory_mb;
    lrp.disk_mb = app.disk_mb;
    lrp.start_timeout_ms = 60_000;
    lrp.ports = vec![port, SSH_PORT];
    lrp.cached_dependencies = vec![lifecycle(file_server)];
    lrp.environment_variables =
        [pair("PORT", &port.to_string()), pair("VCAP_APP_PORT", &port.to_string())].into();
    lrp.environment_variables.extend(app.env.iter().cloned());
    lrp.check_definition = check(&app.check, port);
    lrp.routes = routes(&app.hostname, port, keys);
    lrp
}

fn check(check: &HealthCheck, port: u16) -> Option<CheckDefinition> {
    let check = match check {
        HealthCheck::Process => return None,
        HealthCheck::Port => Check::Tcp { port, connect_timeout_ms: 0, interval_ms: 0 },
        HealthCheck::Http(path) => {
            Check::Http { port, path: path.clone(), request_timeout_ms: 0, interval_ms: 0 }
        }
    };
    Some(CheckDefinition { checks: vec![check], log_source: "HEALTH".into(), readiness_checks: Vec::new() })
}

fn routes(hostname: &str, port: u16, keys: &SshKeys) -> Routes {
    #[derive(Serialize)]
    struct Ssh<'a> {
        container_port: u16,
        private_key: &'a str,
        host_fingerprint: &'a str,
    }
    let http = json!([{ "hostnames": [hostname], "port": port }]);
    let ssh = Ssh {
        container_port: SSH_PORT,
        private_key: &keys.user_private_pem,
        host_fingerprint: &keys.host_fingerprint,
    };
    let mut routes = Routes::new();
    // Neither value can fail to become JSON.
    let _ = routes.insert("cf-router", &http);
    let _ = routes.insert("diego-ssh", &ssh);
    routes
}

fn lifecycle(file_server: &str) -> CachedDependency {
    CachedDependency {
        name: "lifecycle".into(),
        from: format!("{file_server}/v1/static/lifecycle.tgz"),
        to: LIFECYCLE_DIR.into(),
        cache_key: "lifecycle".into(),
        ..CachedDependency::default()
    }
}

fn user_or_root(user: &str) -> String {
    if user.is_empty() { "root".into() } else { user.into() }
}

fn pairs(env: &[String]) -> Vec<EnvironmentVariable> {
    env.iter().filter_map(|entry| entry.split_once('=')).map(|(name, value)| pair(name, value)).collect()
}

fn pair(name: &str, value: &str) -> EnvironmentVariable {
    EnvironmentVariable { name: name.into(), value: value.into() }
}
