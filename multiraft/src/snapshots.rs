//! Snapshots on their way out: built at what is applied now, whatever was applied when the leader asked.

use std::sync::Arc;

use polyraft_core::{ConfState, Payload, Snapshot, SnapshotMeta, SnapshotOutcome};

use crate::effects::SnapshotTask;
use crate::env::{SnapshotHeader, StateMachine, Transport};
use crate::handle::HostHandle;
use crate::input::Input;
use crate::responder::Responder;
use crate::worker::Counters;

/// Builds one snapshot and hands it to the transport. How it ended comes back as an input, after
/// which `finished` is called.
pub fn send(
    state_machine: &Arc<dyn StateMachine>,
    transport: &Arc<dyn Transport>,
    handle: &HostHandle,
    task: SnapshotTask,
    finished: impl FnOnce() + Send + 'static,
) {
    let SnapshotTask {
        worker,
        group,
        to,
        mut message,
    } = task;
    let (replica, follower) = (message.from, message.to);
    let answer = handle.clone();
    let done = Responder::new(
        || SnapshotOutcome::Failed,
        move |outcome| {
            if outcome == SnapshotOutcome::Sent {
                Counters::add(&answer.inner.shared.counters.snapshots_sent, 1);
            }
            let input = Input::SnapshotSent {
                group,
                replica,
                to: follower,
                outcome,
            };
            answer.complete(worker, input);
            finished();
        },
    );
    let source = match state_machine.snapshot(group) {
        Ok(source) => source,
        Err(error) => {
            tracing::warn!(%group, %error, "cannot build a snapshot");
            return done.answer(SnapshotOutcome::Failed);
        }
    };
    let state = source.state().clone();
    let conf_state = ConfState::clone(&state.conf_state);
    let meta = SnapshotMeta {
        last: state.last,
        conf_state,
    };
    message.payload = Payload::Snapshot(Box::new(Snapshot {
        meta,
        data: bytes::Bytes::new(),
    }));
    transport.send_snapshot(
        to,
        SnapshotHeader {
            group,
            message,
            state,
        },
        source,
        done,
    );
}
