//! `polyraft store`.

use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;

use super::args::{Connection, Output};
use super::error::Error;
use super::output::{say, show};
use crate::directory::Named;
use crate::failure::{Failure, Reason};
use crate::proto::admin::{DecommissionStoreRequest, DecommissionStoreResponse, MovePhase};

/// How long a store may take to be emptied, unless something else is asked for.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Of one call, of which there are many.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a call that did not get on.
const PAUSE: Duration = Duration::from_millis(500);
/// When nothing has moved for so long, what is in the way is the answer.
const STUCK: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum StoreVerb {
    /// Move all replicas of a store to others, so that it can leave for good; it may be down.
    #[command(after_help = "Example:\n  polyraft store decommission 2\n\n\
        Interrupted at any time, it goes on when it is asked again. Nothing keeps new replicas away from the \n\
        store meanwhile: stop it when it is empty.")]
    Decommission {
        /// Number of the store.
        store: u64,
        #[command(flatten)]
        connection: Connection,
    },
}

impl StoreVerb {
    pub(super) const fn connection(&self) -> &Connection {
        match self {
            Self::Decommission { connection, .. } => connection,
        }
    }
}

pub(super) async fn run(verb: StoreVerb) -> Result<(), Error> {
    match verb {
        StoreVerb::Decommission { store, connection } => decommission(store, &connection).await,
    }
}

async fn decommission(store: u64, connection: &Connection) -> Result<(), Error> {
    let mut client = connection.client()?;
    let (begun, bound) = (Instant::now(), connection.timeout.unwrap_or(TIMEOUT));
    client.set_timeout(bound.min(CALL_TIMEOUT));
    let (mut told, mut way, mut moved) = (String::new(), String::new(), Instant::now());
    loop {
        let request = DecommissionStoreRequest { store };
        let step = client.admin(false, request, |mut c, r| async move {
            c.decommission_store(r).await
        });
        let now = match step.await {
            Ok(answer) if answer.left == 0 && answer.unreachable.iter().all(|it| *it == store) => {
                break;
            }
            Ok(answer) => {
                // What is on its way is seen to be by its phases.
                let seen: Vec<_> = answer
                    .moving
                    .iter()
                    .map(|it| (it.group, it.phase))
                    .collect();
                let seen = format!("{} {seen:?}", answer.left);
                if seen != way {
                    (way, moved) = (seen, Instant::now());
                }
                progress(&answer)
            }
            // Whatever became of it, the groups say so the next time.
            Err(failure) if failure.is_worth_a_copy() => {
                format!("trying again: {}", failure.message)
            }
            Err(failure) => return Err(failure.into()),
        };
        if moved.elapsed() >= STUCK || begun.elapsed() >= bound {
            let text = format!("store {store} is not empty yet: {now}; asked again, this goes on");
            return Err(Failure::new(Reason::Timeout, text)
                .of_unknown_effect()
                .into());
        }
        if connection.output == Output::Table && now != told {
            say(&now)?;
        }
        told = now;
        tokio::time::sleep(PAUSE).await;
    }
    let json = json!({ "store": store, "left": 0 });
    show(connection.output, &json, || {
        format!("store {store} has no replica of any group any more: it can be stopped for good")
    })
}

fn progress(answer: &DecommissionStoreResponse) -> String {
    let mut text = format!("{} groups left", answer.left);
    for moving in answer
        .moving
        .iter()
        .filter(|it| it.phase() != MovePhase::Done)
    {
        text.push_str(&format!(
            "; group {} goes to store {}",
            Named(moving.group),
            moving.to_store
        ));
    }
    if let [first, ..] = &answer.blocked[..] {
        text.push_str(&format!(
            "; {} cannot go: group {}: {}",
            answer.blocked.len(),
            Named(first.group),
            first.why
        ));
    }
    if !answer.unreachable.is_empty() {
        let stores = &answer.unreachable;
        text.push_str(&format!(
            "; not asked, since they cannot be reached: stores {stores:?}"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::admin::Blocked;

    #[test]
    fn progress_says_what_is_in_the_way() {
        let text = progress(&DecommissionStoreResponse {
            left: 3,
            blocked: vec![Blocked {
                group: 7,
                why: "add a store".to_owned(),
            }],
            unreachable: vec![4],
            ..DecommissionStoreResponse::default()
        });
        assert_eq!(
            text,
            "3 groups left; 1 cannot go: group 7: add a store; not asked, since they cannot be \
             reached: stores [4]"
        );
    }
}
