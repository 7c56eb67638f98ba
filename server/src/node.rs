//! One store's life: open, join a cluster, serve, drain, stop.
//!
//! The order matters. At the start: the directory (is it ours?), the port, the cluster, the host,
//! the services. At the end the other way round: leaderships move while everything still works,
//! then the services stop, then the host, and last what was applied is flushed, so that the next
//! start has nothing to replay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_multiraft::env::{
    GroupMessage, Inbound, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal, StateMachine,
};
use polyraft_multiraft::{Host, HostConfig, HostEnv, HostHandle, StoreId};
use polyraft_store::{Identity, Store, StoreOptions};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;

use crate::admin::{
    ADDRESSES, AdminService, BeforeJoining, Driven, INSTANCES, InternalService, Joining,
    Membership, say_hello, shown,
};
use crate::cli::StartArguments;
use crate::directory::publish::Publishing;
use crate::directory::{Directory, DirectoryService, lead, publish};
use crate::instances::{Instance, Instances};
use crate::kv::{Kv, KvService};
use crate::peers::{Peers, decode_addresses, encode_addresses};
use crate::proto::admin::admin_server::AdminServer;
use crate::proto::admin::internal_server::InternalServer;
use crate::proto::admin::{Environment, HelloRequest};
use crate::proto::directory::directory_internal_server::DirectoryInternalServer;
use crate::proto::directory::directory_server::DirectoryServer;
use crate::proto::kv::kv_server::KvServer;
use crate::scrape::Scrape;
use crate::server::{Server, futures_join};

/// How long leaderships may take to move away before the store leaves all the same.
const DRAIN_BOUND: Duration = Duration::from_secs(10);
/// How long requests under way may take to end after that.
const CLOSE_BOUND: Duration = Duration::from_secs(1);
/// How often stores introduce themselves to each other.
const GREETING_INTERVAL: Duration = Duration::from_secs(5);
/// How often routes are compared with this store's replicas.
const ROUTES_INTERVAL: Duration = Duration::from_secs(1);
/// Under these names `meta` keeps which store drew the cluster's number, and what this directory drew.
const FOUNDER: &[u8] = b"founder";
const INSTANCE: &[u8] = b"instance";
/// Largest request, above the host's limit for a command.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Runs a store until it is told to leave.
pub(crate) async fn run(
    arguments: StartArguments,
    revision: Option<&'static str>,
) -> Result<(), String> {
    log_to_standard_error(&arguments.log)?;
    let mut leave = Leave::new(arguments.end_with_stdin)?;
    // Everything that may be wrong with the arguments is found before the directory is touched.
    let own = own_address(&arguments)?;
    let config = host_config(&arguments, StoreId(arguments.store_id));
    config.validate().map_err(|error| error.to_string())?;
    let listener = listen(&arguments)?;
    let store = open(&arguments).await?;
    let scrape = match arguments.metrics_listen {
        Some(address) => Some(Scrape::bind(address, arguments.store_id).await?),
        None => None,
    };
    let kept = kept_addresses(&store)?;
    let mut addresses = kept.clone();
    addresses.extend(arguments.peers.iter().cloned());
    addresses.insert(arguments.store_id, own);
    let peers = Arc::new(Peers::new(arguments.store_id, addresses));
    for known in kept.into_keys() {
        peers.confirm(known);
    }
    let who = tokio::select! {
        who = identify(&arguments, &store, &peers, &listener) => who?,
        () = leave.asked() => return Ok(()),
    };
    store
        .meta()
        .put_server(ADDRESSES, encode_addresses(&peers.confirmed()))
        .map_err(|e| e.to_string())?;
    tracing::info!(store = arguments.store_id, cluster = format!("{:016x}", who.identity.cluster),
        address = %arguments.listen, incarnation = who.instance.incarnation, "starting");

    let environment = crate::environment::of(&arguments.data_dir, revision);
    let (failed, failure) = oneshot::channel();
    let running = start(&arguments, &store, who, environment, peers, failed).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::Serving).await;
    let router = services(&running.server)?
        .add_service(health_service)
        .add_service(running.transport.service());
    let mut serving = tokio::spawn(serve(router, listener, stopped));
    let mut background = JoinSet::new();
    background.spawn(keep_in_touch(Arc::clone(&running.server)));
    background.spawn(publish::run(Arc::clone(&running.server)));
    background.spawn(lead::run(Arc::clone(&running.server)));
    if !arguments.balance_interval.is_zero() {
        let server = Arc::clone(&running.server);
        background.spawn(crate::balance::run(server, arguments.balance_interval));
    }
    if let Some(scrape) = scrape {
        background.spawn(scrape.run(Arc::clone(&running.server)));
    }
    crate::metrics::describe();
    tracing::info!("serving");

    let ended = tokio::select! {
        () = leave.asked() => Ok(()),
        error = failure => Err(error.unwrap_or_else(|_| "the host ended by itself".to_owned())),
        end = &mut serving => Err(format!("the services ended by themselves: {end:?}")),
    };
    background.abort_all();
    if ended.is_ok() {
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        tracing::info!("leaving: moving leaderships to other stores");
        running.server.drain(DRAIN_BOUND).await;
    }
    drop(stop);
    // Streams of other stores stay open as long as they live: the rest is cut off.
    if tokio::time::timeout(CLOSE_BOUND, &mut serving)
        .await
        .is_err()
    {
        serving.abort();
    }
    ended?;
    running.transport.shutdown();
    let (host, data) = (running.host, Arc::clone(&running.server.data));
    tokio::task::spawn_blocking(move || {
        host.stop();
        data.flush()
    })
    .await
    .map_err(|error| format!("stopping failed: {error}"))?
    .map_err(|error| format!("the last flush failed: {error}"))?;
    tracing::info!("left in good order");
    Ok(())
}

/// What runs between start and stop.
struct Running {
    host: Host,
    server: Arc<Server>,
    transport: Arc<GrpcTransport>,
}

async fn start(
    arguments: &StartArguments,
    store: &Store,
    who: Who,
    environment: Environment,
    peers: Arc<Peers>,
    failed: oneshot::Sender<String>,
) -> Result<Running, String> {
    let (identity, incarnation) = (who.identity, who.instance.incarnation);
    let data = store.state_machine(Kv);
    let address = peers.address(identity.store.0).unwrap_or_default();
    let wire = TransportConfig {
        snapshot_bytes_per_second: arguments.snapshot_rate,
        ..TransportConfig::new(identity.cluster, identity.store, incarnation, address)
    };
    let transport = GrpcTransport::new(wire, Handle::current());
    let failed = Mutex::new(Some(failed));
    let env = HostEnv {
        log: store.log(),
        state_machine: Arc::clone(&data) as Arc<dyn StateMachine>,
        transport: Arc::clone(&transport) as Arc<dyn polyraft_multiraft::env::Transport>,
        on_fatal: Arc::new(move |error| {
            if let Some(failed) = failed.lock().take() {
                drop(failed.send(format!("the store cannot go on: {error}")));
            }
        }),
    };
    let config = host_config(arguments, identity.store);
    let host = tokio::task::spawn_blocking(move || Host::start(config, env))
        .await
        .map_err(|error| format!("recovery failed: {error}"))?
        .map_err(|error| format!("cannot start: {error}"))?;
    let handle = host.handle();
    let inbound = Watch {
        handle: handle.clone(),
        peers: Arc::clone(&peers),
    };
    transport.start(Arc::new(inbound));
    let learner = Arc::clone(&peers);
    transport.on_address(move |store, address| {
        learner.learn(store.0, address);
    });
    peers.connect_by(Arc::clone(&transport));
    let server = Arc::new(Server {
        me: identity.store.0,
        cluster: identity.cluster,
        founder: who.founder,
        instance: who.instance,
        instances: known_instances(store)?,
        environment,
        handle,
        data,
        meta: store.meta().clone(),
        peers,
        directory: Directory::default(),
        publishing: Publishing::default(),
        started: Instant::now(),
        draining: AtomicBool::new(false),
        reservations: Mutex::default(),
        roles: Mutex::default(),
        merges: Driven::default(),
        init_turn: tokio::sync::Mutex::default(),
    });
    server.refresh_local_routes();
    Ok(Running {
        host,
        server,
        transport,
    })
}

fn host_config(arguments: &StartArguments, store: StoreId) -> HostConfig {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    HostConfig {
        workers: arguments.workers.unwrap_or((processors / 2).max(1)),
        tick: arguments.tick,
        truncate_keep_entries: arguments.truncate_keep_entries,
        flush_interval: arguments.flush_interval,
        ..HostConfig::new(store)
    }
}

async fn open(arguments: &StartArguments) -> Result<Store, String> {
    let path = arguments.data_dir.clone();
    let shown = path.display().to_string();
    std::fs::create_dir_all(&path).map_err(|error| format!("cannot create {shown}: {error}"))?;
    let opened =
        tokio::task::spawn_blocking(move || Store::open(&path, StoreOptions::default())).await;
    let opened = opened.map_err(|error| format!("opening {shown} failed: {error}"))?;
    let store = opened.map_err(|error| format!("cannot open {shown}: {error}"))?;
    let present = store
        .meta()
        .identity()
        .map_err(|error| format!("cannot open {shown}: {error}"))?;
    match present {
        Some(identity) if identity.store.0 != arguments.store_id => Err(format!(
            "{shown} belongs to store {} of cluster {:016x}, and this was started as store {}: \
             check --store-id and --data-dir",
            identity.store, identity.cluster, arguments.store_id
        )),
        _ => Ok(store),
    }
}

fn listen(arguments: &StartArguments) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(arguments.listen)
        .map_err(|error| format!("cannot listen on {}: {error}", arguments.listen))?;
    listener
        .set_nonblocking(true)
        .map_err(|error| error.to_string())?;
    Ok(listener)
}

/// What was known before the restart.
fn kept_addresses(store: &Store) -> Result<BTreeMap<u64, String>, String> {
    let kept = store.meta().get_server(ADDRESSES);
    let kept = kept.map_err(|error| error.to_string())?;
    Ok(kept.map(|kept| decode_addresses(&kept)).unwrap_or_default())
}

/// Where the others reach this store: as it is told to advertise, as the list of all stores says, or where
/// it listens.
fn own_address(arguments: &StartArguments) -> Result<String, String> {
    let listed = arguments
        .peers
        .iter()
        .find(|(store, _)| *store == arguments.store_id);
    let listed = listed.map(|(_, address)| address.clone());
    let own = arguments.advertise.clone().or(listed);
    let own = own.unwrap_or_else(|| arguments.listen.to_string());
    let anywhere = own
        .parse::<SocketAddr>()
        .is_ok_and(|address| address.ip().is_unspecified());
    if anywhere {
        return Err(format!(
            "{own} does not say where other stores reach this one: give its address with \
             --advertise HOST:PORT, or as {}=HOST:PORT in --peers",
            arguments.store_id
        ));
    }
    Ok(own)
}

/// Who this store is.
#[derive(Clone, Copy, Debug)]
struct Who {
    identity: Identity,
    /// The store that drew the cluster's number.
    founder: u64,
    instance: Instance,
}

/// Which cluster this is: as the directory says, or as the other stores or `init` say to a new one.
async fn identify(
    arguments: &StartArguments,
    store: &Store,
    peers: &Arc<Peers>,
    listener: &TcpListener,
) -> Result<Who, String> {
    let id = instance_of(store)?;
    let present = store.meta().identity().map_err(|error| error.to_string())?;
    let identity = match present {
        Some(identity) => identity,
        None => join(arguments, store, id, peers, listener).await?,
    };
    let founder = kept_number(store, FOUNDER)?.or_else(|| peers.addresses().into_keys().next());
    let mut who = Who {
        identity,
        founder: founder.unwrap_or(arguments.store_id),
        instance: Instance {
            id,
            incarnation: store
                .meta()
                .incarnation()
                .map_err(|error| error.to_string())?,
        },
    };
    let named: BTreeSet<u64> = arguments.peers.iter().map(|(store, _)| *store).collect();
    check_with_others(who, peers, &named).await?;
    // Only now: an old copy that is refused must not catch up by being started often enough.
    let incarnation = store.meta().next_incarnation();
    who.instance.incarnation = incarnation.map_err(|error| error.to_string())?;
    Ok(who)
}

/// The number that this directory drew when it was made.
fn instance_of(store: &Store) -> Result<u64, String> {
    if let Some(id) = kept_number(store, INSTANCE)? {
        return Ok(id);
    }
    let id = rand::random::<u64>().max(1);
    keep_number(store, INSTANCE, id)?;
    Ok(id)
}

/// Waits until the cluster is known, and keeps which it is.
async fn join(
    arguments: &StartArguments,
    store: &Store,
    instance: u64,
    peers: &Arc<Peers>,
    listener: &TcpListener,
) -> Result<Identity, String> {
    tracing::info!(store = arguments.store_id, address = %arguments.listen,
        "new store: waiting for `polyraft init`, or for a store that knows its cluster");
    let mut configured: BTreeSet<u64> = arguments.peers.iter().map(|(store, _)| *store).collect();
    configured.insert(arguments.store_id);
    let joining = Joining::new(arguments.store_id, instance, configured, Arc::clone(peers));
    let joining = Arc::new(joining);
    let listener = listener.try_clone().map_err(|error| error.to_string())?;
    let (stop, stopped) = oneshot::channel::<()>();
    let router = tonic::transport::Server::builder()
        .add_service(AdminServer::new(BeforeJoining(Arc::clone(&joining))))
        .add_service(InternalServer::new(BeforeJoining(Arc::clone(&joining))));
    let router = with_reflection(router)?;
    let mut serving = tokio::spawn(serve(router, listener, stopped));
    let Membership { cluster, founder } = joining.wait().await?;
    let identity = Identity {
        cluster,
        store: StoreId(arguments.store_id),
    };
    // The identity last: with it the store has joined.
    keep_number(store, FOUNDER, founder)?;
    store
        .meta()
        .set_identity(identity)
        .map_err(|error| error.to_string())?;
    drop(stop);
    if tokio::time::timeout(CLOSE_BOUND, &mut serving)
        .await
        .is_err()
    {
        serving.abort();
    }
    Ok(identity)
}

/// A store of another cluster under the address of a peer that is `named` on the command line, and a store
/// that refuses this one, are mistakes that must not go unnoticed. Who cannot be reached says nothing.
async fn check_with_others(who: Who, peers: &Peers, named: &BTreeSet<u64>) -> Result<(), String> {
    let me = who.identity.store.0;
    let greeting = HelloRequest {
        store: me,
        cluster: who.identity.cluster,
        address: peers.address(me).unwrap_or_default(),
        instance: who.instance.id,
        incarnation: who.instance.incarnation,
    };
    let others = peers.others();
    let hellos = others
        .iter()
        .map(|store| say_hello(peers, *store, &greeting));
    for (store, hello) in others.iter().zip(futures_join(hellos).await) {
        let Some(hello) = hello else {
            continue;
        };
        let address = peers.address(*store).unwrap_or_default();
        if hello.cluster != 0 && hello.cluster != who.identity.cluster {
            if !named.contains(store) {
                // Learned once and used by others since: nobody could take it out of the directory.
                tracing::error!(
                    store,
                    address,
                    "a store of another cluster answers at this address"
                );
                continue;
            }
            return Err(format!(
                "the data directory belongs to cluster {:016x}, but the store at {address} to cluster {:016x}: \
                 check --peers and --data-dir",
                who.identity.cluster, hello.cluster
            ));
        }
        if !hello.refused.is_empty() {
            return Err(format!(
                "refused by store {store} at {address}: {}",
                hello.refused
            ));
        }
    }
    Ok(())
}

fn known_instances(store: &Store) -> Result<Instances, String> {
    let kept = store
        .meta()
        .get_server(INSTANCES)
        .map_err(|error| error.to_string())?;
    let Some(kept) = kept else {
        return Ok(Instances::default());
    };
    Instances::decode(&kept).ok_or_else(|| {
        "what this store keeps of the other stores' directories is malformed".to_owned()
    })
}

fn kept_number(store: &Store, name: &[u8]) -> Result<Option<u64>, String> {
    let kept = store
        .meta()
        .get_server(name)
        .map_err(|error| error.to_string())?;
    let number = kept
        .map(|kept| kept[..].try_into().map(u64::from_be_bytes))
        .transpose();
    number.map_err(|_| format!("{} in the data directory is malformed", name.escape_ascii()))
}

fn keep_number(store: &Store, name: &[u8], number: u64) -> Result<(), String> {
    let value = Bytes::copy_from_slice(&number.to_be_bytes());
    let kept = store.meta().put_server(name, value);
    kept.map_err(|error| error.to_string())
}

fn services(server: &Arc<Server>) -> Result<Router, String> {
    let kv =
        KvServer::new(KvService(Arc::clone(server))).max_decoding_message_size(REQUEST_BYTES_MAX);
    let router = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .initial_connection_window_size(8 << 20)
        .initial_stream_window_size(8 << 20)
        .add_service(kv)
        .add_service(AdminServer::new(AdminService(Arc::clone(server))))
        .add_service(InternalServer::new(InternalService(Arc::clone(server))))
        .add_service(DirectoryServer::new(DirectoryService(Arc::clone(server))))
        .add_service(DirectoryInternalServer::new(DirectoryService(Arc::clone(
            server,
        ))));
    with_reflection(router)
}

fn with_reflection(router: Router) -> Result<Router, String> {
    let describe = |error| format!("the descriptors of the interfaces are damaged: {error}");
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(router
        .add_service(reflection().build_v1().map_err(describe)?)
        .add_service(reflection().build_v1alpha().map_err(describe)?))
}

async fn serve(
    router: Router,
    listener: TcpListener,
    stopped: oneshot::Receiver<()>,
) -> Result<(), String> {
    let listener =
        tokio::net::TcpListener::from_std(listener).map_err(|error| error.to_string())?;
    let stopped = async {
        // Told to stop, or nobody is left who could: the same.
        let _ = stopped.await;
    };
    // The builder's own option is for listeners that it makes itself.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    router
        .serve_with_incoming_shutdown(incoming, stopped)
        .await
        .map_err(|error| error.to_string())
}

/// Greets the other stores now and then, keeps the routes fresh, and looks after merges that nobody drives.
async fn keep_in_touch(server: Arc<Server>) {
    let mut routes = tokio::time::interval(ROUTES_INTERVAL);
    let mut greetings = tokio::time::interval(GREETING_INTERVAL);
    let mut installed = 0;
    let mut inspections = [BTreeSet::new(), BTreeSet::new()];
    loop {
        tokio::select! {
            _ = routes.tick() => {
                server.refresh_local_routes();
                server.take_over_merges();
                crate::metrics::publish(&server);
                // One line for all groups: a store that comes back may take in thousands.
                let all = server.handle.stats().snapshots_installed;
                if all > installed {
                    tracing::info!(snapshots = all - installed, "snapshots installed");
                    installed = all;
                }
            }
            _ = greetings.tick() => {
                greet(&server).await;
                let [before, last] = inspections;
                inspections = [last, server.drop_inspections(&before)];
            }
        }
    }
}

async fn greet(server: &Server) {
    let greeting = server.greeting();
    let mut news = false;
    let others = server.peers.others();
    let hellos = others
        .iter()
        .map(|store| say_hello(&server.peers, *store, &greeting));
    for (store, hello) in others.iter().zip(futures_join(hellos).await) {
        let Some(hello) = hello else {
            continue;
        };
        let address = server.peers.address(*store);
        if hello.cluster != 0 && hello.cluster != server.cluster {
            let cluster = format!("{:016x}", hello.cluster);
            tracing::error!(
                store,
                address,
                cluster,
                "a store of another cluster answers at this address"
            );
            continue;
        }
        if !hello.refused.is_empty() {
            tracing::error!(store, address, "this store is refused: {}", hello.refused);
            continue;
        }
        if hello.store != *store {
            let forgotten = server.peers.forget(*store);
            tracing::error!(
                store,
                address,
                forgotten,
                "store {} answers at this address: check --peers",
                hello.store
            );
            continue;
        }
        if hello.cluster == 0 {
            continue;
        }
        if let Err(why) = server.meet(*store, shown(&hello), true) {
            tracing::error!(store, address, "{why}");
            continue;
        }
        news |= server.peers.confirm(*store);
        for (store, address) in &hello.addresses {
            // A store knows its own address best; of others one hears only what one did not know.
            if *store == hello.store || server.peers.address(*store).is_none() {
                news |= server.peers.learn(*store, address);
                news |= server.peers.confirm(*store);
            }
        }
    }
    if news {
        server.keep_addresses();
    }
}

/// The way in, with an eye on who can be heard.
struct Watch {
    handle: HostHandle,
    peers: Arc<Peers>,
}

impl Inbound for Watch {
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>) {
        self.handle.deliver(from, messages);
    }

    fn store_up(&self, store: StoreId, incarnation: u64) {
        tracing::info!(%store, incarnation, "store is up");
        self.peers.set_connected(store.0, true);
        self.handle.store_up(store, incarnation);
    }

    fn store_down(&self, store: StoreId) {
        tracing::warn!(%store, "store cannot be heard");
        self.peers.set_connected(store.0, false);
        self.handle.store_down(store);
    }

    fn lost(&self, to: StoreId, messages: Lost) {
        self.handle.lost(to, messages);
    }

    fn begin_snapshot(
        &self,
        from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        self.handle.begin_snapshot(from, header)
    }
}

/// The ways in which a store is asked to leave.
struct Leave {
    /// Told when standard input is closed, if that is one of them.
    stdin: Option<oneshot::Receiver<()>>,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Leave {
    fn new(end_with_stdin: bool) -> Result<Self, String> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen =
            |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Self {
            stdin: end_with_stdin.then(stdin_closed).transpose()?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        let closed = async {
            match &mut self.stdin {
                // Told, or the thread that reads is gone: the same.
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = closed => {}
        }
    }
}

/// Reads standard input to its end, on a thread of its own: the runtime would wait for one that
/// blocks there when this program ends for another reason.
fn stdin_closed() -> Result<oneshot::Receiver<()>, String> {
    let (closed, told) = oneshot::channel();
    let read = move || {
        // An error is an end as well; nobody listens any more if the store has left.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = closed.send(());
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned());
    match thread.spawn(read) {
        Ok(_) => Ok(told),
        Err(error) => Err(format!("cannot watch standard input: {error}")),
    }
}

fn log_to_standard_error(filter: &str) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| format!("--log {filter:?} is no filter: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    subscriber
        .try_init()
        .map_err(|error| format!("cannot set up logging: {error}"))
}

#[cfg(test)]
mod tests;
