//! The `diego` binary: one subcommand a component, `dev` for all of them in one process, and the operator's CLI.
//!
//! Started under an established name (`bbs`, `rep`, `gdn`, …) it is that component.

mod cfdot;
mod cli;
mod components;
mod dev;
mod duration;
mod operator;

use std::process::ExitCode;

/// The C library's allocator takes one lock for all threads; this one does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(password) = std::env::var_os(operator::ssh::ASKPASS_ENV) {
        println!("{}", password.to_string_lossy());
        return ExitCode::SUCCESS;
    }
    diego_base::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("diego: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::run());
    // What still blocks (a read of the terminal, mostly) must not keep an ended program alive.
    runtime.shutdown_background();
    code
}
