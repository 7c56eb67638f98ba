//! The suites of the seams on the real log and the real data, on every disk there is.

use std::cell::RefCell;

use bytes::Bytes;
use polyraft_multiraft::GroupDescriptor;
use polyraft_multiraft::env::Command;
use polyraft_multiraft::env::conformance::{self, DataSubject, LogSubject, SeamFault};
use polyraft_store::disk::{Disk, DiskError};
use polyraft_store::{
    Application, DataStateMachine, Fault, GroupTxn, LogOptions, MemoryDisk, RaftLog,
};

/// Commands are `key=value`; the reply is the value before.
struct Puts;

impl Application for Puts {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let at = command.data.iter().position(|byte| *byte == b'=').unwrap();
        let (key, value) = (command.data.slice(..at), command.data.slice(at + 1..));
        let before = txn.get(&key)?.unwrap_or_default();
        txn.put(&key, value)?;
        Ok(before)
    }
}

fn put(key: &[u8], value: &[u8]) -> Bytes {
    [key, b"=", value].concat().into()
}

fn contents<D: Disk + Clone>(
    machine: &DataStateMachine<Puts, D>,
    descriptor: &GroupDescriptor,
) -> Vec<(Bytes, Bytes)> {
    machine.scan(descriptor, b"", None, usize::MAX).unwrap()
}

/// Settles early, so that the suite sees it.
fn options() -> LogOptions {
    #[cfg(canary)]
    polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
    LogOptions {
        hot_bytes_max: 2_000,
        settle_groups_max: 2,
    }
}

#[derive(Default)]
struct InMemory {
    disk: RefCell<MemoryDisk>,
}

impl InMemory {
    fn crash_keeping(&self, keep: usize) {
        let after = self.disk.borrow().crash(keep);
        self.disk.replace(after);
    }

    fn fault(&self, fault: Option<SeamFault>) {
        let fault = fault.map(|fault| match fault {
            SeamFault::Full => Fault::Full,
            SeamFault::SyncFails => Fault::SyncFails,
        });
        self.disk.borrow().set_fault(fault);
    }
}

impl LogSubject for InMemory {
    type Engine = RaftLog<MemoryDisk>;

    fn open(&self) -> Self::Engine {
        RaftLog::new(self.disk.borrow().clone(), options())
    }

    fn power_cut(&self, keep: usize) -> bool {
        self.crash_keeping(keep);
        true
    }

    fn set_fault(&self, fault: Option<SeamFault>) -> bool {
        self.fault(fault);
        true
    }
}

impl DataSubject for InMemory {
    type Machine = DataStateMachine<Puts, MemoryDisk>;

    fn open(&self) -> Self::Machine {
        DataStateMachine::new(Puts, self.disk.borrow().clone())
    }

    fn crash(&self) -> bool {
        self.crash_keeping(0);
        true
    }

    fn set_fault(&self, fault: Option<SeamFault>) -> bool {
        self.fault(fault);
        true
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
        put(key, value)
    }

    fn contents(
        &self,
        machine: &Self::Machine,
        descriptor: &GroupDescriptor,
    ) -> Vec<(Bytes, Bytes)> {
        contents(machine, descriptor)
    }
}

#[test]
fn log_in_memory() {
    conformance::log_engine(InMemory::default);
}

#[test]
fn data_in_memory() {
    conformance::state_machine(InMemory::default);
    conformance::splits(InMemory::default);
    conformance::merges(InMemory::default);
}

#[cfg(feature = "rocksdb")]
mod on_rocksdb {
    use polyraft_store::{RocksDisk, RocksOptions};
    use tempfile::TempDir;

    use super::*;

    /// The power of a real machine cannot be cut here, nor its disk be filled.
    struct OnRocks {
        directory: TempDir,
    }

    impl OnRocks {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
            }
        }

        fn disk(&self) -> RocksDisk {
            RocksDisk::open(self.directory.path(), RocksOptions::default()).unwrap()
        }
    }

    impl LogSubject for OnRocks {
        type Engine = RaftLog<RocksDisk>;

        fn open(&self) -> Self::Engine {
            RaftLog::new(self.disk(), options())
        }

        fn power_cut(&self, _keep: usize) -> bool {
            false
        }

        fn set_fault(&self, _fault: Option<SeamFault>) -> bool {
            false
        }
    }

    impl DataSubject for OnRocks {
        type Machine = DataStateMachine<Puts, RocksDisk>;

        fn open(&self) -> Self::Machine {
            DataStateMachine::new(Puts, self.disk())
        }

        fn crash(&self) -> bool {
            false
        }

        fn set_fault(&self, _fault: Option<SeamFault>) -> bool {
            false
        }

        fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
            put(key, value)
        }

        fn contents(
            &self,
            machine: &Self::Machine,
            descriptor: &GroupDescriptor,
        ) -> Vec<(Bytes, Bytes)> {
            contents(machine, descriptor)
        }
    }

    #[test]
    fn log_on_rocksdb() {
        conformance::log_engine(OnRocks::new);
    }

    #[test]
    fn data_on_rocksdb() {
        conformance::state_machine(OnRocks::new);
        conformance::splits(OnRocks::new);
        conformance::merges(OnRocks::new);
    }
}
