//! What was certain is there after every start, and nothing is there that was not written.
//!
//! After a power cut a store may find, beyond what was synced, a beginning of what was written since; after the
//! death of its process all of it. The same for data: never older than the last flush. The [books](super::books)
//! compare while they enter what was found; this property says what they say.

use super::Property;
use super::books::Books;
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recovery;

impl Property for Recovery {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn see(&mut self, _seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        books.latest().impossible.clone().map_or(Ok(()), Err)
    }
}
