//! The dependency direction of the workspace, checked on what Cargo resolved and on the manifests.
//!
//! ```text
//! core  ◀  multiraft  ◀  store, transport  ◀  server          tests and benches may see everything
//!                        store  ◀  sim
//! ```
//!
//! [`Graph`] is the part of `cargo metadata` that the rules look at, so a test can build a bad one by hand.
//! Rules about "never" hold through any number of crates between; development dependencies count directly
//! only, because what they bring is linked into tests alone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// One broken rule, as a sentence.
pub type Finding = String;

/// What kind of dependency it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Linked into the crate.
    Normal,
    /// For tests, examples and benchmarks.
    Dev,
    /// For the build script.
    Build,
}

/// A dependency as a manifest declares it.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Name of the package.
    pub name: String,
    /// Kind of dependency.
    pub kind: Kind,
    /// Whether the default features are on.
    pub default_features: bool,
    /// Features asked for.
    pub features: Vec<String>,
}

/// Packages and what depends on what.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The members of the workspace and what their manifests declare.
    pub members: BTreeMap<String, Vec<Declared>>,
    /// For every package of the resolved graph the names of its normal dependencies.
    pub resolved: BTreeMap<String, BTreeSet<String>>,
}

/// What one member may and must not depend on.
struct Rule {
    member: &'static str,
    /// The only members it may name.
    members: &'static [&'static str],
    /// The only other packages it may name; `None` for any.
    externals: Option<&'static [&'static str]>,
    /// Packages that must not be reached, not even through others.
    never: &'static [&'static str],
}

const CORE: &str = "polyraft-core";
const MULTIRAFT: &str = "polyraft-multiraft";
const STORE: &str = "polyraft-store";
const TRANSPORT: &str = "polyraft-transport";
const SERVER: &str = "polyraft-server";
const SIM: &str = "polyraft-sim";
const FUZZ: &str = "polyraft-fuzz";
const TESTS: &str = "polyraft-tests";
const BENCHES: &str = "polyraft-benches";

const RULES: &[Rule] = &[
    Rule {
        member: CORE,
        members: &[],
        externals: Some(&["bytes", "thiserror"]),
        never: &["rand", "log", "tracing", "libc", "prost", "tokio"],
    },
    Rule {
        member: MULTIRAFT,
        members: &[CORE],
        externals: None,
        never: &[
            "tokio",
            "tonic",
            "prost",
            "rocksdb",
            "librocksdb-sys",
            "h2",
            "hyper",
        ],
    },
    Rule {
        member: STORE,
        members: &[CORE, MULTIRAFT],
        externals: None,
        never: &[TRANSPORT, "tokio", "tonic", "prost"],
    },
    Rule {
        member: TRANSPORT,
        members: &[CORE, MULTIRAFT],
        externals: None,
        never: &[STORE, "rocksdb", "librocksdb-sys"],
    },
    Rule {
        member: SERVER,
        members: &[CORE, MULTIRAFT, STORE, TRANSPORT],
        externals: None,
        never: &[TESTS, BENCHES],
    },
    Rule {
        member: SIM,
        members: &[CORE, MULTIRAFT, STORE],
        externals: None,
        never: &[TRANSPORT, SERVER, "tokio", "tonic", "prost", "rand"],
    },
    Rule {
        member: FUZZ,
        members: &[],
        externals: Some(&[]),
        never: &[],
    },
    Rule {
        member: TESTS,
        members: &[CORE, MULTIRAFT, STORE, TRANSPORT, SERVER, SIM],
        externals: None,
        never: &[BENCHES],
    },
    Rule {
        member: BENCHES,
        members: &[CORE, MULTIRAFT, STORE, TRANSPORT, SERVER, SIM, TESTS],
        externals: None,
        never: &[],
    },
];

/// Packages that only some members may name.
const OWNED: &[(&[&str], &[&str])] = &[
    (&["rocksdb", "librocksdb-sys"], &[STORE]),
    (
        &["tonic", "tonic-prost", "prost", "prost-types"],
        &[TRANSPORT, SERVER, TESTS, BENCHES],
    ),
    (&["tonic-health", "tonic-reflection"], &[SERVER, TESTS]),
    (&["tonic-prost-build", "protox", "prost-build"], &[TESTS]),
];

/// All findings about `graph`.
pub fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (member, declared) in &graph.members {
        match RULES.iter().find(|rule| rule.member == member) {
            Some(rule) => check_member(rule, declared, graph, &mut findings),
            None => findings.push(format!(
                "{member} is in the workspace but has no rule in deps.rs"
            )),
        }
        for (packages, owners) in OWNED {
            for dependency in declared
                .iter()
                .filter(|d| packages.contains(&d.name.as_str()))
            {
                if !owners.contains(&member.as_str()) {
                    findings.push(format!(
                        "{member} names {}: only {owners:?} may",
                        dependency.name
                    ));
                }
            }
        }
    }
    for rule in RULES
        .iter()
        .filter(|rule| !graph.members.contains_key(rule.member))
    {
        findings.push(format!("{} is not in the workspace", rule.member));
    }
    core_without_std(graph, &mut findings);
    findings
}

fn check_member(rule: &Rule, declared: &[Declared], graph: &Graph, findings: &mut Vec<Finding>) {
    let member = rule.member;
    for dependency in declared {
        let name = dependency.name.as_str();
        if name == member && dependency.kind == Kind::Dev {
            // A crate's own tests may switch on a feature of it.
        } else if name == FUZZ && dependency.kind == Kind::Dev {
            // It knows nobody, so every crate's tests may use it.
        } else if graph.members.contains_key(name) {
            if !rule.members.contains(&name) {
                findings.push(format!(
                    "{member} must not depend on {name}: the layers point the other way"
                ));
            }
        } else if dependency.kind == Kind::Normal
            && rule
                .externals
                .is_some_and(|allowed| !allowed.contains(&name))
        {
            findings.push(format!(
                "{member} must not depend on {name}: it is not on its short list"
            ));
        }
    }
    for never in rule.never {
        if let Some(path) = path_to(graph, member, never) {
            findings.push(format!(
                "{member} must never reach {never}: {}",
                path.join(" → ")
            ));
        }
    }
}

/// The dependencies of `core` must not bring the standard library in.
fn core_without_std(graph: &Graph, findings: &mut Vec<Finding>) {
    let declared = graph.members.get(CORE).into_iter().flatten();
    for dependency in declared.filter(|d| d.kind == Kind::Normal) {
        if dependency.default_features || dependency.features.iter().any(|f| f == "std") {
            findings.push(format!(
                "{CORE} takes {} with `std`: switch default features off",
                dependency.name
            ));
        }
    }
}

/// The chain of packages by which `from` depends on `to`.
fn path_to(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::from([from.to_owned()]);
    let mut pending = vec![vec![from.to_owned()]];
    while let Some(path) = pending.pop() {
        let last = path.last().map_or(from, String::as_str);
        for next in graph.resolved.get(last).into_iter().flatten() {
            let mut longer = path.clone();
            longer.push(next.clone());
            if next == to {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                pending.push(longer);
            }
        }
    }
    None
}

impl Graph {
    /// Reads the output of `cargo metadata --format-version 1`.
    ///
    /// # Errors
    ///
    /// A sentence that names the field which is missing or has another shape.
    pub fn from_metadata(metadata: &Value) -> Result<Self, String> {
        let packages = array(metadata, "packages")?;
        let names: BTreeMap<&str, &str> = packages
            .iter()
            .map(|p| Ok((text(p, "id")?, text(p, "name")?)))
            .collect::<Result<_, String>>()?;
        let name_of = |id: &str| names.get(id).map(|name| (*name).to_owned());

        let mut graph = Self::default();
        let members: BTreeSet<&str> = array(metadata, "workspace_members")?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for package in packages
            .iter()
            .filter(|p| p["id"].as_str().is_some_and(|id| members.contains(id)))
        {
            let declared = array(package, "dependencies")?
                .iter()
                .map(declared)
                .collect::<Result<_, _>>()?;
            graph
                .members
                .insert(text(package, "name")?.to_owned(), declared);
        }
        for node in array(&metadata["resolve"], "nodes")? {
            let name = name_of(text(node, "id")?).ok_or("a resolved package is not listed")?;
            let normal = |dep: &&Value| {
                array(dep, "dep_kinds")
                    .is_ok_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
            };
            let targets = array(node, "deps")?.iter().filter(normal);
            let targets = targets
                .filter_map(|dep| dep["pkg"].as_str())
                .filter_map(name_of);
            // Two versions of one package are one entry: what either of them reaches counts.
            graph.resolved.entry(name).or_default().extend(targets);
        }
        Ok(graph)
    }
}

fn declared(dependency: &Value) -> Result<Declared, String> {
    Ok(Declared {
        name: text(dependency, "name")?.to_owned(),
        kind: match dependency["kind"].as_str() {
            None => Kind::Normal,
            Some("dev") => Kind::Dev,
            Some("build") => Kind::Build,
            Some(other) => return Err(format!("unknown kind of dependency: {other}")),
        },
        default_features: dependency["uses_default_features"]
            .as_bool()
            .unwrap_or(true),
        features: array(dependency, "features")?
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    })
}

fn array<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>, String> {
    value[field]
        .as_array()
        .ok_or_else(|| format!("no list `{field}` in the metadata"))
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, String> {
    value[field]
        .as_str()
        .ok_or_else(|| format!("no text `{field}` in the metadata"))
}

/// Checks that a member's manifest takes versions and lints from the root alone. Optional dependencies may
/// name their own version: they are crates the benches compare with, and nothing of ours is made of them.
pub fn check_manifest(path: &str, manifest: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut section = "";
    let mut lints = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[lints]" && line == "workspace = true" {
            lints = true;
        } else if is_dependency_section(section) && is_own_version(line) {
            findings.push(format!("{path}: version outside the root's table: {line}"));
        }
    }
    if !lints {
        findings.push(format!("{path}: no `[lints]` with `workspace = true`"));
    }
    findings
}

fn is_own_version(line: &str) -> bool {
    let declares = line.contains('=') && !line.starts_with('#');
    declares && !line.contains("workspace = true") && !line.contains("optional = true")
}

fn is_dependency_section(section: &str) -> bool {
    section.ends_with("dependencies]") && section != "[workspace.dependencies]"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &str) -> Declared {
        Declared {
            name: name.to_owned(),
            kind: Kind::Normal,
            default_features: true,
            features: vec![],
        }
    }

    fn bare(name: &str) -> Declared {
        Declared {
            default_features: false,
            ..dependency(name)
        }
    }

    /// The workspace as it should be, plus `extra` as `(from, to)`.
    fn graph(extra: &[(&str, &str)]) -> Graph {
        let good = [
            (CORE, &["bytes"][..]),
            (MULTIRAFT, &[CORE, "dashmap"]),
            (STORE, &[CORE, MULTIRAFT, "rocksdb"]),
            (TRANSPORT, &[CORE, MULTIRAFT, "tonic", "tokio"]),
            (SERVER, &[STORE, TRANSPORT, "tonic"]),
            (SIM, &[CORE, MULTIRAFT, STORE]),
            (FUZZ, &[]),
            (TESTS, &[SIM, "serde_json"]),
            (BENCHES, &[SERVER]),
        ];
        let mut graph = Graph::default();
        for (from, targets) in good {
            graph
                .members
                .insert(from.to_owned(), targets.iter().map(|to| bare(to)).collect());
            graph.resolved.insert(
                from.to_owned(),
                targets.iter().map(|to| (*to).to_owned()).collect(),
            );
        }
        for (from, to) in extra {
            graph
                .resolved
                .entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned());
            if let Some(declared) = graph.members.get_mut(*from) {
                declared.push(bare(to));
            }
        }
        graph
    }

    #[track_caller]
    fn finds(extra: &[(&str, &str)], what: &str) {
        let findings = check(&graph(extra));
        assert!(
            findings.iter().any(|f| f.contains(what)),
            "no {what:?} in {findings:?}"
        );
    }

    #[test]
    fn the_intended_graph_has_no_findings() {
        assert_eq!(check(&graph(&[])), Vec::<String>::new());
    }

    #[test]
    fn layers_point_one_way() {
        finds(
            &[(CORE, MULTIRAFT)],
            "polyraft-core must not depend on polyraft-multiraft",
        );
        finds(
            &[(STORE, TRANSPORT)],
            "polyraft-store must not depend on polyraft-transport",
        );
        finds(
            &[(SERVER, TESTS)],
            "polyraft-server must not depend on polyraft-tests",
        );
        finds(
            &[(TRANSPORT, STORE)],
            "polyraft-transport must never reach rocksdb",
        );
    }

    #[test]
    fn tests_alone_may_use_the_fuzzer() {
        let mut graph = graph(&[]);
        let dev = Declared {
            kind: Kind::Dev,
            ..bare(FUZZ)
        };
        let core = graph.members.entry(CORE.to_owned()).or_default();
        core.push(dev);
        assert_eq!(check(&graph), Vec::<String>::new());
        finds(
            &[(CORE, FUZZ)],
            "polyraft-core must not depend on polyraft-fuzz",
        );
    }

    #[test]
    fn forbidden_packages_are_found_through_others() {
        finds(
            &[(MULTIRAFT, "helper"), ("helper", "tokio")],
            "polyraft-multiraft must never reach tokio: polyraft-multiraft → helper → tokio",
        );
        finds(&[(CORE, "rand")], "polyraft-core must not depend on rand");
        finds(&[(SERVER, "rocksdb")], "polyraft-server names rocksdb");
        finds(&[(STORE, "prost")], "polyraft-store names prost");
    }

    #[test]
    fn the_standard_library_stays_out_of_core() {
        let mut graph = graph(&[]);
        graph
            .members
            .insert(CORE.to_owned(), vec![dependency("bytes")]);
        assert!(
            check(&graph)
                .iter()
                .any(|f| f.contains("takes bytes with `std`"))
        );
        let with_std = Declared {
            features: vec!["std".to_owned()],
            ..bare("bytes")
        };
        graph.members.insert(CORE.to_owned(), vec![with_std]);
        assert!(
            check(&graph)
                .iter()
                .any(|f| f.contains("takes bytes with `std`"))
        );
    }

    #[test]
    fn every_member_has_a_rule_and_every_rule_a_member() {
        let mut graph = graph(&[]);
        graph.members.insert("polyraft-extra".to_owned(), vec![]);
        graph.members.remove(BENCHES);
        let findings = check(&graph);
        assert!(
            findings
                .iter()
                .any(|f| f.contains("polyraft-extra is in the workspace but has no rule"))
        );
        assert!(
            findings
                .iter()
                .any(|f| f.contains("polyraft-benches is not in the workspace"))
        );
    }

    #[test]
    fn metadata_is_read() {
        let metadata = serde_json::json!({
            "workspace_members": ["c"],
            "packages": [
                {"id": "c", "name": "polyraft-core", "dependencies": [
                    {"name": "bytes", "kind": null, "uses_default_features": false, "features": ["x"]},
                    {"name": "proptest", "kind": "dev", "uses_default_features": true, "features": []},
                ]},
                {"id": "b", "name": "bytes", "dependencies": []},
                {"id": "p", "name": "proptest", "dependencies": []},
            ],
            "resolve": {"nodes": [
                {"id": "c", "deps": [
                    {"pkg": "b", "dep_kinds": [{"kind": null}]},
                    {"pkg": "p", "dep_kinds": [{"kind": "dev"}]},
                ]},
                {"id": "b", "deps": []},
            ]},
        });
        let graph = Graph::from_metadata(&metadata).expect("well formed");
        assert_eq!(graph.resolved[CORE], BTreeSet::from(["bytes".to_owned()]));
        assert_eq!(graph.members[CORE].len(), 2);
        assert_eq!(graph.members[CORE][1].kind, Kind::Dev);
        assert!(Graph::from_metadata(&serde_json::json!({})).is_err());
    }

    #[test]
    fn manifests_inherit_from_the_root() {
        let good =
            "[lints]\nworkspace = true\n[dependencies]\n# why\nbytes = { workspace = true }\n";
        assert_eq!(check_manifest("a", good), Vec::<String>::new());
        let findings = check_manifest("a", "[dev-dependencies]\nbytes = \"1\"\n");
        assert_eq!(findings.len(), 2, "{findings:?}");
    }
}
