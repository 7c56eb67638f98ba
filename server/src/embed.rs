//! A store for one's own state machine: engine, transport and host, put together.
//!
//! [`Node`] does what every embedder needs and gets wrong by hand: the directory keeps which store
//! it is and counts its starts, the transport is up before the host hears of it, and everything is
//! stopped and flushed in the right order. What the groups are, and who proposes what, is the
//! embedder's. For what it leaves out there is [`Node::handle`].
//!
//! `server/examples/embed.rs` runs three of them in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::ReplicaId;
use polyraft_multiraft::env::{StateMachine, Transport};
use polyraft_multiraft::{
    GroupDescriptor, GroupId, Host, HostConfig, HostEnv, HostHandle, KeyRange, Member, ReadPermit,
    Reject, Responder, StoreId,
};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, Identity, RocksDisk, SharedData, Store, StoreOptions};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What is called, once, when the store cannot go on: its disk failed. Nothing is acknowledged any more,
/// and the process should end.
type OnFatal = Arc<dyn Fn(String) + Send + Sync>;

/// How a [`Node`] is started.
#[derive(Clone)]
pub struct NodeConfig {
    /// Which cluster; the same on all its stores, different from every other cluster that these could reach.
    pub cluster: u64,
    /// Which store; never given to another directory.
    pub store: StoreId,
    /// Where everything is kept; created if it does not exist.
    pub data_dir: PathBuf,
    /// Where to listen for other stores, `HOST:PORT`; port 0 lets the system choose.
    pub listen: String,
    /// Sizes and times of the host.
    pub host: HostConfig,
    /// See the type; by default the process ends with exit code 1.
    pub on_fatal: OnFatal,
}

/// One store that runs `A`.
pub struct Node<A: Application> {
    host: Host,
    handle: HostHandle,
    transport: Arc<GrpcTransport>,
    data: SharedData<A, RocksDisk>,
    address: SocketAddr,
}

impl NodeConfig {
    /// Store `store` of cluster `cluster` in `data_dir`, on a port of the loopback address that the
    /// system chooses.
    #[must_use]
    pub fn new(cluster: u64, store: u64, data_dir: impl AsRef<Path>) -> Self {
        Self {
            cluster,
            store: StoreId(store),
            data_dir: data_dir.as_ref().to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            host: HostConfig::new(StoreId(store)),
            on_fatal: Arc::new(|why| {
                tracing::error!("the store cannot go on: {why}");
                std::process::exit(1);
            }),
        }
    }
}

impl<A: Application> Node<A> {
    /// Opens the directory, recovers its groups and listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// The directory is in use, damaged, or that of another store; the address is taken; node and host
    /// are configured as different stores.
    pub async fn start(config: NodeConfig, application: A) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        let runtime = Handle::current();
        // Opening and recovering read the disk for long.
        let opened =
            tokio::task::spawn_blocking(move || Self::open(config, application, address, runtime));
        let node = opened.await??;
        node.transport.start(Arc::new(node.handle.clone()));
        node.transport.serve(listener)?;
        Ok(node)
    }

    fn open(
        config: NodeConfig,
        application: A,
        address: SocketAddr,
        runtime: Handle,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            config.host.store == config.store,
            "the host is configured as store {}, and the node as store {}",
            config.host.store,
            config.store
        );
        std::fs::create_dir_all(&config.data_dir)?;
        let store = Store::open(&config.data_dir, StoreOptions::default())?;
        let identity = Identity {
            cluster: config.cluster,
            store: config.store,
        };
        store.meta().set_identity(identity)?;
        let incarnation = store.meta().next_incarnation()?;
        let own = address.to_string();
        let wire = TransportConfig::new(config.cluster, config.store, incarnation, own);
        let transport = GrpcTransport::new(wire, runtime);
        let data = store.state_machine(application);
        let on_fatal = config.on_fatal;
        let env = HostEnv {
            log: store.log(),
            state_machine: Arc::clone(&data) as Arc<dyn StateMachine>,
            transport: Arc::clone(&transport) as Arc<dyn Transport>,
            on_fatal: Arc::new(move |error| on_fatal(error.to_string())),
        };
        let host = Host::start(config.host, env)?;
        Ok(Self {
            handle: host.handle(),
            host,
            transport,
            data,
            address,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that a host can be asked.
    #[must_use]
    pub const fn handle(&self) -> &HostHandle {
        &self.handle
    }

    /// The applied data, to read from with a [`ReadPermit`].
    #[must_use]
    pub const fn data(&self) -> &SharedData<A, RocksDisk> {
        &self.data
    }

    /// Says where another store listens.
    pub fn connect(&self, store: u64, address: impl ToString) {
        self.transport
            .set_address(StoreId(store), address.to_string());
    }

    /// Creates this store's replica of a new group whose first voters live on `stores`; no error if
    /// it is there. Every store of the group does so, with the same arguments.
    ///
    /// # Errors
    /// See [`HostHandle::create_group`].
    pub async fn create_group(
        &self,
        group: u64,
        range: Option<KeyRange>,
        stores: &[u64],
    ) -> Result<(), Reject> {
        let descriptor = new_descriptor(group, range, stores);
        ask(|respond| self.handle.create_group(descriptor, respond)).await
    }

    /// Replicates a command and gives the state machine's reply.
    ///
    /// # Errors
    /// See [`HostHandle::propose`]; [`Reject::NotLeader`] names the store to ask, if it is known.
    pub async fn propose(&self, group: u64, command: impl Into<Bytes>) -> Result<Bytes, Reject> {
        let command = command.into();
        ask(|respond| self.handle.propose(GroupId(group), command, respond)).await
    }

    /// Waits until [`Node::data`] contains every write that was acknowledged before this call. Whoever
    /// reads must look afterwards whether the permit [still holds](ReadPermit::still_holds);
    /// [`Node::read_with`] does both.
    ///
    /// # Errors
    /// See [`HostHandle::read`].
    pub async fn read(&self, group: u64) -> Result<ReadPermit, Reject> {
        ask(|respond| self.handle.read(GroupId(group), respond)).await
    }

    /// Reads linearizably: gives `look` the applied data, and what it returned to the caller if the
    /// permit still held afterwards. Else it looks again.
    ///
    /// # Errors
    /// See [`HostHandle::read`]; or the engine's, as [`Reject::Refused`].
    pub async fn read_with<T>(
        &self,
        group: u64,
        look: impl Fn(&SharedData<A, RocksDisk>, &GroupDescriptor) -> Result<T, DiskError>,
    ) -> Result<T, Reject> {
        loop {
            let permit = self.read(group).await?;
            let found = look(&self.data, &permit.descriptor);
            if permit.still_holds(&self.handle) {
                return found.map_err(|error| Reject::Refused(error.to_string()));
            }
        }
    }

    /// Stops in good order and flushes what was applied, so that the next start has nothing to replay.
    ///
    /// # Errors
    /// The last flush failed: the next start replays more.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.transport.shutdown();
        let (host, data) = (self.host, self.data);
        tokio::task::spawn_blocking(move || {
            host.stop();
            data.flush()
        })
        .await??;
        Ok(())
    }
}

impl<A: Application> std::fmt::Debug for Node<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The descriptor of a new group with one voter on each of `stores`.
#[must_use]
pub fn new_descriptor(group: u64, range: Option<KeyRange>, stores: &[u64]) -> GroupDescriptor {
    let members = (1..).zip(stores).map(|(replica, store)| Member {
        replica: ReplicaId(replica),
        store: StoreId(*store),
    });
    GroupDescriptor {
        group: GroupId(group),
        range,
        members: members.collect(),
        next_replica: ReplicaId(stores.len() as u64 + 1),
        epoch: polyraft_multiraft::Epoch {
            membership: 1,
            range: 1,
        },
        border: 0,
        frozen: None,
    }
}

/// Turns a call that answers through a [`Responder`] into a future.
///
/// # Errors
/// What the call was answered with; [`Reject::Ambiguous`] if nobody answered it.
pub async fn ask<T: Send + 'static>(
    call: impl FnOnce(Responder<Result<T, Reject>>),
) -> Result<T, Reject> {
    let (answer, answered) = oneshot::channel();
    call(Responder::new(
        || Err(Reject::Ambiguous),
        // The caller may have given up meanwhile.
        move |result| drop(answer.send(result)),
    ));
    answered.await.unwrap_or(Err(Reject::Ambiguous))
}
