//! Whole stores in one process, whose ranges change while clients use them.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use polyraft_multiraft::env::{ApplyItem, Command as Entry};
use polyraft_multiraft::{
    GroupDescriptor, GroupId, KeyRange, MergeAnswer, MergeStep, Merging, Reject, Responder,
    SplitPiece,
};
use polyraft_store::sessions::Session;
use tempfile::TempDir;

use super::*;
use crate::client::{Client, ScanOptions, put_request};
use crate::embed::new_descriptor;
use crate::kv::Command;
use crate::proto::admin::{CheckRangeRequest, CheckRangeResponse, ListReplicasRequest};
use crate::proto::kv::{Pair, ResponseHeader, ScanPart};
use crate::routing::Call;

mod directory;

/// Bound for everything that waits.
const PATIENCE: Duration = Duration::from_secs(90);

/// A store that serves until it is dropped.
struct One {
    running: Option<Running>,
    address: String,
    serving: tokio::task::JoinHandle<Result<(), String>>,
    _stop: oneshot::Sender<()>,
    _directory: TempDir,
}

impl One {
    async fn start(store: u64, listener: TcpListener, addresses: &BTreeMap<u64, String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let arguments = arguments(store, &directory);
        let opened = Store::open(directory.path(), StoreOptions::default()).expect("a store");
        let identity = Identity {
            cluster: 7,
            store: StoreId(store),
        };
        opened.meta().set_identity(identity).expect("it is new");
        let incarnation = opened.meta().next_incarnation().expect("a number");
        let who = Who {
            identity,
            founder: 1,
            instance: Instance {
                id: store,
                incarnation,
            },
        };
        let peers = Arc::new(Peers::new(store, addresses.clone()));
        let (failed, _) = oneshot::channel();
        let environment = Environment::default();
        let running = start(&arguments, &opened, who, environment, peers, failed).await;
        let running = running.expect("it starts");
        let services = services(&running.server).expect("they are sound");
        let router = services.add_service(running.transport.service());
        let (stop, stopped) = oneshot::channel();
        listener.set_nonblocking(true).expect("it can");
        Self {
            running: Some(running),
            address: addresses[&store].clone(),
            serving: tokio::spawn(serve(router, listener, stopped)),
            _stop: stop,
            _directory: directory,
        }
    }

    fn server(&self) -> &Arc<Server> {
        &self.running.as_ref().expect("it runs").server
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.serving.abort();
        if let Some(running) = self.running.take() {
            running.transport.shutdown();
            running.host.stop();
        }
    }
}

fn arguments(store: u64, directory: &TempDir) -> StartArguments {
    StartArguments {
        store_id: store,
        data_dir: directory.path().to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: None,
        peers: Vec::new(),
        workers: Some(2),
        tick: Duration::from_millis(50),
        truncate_keep_entries: 1024,
        flush_interval: Duration::from_secs(30),
        snapshot_rate: 0,
        metrics_listen: None,
        balance_interval: Duration::ZERO,
        log: String::new(),
        end_with_stdin: false,
    }
}

/// Three stores with one group that has all keys.
async fn three() -> Vec<One> {
    let bind = |store| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        (store, listener, address)
    };
    let bound: Vec<_> = (1..=3).map(bind).collect();
    let address = |(store, _, address): &(u64, TcpListener, String)| (*store, address.clone());
    let addresses: BTreeMap<u64, String> = bound.iter().map(address).collect();
    let mut stores = Vec::new();
    for (store, listener, _) in bound {
        stores.push(One::start(store, listener, &addresses).await);
    }
    let descriptor = new_descriptor(1, Some(KeyRange::default()), &[1, 2, 3]);
    for one in &stores {
        let server = one.server();
        let create = |respond| server.handle.create_group(descriptor.clone(), respond);
        server.ask(1, call(), create).await.expect("it is new");
    }
    stores
}

fn call() -> Call {
    Call {
        deadline: tokio::time::Instant::now() + PATIENCE,
        forwarded: true,
        reads: false,
        once: false,
    }
}

fn client(stores: &[One]) -> Client {
    let endpoints: Vec<String> = stores.iter().map(|one| one.address.clone()).collect();
    Client::new(&endpoints, PATIENCE).expect("a client")
}

/// The store that leads a group, once there is one that has everything applied.
async fn leader_of(stores: &[One], group: u64) -> &Arc<Server> {
    let begun = Instant::now();
    loop {
        for one in stores {
            let server = one.server();
            let read = |respond| server.handle.read(GroupId(group), respond);
            if server.leads(group) && server.ask(group, call(), read).await.is_ok() {
                return server;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "nobody leads group {group}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Splits the range that holds `key` there, behind the back of every router and client.
async fn split(stores: &[One], key: &[u8], new: u64) -> Vec<GroupDescriptor> {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "no split at {key:?}");
        let holds = |one: &GroupDescriptor| one.range.as_ref().is_some_and(|r| r.contains(key));
        let descriptors = stores[0].server().handle.descriptors();
        // What one store has applied may be a moment old.
        let Some(of) = descriptors.iter().find(|descriptor| holds(descriptor)) else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let leader = leader_of(stores, of.group.0).await;
        let now = leader.handle.descriptor(of.group).expect("it leads");
        let pieces = vec![SplitPiece {
            start: Bytes::copy_from_slice(key),
            group: GroupId(new),
        }];
        let ask = |respond| leader.handle.split(of.group, now.epoch, pieces, respond);
        match leader.ask(of.group.0, call(), ask).await {
            Ok(groups) => return groups,
            Err(failure) => tracing::debug!("no split yet: {}", failure.message),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The group that has the keys right before `key`, as far as any store has applied; the latest one.
fn group_before(stores: &[One], key: &[u8]) -> Option<GroupId> {
    let has = |one: &GroupDescriptor| {
        let range = one.range.as_ref()?;
        let reaches = range.end.as_ref().is_none_or(|end| *end >= key);
        (range.start < key && reaches).then_some((one.epoch.range, one.group))
    };
    let all = stores
        .iter()
        .flat_map(|one| one.server().handle.descriptors());
    let latest = all.filter_map(|descriptor| has(&descriptor)).max();
    latest.map(|(_, group)| group)
}

/// A group as its leader sees it.
async fn look(stores: &[One], group: GroupId) -> MergeAnswer {
    for one in stores {
        let server = one.server();
        let look = |respond| server.handle.look(group, respond);
        if let Ok(seen) = server.ask(group.0, call(), look).await {
            return MergeAnswer::Seen((*seen).clone());
        }
    }
    let present = |one: &One| one.server().handle.summary(group).is_some();
    match stores.iter().any(present) {
        true => MergeAnswer::Failed,
        false => MergeAnswer::Gone,
    }
}

/// What somebody says whose group it is, if anybody leads it.
async fn ask_leader<T: Send + 'static>(
    stores: &[One],
    group: GroupId,
    ask: impl FnOnce(&HostHandle, Responder<Result<T, Reject>>),
) -> MergeAnswer {
    let leader = stores
        .iter()
        .map(One::server)
        .find(|one| one.leads(group.0));
    let Some(leader) = leader else {
        return MergeAnswer::Failed;
    };
    let ask = |respond| ask(&leader.handle, respond);
    match leader.ask(group.0, call(), ask).await {
        Ok(_) => MergeAnswer::Done,
        Err(_) => MergeAnswer::Failed,
    }
}

/// Merges the two ranges that touch at `key`, behind the back of every router and client.
async fn merge(stores: &[One], key: &[u8]) {
    let begun = Instant::now();
    let after = [key, b"\0"].concat();
    let (left, right) = loop {
        if let (Some(left), Some(right)) = (group_before(stores, key), group_before(stores, &after))
            && left != right
        {
            break (left, right);
        }
        assert!(begun.elapsed() < PATIENCE, "no ranges touch at {key:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut merging = Merging::new(left, right, Bytes::copy_from_slice(key));
    loop {
        let answer = match merging.next() {
            MergeStep::Done(result) => break drop(result.expect("nobody is in its way")),
            MergeStep::Look(group) => look(stores, group).await,
            MergeStep::LookBefore(key) => match group_before(stores, &key) {
                Some(group) => look(stores, group).await,
                None => MergeAnswer::Failed,
            },
            MergeStep::Propose { group, command } => {
                let propose = |host: &HostHandle, respond| {
                    host.change_range(group, command, respond);
                };
                ask_leader(stores, group, propose).await
            }
            MergeStep::Settle { group, at } => {
                let settled = |host: &HostHandle, respond| host.settled(group, at, respond);
                ask_leader(stores, group, settled).await
            }
        };
        if answer == MergeAnswer::Failed {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        merging.on(answer);
        assert!(
            begun.elapsed() < PATIENCE,
            "no merge at {key:?}: {merging:?}"
        );
    }
}

fn key(writer: u64, n: u64) -> Bytes {
    // Neighbours in time are far from each other.
    let place = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    Bytes::from(format!("{place:02x}/{writer}/{n}"))
}

fn value(writer: u64, n: u64) -> Bytes {
    Bytes::from(format!("{writer}.{n}"))
}

/// Writes a key, once however often it has to be sent.
async fn put(client: &Client, key: Bytes, value: Bytes) -> ResponseHeader {
    let request = put_request(key.clone(), Some(value), 0);
    let name = NonZeroU64::new(rand::random()).expect("one in 2^64");
    let put = client.write_once(&mut Session::new(name, 0), request).await;
    let answer = put.unwrap_or_else(|failure| panic!("write of {key:?}: {failure:?}"));
    answer.header.expect("an answer says where it comes from")
}

/// Writes until it is told to stop, reads everything back at once and later, and returns how many
/// keys it has written.
async fn write(client: Client, writer: u64, shared: Arc<Shared>) -> u64 {
    let mut n = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        put(&client, key(writer, n), value(writer, n)).await;
        for earlier in [n, n / 2] {
            let got = client.get(key(writer, earlier), false, 0).await;
            let got = got.unwrap_or_else(|failure| panic!("read {writer}.{earlier}: {failure:?}"));
            assert_eq!(got.value, Some(value(writer, earlier)), "of {n}");
        }
        n += 1;
        shared.written.fetch_add(1, Ordering::SeqCst);
    }
    n
}

/// What writers and the test tell each other.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    written: AtomicU64,
}

impl Shared {
    /// Waits until so many more keys are written.
    async fn wait_for(&self, more: u64) {
        let (from, begun) = (self.written.load(Ordering::SeqCst), Instant::now());
        while self.written.load(Ordering::SeqCst) < from + more {
            assert!(begun.elapsed() < PATIENCE, "writers do not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn scan(client: &Client, reverse: bool) -> (Vec<Pair>, Vec<ScanPart>) {
    let mut scan = client.scan(ScanOptions {
        reverse,
        page_pairs: Some(50),
        ..ScanOptions::default()
    });
    let (mut pairs, mut parts) = (Vec::new(), Vec::new());
    while let Some(page) = scan.next_page().await.expect("a page") {
        pairs.extend(page.pairs);
        parts.extend(page.parts);
    }
    if reverse {
        pairs.reverse();
        parts.reverse();
    }
    (pairs, parts)
}

/// The parts lie side by side, from the first key to the last.
fn assert_contiguous(parts: &[ScanPart]) {
    let mut at = Some(Bytes::new());
    for part in parts {
        assert_eq!(Some(&part.start), at.as_ref(), "{parts:?}");
        at.clone_from(&part.end);
    }
    assert_eq!(at, None, "{parts:?}");
}

/// What happens to the ranges: a split at a key, or a merge of those that touch there.
#[derive(Clone, Copy, Debug)]
enum Step {
    Split(&'static str),
    Merge(&'static str),
}

use Step::{Merge, Split};

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn clients_write_read_and_scan_while_ranges_split() {
    let places = ["80", "40", "c0", "20", "a0", "60", "e0", "10"];
    let groups = change_ranges(&places.map(Split)).await;
    assert_eq!(groups, (1..=9).collect());
}

/// A group takes its neighbours' keys and sessions over, splits where it was merged, and is merged
/// away itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn clients_write_read_and_scan_while_ranges_split_and_merge() {
    let steps = [
        Split("80"),
        Split("40"),
        Merge("80"),
        Split("80"),
        Split("c0"),
        Merge("40"),
        Merge("80"),
        Split("20"),
        Merge("c0"),
        Merge("20"),
        Split("60"),
    ];
    let groups = change_ranges(&steps).await;
    assert_eq!(groups, BTreeSet::from([1, 7]));
}

/// Does this to the ranges while clients write, read and scan; returns the groups that are left. Nobody is
/// told: clients and stores find out by what they are refused.
async fn change_ranges(steps: &[Step]) -> BTreeSet<u64> {
    let stores = three().await;
    leader_of(&stores, 1).await;
    let shared = Arc::new(Shared::default());
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let client = client(&stores);
        writers.spawn(write(client, writer, Arc::clone(&shared)));
    }
    let reader = client(&stores);
    let (before, _) = scan(&reader, false).await;
    let mut next = 2;
    for (turn, step) in steps.iter().enumerate() {
        shared.wait_for(10).await;
        match step {
            Split(place) => {
                split(&stores, place.as_bytes(), next).await;
                next += 1;
            }
            Merge(place) => merge(&stores, place.as_bytes()).await,
        }
        let (pairs, parts) = scan(&reader, turn % 2 == 0).await;
        assert_contiguous(&parts);
        assert!(pairs.is_sorted_by(|one, other| one.key < other.key));
        assert!(before.iter().all(|pair| pairs.contains(pair)));
    }
    shared.stop.store(true, Ordering::SeqCst);
    let mut written = 0;
    while let Some(count) = writers.join_next().await {
        written += count.expect("every write and read was right");
    }
    let mut groups = BTreeSet::new();
    // Whoever is asked, with what it had in mind and without: everything, once.
    for reader in stores
        .iter()
        .map(|one| client(std::slice::from_ref(one)))
        .chain([reader])
    {
        let (pairs, parts) = scan(&reader, false).await;
        assert_contiguous(&parts);
        assert_eq!(pairs.len() as u64, written);
        let group = |part: &ScanPart| part.header.as_ref().map(|header| header.group);
        groups = parts.iter().filter_map(group).collect();
        let (backwards, _) = scan(&reader, true).await;
        assert_eq!(backwards, pairs);
    }
    groups
}

/// What one store refuses is enough to find the new owner, also for a client that knew the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_learns_of_a_split_from_an_answer() {
    let stores = three().await;
    leader_of(&stores, 1).await;
    let client = client(&stores);
    for key in ["a", "x"] {
        put(&client, Bytes::from(key), Bytes::from("1")).await;
    }
    let group = |key: &[u8]| {
        client
            .route_of(key)
            .map(|route| (route.group, route.generation))
    };
    assert_eq!([group(b"a"), group(b"x")], [Some((1, 1)), Some((1, 1))]);
    split(&stores, b"m", 2).await;
    for (key, value) in [("x", "2"), ("a", "3")] {
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from(value));
        let header = put(&client, key.clone(), value.clone()).await;
        let owner = if key < "m" { 1 } else { 2 };
        assert_eq!(header.group, owner);
        let got = client.get(key.clone(), false, 0).await.expect("read");
        assert_eq!(got.value, Some(value));
        assert_eq!(group(&key), Some((owner, 2)));
        // It is asked straight now, and has no news.
        let header = got.header.expect("there is one");
        assert_eq!(
            (header.store, header.ranges.len()),
            (header.leader_store, 0)
        );
    }
    // Keys on both sides of the cut are not one write any more, and both groups say so.
    let both = crate::proto::kv::WriteRequest {
        mutations: ["a", "x"]
            .map(|key| crate::proto::kv::Mutation {
                key: Bytes::from_static(key.as_bytes()),
                value: None,
            })
            .to_vec(),
        ..Default::default()
    };
    let refused = client.write(both).await.expect_err("two ranges");
    assert_eq!(
        refused.reason,
        crate::failure::Reason::BadRequest,
        "{refused:?}"
    );
}

async fn check(client: &Client) -> CheckRangeResponse {
    let begun = Instant::now();
    loop {
        let request = CheckRangeRequest { group: 1 };
        let check = client.admin(
            false,
            request,
            |mut c, r| async move { c.check_range(r).await },
        );
        match check.await {
            Ok(checked) if checked.replicas.iter().all(|it| it.error.is_empty()) => return checked,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes a key past the log of the group, as a broken disk or machine might.
fn damage(server: &Server, group: GroupId) {
    let view = server.data.snapshot(group).expect("it is here");
    let state = view.state().clone();
    let command = Command {
        mutations: vec![(Bytes::from_static(b"k"), Some(Bytes::from_static(b"rogue")))],
        ..Command::default()
    };
    let mut items = [ApplyItem {
        group,
        commands: vec![Entry {
            id: state.last,
            data: command.encode(),
        }],
        state,
        membership_changed: false,
        replies: Vec::new(),
        range_change: None,
    }];
    server.data.apply(&mut items).expect("it is written");
}

/// A replica that has what no log gave it is found, named and put out of service; the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_replica_that_differs_is_put_out_of_service() {
    let stores = three().await;
    let leader = leader_of(&stores, 1).await.me;
    let client = client(&stores);
    for number in 0..20 {
        put(
            &client,
            Bytes::from(format!("key {number}")),
            Bytes::from("value"),
        )
        .await;
    }
    let same = check(&client).await;
    assert!(same.same && same.replicas.len() == 3, "{same:?}");
    let first = &same.replicas[0];
    let alike = |it: &crate::proto::admin::ReplicaDigest| {
        (it.index, it.digest, it.bytes) == (first.index, first.digest, first.bytes)
    };
    assert!(
        first.bytes > 0 && same.replicas.iter().all(alike),
        "{same:?}"
    );

    // Nothing is under way: all that was written is applied everywhere.
    let wrong = 1 + leader % 3;
    damage(stores[wrong as usize - 1].server(), GroupId(1));
    let differ = check(&client).await;
    assert!(!differ.same, "{differ:?}");
    for replica in &differ.replicas {
        assert_eq!(replica.quarantined, replica.store == wrong, "{differ:?}");
    }
    put(&client, Bytes::from("k"), Bytes::from("right")).await;
    let request = ListReplicasRequest { group: 1 };
    let listed = client.admin(
        true,
        request,
        |mut c, r| async move { c.list_replicas(r).await },
    );
    let listed = listed.await.expect("a list");
    for replica in &listed.replicas {
        let out = replica.quarantined.contains("not what most replicas");
        assert_eq!(out, replica.store == wrong, "{listed:?}");
    }
}
