//! The generated protobuf code of all interfaces, as committed; `make codegen` renews it.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// The key-value interface.
pub mod kv {
    include!("polyraft.kv.v1.rs");
}

/// The admin interface, and what stores ask of each other.
pub mod admin {
    include!("polyraft.admin.v1.rs");
}

/// The directory, and what stores ask of each other about it.
pub mod directory {
    include!("polyraft.directory.v1.rs");
}

/// The compiled descriptors, for gRPC reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!("descriptor.bin");
