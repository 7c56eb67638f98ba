//! What the store that leads the directory does for it: it writes down which stores there are and which of
//! them it hears, and sees to it that the directory has as many replicas as it should.
//!
//! All of it is decided from what this store knows and compared with what is written; only a
//! difference is a command. A store that hears others badly takes them for silent, and the next
//! leader of the directory corrects it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polyraft_core::{ConfChangeKind, ProgressState, Transition};
use polyraft_multiraft::{GroupId, GroupStatus, MemberChange, StoreId};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::command::{Command, Reply};
use super::entry::{StoreEntry, StoreState};
use super::state::{Meta, is_dead_by, read_cluster};
use super::{DIRECTORY, Look};
use crate::failure::{Failure, Reason};
use crate::routing::Call;
use crate::server::Server;

/// How often a leader looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Who leads since a moment ago hears nobody yet.
const SETTLED: Duration = Duration::from_secs(3);
/// So many looks in a row must find a store silent.
const MISSED: u32 = 3;
/// How long one command may take.
const BOUND: Duration = Duration::from_secs(3);
/// Replicas at most: with five, two stores may be lost at once, and every range may depend on what the
/// directory says; more would only be slower.
const REPLICAS_MAX: usize = 5;
/// A learner that lacks no more entries than this has caught up.
const CAUGHT_UP: u64 = 16;

/// On how many of so many stores a directory begins: an odd number, since an even one bears no more
/// losses than the one below it; but on both of two, so that one lost disk does not lose it. Five only where
/// a sixth store can take one over.
pub(crate) const fn replicas_at_first(stores: usize) -> usize {
    match stores {
        0..=2 => stores,
        3..=5 => 3,
        _ => REPLICAS_MAX,
    }
}

/// On how many stores it is to be, once `stores` take part: it grows when that makes it bear more losses. It
/// never shrinks by itself.
const fn replicas_wanted(now: usize, stores: usize) -> usize {
    let wanted = if stores < 3 {
        0
    } else {
        replicas_at_first(stores)
    };
    if wanted > now { wanted } else { now }
}

/// What a leader keeps in mind from look to look.
#[derive(Debug, Default)]
struct Leading {
    since: Option<Instant>,
    /// How often in a row each store was not heard.
    missed: BTreeMap<u64, u32>,
    /// As of this membership epoch, and with these stores, the directory had all its replicas.
    whole: Option<(u64, Vec<u64>)>,
}

/// Leads the directory whenever this store is its leader, until this task is ended.
pub(crate) async fn run(server: Arc<Server>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leading = Leading::default();
    loop {
        looks.tick().await;
        if !server.leads(DIRECTORY) || server.draining.load(Ordering::SeqCst) {
            leading = Leading::default();
            continue;
        }
        if leading.since.get_or_insert_with(Instant::now).elapsed() < SETTLED {
            continue;
        }
        if let Err(failure) = server.lead_directory(&mut leading).await {
            tracing::debug!(
                why = failure.message,
                "not everything of the directory is up to date"
            );
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

impl Server {
    async fn lead_directory(&self, leading: &mut Leading) -> Result<(), Failure> {
        let Some(descriptor) = self.handle.descriptor(GroupId(DIRECTORY)) else {
            return Ok(());
        };
        let read = |look: &Look<'_>| read_cluster(|from, to, limit| look.scan(from, to, limit));
        let Some((meta, stores)) = self.look(&descriptor, true, read)? else {
            return Ok(());
        };
        let mut heard = self.peers.connected();
        heard.insert(self.me);
        for (store, address) in self.peers.confirmed() {
            let known = stores.iter().find(|entry| entry.store == store);
            if known.is_none_or(|known| known.address != address) {
                self.note(Command::Store { store, address }).await?;
            }
        }
        for entry in &stores {
            let is_heard = heard.contains(&entry.store);
            let misses = leading.missed.entry(entry.store).or_insert(0);
            *misses = if is_heard {
                0
            } else {
                misses.saturating_add(1)
            };
            for command in corrections(entry, &meta, *misses, now()) {
                if let Command::SetState { store, state } = command {
                    tracing::warn!(store, ?state, "the directory's view of a store changes");
                }
                self.note(command).await?;
            }
        }
        let takes =
            |entry: &&StoreEntry| entry.state == StoreState::Up && heard.contains(&entry.store);
        let up: Vec<u64> = stores
            .iter()
            .filter(takes)
            .map(|entry| entry.store)
            .collect();
        let as_of = Some((descriptor.epoch.membership, up));
        if leading.whole != as_of
            && let Some((_, up)) = &as_of
            && self.grow_directory(up).await?
        {
            leading.whole = as_of;
        }
        Ok(())
    }

    async fn note(&self, command: Command) -> Result<(), Failure> {
        match self
            .change_directory(&command, self.call_of_leader())
            .await?
        {
            Reply::Done => Ok(()),
            other => {
                let text = format!("{command:?}: the directory answered {other:?}");
                Err(Failure::new(Reason::Internal, text))
            }
        }
    }

    fn call_of_leader(&self) -> Call {
        Call {
            deadline: Instant::now() + BOUND,
            // Who does not lead any more has nothing to say.
            forwarded: true,
            reads: false,
            once: true,
        }
    }

    /// Whether there is nothing left to do.
    async fn grow_directory(&self, up: &[u64]) -> Result<bool, Failure> {
        let group = GroupId(DIRECTORY);
        let call = self.call_of_leader();
        let describe = |respond| self.handle.describe(group, respond);
        let status = self.ask(DIRECTORY, call, describe).await?;
        let changes = match growth(&status, up) {
            None => return Ok(true),
            Some(changes) if changes.is_empty() => return Ok(false),
            Some(changes) => changes,
        };
        tracing::info!(?changes, "the directory gets more replicas");
        let epoch = status.descriptor.epoch.membership;
        let change = |respond| {
            let how = Transition::Auto;
            let handle = &self.handle;
            handle.change_members_if(group, epoch, changes, how, respond);
        };
        self.ask(DIRECTORY, call, change).await?;
        Ok(false)
    }
}

/// What is to be written about a store that was not heard so often in a row.
fn corrections(entry: &StoreEntry, meta: &Meta, misses: u32, now: u64) -> Vec<Command> {
    let store = entry.store;
    let heard = |silent_since| Command::Heard {
        store,
        silent_since,
    };
    let set = |state| Command::SetState { store, state };
    let mut commands = Vec::new();
    if misses == 0 {
        if entry.silent_since != 0 {
            commands.push(heard(0));
        }
        if entry.state == StoreState::Dead {
            commands.push(set(StoreState::Up));
        }
    } else if entry.silent_since == 0 {
        if misses >= MISSED {
            commands.push(heard(now));
        }
    } else if entry.state == StoreState::Up && is_dead_by(entry, &meta.limits, now) {
        commands.push(set(StoreState::Dead));
    }
    commands
}

/// The next step towards as many voters as the directory should have: learners first, and their votes
/// when they have caught up, so that it never waits for who has nothing. Empty: it takes time;
/// none: it has them.
fn growth(status: &GroupStatus, up: &[u64]) -> Option<Vec<MemberChange>> {
    let (state, descriptor) = (&status.raft.conf_state, &status.descriptor);
    if state.is_joint() {
        return Some(Vec::new());
    }
    let voters = state.voters.len();
    let missing = replicas_wanted(voters, up.len()) - voters;
    if missing == 0 {
        return None;
    }
    let store_of = |replica| descriptor.store_of(replica).unwrap_or_default();
    let is_up = |store: StoreId| up.contains(&store.0);
    let learners = state.learners.iter().map(|id| store_of(*id));
    let learners: Vec<StoreId> = learners.filter(|store| is_up(*store)).collect();
    let ready = status.raft.progress.iter().filter(|progress| {
        let lacks = status.last.index.0.saturating_sub(progress.matched.0);
        let follows = progress.recently_active && progress.state == ProgressState::Replicate;
        progress.learner && follows && lacks <= CAUGHT_UP && is_up(store_of(progress.id))
    });
    let ready: Vec<StoreId> = ready.map(|progress| store_of(progress.id)).collect();
    let all = |kind, stores: Vec<StoreId>| {
        let change = |store| MemberChange { kind, store };
        Some(stores.into_iter().map(change).collect())
    };
    if ready.len() >= missing {
        return all(ConfChangeKind::AddVoter, ready[..missing].to_vec());
    }
    let new = up.iter().map(|store| StoreId(*store));
    let new = new.filter(|store| descriptor.replica_on(*store).is_none());
    let more = missing.saturating_sub(learners.len());
    all(ConfChangeKind::AddLearner, new.take(more).collect())
}

#[cfg(test)]
mod tests {
    use polyraft_core::{ConfState, EntryId, Index, ProgressStatus, ReplicaId, Status};
    use polyraft_multiraft::{GroupDescriptor, Member};

    use super::*;

    #[test]
    fn a_directory_bears_as_many_losses_as_the_stores_allow() {
        let first = [0, 1, 2, 3, 4, 5, 6, 99].map(replicas_at_first);
        assert_eq!(first, [0, 1, 2, 3, 3, 3, 5, 5]);
        for (now, stores, wanted) in [
            (1, 2, 1),
            (1, 3, 3),
            (2, 4, 3),
            (3, 5, 3),
            (3, 6, 5),
            (4, 5, 4),
            (5, 3, 5),
        ] {
            assert_eq!(replicas_wanted(now, stores), wanted, "{now} of {stores}");
        }
    }

    /// Voters on stores 1, 2, ..., then learners with how far they are; the last entry is 100.
    fn status(voters: u64, learners: &[u64]) -> GroupStatus {
        let count = voters + learners.len() as u64;
        let members = (1..=count).map(|n| Member {
            replica: ReplicaId(n),
            store: StoreId(n),
        });
        let progress = (voters + 1..)
            .zip(learners)
            .map(|(n, matched)| ProgressStatus {
                id: ReplicaId(n),
                matched: Index(*matched),
                next: Index(*matched + 1),
                state: ProgressState::Replicate,
                recently_active: true,
                paused: false,
                inflight_messages: 0,
                inflight_bytes: 0,
                inflight_full: false,
                learner: true,
            });
        GroupStatus {
            descriptor: GroupDescriptor {
                members: members.collect(),
                ..GroupDescriptor::default()
            },
            raft: Status {
                conf_state: ConfState {
                    voters: (1..=voters).map(ReplicaId).collect(),
                    learners: (voters + 1..=count).map(ReplicaId).collect(),
                    ..ConfState::default()
                },
                progress: progress.collect(),
                ..Status::default()
            },
            last: EntryId::new(1, 100),
            ..GroupStatus::default()
        }
    }

    #[test]
    fn replicas_learn_before_they_vote() {
        use ConfChangeKind::{AddLearner, AddVoter};
        let steps = |status: &GroupStatus, up: &[u64]| -> Vec<(ConfChangeKind, u64)> {
            let changes = growth(status, up).unwrap_or_default().into_iter();
            changes
                .map(|change| (change.kind, change.store.0))
                .collect()
        };
        assert_eq!(steps(&status(1, &[]), &[1, 2]), []);
        let new = [(AddLearner, 2), (AddLearner, 4)];
        assert_eq!(steps(&status(1, &[]), &[1, 2, 4]), new);
        assert_eq!(steps(&status(1, &[99]), &[1, 2, 3]), [(AddLearner, 3)]);
        assert_eq!(steps(&status(1, &[99, 10]), &[1, 2, 3]), []);
        let votes = [(AddVoter, 2), (AddVoter, 3)];
        assert_eq!(steps(&status(1, &[99, 100]), &[1, 2, 3]), votes);
        // One that went away is not waited for.
        assert_eq!(steps(&status(1, &[99, 9]), &[1, 2, 4]), [(AddLearner, 4)]);
        assert_eq!(steps(&status(3, &[]), &[1, 2, 3, 4]), []);
        assert_eq!(steps(&status(3, &[]), &[1, 2]), []);
        let mut joint = status(1, &[]);
        joint.raft.conf_state.voters_outgoing = vec![ReplicaId(1)];
        assert_eq!(steps(&joint, &[1, 2, 3]), []);
        assert_eq!(growth(&joint, &[1, 2, 3]), Some(Vec::new()));
        assert_eq!(growth(&status(3, &[]), &[1, 2, 3]), None);
    }

    #[test]
    fn what_is_heard_of_a_store_is_written_down_once() {
        let meta = Meta::default();
        let up = StoreEntry {
            store: 2,
            ..StoreEntry::default()
        };
        let heard = |silent_since| Command::Heard {
            store: 2,
            silent_since,
        };
        let set = |state| Command::SetState { store: 2, state };
        assert_eq!(corrections(&up, &meta, 0, 9), []);
        assert_eq!(corrections(&up, &meta, MISSED - 1, 9), []);
        assert_eq!(corrections(&up, &meta, MISSED, 9), [heard(9)]);
        let silent = StoreEntry {
            silent_since: 9,
            ..up
        };
        let late = 9 + meta.limits.dead_after;
        assert_eq!(corrections(&silent, &meta, 50, late - 1), []);
        let dead = set(StoreState::Dead);
        assert_eq!(corrections(&silent, &meta, 50, late), [dead]);
        assert_eq!(corrections(&silent, &meta, 0, late), [heard(0)]);
        let dead = StoreEntry {
            state: StoreState::Dead,
            ..silent.clone()
        };
        assert_eq!(corrections(&dead, &meta, 50, late), []);
        let back = [heard(0), set(StoreState::Up)];
        assert_eq!(corrections(&dead, &meta, 0, late), back);
        // Who is to leave leaves.
        let leaving = StoreEntry {
            state: StoreState::Decommissioning,
            ..silent
        };
        assert_eq!(corrections(&leaving, &meta, 50, late), []);
        assert_eq!(corrections(&leaving, &meta, 0, late), [heard(0)]);
    }
}
