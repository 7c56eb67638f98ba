//! The other stores: where they listen, which of them can be heard, and channels for requests to them.
//!
//! Addresses come from the command line, from stores that introduce themselves, and from what was
//! learned before a restart. An address is a hint: the transport and `Hello` check who answers
//! there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use polyraft_multiraft::StoreId;
use polyraft_transport::{GrpcTransport, TransportStats};
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take to be made.
const CONNECT_BOUND: Duration = Duration::from_secs(1);
/// Bytes of a host name at most, and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;
/// How often a silent connection is asked for a sign of life, and how long it may take to give one.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Peers {
    me: u64,
    addresses: RwLock<BTreeMap<u64, String>>,
    /// Stores that have answered for themselves, here or to a store that told of it. The others are
    /// what a command line says, and are told to nobody.
    confirmed: RwLock<BTreeSet<u64>>,
    channels: Mutex<BTreeMap<u64, (String, Channel)>>,
    connected: RwLock<BTreeSet<u64>>,
    /// Hears of every address, once it is there.
    transport: OnceLock<Arc<GrpcTransport>>,
}

impl Peers {
    /// Store `me` and the addresses it begins with, its own among them.
    #[must_use]
    pub fn new(me: u64, addresses: BTreeMap<u64, String>) -> Self {
        Self {
            me,
            addresses: RwLock::new(addresses),
            confirmed: RwLock::new(BTreeSet::from([me])),
            channels: Mutex::default(),
            connected: RwLock::default(),
            transport: OnceLock::new(),
        }
    }

    /// Every known store and its address.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<u64, String> {
        self.addresses.read().clone()
    }

    /// The addresses of this store and of those that have answered for themselves.
    #[must_use]
    pub fn confirmed(&self) -> BTreeMap<u64, String> {
        let confirmed = self.confirmed.read();
        let mut addresses = self.addresses();
        addresses.retain(|store, _| confirmed.contains(store));
        addresses
    }

    /// A store has answered for itself, here or where this is heard from; whether that is news.
    pub fn confirm(&self, store: u64) -> bool {
        self.confirmed.write().insert(store)
    }

    /// Another store answers at the address of `store`: whoever named the address was wrong, unless
    /// `store` has answered for itself before and may come back. Returns whether it is forgotten.
    pub fn forget(&self, store: u64) -> bool {
        if self.confirmed.read().contains(&store) {
            return false;
        }
        self.channels.lock().remove(&store);
        self.addresses.write().remove(&store).is_some()
    }

    /// The address of one store.
    #[must_use]
    pub fn address(&self, store: u64) -> Option<String> {
        self.addresses.read().get(&store).cloned()
    }

    /// Every known store but this one.
    #[must_use]
    pub fn others(&self) -> Vec<u64> {
        self.addresses
            .read()
            .keys()
            .copied()
            .filter(|store| *store != self.me)
            .collect()
    }

    /// Takes note of an address; whether it is news. A store knows its own address best.
    pub fn learn(&self, store: u64, address: &str) -> bool {
        // They come from outside, and are kept one per line.
        let sound = (1..=ADDRESS_BYTES_MAX).contains(&address.len())
            && !address.chars().any(char::is_control);
        if store == self.me || store == 0 || !sound {
            return false;
        }
        let mut addresses = self.addresses.write();
        if addresses.get(&store).is_some_and(|known| known == address) {
            return false;
        }
        addresses.insert(store, address.to_owned());
        drop(addresses);
        if let Some(transport) = self.transport.get() {
            transport.set_address(StoreId(store), address.to_owned());
        }
        true
    }

    /// What the transport did since its start.
    #[must_use]
    pub fn transport_stats(&self) -> TransportStats {
        self.transport
            .get()
            .map(|transport| transport.stats())
            .unwrap_or_default()
    }

    /// From now on `transport` hears of every address, beginning with those that are known.
    pub fn connect_by(&self, transport: Arc<GrpcTransport>) {
        let transport = self.transport.get_or_init(|| transport);
        for (store, address) in self.addresses() {
            transport.set_address(StoreId(store), address);
        }
    }

    /// A channel to a store whose address is known; connects when it is used.
    #[must_use]
    pub fn channel(&self, store: u64) -> Option<Channel> {
        let address = self.address(store)?;
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(&store)
            && *known == address
        {
            return Some(channel.clone());
        }
        let channel = connect_lazily(&address)?;
        channels.insert(store, (address, channel.clone()));
        Some(channel)
    }

    /// The transport hears a store, or does not any more.
    pub fn set_connected(&self, store: u64, connected: bool) {
        let mut all = self.connected.write();
        if connected {
            all.insert(store);
        } else {
            all.remove(&store);
        }
    }

    /// Stores that the transport hears.
    #[must_use]
    pub fn connected(&self) -> BTreeSet<u64> {
        self.connected.read().clone()
    }
}

/// A channel to `address` (`HOST:PORT`) that connects when it is used; `None` if that is no address.
#[must_use]
pub fn connect_lazily(address: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_BOUND)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    Some(endpoint.connect_lazy())
}

/// The addresses as they are kept over a restart: `STORE=HOST:PORT`, one per line.
#[must_use]
pub fn encode_addresses(addresses: &BTreeMap<u64, String>) -> Bytes {
    let lines: Vec<String> = addresses
        .iter()
        .map(|(id, address)| format!("{id}={address}"))
        .collect();
    lines.join("\n").into()
}

/// The addresses in `bytes`; a line that is none is left out, since addresses are hints.
#[must_use]
pub fn decode_addresses(bytes: &[u8]) -> BTreeMap<u64, String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .filter_map(|line| parse_peer(line).ok())
        .collect()
}

/// Reads `STORE=HOST:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_peer(text: &str) -> Result<(u64, String), String> {
    let wrong = || format!("{text:?} is not of the form STORE=HOST:PORT, such as 1=127.0.0.1:7101");
    let (id, address) = text.split_once('=').ok_or_else(wrong)?;
    let id: u64 = id.parse().map_err(|_| wrong())?;
    let port = address
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse::<u16>().ok());
    if id == 0 || port.is_none() {
        return Err(wrong());
    }
    Ok((id, address.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_restart() {
        let addresses = BTreeMap::from([(1, "a:1".to_owned()), (2, "[::1]:2".to_owned())]);
        assert_eq!(decode_addresses(&encode_addresses(&addresses)), addresses);
        assert!(parse_peer("0=a:1").is_err());
        assert!(parse_peer("1=a").is_err());
        assert!(parse_peer("one=a:1").is_err());
    }

    #[test]
    fn news_of_others_are_taken_and_of_oneself_not() {
        let peers = Peers::new(1, BTreeMap::from([(1, "a:1".to_owned())]));
        assert!(peers.learn(2, "b:2"));
        assert!(!peers.learn(2, "b:2"));
        assert!(peers.learn(2, "c:2"));
        assert!(!peers.learn(1, "d:4"));
        assert!(!peers.learn(2, "c:2\n3=d:4"), "two lines for one");
        assert!(!peers.learn(2, &"x".repeat(300)));
        assert_eq!(peers.others(), [2]);
    }

    #[test]
    fn what_a_command_line_says_is_told_to_nobody_before_it_is_true() {
        let named = [
            (1, "a:1".to_owned()),
            (2, "b:2".to_owned()),
            (9, "b:2".to_owned()),
        ];
        let peers = Peers::new(1, BTreeMap::from(named));
        assert_eq!(peers.confirmed().into_keys().collect::<Vec<_>>(), [1]);
        assert!(peers.confirm(2) && !peers.confirm(2));
        assert_eq!(peers.confirmed().into_keys().collect::<Vec<_>>(), [1, 2]);
        assert!(peers.forget(9) && !peers.forget(2));
        assert_eq!(peers.others(), [2]);
    }
}
