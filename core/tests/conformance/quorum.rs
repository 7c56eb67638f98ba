//! The stateless cases of `quorum/`: pictures of committed indexes, and votes.

use polyraft_core::quorum_inspect::{committed, tally};
use polyraft_core::{Index, ReplicaId, VoteResult};

use crate::reader::Case;

pub(crate) fn suite() -> Box<dyn FnMut(&Case) -> String> {
    Box::new(run)
}

fn run(case: &Case) -> String {
    let halves = Halves {
        incoming: ids(case, "cfg"),
        outgoing: if case.value("cfgj") == Some("zero") {
            Vec::new()
        } else {
            ids(case, "cfgj")
        },
    };
    match case.command.as_str() {
        "committed" => commit(&halves, case),
        "vote" => vote(&halves, case),
        other => format!("unknown command {other}"),
    }
}

struct Halves {
    incoming: Vec<ReplicaId>,
    outgoing: Vec<ReplicaId>,
}

impl Halves {
    /// Distinct ids in order of first appearance.
    fn distinct(&self) -> Vec<ReplicaId> {
        let mut out = Vec::new();
        for &id in self.incoming.iter().chain(&self.outgoing) {
            if !out.contains(&id) {
                out.push(id);
            }
        }
        out
    }
}

fn ids(case: &Case, key: &str) -> Vec<ReplicaId> {
    case.numbers(key).into_iter().map(ReplicaId).collect()
}

fn given<T>(
    halves: &Halves,
    case: &Case,
    key: &str,
    parse: impl Fn(&str) -> T,
) -> Result<Vec<(ReplicaId, Option<T>)>, String> {
    let (ids, values) = (halves.distinct(), case.values(key).unwrap_or_default());
    if ids.len() != values.len() {
        return Err(format!(
            "error: mismatched input (explicit or _) for voters {ids:?}: {values:?}"
        ));
    }
    let value = |text: &String| (text != "_").then(|| parse(text));
    Ok(ids.into_iter().zip(values.iter().map(value)).collect())
}

fn commit(halves: &Halves, case: &Case) -> String {
    let indexes = match given(halves, case, "idx", |text| {
        Index(text.parse().expect("a number"))
    }) {
        Ok(indexes) => indexes,
        Err(error) => return error,
    };
    let acked = |id| {
        indexes
            .iter()
            .find(|(i, _)| *i == id)
            .and_then(|(_, index)| *index)
    };
    let (one, other) = (&halves.incoming, &halves.outgoing);
    let index = committed(one, other, acked);
    assert_eq!(index, slow(halves, acked), "the slow way agrees");
    assert_eq!(
        index,
        committed(other, one, acked),
        "the halves are symmetric"
    );
    assert_eq!(
        committed(one, &[], acked),
        committed(one, one, acked),
        "joint with itself"
    );
    let index = index.map_or("\u{221e}".to_owned(), |index| index.to_string());
    format!("{}{index}\n", picture(&indexes))
}

/// For each index that occurs, count who has it.
fn slow(halves: &Halves, acked: impl Fn(ReplicaId) -> Option<Index> + Copy) -> Option<Index> {
    let half = |ids: &[ReplicaId]| {
        let reached = |index: Index| {
            let count = ids
                .iter()
                .filter(|id| acked(**id).unwrap_or_default() >= index)
                .count();
            count > ids.len() / 2
        };
        let all = ids.iter().map(|id| acked(*id).unwrap_or_default());
        let best = all.filter(|index| reached(*index)).max();
        if ids.is_empty() {
            None
        } else {
            Some(best.unwrap_or_default())
        }
    };
    match (half(&halves.incoming), half(&halves.outgoing)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn picture(indexes: &[(ReplicaId, Option<Index>)]) -> String {
    let n = indexes.len();
    if n == 0 {
        return "<empty majority quorum>".to_owned();
    }
    let mut by_index: Vec<(Index, ReplicaId)> = indexes
        .iter()
        .map(|(id, index)| (index.unwrap_or_default(), *id))
        .collect();
    by_index.sort();
    let mut bars = std::collections::BTreeMap::new();
    let mut bar = 0;
    for (at, (index, id)) in by_index.iter().enumerate() {
        if at > 0 && *index > by_index[at - 1].0 {
            bar = at;
        }
        bars.insert(*id, bar);
    }
    let mut out = format!("{}idx\n", " ".repeat(n + 4));
    let mut by_id = indexes.to_vec();
    by_id.sort();
    for (id, index) in by_id {
        let bar = bars[&id];
        let drawn = match index {
            Some(_) => format!("{}>{}", "x".repeat(bar), " ".repeat(n - bar)),
            None => format!("?{}", " ".repeat(n)),
        };
        let index = index.unwrap_or_default().0;
        out.push_str(&format!("{drawn} {index:>5}    (id={:x})\n", id.0));
    }
    out
}

fn vote(halves: &Halves, case: &Case) -> String {
    let votes = match given(halves, case, "votes", |text| text == "y") {
        Ok(votes) => votes,
        Err(error) => return error,
    };
    let vote = |id| {
        votes
            .iter()
            .find(|(i, _)| *i == id)
            .and_then(|(_, vote)| *vote)
    };
    let result = tally(&halves.incoming, &halves.outgoing, vote);
    assert_eq!(
        result,
        tally(&halves.outgoing, &halves.incoming, vote),
        "symmetric"
    );
    match result {
        VoteResult::Won => "VoteWon".to_owned(),
        VoteResult::Lost => "VoteLost".to_owned(),
        VoteResult::Pending => "VotePending".to_owned(),
    }
}
