//! What the benchmarks share: clusters of real processes, and a client of etcd to measure beside.
//!
//! Benchmarks print figures and assert nothing; each program's own documentation says what it measures.
#![forbid(unsafe_code)]

pub mod etcd;
pub mod processes;
