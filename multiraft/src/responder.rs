//! The right to answer a caller, exactly once.

use std::fmt;

/// Moves from request to proposal to apply task; answered once, by type. Dropped unanswered it
/// answers with the value given when it was made (for proposals:
/// [`Reject::Ambiguous`](crate::Reject::Ambiguous)), so that no caller hangs.
pub struct Responder<T> {
    answer: Option<Box<dyn FnOnce(T) + Send>>,
    if_dropped: fn() -> T,
}

impl<T> Responder<T> {
    /// `answer` is called exactly once, from any thread; it must not block.
    pub fn new(if_dropped: fn() -> T, answer: impl FnOnce(T) + Send + 'static) -> Self {
        Self {
            answer: Some(Box::new(answer)),
            if_dropped,
        }
    }

    /// Answers.
    pub fn answer(mut self, value: T) {
        if let Some(answer) = self.answer.take() {
            answer(value);
        }
    }
}

impl<T> Drop for Responder<T> {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer((self.if_dropped)());
        }
    }
}

impl<T> fmt::Debug for Responder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("open", &self.answer.is_some())
            .finish()
    }
}
