//! Whole stores in one process, whose ranges change while clients use them.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering;

use polyraft_multiraft::{GroupDescriptor, GroupId, KeyRange, SplitPiece};
use polyraft_store::sessions::Session;
use tempfile::TempDir;

use super::*;
use crate::client::{Client, ScanOptions, put_request};
use crate::embed::new_descriptor;
use crate::proto::kv::{Pair, ResponseHeader, ScanPart};
use crate::routing::Call;

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
async fn write(client: Client, writer: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        put(&client, key(writer, n), value(writer, n)).await;
        for earlier in [n, n / 2] {
            let got = client.get(key(writer, earlier), false, 0).await;
            let got = got.unwrap_or_else(|failure| panic!("read {writer}.{earlier}: {failure:?}"));
            assert_eq!(got.value, Some(value(writer, earlier)), "of {n}");
        }
        n += 1;
    }
    n
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

/// Nobody is told of the splits: clients and stores find out by what they are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn clients_write_read_and_scan_while_ranges_split() {
    let stores = three().await;
    leader_of(&stores, 1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let client = client(&stores);
        writers.spawn(write(client, writer, Arc::clone(&stop)));
    }
    let reader = client(&stores);
    let (before, _) = scan(&reader, false).await;
    for (new, place) in (2..).zip(["80", "40", "c0", "20", "a0", "60", "e0", "10"]) {
        split(&stores, place.as_bytes(), new).await;
        let (pairs, parts) = scan(&reader, new % 2 == 0).await;
        assert_contiguous(&parts);
        assert!(pairs.is_sorted_by(|one, other| one.key < other.key));
        assert!(before.iter().all(|pair| pairs.contains(pair)));
    }
    stop.store(true, Ordering::SeqCst);
    let mut written = 0;
    while let Some(count) = writers.join_next().await {
        written += count.expect("every write and read was right");
    }
    assert!(written > 20, "{written} writes in all");
    // Whoever is asked, with what it had in mind and without: everything, once.
    for reader in stores
        .iter()
        .map(|one| client(std::slice::from_ref(one)))
        .chain([reader])
    {
        let (pairs, parts) = scan(&reader, false).await;
        assert_contiguous(&parts);
        assert_eq!(pairs.len() as u64, written);
        let groups: BTreeSet<u64> = parts
            .iter()
            .filter_map(|part| part.header.as_ref().map(|header| header.group))
            .collect();
        assert_eq!(groups, (1..=9).collect(), "each range has a part");
        let (backwards, _) = scan(&reader, true).await;
        assert_eq!(backwards, pairs);
    }
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
