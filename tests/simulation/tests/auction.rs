//! That the report of auctions can be made, and that reps in processes of their own hold what is placed in one.

use std::process::Command;

#[test]
fn processes_hold_what_is_placed_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_simulate-auction")).arg(folder.path()).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("Processes hold what was placed in one process"), "{said}");
    let drawn = std::fs::read_to_string(folder.path().join("report.svg")).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
}
