//! `docs/ranges.md` says of every rule where it is kept and which test shows it: what it names exists.

use std::path::Path;

use polyraft_tests::{citations, tidy};

/// Rules in the tables of the page.
const RULES: usize = 43;

#[test]
fn the_rules_of_ranges_are_where_the_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace");
    let files = tidy::read_repository(root).expect("the repository can be read");
    let page = files.iter().find(|file| file.path == "docs/ranges.md");
    let page = page.expect("the page exists");
    let findings = citations::check(page, RULES, &files);
    let report: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        report.len(),
        report.join("\n")
    );
}
