//! A host taken apart: its loop bodies as functions of data, for shells other than the threads of
//! [`Host`](crate::Host). A simulator calls them in an order of its own, on one thread.
//!
//! [`HostParts::assemble`] recovers a store and hands out everything that a host consists of. A shell then
//! moves values between the parts:
//!
//! 1. [`Inbox::take`] has what requests, messages and completions have come to a worker;
//!    [`Worker::pass`] turns them into [`Effects`].
//! 2. [`Effects::sends`] go to the transport, [`Effects::writes`] to [`LogWriter::drain`],
//!    [`Effects::applies`] to the applier at [`HostParts::applier_of`] the group,
//!    [`Effects::fetches`] to [`fetch`], [`Effects::snapshots`] to [`send_snapshot`]: each in
//!    order, and whenever it likes. [`Effects::inputs`] go to [`HostParts::complete`], and
//!    [`Effects::flush`] asks for [`HostParts::flush`].
//! 3. What comes out goes back with [`HostParts::complete`]; [`HostParts::written`] and
//!    [`HostParts::applied`] do that for writer and appliers.
//! 4. Time is [`HostParts::tick`]; housekeeping is [`HostParts::flush`] and
//!    [`LogEngine::maintain`](crate::env::LogEngine::maintain).
//!
//! Dropping the parts is a crash: nothing more happens, and whoever waits is answered by that. What a
//! crash does to the engines is for the engines to model.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use crate::apply::{Applier, Outcome};
use crate::budget::Budget;
pub use crate::budget::Permit;
use crate::config::HostConfig;
pub use crate::effects::{
    ApplyTask, DestroyData, Effects, FetchTask, LaneKey, RangeTask, SnapshotTask, WriteItem,
};
use crate::env::StateMachine;
use crate::error::HostError;
pub use crate::fetch::fetch;
use crate::group::GroupId;
use crate::handle::{HostHandle, Mailboxes, StateMachineRef};
use crate::host::{HostEnv, recover};
pub use crate::input::{Admin, Applied, AppliedItem, Input, PersistedItem};
pub use crate::persist::{LogWriter, Written};
pub use crate::replica::{Pending, Subsumer, Unable};
pub use crate::snapshots::send as send_snapshot;
use crate::sync::{Receiver, Sender};
use crate::threads;
use crate::worker::Shared;
pub use crate::worker::Worker;

/// Everything that one host consists of. See the module.
pub struct HostParts {
    /// The way to talk to it; what it takes waits in the inboxes.
    pub handle: HostHandle,
    /// Owners of replicas, by index.
    pub workers: Vec<Worker>,
    /// What waits for each worker, by the same index.
    pub inboxes: Vec<Inbox>,
    /// The log writer.
    pub writer: LogWriter,
    /// Appliers, by index.
    pub appliers: Vec<Applier>,
}

/// What waits for one worker.
#[derive(Debug)]
pub struct Inbox {
    pub(crate) requests: Receiver<Input>,
    pub(crate) completions: Receiver<Input>,
}

impl HostParts {
    /// Recovers every replica of a store; nothing runs yet.
    ///
    /// # Errors
    /// The configuration cannot work, or what is on the disk cannot be trusted.
    pub fn assemble(config: HostConfig, env: &HostEnv) -> Result<Self, HostError> {
        config.validate()?;
        let config = Arc::new(config);
        let shared = Arc::new(Shared::new(config.workers));
        let mut workers: Vec<Worker> = (0..config.workers)
            .map(|index| Worker::new(index, Arc::clone(&config), Arc::clone(&shared)))
            .collect();
        let mut appliers: Vec<Applier> = (0..config.appliers)
            .map(|_| Applier::new(Arc::clone(&env.state_machine), Arc::clone(&shared)))
            .collect();
        recover(env, &config, &shared, &mut workers, &mut appliers)?;
        let writer = LogWriter::new(
            Arc::clone(&env.log),
            Arc::clone(&config),
            Arc::clone(&shared),
        );
        let (requests, request_ends): (Vec<_>, Vec<_>) = ends(config.workers);
        let (completions, completion_ends): (Vec<_>, Vec<_>) = ends(config.workers);
        let inboxes = request_ends
            .into_iter()
            .zip(completion_ends)
            .map(|(requests, completions)| Inbox {
                requests,
                completions,
            })
            .collect();
        let inner = Mailboxes {
            proposals: Budget::new(config.proposal_bytes_max),
            inbound: Budget::new(config.inbound_bytes_max),
            config,
            shared,
            requests,
            completions,
            state_machine: StateMachineRef(Arc::clone(&env.state_machine)),
        };
        Ok(Self {
            handle: HostHandle {
                inner: Arc::new(inner),
            },
            workers,
            inboxes,
            writer,
            appliers,
        })
    }

    /// The index of the worker that a group is on.
    #[must_use]
    pub fn worker_of(&self, group: GroupId) -> usize {
        self.handle.inner.shared.router.worker_of(group)
    }

    /// The index of the applier through which everything of a group goes.
    #[must_use]
    pub fn applier_of(&self, group: GroupId) -> usize {
        applier_of(group, self.appliers.len())
    }

    /// Gives an input to a worker, as a completion: it is never refused.
    pub fn complete(&self, worker: usize, input: Input) {
        self.handle.complete(worker, input);
    }

    /// One tick for every worker.
    pub fn tick(&self) {
        for worker in 0..self.workers.len() {
            self.complete(worker, Input::Tick);
        }
    }

    /// Returns the receipts of a write to the workers. What is left in `written` is for the shell:
    /// messages to send, and what the result of this gives the appliers.
    #[must_use]
    pub fn written(&self, written: &mut Written) -> Vec<ApplyTask> {
        threads::return_receipts(&self.handle, written)
    }

    /// Returns the results of an applier to the workers.
    pub fn applied(&self, outcome: Outcome) {
        threads::return_results(&self.handle, outcome);
    }

    /// Makes applied data durable, so that the workers can truncate the log behind it, and groups that splits
    /// have made can begin. False: there was no room for that, and nothing has happened.
    ///
    /// # Errors
    /// The state machine's; it must be treated as final.
    pub fn flush(&self, state_machine: &Arc<dyn StateMachine>) -> Result<bool, HostError> {
        threads::flush(state_machine, &self.handle)
    }

    /// The store cannot go on, or is to stop: nothing new is taken.
    pub fn close(&self) {
        let stopping = &self.handle.inner.shared.stopping;
        stopping.store(true, Ordering::SeqCst);
    }
}

impl Inbox {
    /// Moves what is there to the end of `inputs`, at most `max` requests and `max` completions;
    /// completions first, since they free what requests are waiting for.
    pub fn take(&self, inputs: &mut Vec<Input>, max: usize) {
        inputs.extend(self.completions.try_iter().take(max));
        inputs.extend(self.requests.try_iter().take(max));
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.completions.is_empty() && self.requests.is_empty()
    }
}

impl fmt::Debug for HostParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostParts")
            .field("store", &self.handle.inner.config.store)
            .finish_non_exhaustive()
    }
}

pub(crate) fn applier_of(group: GroupId, appliers: usize) -> usize {
    group.0 as usize % appliers
}

fn ends(count: usize) -> (Vec<Sender<Input>>, Vec<Receiver<Input>>) {
    (0..count).map(|_| threads::channel()).unzip()
}
