//! `launcher <app directory> <start command> <metadata>`: prepares the app's environment and becomes the app.

use std::{path::Path, process::exit};

use lifecycle::{
    environment,
    launch::{self, Kind, LaunchError, Start, ThisRoot},
};

/// Exit codes the platform tells apart.
const REFUSED: i32 = 1;
const ENVIRONMENT_FAILED: i32 = 3;
const START_FAILED: i32 = 4;

fn main() {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let program = arguments.first().map_or("launcher", String::as_str);
    let [_, directory, start_command, metadata, ..] = &arguments[..] else {
        let received = arguments.len().saturating_sub(1);
        eprintln!("{program}: received only {received} arguments");
        eprintln!("Usage: {program} <app-directory> <start-command> <metadata>");
        exit(REFUSED)
    };
    let staging_info = Path::new(launch::STAGING_INFO);
    let kind = launch::kind(metadata, staging_info.exists())
        .unwrap_or_else(|error| refuse(program, &error, REFUSED));
    let app = std::path::absolute(directory).unwrap_or_else(|_| directory.into());
    let home = matches!(kind, Kind::Buildpack).then_some(app.as_path());
    let environment = environment::for_app(std::env::vars_os().collect(), home)
        .unwrap_or_else(|error| refuse(program, &error, ENVIRONMENT_FAILED));
    let root = ThisRoot { path: std::env::var_os("PATH").unwrap_or_default() };
    let start = decide(&kind, &app, start_command, staging_info, &root)
        .unwrap_or_else(|error| refuse(program, &error, REFUSED));
    let error = start.execute(&environment);
    match kind {
        Kind::Buildpack => refuse(program, &error, START_FAILED),
        Kind::Docker(_) => refuse(program, &error, REFUSED),
    }
}

fn decide(
    kind: &Kind,
    app: &Path,
    start_command: &str,
    staging_info: &Path,
    root: &ThisRoot,
) -> Result<Start, LaunchError> {
    match kind {
        Kind::Docker(metadata) => launch::docker(start_command, metadata, root),
        Kind::Buildpack => {
            let staged = launch::staging_info(staging_info)?;
            launch::buildpack(app, start_command, &staged, root)
        }
    }
}

fn refuse(program: &str, error: &dyn std::error::Error, code: i32) -> ! {
    eprintln!("{program}: {error}");
    exit(code)
}
