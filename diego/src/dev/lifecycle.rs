//! The lifecycle bundle: the programs that stage, launch, check and give ssh inside containers, packed once at start
//! from beside this binary, and served by the file server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub const BUNDLE: &str = "lifecycle.tgz";
const PROGRAMS: [&str; 4] = ["builder", "launcher", "healthcheck", "diego-sshd"];

/// A program that `make build` puts beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    anyhow::bail!(
        "there is no {name} beside {}; `make build` puts every program into dist/bin",
        own.display()
    )
}

/// Writes the bundle into `dir`, whole or not at all.
pub fn pack(dir: &Path) -> Result<()> {
    let unfinished = dir.join(".lifecycle.unfinished");
    let file = std::fs::File::create(&unfinished).context("cannot pack the lifecycle programs")?;
    let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    tar.mode(tar::HeaderMode::Deterministic);
    for program in PROGRAMS {
        let path = beside(program)?;
        tar.append_path_with_name(&path, program)
            .with_context(|| format!("cannot pack {}", path.display()))?;
    }
    let file = tar.into_inner().and_then(flate2::write::GzEncoder::finish);
    file.and_then(|file| file.sync_all()).context("cannot pack the lifecycle programs")?;
    std::fs::rename(&unfinished, dir.join(BUNDLE)).context("cannot pack the lifecycle programs")
}
