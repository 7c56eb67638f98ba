//! What operators have under way: tasks that are told what came of their steps, and go on until
//! they are done.

use std::sync::Arc;

use polyraft_multiraft::{Reject, Responder, StoreId};

use super::{Answer, Event, Told, World};
use crate::time::{MILLISECOND, Nanos};

/// Time until a step of a task that nobody answered is tried again.
const AGAIN: Nanos = 400 * MILLISECOND;

impl World {
    /// A responder for a step of a task.
    pub(super) fn respond<T: Send + 'static>(
        &self,
        task: u64,
        store: StoreId,
        told: impl FnOnce(Result<T, Reject>) -> Told + Send + 'static,
    ) -> Responder<Result<T, Reject>> {
        let answers = Arc::clone(&self.answers);
        Responder::new(
            || Err(Reject::Ambiguous),
            move |result| {
                let answer = Answer::Task(task, store, told(result));
                answers.lock().push(answer);
            },
        )
    }

    /// The task is looked at again after a while.
    pub(super) fn again(&mut self, task: u64) {
        self.alarm(task, AGAIN);
    }

    /// The task goes on then; alarms that were set before are void.
    pub(super) fn alarm(&mut self, task: u64, after: Nanos) {
        let alarm = self.operators.alarms.entry(task).or_default();
        *alarm += 1;
        self.queue.push(after, Event::Task(task, *alarm));
    }
}
