//! Holds the table of crate dependencies in docs/ARCHITECTURE.md against what cargo reports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

type Uses = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Normal and build dependencies between the crates of the workspace; tests may use what they like.
fn reported() -> Uses {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<_> =
        packages.iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect();
    let uses = |package: &serde_json::Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        dependencies
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
            .filter(|name| names.contains(name))
            .collect()
    };
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_owned(), uses(package))).collect()
}

fn allowed() -> Uses {
    let page = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let table = page.split("| crate | may use |\n| --- | --- |\n").nth(1).expect("the table of crates");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut columns = row.split('|').skip(1).map(str::trim);
        let name = columns.next().unwrap().to_owned();
        (name, columns.next().unwrap().split_whitespace().map(str::to_owned).collect())
    })
    .collect()
}

#[test]
fn every_crate_uses_only_what_the_architecture_allows() {
    let allowed = allowed();
    let reported = reported();
    assert_eq!(
        reported.keys().collect::<Vec<_>>(),
        allowed.keys().collect::<Vec<_>>(),
        "the crates themselves"
    );
    for (name, uses) in reported {
        let forbidden: Vec<_> = uses.difference(&allowed[&name]).collect();
        assert!(forbidden.is_empty(), "{name} uses {forbidden:?}, which docs/ARCHITECTURE.md does not allow");
    }
}

#[test]
fn unsafe_code_stands_behind_the_kernels_door_only() {
    // What a hostile process does is just what no safe library offers.
    let allowed = ["garden/sys", "garden/init", "garden/tests/escapes/attacker.rs"];
    for file in sources(root()) {
        let name = file.strip_prefix(root()).unwrap();
        if allowed.iter().any(|door| name.starts_with(door)) || name.ends_with("architecture.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("allow(unsafe_code)"), "{} allows unsafe code", name.display());
    }
}

fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let skipped = ["target", "dist", ".git"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && !skipped {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
