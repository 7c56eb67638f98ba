//! Index and term of an entry determine its content and the term of the entry before it, and so everything before
//! it (thesis section 3.5), over all stores and messages.

use super::Property;
use super::books::Books;
use crate::observe::Observation;

/// See the module; the [books](super::books) compare entries while they enter them.
#[derive(Debug, Default)]
pub(super) struct LogMatching;

impl Property for LogMatching {
    fn name(&self) -> &'static str {
        "log-matching"
    }

    fn see(&mut self, _seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        books.latest().conflict.clone().map_or(Ok(()), Err)
    }
}
