//! Clusters that are set right turn by turn, until there is nothing left to do.

use bytes::Bytes;
use polyraft_fuzz::{Fuzz, Source};

use super::*;

const BIG: u64 = 100 << 20;

fn stores(count: u64) -> Vec<StoreView> {
    let each = 1..=count;
    each.map(|store| StoreView {
        store,
        state: StoreState::Up,
        heard: true,
        takes: true,
    })
    .collect()
}

fn key(at: u64) -> Bytes {
    Bytes::copy_from_slice(&at.to_be_bytes())
}

/// Group `n` with the keys from 1000 times its number on.
fn group(n: u64, stores: &[u64]) -> GroupView {
    GroupView {
        group: n,
        range: Some(KeyRange {
            start: key(n.wrapping_mul(1000)),
            end: Some(key(n.wrapping_add(1).wrapping_mul(1000))),
        }),
        stores: stores.to_vec(),
        leader: stores[0],
        bytes: Some(BIG),
        changes: false,
    }
}

/// All of `count` groups on stores 1, 2 and 3 of so many.
fn piled(groups: u64, count: u64) -> View {
    View {
        stores: stores(count),
        groups: (1..=groups).map(|n| group(n, &[1, 2, 3])).collect(),
        ..View::default()
    }
}

/// Does what was decided.
fn perform(view: &mut View, decisions: &[Decision]) {
    let mut next = view
        .groups
        .iter()
        .map(|group| group.group)
        .max()
        .unwrap_or(0)
        + 1;
    for decision in decisions {
        let find = |view: &View, group| {
            let at = view.groups.iter().position(|view| view.group == group);
            at.unwrap_or_else(|| panic!("{decision}: no such group"))
        };
        match decision.action {
            Action::Move { group, from, to } => {
                let at = find(view, group);
                let one = &mut view.groups[at];
                assert!(
                    one.stores.contains(&from) && !one.stores.contains(&to),
                    "{decision}"
                );
                one.stores.retain(|store| *store != from);
                one.stores.push(to);
                if one.leader == from {
                    one.leader = one.stores[0];
                }
            }
            Action::Transfer { group, from, to } => {
                let at = find(view, group);
                let one = &mut view.groups[at];
                assert!(one.leader == from && one.stores.contains(&to), "{decision}");
                one.leader = to;
            }
            Action::Split { group } => {
                let at = find(view, group);
                let mut right = view.groups[at].clone();
                let range = right.range.as_mut().expect("it has one");
                let number = |key: &Bytes| u64::from_be_bytes(key[..].try_into().expect("eight"));
                let end = range.end.as_ref().expect("it has one");
                let middle = key(number(&range.start).midpoint(number(end)));
                range.start = middle.clone();
                let left = &mut view.groups[at];
                left.range.as_mut().expect("it has one").end = Some(middle);
                left.bytes = left.bytes.map(|bytes| bytes / 2);
                (right.bytes, right.group) = (left.bytes, next);
                next += 1;
                view.groups.push(right);
            }
            Action::Merge { left, right } => {
                let right = view.groups.remove(find(view, right));
                let at = find(view, left);
                let left = &mut view.groups[at];
                let range = left.range.as_mut().expect("it has one");
                let gone = right.range.expect("it has one");
                assert_eq!(range.end.as_ref(), Some(&gone.start), "{decision}");
                range.end = gone.end;
                left.bytes = Some(left.bytes.unwrap_or(0) + right.bytes.unwrap_or(0));
            }
            Action::Blocked { .. } => {}
        }
    }
}

fn check_limits(view: &View, decisions: &[Decision]) {
    let (mut moves, mut transfers, mut changes) = (0, 0, 0);
    let (mut of, mut groups) = (BTreeMap::<u64, u64>::new(), BTreeSet::new());
    for decision in decisions {
        match decision.action {
            Action::Move { group, from, to } => {
                moves += 1;
                for store in [from, to] {
                    *of.entry(store).or_default() += 1;
                }
                assert!(groups.insert(group), "two things at once: {decision}");
            }
            Action::Transfer { group, .. } => {
                transfers += 1;
                assert!(groups.insert(group), "two things at once: {decision}");
            }
            Action::Split { group } => {
                changes += 1;
                assert!(groups.insert(group), "two things at once: {decision}");
            }
            Action::Merge { left, right } => {
                changes += 1;
                assert!(groups.insert(left) && groups.insert(right), "{decision}");
            }
            Action::Blocked { .. } => {}
        }
    }
    let limits = &view.limits;
    assert!(moves <= limits.moves && transfers <= limits.transfers);
    assert!(changes <= limits.range_changes);
    for (store, count) in of {
        let heard = view
            .stores
            .iter()
            .any(|view| view.store == store && view.heard);
        assert!(
            !heard || count <= limits.moves_of_a_store,
            "store {store}: {count}"
        );
    }
}

/// Turns until nothing is left to do; what could not be done in the last one.
fn settle(view: &mut View) -> Vec<Decision> {
    for _ in 0..500 {
        let decisions = decide(view);
        assert_eq!(decisions, decide(view), "the same again");
        check_limits(view, &decisions);
        let is_blocked = |one: &Decision| matches!(one.action, Action::Blocked { .. });
        if decisions.iter().all(is_blocked) {
            return decisions;
        }
        perform(view, &decisions);
    }
    panic!("it does not come to rest: {:#?}", decide(view));
}

fn spread(view: &View, of: impl Fn(&GroupView, u64) -> bool) -> u64 {
    let takes = view
        .stores
        .iter()
        .filter(|store| store.takes && store.heard);
    let count = |store: u64| view.groups.iter().filter(|group| of(group, store)).count() as u64;
    let counts: Vec<u64> = takes.map(|store| count(store.store)).collect();
    counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
}

#[test]
fn a_new_store_gets_its_share_and_then_there_is_rest() {
    for (groups, count) in [(40, 4), (7, 5), (100, 6), (2, 4)] {
        let mut view = piled(groups, count);
        assert_eq!(settle(&mut view), []);
        let replicas = spread(&view, |group, store| group.stores.contains(&store));
        let leaders = spread(&view, |group, store| group.leader == store);
        let slack = 2 + groups / 10;
        assert!(
            replicas <= slack && leaders <= slack,
            "{replicas} {leaders}"
        );
        assert!(view.groups.iter().all(|group| group.stores.len() == 3));
    }
    let mut calm = piled(30, 3);
    assert_eq!(settle(&mut calm), []);
    assert!(spread(&calm, |group, store| group.leader == store) <= 2);
}

#[test]
fn what_a_dead_store_had_is_made_anew_most_endangered_first() {
    let mut view = piled(20, 5);
    for (at, group) in view.groups.iter_mut().enumerate() {
        group.stores = if at == 13 {
            vec![1, 2, 3]
        } else {
            vec![2, 4, 5]
        };
        group.leader = 4;
    }
    for dead in [1, 2] {
        let store = &mut view.stores[dead];
        (store.state, store.heard, store.takes) = (StoreState::Dead, false, false);
    }
    // The system's group is as dear as the others.
    view.groups.push(group(1 << 63, &[2, 4, 5]));
    view.groups[20].range = None;
    // Stores 2 and 3 are dead: one group has lost its quorum.
    let decisions = decide(&view);
    assert_eq!(decisions[0].action, Action::Blocked { group: 14 });
    assert_eq!(
        decisions[0].to_string(),
        "nothing with group 14: store 2 is dead, and 1 of its 3 stores are heard"
    );
    let first = decisions[1].to_string();
    assert_eq!(first, "move group 1 from store 2 to 1: store 2 is dead");
    let left = settle(&mut view);
    assert_eq!(left.len(), 1);
    let there = |group: &&GroupView| group.stores.contains(&2);
    assert_eq!(view.groups.iter().filter(there).count(), 1);
}

#[test]
fn a_store_that_is_to_leave_is_emptied_as_far_as_others_take() {
    let mut view = piled(12, 4);
    view.stores[1].state = StoreState::Decommissioning;
    assert_eq!(settle(&mut view), []);
    assert!(view.groups.iter().all(|group| !group.stores.contains(&2)));
    let mut view = piled(2, 3);
    view.stores[0].state = StoreState::Decommissioning;
    let left = settle(&mut view);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left[0].why.contains("no other store takes a replica"),
        "{}",
        left[0]
    );
}

#[test]
fn sizes_are_evened_out_and_then_there_is_rest() {
    let mut view = piled(6, 3);
    view.groups[0].bytes = Some(BIG * 7);
    view.groups[5].bytes = None;
    assert_eq!(settle(&mut view), []);
    assert_eq!(view.groups.len(), 13, "one became eight");
    // All are small now, and lie where they do.
    for (at, group) in view.groups.iter_mut().enumerate() {
        group.bytes = Some(1 << 20);
        view.stores = stores(5);
        group.stores = vec![
            1 + at as u64 % 5,
            1 + (at as u64 + 1) % 5,
            1 + (at as u64 + 2) % 5,
        ];
        group.leader = group.stores[0];
    }
    assert_eq!(settle(&mut view), []);
    assert_eq!(view.groups.len(), 1);
}

#[test]
fn groups_that_change_are_left_alone_and_count() {
    let mut view = piled(40, 4);
    for group in &mut view.groups[..16] {
        group.changes = true;
    }
    let decisions = decide(&view);
    let is_transfer = |one: &Decision| matches!(one.action, Action::Transfer { .. });
    assert!(decisions.iter().all(is_transfer), "{decisions:?}");
    view.limits.transfers = 3;
    assert_eq!(decide(&view).len(), 3);
}

/// Whatever a cluster looks like, it comes to rest within the limits.
#[test]
fn any_cluster_comes_to_rest() {
    let target = |input: &[u8]| {
        let source = &mut Source::new(input);
        let count = 1 + source.below(7) as u64;
        let mut view = View {
            stores: stores(count),
            ..View::default()
        };
        for store in &mut view.stores {
            store.state = source.pick(&[
                StoreState::Up,
                StoreState::Up,
                StoreState::Up,
                StoreState::Decommissioning,
                StoreState::Dead,
            ]);
            store.heard = store.state != StoreState::Dead && source.below(6) > 0;
            store.takes = source.below(6) > 0;
        }
        for n in 1..=source.below(30) as u64 {
            let mut on: Vec<u64> = (1..=count).collect();
            while on.len() > 1 + source.below(3) {
                on.remove(source.below(on.len()));
            }
            let mut one = group(n, &on);
            one.bytes = source.pick(&[None, Some(0), Some(1 << 20), Some(BIG), Some(BIG * 3)]);
            one.leader = if source.below(5) == 0 {
                0
            } else {
                source.pick(&on)
            };
            one.changes = source.below(9) == 0;
            view.groups.push(one);
        }
        view.limits.moves = source.below(9) as u64;
        view.limits.moves_of_a_store = source.below(4) as u64;
        settle(&mut view);
    };
    let fuzz = Fuzz::new("server::balance").runs(1_500).length_max(200);
    fuzz.memory_max(8 << 20).check(target);
}
