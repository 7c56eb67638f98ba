//! Routes that come in any order, also while ranges split and merge.

use polyraft_fuzz::{Fuzz, Source};

use super::*;

/// Bounds are letters; keys are what lies between two of them.
const LETTERS: &[u8] = b"abcdefgh";

fn bound(at: usize) -> Bytes {
    match at.checked_sub(1) {
        None => Bytes::new(),
        Some(at) => Bytes::copy_from_slice(&LETTERS[at..=at]),
    }
}

/// A route for the keys between two bounds; past the last one: no end.
fn route(group: u64, generation: u64, from: usize, to: usize) -> Route {
    Route {
        group,
        range: Some(KeyRange {
            start: bound(from),
            end: (to <= LETTERS.len()).then(|| bound(to)),
        }),
        generation,
        membership: 1,
        stores: vec![1, 2, 3],
        ..Route::default()
    }
}

/// A key behind each bound.
fn keys() -> impl Iterator<Item = Bytes> {
    (0..=LETTERS.len()).map(|at| [&*bound(at), b"0"].concat().into())
}

fn holds(route: &Route, key: &[u8]) -> bool {
    route
        .range
        .as_ref()
        .is_some_and(|range| range.contains(key))
}

fn check_segments(cache: &RangeCache) {
    let all: Vec<_> = cache.segments.iter().collect();
    for (start, segment) in &all {
        let range = segment
            .route
            .range
            .clone()
            .expect("only such have segments");
        assert!(range.start <= *start, "{all:?}");
        assert!(
            segment.end.as_ref().is_none_or(|end| end > *start),
            "{all:?}"
        );
        let last = range.end.as_ref();
        let within = last.is_none_or(|last| segment.end.as_ref().is_some_and(|end| end <= last));
        assert!(within, "{all:?}");
    }
    for pair in all.windows(2) {
        let end = pair[0].1.end.as_ref();
        assert!(
            end.is_some_and(|end| end <= pair[1].0),
            "they overlap: {all:?}"
        );
    }
}

/// Whatever comes, nothing hides what is newer, and the newest of all is found.
fn check_against(cache: &RangeCache, delivered: &[Route]) {
    check_segments(cache);
    for key in keys() {
        let covering = || delivered.iter().filter(|route| holds(route, &key));
        let newest = covering().map(|route| route.generation).max();
        let found = cache.of_key(&key);
        if let Some(found) = &found {
            assert!(holds(found, &key));
            assert_eq!(Some(found.generation), newest, "of {key:?}: {found:?}");
        }
        let left_behind = |route: &Route| {
            let later =
                |other: &Route| other.group == route.group && other.generation > route.generation;
            delivered.iter().any(later)
        };
        let current = |route: &&Route| Some(route.generation) == newest && !left_behind(route);
        if covering()
            .filter(|route| Some(route.generation) == newest)
            .count()
            > 0
            && covering()
                .filter(|route| Some(route.generation) == newest)
                .all(|r| current(&r))
        {
            assert!(found.is_some(), "{key:?} is of nobody: {cache:?}");
        }
        let after = [&*key, b"\0"].concat();
        let same = |one: &Option<Arc<Route>>, other: &Option<Arc<Route>>| {
            one.as_ref().map(|route| route.group) == other.as_ref().map(|route| route.group)
        };
        assert!(
            same(&cache.before(Some(&after)), &found),
            "before {after:?}: {cache:?}"
        );
    }
}

/// Any routes at all; only that a generation of a group has one range.
#[test]
fn of_overlapping_routes_the_highest_generation_is_found() {
    Fuzz::new("client::routes")
        .runs(20_000)
        .length_max(60)
        .check(|input| {
            let mut source = Source::new(input);
            let (mut cache, mut delivered) = (RangeCache::default(), Vec::<Route>::new());
            while !source.is_empty() {
                let (group, generation) = (1 + source.below(4) as u64, 1 + source.below(6) as u64);
                let from = source.below(LETTERS.len());
                let to = from + 1 + source.below(LETTERS.len() + 1 - from);
                let known = delivered
                    .iter()
                    .find(|route| (route.group, route.generation) == (group, generation));
                let route = known
                    .cloned()
                    .unwrap_or_else(|| route(group, generation, from, to));
                cache.learn(route.clone());
                delivered.push(route);
                check_against(&cache, &delivered);
            }
            if let Some(gone) = delivered.first().map(|route| route.group) {
                cache.forget(gone);
                check_segments(&cache);
                assert!(cache.of_group(gone).is_none());
                assert!(
                    keys().all(|key| cache.of_key(&key).is_none_or(|route| route.group != gone))
                );
            }
        });
}

/// Ranges as they truly come to be, by splits and merges, and all of their descriptors ever.
struct History {
    now: Vec<Route>,
    ever: Vec<Route>,
    next_group: u64,
}

impl History {
    fn new() -> Self {
        let whole = route(1, 1, 0, LETTERS.len() + 1);
        Self {
            now: vec![whole.clone()],
            ever: vec![whole],
            next_group: 2,
        }
    }

    fn split(&mut self, at: usize, key: usize) {
        let key = bound(key);
        let left = &mut self.now[at];
        let range = left.range.clone().expect("all have one");
        if range.start >= key || !range.contains(&key) {
            return;
        }
        left.generation += 1;
        let mut right = Route {
            group: self.next_group,
            ..left.clone()
        };
        self.next_group += 1;
        left.range = Some(KeyRange {
            start: range.start,
            end: Some(key.clone()),
        });
        right.range = Some(KeyRange {
            start: key,
            end: range.end,
        });
        self.ever.extend([left.clone(), right.clone()]);
        self.now.insert(at + 1, right);
    }

    fn merge(&mut self, at: usize) {
        if at + 1 >= self.now.len() {
            return;
        }
        let right = self.now.remove(at + 1);
        let left = &mut self.now[at];
        left.generation = left.generation.max(right.generation) + 1;
        let end = right.range.expect("all have one").end;
        left.range = left.range.take().map(|range| KeyRange { end, ..range });
        self.ever.push(left.clone());
    }
}

/// However late and in whatever order news of splits and merges come, in the end every key is found.
#[test]
fn splits_and_merges_are_followed() {
    Fuzz::new("client::history")
        .runs(10_000)
        .length_max(80)
        .check(|input| {
            let mut source = Source::new(input);
            let (mut history, mut cache) = (History::new(), RangeCache::default());
            let mut delivered = Vec::new();
            while !source.is_empty() {
                let at = source.below(history.now.len());
                match source.below(4) {
                    0 => history.split(at, source.below(LETTERS.len() + 1)),
                    1 => history.merge(at),
                    _ => {
                        let news = source.pick(&history.ever);
                        cache.learn(news.clone());
                        delivered.push(news);
                        check_against(&cache, &delivered);
                    }
                }
            }
            for route in &history.now {
                cache.learn(route.clone());
            }
            for news in history.ever {
                assert!(!cache.learn(news), "old news are none");
            }
            for key in keys() {
                let truth = history.now.iter().find(|route| holds(route, &key));
                let found = cache.of_key(&key);
                assert_eq!(found.as_deref(), truth, "{key:?}: {cache:?}");
            }
            let known: Vec<u64> = cache.groups.keys().copied().collect();
            let mut truth: Vec<u64> = history.now.iter().map(|route| route.group).collect();
            truth.sort_unstable();
            assert_eq!(known, truth, "groups that were merged away are forgotten");
        });
}

#[test]
fn leaders_come_and_go_with_their_routes() {
    let mut cache = RangeCache::default();
    cache.learn(route(1, 1, 0, 9));
    cache.set_leader(1, 3, "host:3");
    let leader = |cache: &RangeCache| cache.of_key(b"x").map(|route| route.leader);
    assert_eq!(leader(&cache), Some(3));
    // Who does not know the leader takes nothing away, unless it is no member any more.
    cache.learn(Route {
        membership: 2,
        ..route(1, 1, 0, 9)
    });
    assert_eq!(leader(&cache), Some(3));
    assert_eq!(cache.of_group(1).expect("known").leader_address, "host:3");
    cache.learn(Route {
        membership: 3,
        stores: vec![1, 2, 4],
        ..route(1, 1, 0, 9)
    });
    assert_eq!(leader(&cache), Some(0));
    // A part of the keys has another group now; the leader of the rest is found there.
    cache.learn(route(2, 2, 4, 9));
    cache.set_leader(1, 4, "host:4");
    assert_eq!(cache.of_key(b"a").map(|route| route.leader), Some(4));
    assert_eq!(leader(&cache), Some(0));
    cache.set_leader(9, 1, "host:1");
    assert!(cache.of_group(9).is_none());
}

#[test]
fn groups_without_a_range_are_found_by_number_only() {
    let mut cache = RangeCache::default();
    let private = Route {
        group: 7,
        membership: 1,
        ..Route::default()
    };
    assert!(cache.learn(private.clone()));
    assert!(!cache.learn(private));
    assert!(!cache.has_ranges() && cache.of_key(b"").is_none());
    assert_eq!(cache.of_group(7).map(|route| route.group), Some(7));
    let empty = Route {
        range: Some(KeyRange {
            start: bound(3),
            end: Some(bound(3)),
        }),
        ..Route::default()
    };
    assert!(!cache.learn(empty), "a range without keys");
}
