//! Index and term of an entry determine its content and the term of the entry before it, and so everything
//! before it (thesis section 3.5), over all stores and messages.

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

#[cfg(test)]
mod tests {
    use super::super::testing::{Scene, append, caught, entries_section, entry};
    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::of(LogMatching).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a"), entry(2, 4, "b")]);
        scene
    }

    #[test]
    fn the_same_entries_again_are_no_harm_nor_others_of_another_term() {
        let mut scene = scene();
        scene
            .send(1, 3, 2, append((2, 3), &[entry(2, 4, "b")]))
            .unwrap();
        scene
            .send(3, 2, 3, append((2, 3), &[entry(3, 4, "c")]))
            .unwrap();
        scene.durable(2, entries_section(&[entry(3, 4, "c"), entry(3, 5, "d")]));
    }

    #[test]
    fn other_contents_in_a_message_are_seen() {
        let seen = scene().send(1, 3, 2, append((2, 3), &[entry(2, 4, "x")]));
        caught(&seen, "two different entries 4 of term 2");
    }

    #[test]
    fn other_contents_in_a_log_are_seen() {
        let seen = scene().write(3, vec![entries_section(&[entry(2, 3, "ab")])]);
        caught(&seen, "two different entries 3 of term 2");
    }

    #[test]
    fn another_past_is_seen() {
        let mut scene = scene();
        scene
            .write(3, vec![entries_section(&[entry(1, 3, "z")])])
            .unwrap();
        let seen = scene.write(3, vec![entries_section(&[entry(2, 4, "b")])]);
        caught(&seen, "stands behind one of term 2 and one of term 1");
    }

    #[test]
    fn contents_of_other_terms_are_told_apart_too() {
        let mut scene = scene();
        scene
            .send(3, 2, 3, append((2, 3), &[entry(3, 4, "c")]))
            .unwrap();
        let seen = scene.send(3, 1, 3, append((2, 3), &[entry(3, 4, "d")]));
        caught(&seen, "two different entries 4 of term 3");
    }
}
