//! The table of known bugs in a document: rows are found again by the bug's name, the text around is
//! left alone.

use std::collections::BTreeMap;
use std::path::Path;

use polyraft_core::canary::Canary;

const BEGIN: &str = "<!-- the table: written by scripts/canaries -->";
const END: &str = "<!-- the end of the table -->";
const HEAD: [&str; 2] = [
    "| bug | what is broken | caught by | seeds needed | first seed |",
    "|---|---|---|---:|---:|",
];

/// What became of one bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// By the checker of that name.
    Caught {
        checker: String,
        seeds: u64,
        seed: u64,
    },
    /// In that many worlds.
    Missed { seeds: u64 },
}

/// The row of a bug.
pub(crate) fn row(canary: Canary, fate: &Fate) -> String {
    let bug = format!("| {canary} | {} |", canary.what());
    match fate {
        Fate::Caught {
            checker,
            seeds,
            seed,
        } => format!("{bug} {checker} | {seeds} | {seed} |"),
        Fate::Missed { seeds } => format!("{bug} **not caught** | {seeds} | – |"),
    }
}

/// Puts rows into the document; those of other bugs stay.
///
/// # Errors
/// The file cannot be read or written, or has no place for a table.
pub(crate) fn update(path: &Path, fates: &BTreeMap<Canary, Fate>) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(at)?;
    let text = with_rows(&text, fates)
        .ok_or_else(|| format!("{}: {BEGIN} and {END} are not there", path.display()))?;
    std::fs::write(path, text).map_err(at)
}

fn with_rows(text: &str, fates: &BTreeMap<Canary, Fate>) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let old_row = |canary: Canary| {
        let start = format!("| {canary} |");
        old.lines().find(|line| line.starts_with(&start))
    };
    let rows = Canary::ALL.iter().map(|canary| match fates.get(canary) {
        Some(fate) => row(*canary, fate),
        None => old_row(*canary).map_or_else(
            || format!("| {canary} | {} | not tried | – | – |", canary.what()),
            ToOwned::to_owned,
        ),
    });
    let head = HEAD.into_iter().map(ToOwned::to_owned);
    let lines: Vec<String> = head.chain(rows).collect();
    Some(format!(
        "{before}{BEGIN}\n{}\n{END}{after}",
        lines.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_replaced_and_others_stay() {
        let text = format!("before\n{BEGIN}\n{END}\nafter\n");
        let one = Canary::ALL[0];
        let caught = Fate::Caught {
            checker: "monotone".to_owned(),
            seeds: 3,
            seed: 12,
        };
        let text = with_rows(&text, &BTreeMap::from([(one, caught.clone())])).unwrap();
        assert!(text.contains(&row(one, &caught)), "{text}");
        assert!(text.starts_with("before\n") && text.ends_with("\nafter\n"));
        assert_eq!(text.matches("not tried").count(), Canary::ALL.len() - 1);
        let two = Canary::ALL[1];
        let missed = Fate::Missed { seeds: 9 };
        let text = with_rows(&text, &BTreeMap::from([(two, missed.clone())])).unwrap();
        assert!(text.contains(&row(one, &caught)), "{text}");
        assert!(text.contains(&row(two, &missed)), "{text}");
        assert_eq!(text.lines().count(), Canary::ALL.len() + 6);
        assert_eq!(with_rows("no place", &BTreeMap::new()), None);
    }
}
