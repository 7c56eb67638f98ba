//! The contract of a transport, over real sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::conformance::{TransportSubject, transport};
use polyraft_multiraft::env::{Inbound, Transport};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::support::CLUSTER;

/// Stores on loopback, each with a port of its own.
struct Loopback {
    runtime: Runtime,
    stores: BTreeMap<StoreId, (Arc<GrpcTransport>, String)>,
}

impl Loopback {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        Self {
            runtime,
            stores: BTreeMap::new(),
        }
    }
}

impl TransportSubject for Loopback {
    fn start(
        &mut self,
        store: StoreId,
        incarnation: u64,
        inbound: Arc<dyn Inbound>,
    ) -> Arc<dyn Transport> {
        let _inside = self.runtime.enter();
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut config = TransportConfig::new(CLUSTER, store, incarnation, address.clone());
        config.append_queue_bytes_max = 64 << 10;
        let transport = GrpcTransport::new(config, self.runtime.handle().clone());
        transport.start(inbound);
        transport.serve(listener).unwrap();
        self.stores.remove(&store);
        for (other, (known, known_address)) in &self.stores {
            known.set_address(store, address.clone());
            transport.set_address(*other, known_address.clone());
        }
        self.stores.insert(store, (Arc::clone(&transport), address));
        transport
    }

    fn stop(&mut self, store: StoreId) {
        if let Some((transport, _)) = self.stores.remove(&store) {
            transport.shutdown();
        }
    }

    fn go_on(&mut self) {
        std::thread::sleep(Duration::from_millis(2));
    }

    fn too_many(&self) -> u64 {
        100
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        for (transport, _) in self.stores.values() {
            transport.shutdown();
        }
    }
}

#[test]
fn the_contract_is_kept_over_real_sockets() {
    transport(Loopback::new);
}
