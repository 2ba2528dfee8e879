//! `healthcheck`: checks the app's port or URI from inside its container, once or in one of the repeating modes.

use std::process::ExitCode;

use lifecycle::check;

fn main() -> ExitCode {
    let (check, mode) = check::configure(&check::flags().parse_or_exit());
    check::run(&check, mode)
}
