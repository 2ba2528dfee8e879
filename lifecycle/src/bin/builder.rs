//! `builder`: stages an app with buildpacks into a droplet. Flags, files and exit codes are those of the platform.

use std::process::exit;

use lifecycle::{
    buildpack::{self, Settings},
    environment,
};

fn main() {
    let flags = buildpack::flags();
    let settings = Settings::new(&flags.parse_or_exit()).unwrap_or_else(|missing| {
        eprintln!("{missing}");
        eprint!("{}", flags.usage());
        exit(1)
    });
    // Buildpacks see DATABASE_URL; nothing else of the app's environment is theirs.
    let services = std::env::var("VCAP_SERVICES").unwrap_or_default();
    if let Err(error) = buildpack::stage(&settings, environment::database_uri(&services)) {
        eprintln!("{error}");
        exit(error.exit_code().into())
    }
}
