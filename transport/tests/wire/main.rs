//! Real transports on loopback, and clients and servers of the wrong kind.

mod conformance;
mod hostile;
mod lanes;
mod meters;
mod snapshots;
mod support;
