//! The suites of the seams on the engines in memory that the other tests here run on.

use polyraft_multiraft::env::conformance;

use crate::log::LogDisk;
use crate::machine::DataDisk;

#[test]
fn the_log_in_memory_keeps_the_contract() {
    conformance::log_engine(LogDisk::default);
}

#[test]
fn the_state_machine_in_memory_keeps_the_contract() {
    conformance::state_machine(DataDisk::default);
    conformance::splits(DataDisk::default);
    conformance::merges(DataDisk::default);
}
