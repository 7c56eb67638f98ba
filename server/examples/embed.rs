//! A state machine of one's own in three stores: each group is a counter. Everything is real: three
//! RocksDB directories, three gRPC transports on loopback, one process.
//!
//! `scripts/with-rocksdb cargo run -p polyraft-server --example embed`

use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use polyraft_core::ReplicaId;
use polyraft_multiraft::env::Command;
use polyraft_multiraft::{
    GroupDescriptor, GroupId, Host, HostConfig, HostEnv, HostHandle, Member, Reject, Responder,
    StoreId,
};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn, Store, StoreOptions};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::net::TcpListener;

/// What is replicated: a command is a number to add, the reply is the sum.
struct Counter;

impl Application for Counter {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or(0);
        let before = txn.get(b"sum")?.map_or(0, |bytes| number(&bytes));
        let sum = Bytes::copy_from_slice(&(before + number(&command.data)).to_be_bytes());
        txn.put(b"sum", sum.clone())?;
        Ok(sum)
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut stores: Vec<(Host, Arc<GrpcTransport>, String)> = Vec::new();
    for id in 1..=3 {
        let store = Store::open(
            &directory.path().join(id.to_string()),
            StoreOptions::default(),
        )?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let config = TransportConfig::new(42, StoreId(id), 1, address.clone());
        let transport = GrpcTransport::new(config, tokio::runtime::Handle::current());
        let env = HostEnv {
            log: store.log(),
            state_machine: store.state_machine(Counter),
            transport: Arc::clone(&transport) as _,
            on_fatal: Arc::new(|error| panic!("the store cannot go on: {error}")),
        };
        let host = Host::start(HostConfig::new(StoreId(id)), env)?;
        transport.start(Arc::new(host.handle()));
        transport.serve(listener)?;
        stores.push((host, transport, address));
    }
    for (_, transport, _) in &stores {
        for (other, (_, _, address)) in (1..).zip(&stores) {
            transport.set_address(StoreId(other), address.clone());
        }
    }
    // A hundred groups, each with a replica on every store.
    let member = |id| Member {
        replica: ReplicaId(id),
        store: StoreId(id),
    };
    for (host, ..) in &stores {
        for group in (1..=100).map(GroupId) {
            let members = (1..=3).map(member).collect();
            let next_replica = ReplicaId(4);
            let descriptor = GroupDescriptor {
                group,
                members,
                next_replica,
                ..GroupDescriptor::default()
            };
            call(|respond| host.handle().create_group(descriptor, respond))?;
        }
    }
    for round in 1..=3 {
        for group in (1..=100).map(GroupId) {
            let sum = add(&stores, group, group.0);
            assert_eq!(sum, group.0 * round);
        }
        println!(
            "round {round}: 100 groups counted, group 100 is at {}",
            100 * round
        );
    }
    Ok(())
}

/// Proposes on whichever store leads the group.
fn add(stores: &[(Host, Arc<GrpcTransport>, String)], group: GroupId, number: u64) -> u64 {
    let command = Bytes::copy_from_slice(&number.to_be_bytes());
    for (host, ..) in stores.iter().cycle() {
        let handle: HostHandle = host.handle();
        match call(|respond| handle.propose(group, command.clone(), respond)) {
            Ok(sum) => return sum[..].try_into().map(u64::from_be_bytes).unwrap_or(0),
            Err(Reject::NotLeader { .. } | Reject::Busy(_)) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(reject) => panic!("group {group}: {reject}"),
        }
    }
    unreachable!("the stores are asked in turn until one leads")
}

fn call<T: Send + 'static>(ask: impl FnOnce(Responder<Result<T, Reject>>)) -> Result<T, Reject> {
    let (answer, answered) = mpsc::channel();
    ask(Responder::new(
        || Err(Reject::Ambiguous),
        move |result| drop(answer.send(result)),
    ));
    answered.recv().unwrap_or(Err(Reject::Ambiguous))
}
