//! Ports for stores that must come back on the same port after a crash.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Lowest port tried: below are the ports of well-known services.
const LOWEST: u32 = 10_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of the loopback address that nothing listens on.
///
/// The system's own choice (port 0) would come from the range that it also gives to outgoing
/// connections, so while a store is down some client's connection could sit on its port. So the
/// port is taken from below that range, and the system is asked whether it is free.
///
/// # Panics
///
/// No port is free.
pub fn free_port() -> u16 {
    let highest = outgoing_ports_begin();
    let count = highest - LOWEST;
    for _ in 0..count {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test processes that run at the same time begin at different places.
        let port = LOWEST + std::process::id().wrapping_mul(97).wrapping_add(turn) % count;
        let port = u16::try_from(port).expect("below the range of outgoing ports");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on the loopback address from {LOWEST} to {highest}");
}

fn outgoing_ports_begin() -> u32 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok());
    first
        .filter(|first| *first > LOWEST + 1000)
        .unwrap_or(32_768)
}
