//! The repository keeps its own rules; `polyraft_tests::tidy` says which.

use std::path::Path;

use polyraft_tests::tidy::{self, Allowance};

/// Files that may be longer than the limit, each with the reason. The list only shrinks.
const ALLOWANCES: &[Allowance] = &[];

#[test]
fn the_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace");
    let files = tidy::read_repository(root).expect("the repository can be read");
    assert!(
        files.iter().any(|f| f.path == "core/src/lib.rs"),
        "not the repository: {}",
        root.display()
    );
    let findings = tidy::check(&files, ALLOWANCES);
    let report: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        report.len(),
        report.join("\n")
    );
}
