//! The generated code. Made by `make codegen` from `transport/proto`; never edited.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated: its documentation is in the .proto file"
)]

include!("proto/polyraft.raft.v1.rs");

/// The compiled descriptors, for gRPC reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!("proto/descriptor.bin");
