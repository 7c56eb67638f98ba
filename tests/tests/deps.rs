//! The dependency direction of the workspace, as Cargo resolved it; `polyraft_tests::deps` has the rules.

use std::path::Path;
use std::process::Command;

use polyraft_tests::deps::{Graph, check, check_manifest};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
}

/// `cargo metadata` for this machine's target: without the filter it wants packages of other systems. Where
/// the workspace has been built it needs no network.
fn metadata() -> serde_json::Value {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let version = String::from_utf8(version.stdout).expect("rustc prints text");
    let host = version
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .expect("rustc names its host");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            host,
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

#[test]
fn dependencies_point_one_way() {
    let graph = Graph::from_metadata(&metadata()).expect("metadata has its known shape");
    let findings = check(&graph);
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

#[test]
fn manifests_take_versions_and_lints_from_the_root() {
    let mut findings = Vec::new();
    for member in [
        "core",
        "multiraft",
        "store",
        "transport",
        "server",
        "sim",
        "fuzz",
        "tests",
        "benches",
    ] {
        let path = root().join(member).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).expect("a member has a manifest");
        findings.extend(check_manifest(member, &manifest));
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
