//! Rules for Markdown files: one title, and links that lead somewhere.

use super::{Finding, SourceFile};

/// Checks one Markdown file; `files` are all text files of the repository, for the targets of links.
pub(super) fn check(file: &SourceFile, files: &[SourceFile], findings: &mut Vec<Finding>) {
    let prose = without_code(&file.text);
    titles(file, &prose, findings);
    for (number, line) in prose.lines().enumerate() {
        for target in link_targets(line) {
            if let Some(problem) = broken(file, target, files) {
                findings.push(file.finding(number + 1, problem));
            }
        }
    }
}

fn titles(file: &SourceFile, prose: &str, findings: &mut Vec<Finding>) {
    let titles: Vec<usize> = prose
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("# "))
        .map(|(number, _)| number + 1)
        .collect();
    match titles.as_slice() {
        [_] => {}
        [] => findings.push(file.finding(
            0,
            "no title: a Markdown file has one line that begins with `# `",
        )),
        [_, second, ..] => {
            findings.push(file.finding(
                *second,
                "a second title: use `##` and deeper below the first",
            ));
        }
    }
}

/// `text` with fenced blocks and inline code blanked, so that samples are not read as prose.
fn without_code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut fence: Option<&str> = None;
    for line in text.lines() {
        let start = line.trim_start();
        let marker = ["```", "~~~"]
            .into_iter()
            .find(|marker| start.starts_with(marker));
        match (fence, marker) {
            (None, Some(opening)) => fence = Some(opening),
            (Some(opening), Some(closing)) if opening == closing => fence = None,
            (Some(_), _) => {}
            (None, None) => out.push_str(&without_inline_code(line)),
        }
        out.push('\n');
    }
    out
}

fn without_inline_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    let whole = parts.len() - usize::from(parts.len().is_multiple_of(2));
    let mut out = String::with_capacity(line.len());
    for (i, part) in parts.iter().enumerate() {
        if i % 2 == 0 || i >= whole {
            out.push_str(part);
        } else {
            out.push('`');
        }
    }
    out
}

/// Targets of `[text](target)` and `[name]: target` in one line.
fn link_targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find("](") {
        rest = &rest[at + 2..];
        let end = rest.find([')', ' ']).unwrap_or(rest.len());
        targets.push(&rest[..end]);
        rest = &rest[end..];
    }
    if line.starts_with('[')
        && let Some((_, target)) = line.split_once("]: ")
    {
        targets.push(target.trim());
    }
    targets
}

/// Why `target`, as written in `file`, leads nowhere.
fn broken(file: &SourceFile, target: &str, files: &[SourceFile]) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let Some(resolved) = resolve(&file.path, path) else {
        return Some(format!("link leaves the repository: {target}"));
    };
    let exists = |path: &str| {
        let folder = format!("{path}/");
        path.is_empty()
            || files
                .iter()
                .any(|f| f.path == path || f.path.starts_with(&folder))
    };
    let landed = if path.is_empty() {
        file.path.clone()
    } else {
        resolved
    };
    if !exists(&landed) && !is_file_without_text(&landed) {
        return Some(format!("link to a file that does not exist: {target}"));
    }
    let page = files.iter().find(|f| f.path == landed)?;
    if !anchor.is_empty() && page.path.ends_with(".md") && !anchors(&page.text).any(|a| a == anchor)
    {
        return Some(format!("link to a heading that does not exist: {target}"));
    }
    None
}

/// Files which are no text by their ending, but which a page may name: the licence.
fn is_file_without_text(path: &str) -> bool {
    matches!(path, "LICENSE" | "NOTICE")
}

/// `target` seen from the folder of `from`; `None` if it climbs above the root.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The anchors that GitHub gives the headings of a page: lower case, blanks to hyphens, punctuation dropped.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let prose: Vec<String> = text
        .lines()
        .filter(|l| l.starts_with('#'))
        .map(str::to_owned)
        .collect();
    prose.into_iter().map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}
