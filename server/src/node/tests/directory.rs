//! The directory among real stores: it comes to the truth by what leaders tell it, and gives numbers once.

use polyraft_core::RoleName;

use super::*;
use crate::directory::command::{Command, Numbers, Reply};
use crate::directory::{DIRECTORY, lead, publish};
use crate::failure::Reason;
use crate::owner::Aim;
use crate::proto::directory::{
    DescribeRequest, DescribeResponse, Entry, ListGroupsRequest, ListRangesRequest,
};

/// Three stores with a directory, and what they do for it in the background.
struct Cluster {
    stores: Vec<One>,
    _background: JoinSet<()>,
}

async fn with_directory() -> Cluster {
    let stores = three().await;
    let descriptor = new_descriptor(DIRECTORY, None, &[1, 2, 3]);
    for one in &stores {
        let server = one.server();
        let create = |respond| server.handle.create_group(descriptor.clone(), respond);
        server
            .ask(DIRECTORY, call(), create)
            .await
            .expect("it is new");
    }
    let begin = Command::Begin {
        groups: 1,
        stores: stores
            .iter()
            .map(|one| (one.server().me, one.address.clone()))
            .collect(),
    };
    let begun = stores[0]
        .server()
        .change_directory(&begin, from_client())
        .await;
    assert_eq!(begun.expect("it has a quorum"), Reply::Done);
    let mut background = JoinSet::new();
    for one in &stores {
        background.spawn(publish::run(Arc::clone(one.server())));
        background.spawn(lead::run(Arc::clone(one.server())));
    }
    Cluster {
        stores,
        _background: background,
    }
}

fn from_client() -> Call {
    Call {
        forwarded: false,
        ..call()
    }
}

async fn ranges(server: &Server, stale: bool) -> Result<Vec<Entry>, crate::failure::Failure> {
    let (mut ranges, mut start) = (Vec::new(), Some(Bytes::new()));
    while let Some(from) = start.take() {
        let request = ListRangesRequest {
            start: from,
            limit: 2,
            stale,
            ..ListRangesRequest::default()
        };
        let page = server.ranges_of_directory(request, from_client()).await?;
        assert!(page.ranges.len() <= 2);
        ranges.extend(page.ranges);
        start = page.next;
    }
    Ok(ranges)
}

/// What the leaders of all ranges say, by range; none while some have no leader.
fn truth(stores: &[One]) -> Option<Vec<Entry>> {
    let mut all: BTreeMap<Bytes, Entry> = BTreeMap::new();
    for one in stores {
        let server = one.server();
        for summary in server.handle.list() {
            let leads = summary.basic.soft_state.role == RoleName::Leader;
            let descriptor = server.handle.descriptor(summary.group)?;
            let Some(range) = descriptor.range.as_ref().filter(|_| leads) else {
                continue;
            };
            let term = summary.basic.hard_state.term.0;
            let entry = crate::directory::entry::Entry::new(&descriptor, server.me, term);
            all.insert(range.start.clone(), Entry::from(&entry));
        }
    }
    let all: Vec<Entry> = all.into_values().collect();
    let mut at = Some(Bytes::new());
    for entry in &all {
        (at == entry.start).then_some(())?;
        at.clone_from(&entry.end);
    }
    at.is_none().then_some(all)
}

async fn until_true(cluster: &Cluster) -> Vec<Entry> {
    let begun = Instant::now();
    loop {
        let before = truth(&cluster.stores);
        let known = ranges(cluster.stores[1].server(), false)
            .await
            .expect("it has a quorum");
        if let Some(truth) = before
            && known == truth
            && Some(&truth) == self::truth(&cluster.stores).as_ref()
        {
            return truth;
        }
        let late = begun.elapsed() >= PATIENCE;
        assert!(!late, "{known:#?} is not {:#?}", truth(&cluster.stores));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn transfer(stores: &[One], group: u64, to: u64) {
    let begun = Instant::now();
    loop {
        let leader = leader_of(stores, group).await;
        if leader.me == to {
            return;
        }
        let transfer = |respond| {
            leader
                .handle
                .transfer_leader(GroupId(group), StoreId(to), respond)
        };
        // Refused while the other one is behind.
        let _ = leader.ask(group, call(), transfer).await;
        assert!(
            begun.elapsed() < PATIENCE,
            "group {group} stays where it is"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How often anybody told the directory anything, and how long its log is.
fn told(stores: &[One]) -> (u64, u64) {
    let published = |one: &One| one.server().publishing.published.load(Ordering::SeqCst);
    let summary = |one: &One| one.server().handle.summary(GroupId(DIRECTORY));
    let applied = |one: &One| summary(one).map_or(0, |summary| summary.basic.applied.0);
    let longest = stores.iter().map(applied).max();
    (stores.iter().map(published).sum(), longest.unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_directory_follows_splits_merges_and_leaders() {
    let cluster = with_directory().await;
    let stores = &cluster.stores;
    leader_of(stores, 1).await;
    assert_eq!(until_true(&cluster).await.len(), 1);
    for (place, group) in [("m", 2), ("c", 3), ("t", 4), ("p", 5)] {
        split(stores, place.as_bytes(), group).await;
    }
    let five: Vec<u64> = until_true(&cluster).await.iter().map(|e| e.group).collect();
    assert_eq!(five, [1, 3, 2, 5, 4]);
    for (group, to) in [(1, 2), (3, 3), (2, 1), (DIRECTORY, 3), (5, 2)] {
        transfer(stores, group, to).await;
    }
    until_true(&cluster).await;
    merge(stores, b"p").await;
    transfer(stores, DIRECTORY, 1).await;
    merge(stores, b"m").await;
    split(stores, b"m", 6).await;
    let groups: Vec<u64> = until_true(&cluster).await.iter().map(|e| e.group).collect();
    assert_eq!(groups, [1, 3, 6, 4]);
    // Nobody says anything any more, and everybody can be asked.
    let mut before = told(stores);
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = told(stores);
        if now == before {
            break;
        }
        before = now;
        assert!(
            begun.elapsed() < PATIENCE,
            "the directory is told and told: {now:?}"
        );
    }
    let known = until_true(&cluster).await;
    for one in stores {
        let hint = ranges(one.server(), true).await.expect("it has a replica");
        assert_eq!(hint, known);
    }
    // The directory knows of itself, too, and of no group that is no more.
    let request = ListGroupsRequest::default();
    let all = stores[2]
        .server()
        .groups_of_directory(request, from_client())
        .await;
    let all: Vec<u64> = all
        .expect("a quorum")
        .groups
        .iter()
        .map(|e| e.group)
        .collect();
    assert_eq!(all, [1, 3, 4, 6, DIRECTORY]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn numbers_are_given_once_while_the_directory_moves() {
    let cluster = with_directory().await;
    let mut askers = JoinSet::new();
    for one in &cluster.stores {
        for _ in 0..2 {
            let server = Arc::clone(one.server());
            askers.spawn(async move {
                let mut taken = Vec::new();
                for count in 1..=20 {
                    let count = 1 + count % 3;
                    let given = server.take_numbers(Numbers::Groups, count, from_client());
                    let first = given.await.expect("there is time enough");
                    taken.extend(first..first + count);
                }
                taken
            });
        }
    }
    for turn in 0..6 {
        transfer(&cluster.stores, DIRECTORY, 1 + turn % 3).await;
    }
    let mut all = BTreeSet::new();
    while let Some(taken) = askers.join_next().await {
        let taken = taken.expect("nothing panics");
        for number in taken {
            assert!(number > 1 && all.insert(number), "{number} was given twice");
        }
    }
    // Copies of what was answered got the same numbers again: none is lost.
    assert_eq!(all, (2..2 + 6 * 41).collect());
    // The same command again, by another way.
    let server = cluster.stores[0].server();
    let next = || async {
        let request = DescribeRequest { stale: false };
        let said = server.describe_directory(request, from_client()).await;
        said.expect("it has a quorum")
    };
    let before = next().await;
    assert_eq!((before.next_group, before.next_store), (248, 4));
    let again = server.take_numbers(Numbers::Stores, 1, from_client()).await;
    assert_eq!(again.expect("a number"), 4);
    let DescribeResponse {
        next_store, stores, ..
    } = next().await;
    assert_eq!((next_store, stores.len()), (5, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn without_a_quorum_the_directory_still_gives_hints() {
    let mut cluster = with_directory().await;
    split(&cluster.stores, b"m", 2).await;
    // A group without a range, and not on store 3.
    let alone = new_descriptor(9, None, &[1, 2]);
    for one in &cluster.stores[..2] {
        let server = one.server();
        let create = |respond| server.handle.create_group(alone.clone(), respond);
        server.ask(9, call(), create).await.expect("it is new");
    }
    leader_of(&cluster.stores[..2], 9).await;
    let known = until_true(&cluster).await;
    let third = Arc::clone(cluster.stores[2].server());
    let begun = Instant::now();
    loop {
        third
            .learn_from_directory(Aim::Group(9), from_client())
            .await;
        match third.directory.of_group(9) {
            Some(route) => {
                break assert_eq!((&route.stores[..], route.leader > 0), (&[1, 2][..], true));
            }
            None => assert!(begun.elapsed() < PATIENCE, "the directory has no group 9"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.stores.drain(..2);
    for aim in [Aim::Key(b"x"), Aim::Before(None), Aim::Before(Some(b"n"))] {
        third.directory.forget(2);
        assert_eq!(third.owner_known_here(Aim::Key(b"x")), None);
        third.learn_from_directory(aim, from_client()).await;
        let found = third
            .owner_known_here(Aim::Key(b"x"))
            .map(|route| route.group);
        assert_eq!(found, Some(2), "{aim:?}");
    }
    assert_eq!(ranges(&third, true).await.expect("a hint"), known);
    let soon = Call {
        deadline: tokio::time::Instant::now() + Duration::from_millis(500),
        ..from_client()
    };
    let request = ListRangesRequest::default();
    let refused = third
        .ranges_of_directory(request, soon)
        .await
        .expect_err("no quorum");
    assert_eq!(refused.reason, Reason::NoQuorum, "{refused:?}");
    let refused = third.take_numbers(Numbers::Groups, 1, soon).await;
    let refused = refused.expect_err("no quorum");
    assert!(refused.message.contains("group directory"), "{refused:?}");
    // And two of a request's numbers later nothing is in doubt.
    assert_eq!(refused.effect, crate::failure::Effect::None);
}

/// What the cluster lives by is not a user's.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn users_cannot_harm_the_directory() {
    let cluster = with_directory().await;
    let client = client(&cluster.stores);
    let request = put_request(
        Bytes::from_static(b"m"),
        Some(Bytes::from_static(b"x")),
        DIRECTORY,
    );
    let refused = client.write(request).await.expect_err("no keys of users'");
    assert_eq!(refused.reason, Reason::BadRequest, "{refused:?}");
    assert!(refused.message.contains("group directory"), "{refused:?}");
    let read = client.get(Bytes::from_static(b"m"), true, DIRECTORY).await;
    assert_eq!(read.expect_err("neither").reason, Reason::BadRequest);
    let destroy = crate::proto::admin::DestroyGroupRequest {
        group: DIRECTORY,
        force: true,
    };
    let destroyed = client.admin(false, destroy, |mut c, r| async move {
        c.destroy_group(r).await
    });
    let refused = destroyed.await.expect_err("it is needed");
    assert_eq!(refused.reason, Reason::Refused, "{refused:?}");
    let server = cluster.stores[0].server();
    let bytes = Bytes::from_static(b"\x01");
    let refused = server.change_directory_here(bytes, call()).await;
    assert_eq!(refused.expect_err("no command").reason, Reason::BadRequest);
    assert_eq!(until_true(&cluster).await.len(), 1);
}
