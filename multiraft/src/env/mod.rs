//! The four doors to the world. Everything a host cannot compute comes and goes through them;
//! the simulator closes all four.
//!
//! * [`Clock`]: the only source of time.
//! * [`LogEngine`]: the durable Raft log of all groups of the store.
//! * [`StateMachine`]: applied data, snapshots.
//! * [`Transport`]: messages and snapshots to other stores; [`Inbound`] is the way back.

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod log_engine;
mod state_machine;
mod transport;

pub use clock::Clock;
pub use log_engine::{
    Lifecycle, LogBatch, LogEngine, LogError, LogSection, LogStats, Recovered, RecoveredGroup,
};
pub use state_machine::{
    ApplyItem, Command, RangeChange, SnapshotSink, SnapshotSource, SplitRight, StagedSnapshot,
    StateMachine, StateMachineError,
};
pub use transport::{
    Body, GroupMessage, Inbound, Lane, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
    Transport,
};
