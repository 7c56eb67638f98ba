//! Lanes: order, each fault, connections that come and go.

use polyraft_core::Payload;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::Lane;

use super::super::*;
use super::lab::*;
use crate::time::{MILLISECOND, SECOND};

#[test]
fn a_lane_keeps_its_order_under_any_delay() {
    let (mut lab, ports) = Lab::of(1, 2);
    let faults = lab.network.faults_mut();
    (faults.delay_min, faults.delay_max, faults.spike) = (0, 10 * MILLISECOND, 100_000);
    (faults.in_flight_max, faults.frame_max) = (4, 3);
    for group in 0..500 {
        send(&ports[0], 2, Lane::Append, [2 * group, 2 * group + 1]);
        lab.run(MILLISECOND / 2);
    }
    while lab.turn() {}
    assert!(lab.got(2).into_iter().eq(0..1000));
}

#[test]
fn cuts_and_resets_lose_and_delay_but_never_reorder() {
    for seed in 0..30 {
        let (mut lab, ports) = Lab::of(seed, 2);
        let faults = lab.network.faults_mut();
        (faults.reset, faults.spike) = (10_000, 10_000);
        let mut rng = Rng::new(seed);
        for group in 0..2_000 {
            send(&ports[0], 2, Lane::Append, [2 * group, 2 * group + 1]);
            if rng.percent(1) {
                let (from, to) = *rng.pick(&[(1, 2), (2, 1)]).expect("two");
                lab.cut(from, to, rng.percent(30));
            }
            let pause = rng.magnitude(1, 50 * MILLISECOND);
            lab.run(pause);
        }
        let got = lab.got(2);
        assert!(got.len() > 200, "it is not always cut: {}", got.len());
        assert!(got.is_sorted_by(|a, b| a < b), "each once, in order");
    }
}

#[test]
fn heartbeats_and_their_answers_stand_first_in_a_frame() {
    let (mut lab, ports) = Lab::of(1, 2);
    let commit = polyraft_core::Index(1);
    let heartbeat = Payload::Heartbeat { commit, read: 0 };
    let answer = Payload::HeartbeatResponse { read: 0 };
    let kinds = [Payload::TimeoutNow, answer, heartbeat];
    let messages = (0..6).zip(kinds.iter().cycle());
    let messages = messages.map(|(group, kind)| message(group, kind.clone()));
    ports[0].send(StoreId(2), Lane::Control, messages.collect());
    while lab.turn() {}
    assert_eq!(lab.got(2), [2, 5, 1, 4, 0, 3]);
}

#[test]
fn each_fault_of_messages_does_what_it_says() {
    // What arrives of 1000 messages in frames of two, sorted, and whether in order.
    let under = |set: fn(&mut NetworkFaults)| {
        let (mut lab, ports) = Lab::of(5, 2);
        set(lab.network.faults_mut());
        for group in 0..500 {
            send(&ports[0], 2, Lane::Append, [2 * group, 2 * group + 1]);
            lab.run(MILLISECOND);
        }
        while lab.turn() {}
        assert!(conserves(&lab.network.stats()));
        let mut got = lab.got(2);
        let in_order = got.is_sorted();
        got.sort_unstable();
        let all = got.len();
        got.dedup();
        (all, got.len(), in_order)
    };
    assert_eq!(under(|_| ()), (1000, 1000, true));
    let (all, different, in_order) = under(|faults| faults.loss = 100_000);
    assert!(all == different && (800..990).contains(&all) && in_order);
    let (all, different, _) = under(|faults| faults.duplication = 100_000);
    assert!(different == 1000 && (1020..1200).contains(&all));
    let (all, different, in_order) = under(|faults| faults.reorder = 100_000);
    assert!((all, different, in_order) == (1000, 1000, false));
    let (all, different, in_order) = under(|faults| faults.stale = 100_000);
    assert!(different == 1000 && all > 1020 && !in_order);
    let (all, different, in_order) = under(|faults| faults.reset = 50_000);
    assert!(all == different && all < 1000 && in_order);
}

#[test]
fn a_reset_is_noticed_by_the_sender_alone_and_mended() {
    for (lane, news) in [
        (Lane::Control, vec!["1: 2 down", "1: 2 up as 2"]),
        (Lane::Append, vec!["1: lost to 2: Any"]),
    ] {
        let (mut lab, ports) = Lab::of(1, 2);
        lab.network.faults_mut().reset = 1_000_000;
        send(&ports[0], 2, lane, [5]);
        lab.run(SECOND);
        assert_eq!(lab.told(), news, "a part of one message is none");
        lab.network.faults_mut().reset = 0;
        send(&ports[0], 2, lane, [6]);
        lab.run(SECOND);
        assert_eq!(lab.told(), ["2: group 6"]);
    }
}

#[test]
fn the_oldest_go_where_there_is_no_room() {
    let (mut lab, ports) = Lab::of(1, 2);
    let faults = lab.network.faults_mut();
    (faults.waiting_max, faults.in_flight_max) = (2, 1);
    send(&ports[0], 2, Lane::Append, [9, 8]);
    send(&ports[0], 2, Lane::Append, [7, 6]);
    send(&ports[0], 2, Lane::Append, [5, 5]);
    while lab.turn() {}
    let lost = "1: lost to 2: Of([GroupId(6), GroupId(7)])";
    let got = ["2: group 9", "2: group 8", "2: group 5", "2: group 5"];
    let mut expected = vec![lost];
    expected.extend(got);
    assert_eq!(lab.told(), expected);
    // What is more than there can ever be room for.
    send(&ports[0], 2, Lane::Append, [4, 3, 2, 1]);
    while lab.turn() {}
    let lost = "1: lost to 2: Of([GroupId(3), GroupId(4)])";
    assert_eq!(lab.told(), [lost, "2: group 2", "2: group 1"]);
    assert_eq!(lab.network.stats().no_room, 4);
}

#[test]
fn a_short_cut_delays_and_a_long_one_breaks() {
    let (mut lab, ports) = Lab::of(1, 2);
    lab.cut(1, 2, true);
    send(&ports[0], 2, Lane::Append, [1, 2]);
    send(&ports[0], 2, Lane::Append, [3]);
    lab.run(SECOND);
    assert!(lab.told().is_empty(), "nobody has noticed anything");
    lab.cut(1, 2, false);
    lab.run(SECOND);
    assert_eq!(lab.told(), ["2: group 1", "2: group 2", "2: group 3"]);
    lab.cut(1, 2, true);
    send(&ports[0], 2, Lane::Append, [4]);
    lab.run(10 * SECOND);
    let mut told = lab.told();
    told.sort_unstable();
    let noticed = [
        "1: 2 down",
        "1: lost to 2: Any",
        "2: 1 down",
        "2: lost to 1: Any",
    ];
    assert_eq!(told, noticed);
    send(&ports[0], 2, Lane::Append, [5]);
    lab.collect();
    lab.cut(1, 2, false);
    lab.run(10 * SECOND);
    let mut told = lab.told();
    told.sort_unstable();
    assert_eq!(told, ["1: 2 up as 2", "2: 1 up as 1"]);
}

#[test]
fn the_other_way_of_a_cut_works_until_it_is_noticed() {
    let (mut lab, ports) = Lab::of(1, 2);
    lab.cut(1, 2, true);
    let mut sent = 0;
    while !lab.notes.lock().iter().any(|(_, _, what)| what == "1 down") {
        sent += 1;
        send(&ports[1], 1, Lane::Control, [sent]);
        lab.run(10 * MILLISECOND);
        if sent > 1000 {
            panic!("it is never noticed");
        }
    }
    let got = lab.got(1);
    assert!(!got.is_empty());
    assert!(got.iter().copied().eq(1..=got.len() as u64), "in order");
}

#[test]
fn a_crash_is_noticed_and_a_store_that_comes_back_is_met_again() {
    let mut slow = 0;
    for seed in 0..20 {
        let (mut lab, ports) = Lab::of(seed, 2);
        lab.network.stopped(StoreId(2));
        send(&ports[0], 2, Lane::Append, [1]);
        lab.run(SECOND);
        slow += usize::from(lab.told().is_empty());
        let again = lab.start(2);
        lab.run(3 * SECOND);
        let told = lab.told();
        assert!(told.contains(&"1: 2 up as 3".to_owned()), "{told:?}");
        assert!(told.contains(&"2: 1 up as 1".to_owned()), "{told:?}");
        send(&ports[0], 2, Lane::Append, [2]);
        send(&ports[1], 1, Lane::Append, [3]);
        send(&again, 1, Lane::Append, [4]);
        lab.run(SECOND);
        let mut told = lab.told();
        told.sort_unstable();
        assert_eq!(told, ["1: group 4", "2: group 2"], "the dead do not speak");
    }
    assert!((2..19).contains(&slow), "soon or late: {slow}");
}

#[test]
fn what_a_crashed_store_has_sent_may_arrive() {
    let mut arrived = 0;
    for seed in 0..20 {
        let (mut lab, ports) = Lab::of(seed, 2);
        for group in 0..4 {
            send(&ports[0], 2, Lane::Append, [group]);
            lab.collect();
        }
        lab.network.stopped(StoreId(1));
        lab.run(SECOND);
        let got = lab.got(2);
        assert!(got.iter().copied().eq(0..got.len() as u64), "{got:?}");
        arrived += got.len();
        assert!(conserves(&lab.network.stats()));
    }
    assert!((20..60).contains(&arrived), "some of them: {arrived}");
}
