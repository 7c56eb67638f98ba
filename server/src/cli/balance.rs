//! `polyraft balance`.

use clap::Subcommand;
use serde_json::json;

use super::args::Connection;
use super::error::Error;
use super::output::{show, table};
use crate::directory::{Named, client as directory_client};
use crate::proto::directory::{Decision, DecisionKind, ExplainRequest};

#[derive(Debug, Subcommand)]
pub(super) enum BalanceVerb {
    /// What should change so that nothing is lost and no store has too much, and why; nothing is done.
    #[command(after_help = "Example:\n  polyraft balance explain")]
    Explain {
        #[command(flatten)]
        connection: Connection,
    },
}

impl BalanceVerb {
    pub(super) const fn connection(&self) -> &Connection {
        match self {
            Self::Explain { connection } => connection,
        }
    }
}

pub(super) async fn run(verb: BalanceVerb) -> Result<(), Error> {
    let BalanceVerb::Explain { connection } = verb;
    let client = connection.client()?;
    let explain =
        |channel, request| async move { directory_client(channel).explain(request).await };
    let answer = client.call(true, ExplainRequest {}, explain).await?;
    let decisions = answer.decisions;
    let each = decisions.iter().map(|decision| {
        json!({
            "kind": kind(decision),
            "group": decision.group,
            "right_group": some(decision.right_group),
            "from_store": some(decision.from_store),
            "to_store": some(decision.to_store),
            "why": decision.why,
        })
    });
    let json = json!({ "decisions": each.collect::<Vec<_>>() });
    show(connection.output, &json, || {
        if decisions.is_empty() {
            return "nothing: every store has its share, and nothing is lost".to_owned();
        }
        let row = |decision: &Decision| {
            let group = Named(decision.group).to_string();
            [
                kind(decision).to_owned(),
                group,
                whither(decision),
                decision.why.clone(),
            ]
        };
        table(
            ["WHAT", "GROUP", "WHITHER", "WHY"],
            decisions.iter().map(row),
        )
    })
}

fn some(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}

fn kind(decision: &Decision) -> &'static str {
    match decision.kind() {
        DecisionKind::Move => "move",
        DecisionKind::Transfer => "hand over",
        DecisionKind::Split => "split",
        DecisionKind::Merge => "merge",
        DecisionKind::Blocked => "blocked",
        DecisionKind::Unspecified => "unknown",
    }
}

fn whither(decision: &Decision) -> String {
    match decision.kind() {
        DecisionKind::Merge => format!("with group {}", decision.right_group),
        _ if decision.to_store != 0 => {
            format!("store {} -> {}", decision.from_store, decision.to_store)
        }
        _ => "-".to_owned(),
    }
}
