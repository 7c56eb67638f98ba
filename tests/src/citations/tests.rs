//! Pages that are right and pages that have rotted, each in one way.

use super::*;

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

const CODE: &str = "//! A.\nfn kept() {}\n#[cfg(test)]\nmod tests {\n    /// Says `}` and so.\n    \
                    #[test]\n    fn shows<T>() {}\n\n    #[tokio::test(\n        flavor = \"x\"\n    )]\n    \
                    async fn waits() {}\n\n    fn helps() {}\n    // fn gone() {}\n}\n";

/// The findings about a page with these rows below a head.
fn findings(rows: &str, last: usize) -> Vec<String> {
    let head =
        "# Page\n\n| rule or situation | kept by | watched by | shown by |\n|---|---|---|---|\n";
    let page = file("docs/page.md", &format!("{head}{rows}\n"));
    let files = [
        file("core/src/a.rs", CODE),
        file("core/src/b/same.rs", CODE),
        file("store/src/b/same.rs", CODE),
        file("core/tests/data.txt", "x"),
        file("sim/src/checkers/eye.rs", CODE),
    ];
    let all = check(&page, last, &files);
    all.iter().map(|finding| finding.message.clone()).collect()
}

#[track_caller]
fn finds(rows: &str, last: usize, what: &str) {
    let all = findings(rows, last);
    assert!(all.len() == 1 && all[0].contains(what), "{what:?}: {all:?}");
}

const GOOD: &str =
    "| 1. One | `a.rs::kept` | `checkers/eye.rs` | `src/a.rs::shows`, `a.rs::waits` |";

#[test]
fn what_exists_is_no_finding() {
    let rows = format!(
        "{GOOD}\n| 2. | `core/src/b/same.rs` and `words::of_code` | | `data.txt` |\n\
         | a situation | | | does not apply: none of that here |"
    );
    assert_eq!(findings(&rows, 2), Vec::<String>::new());
}

#[test]
fn what_is_gone_is_found() {
    let row = |kept: &str, shown: &str| format!("| 1. One | {kept} | | {shown} |");
    finds(&row("`z.rs`", "`a.rs::shows`"), 1, "0 files end with z.rs");
    finds(&row("`other.txt`", "`a.rs::shows`"), 1, "0 files");
    finds(
        &row("`same.rs`", "`a.rs::shows`"),
        1,
        "2 files end with same.rs",
    );
    finds(&row("`rs/a.rs`", "`a.rs::shows`"), 1, "0 files");
    finds(&row("`a.rs::gone`", "`a.rs::shows`"), 1, "no function gone");
    finds(&row("`a.rs::kep`", "`a.rs::shows`"), 1, "no function kep");
    finds(
        &row("", "`a.rs::helps`"),
        1,
        "helps in core/src/a.rs is no test",
    );
    finds(
        &row("", "`a.rs::kept`"),
        1,
        "kept in core/src/a.rs is no test",
    );
    finds("| 1. | | `a.rs` | `a.rs::shows` |", 1, "no checker");
    finds(&row("", "nobody knows"), 1, "cites no test");
    finds(
        &format!("{GOOD}\n\nSee `z.rs`."),
        1,
        "0 files end with z.rs",
    );
}

#[test]
fn tables_have_their_shape() {
    finds("| 1. One | | `a.rs::shows` |", 0, "3 cells");
    finds(&format!("{GOOD}\n\n| a | b |\n|---|---|"), 1, "columns");
    finds(GOOD, 2, "missing: [2]");
    finds(&format!("{GOOD}\n{GOOD}"), 1, "each once");
    finds("", 1, "missing: [1]");
}
