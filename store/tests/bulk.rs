//! Large snapshots, which wait in files: what is in them, what they replace, and what is left of those that
//! never come to their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::env::{
    ApplyItem, Command, StagedSnapshot, StateMachine, StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::conformance::{Around, Writes};
use polyraft_store::disk::{Batch, Cf, Disk, DiskError, Durability};
use polyraft_store::{Application, DataStateMachine, GroupTxn, MemoryDisk, SnapshotOptions};

/// Commands: `key=value` sets; `+name=value` sets a local value.
struct Toy;

impl Application for Toy {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let text = std::str::from_utf8(&command.data).unwrap();
        let (key, value) = text.split_once('=').unwrap();
        let value = Bytes::copy_from_slice(value.as_bytes());
        match key.strip_prefix('+') {
            Some(name) => txn.local_put(name.as_bytes(), value),
            None => txn.put(key.as_bytes(), value)?,
        }
        Ok(Bytes::new())
    }
}

type Machine<D> = DataStateMachine<Toy, D>;

/// Every snapshot waits in files, of two or three pairs each.
const IN_FILES: SnapshotOptions = SnapshotOptions {
    small_bytes_max: 0,
    file_bytes: 20,
};

fn machine<D: Disk + Clone>(disk: &D) -> Machine<D> {
    DataStateMachine::with_snapshots(Toy, disk.clone(), IN_FILES)
}

fn descriptor(group: u64, range: Option<(&str, &str)>) -> GroupDescriptor {
    #[cfg(canary)]
    polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
    GroupDescriptor {
        group: GroupId(group),
        range: range.map(|(start, end)| KeyRange {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Some(Bytes::copy_from_slice(end.as_bytes())),
        }),
        ..GroupDescriptor::default()
    }
}

fn state(descriptor: &GroupDescriptor, index: u64) -> AppliedState {
    AppliedState {
        last: EntryId::new(1, index),
        descriptor: Arc::new(descriptor.clone()),
        ..AppliedState::default()
    }
}

/// A group that has done what the commands say.
fn made<D: Disk + Clone>(machine: &Machine<D>, of: &GroupDescriptor, commands: &[&str]) {
    machine.create(&state(of, 2)).unwrap();
    let command = |(index, text): (u64, &&str)| Command {
        id: EntryId::new(1, index),
        data: Bytes::copy_from_slice(text.as_bytes()),
    };
    let mut items = [ApplyItem {
        group: of.group,
        commands: (3..).zip(commands).map(command).collect(),
        state: state(of, 2 + commands.len() as u64),
        membership_changed: false,
        range_change: None,
        replies: Vec::new(),
    }];
    machine.apply(&mut items).unwrap();
}

fn contents<D: Disk + Clone>(machine: &Machine<D>, of: &GroupDescriptor) -> String {
    let found = machine.scan(of, b"", None, usize::MAX).unwrap();
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let pairs = found
        .iter()
        .map(|(key, value)| format!("{}={}", text(key), text(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// The chunks of a snapshot of a group elsewhere.
fn chunks(of: &GroupDescriptor, commands: &[&str], bytes: usize) -> (AppliedState, Vec<Bytes>) {
    let from = DataStateMachine::new(Toy, MemoryDisk::new());
    made(&from, of, commands);
    let mut source = from.snapshot(of.group).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk(bytes).unwrap() {
        chunks.push(chunk);
    }
    (source.state().clone(), chunks)
}

const NEW: [&str; 8] = [
    "c=new1", "d=new2", "e=new3", "f=new4", "g=new5", "+x=local", "h=new6", "+y=local",
];
const SHOWN: &str = "c=new1 d=new2 e=new3 f=new4 g=new5 h=new6";

fn stage<D: Disk + Clone>(to: &Machine<D>, of: &GroupDescriptor) -> StagedSnapshot {
    let (state, chunks) = chunks(of, &NEW, 15);
    assert!(chunks.len() > 4);
    let mut sink = to.stage(&state).unwrap();
    for chunk in chunks {
        sink.write(chunk).unwrap();
    }
    sink.finish().unwrap()
}

fn staged_keys(disk: &impl Disk) -> usize {
    let (start, end) = (b"staged/".as_slice(), b"staged0".as_slice());
    let found = disk.scan(Cf::Meta, start, Some(end), usize::MAX);
    found.unwrap().len()
}

fn local(disk: &impl Disk, group: u64, name: &str) -> Option<Bytes> {
    let key = [
        b"\0".as_slice(),
        &group.to_be_bytes(),
        b"\x04",
        name.as_bytes(),
    ]
    .concat();
    disk.get(Cf::Data, &key).unwrap()
}

/// What any disk must make of it.
fn suite<D: Disk + Clone>(new_disk: impl Fn() -> D) {
    for range in [None, Some(("c", "m"))] {
        files_replace_what_was_there(&new_disk(), &descriptor(1, range));
        what_is_not_wanted_leaves_nothing(&new_disk(), &descriptor(1, range));
    }
    a_smaller_range_leaves_nothing_outside(&new_disk());
}

fn files_replace_what_was_there<D: Disk + Clone>(disk: &D, group: &GroupDescriptor) {
    let to = machine(disk);
    let (below, above) = (
        descriptor(2, Some(("a", "c"))),
        descriptor(3, Some(("m", "z"))),
    );
    made(&to, &below, &["b=1"]);
    made(&to, &above, &["m=1"]);
    made(
        &to,
        group,
        &["c=old", "cc=old", "l=old", "+x=old", "+z=old"],
    );
    let staged = stage(&to, group);
    assert!(disk.bulks().unwrap().len() > 1);
    assert_eq!(contents(&to, group), "c=old cc=old l=old", "not yet");
    to.restore(&staged).unwrap();
    assert_eq!(contents(&to, group), SHOWN);
    let others = [&below, &above].map(|group| contents(&to, group));
    assert_eq!(others, ["b=1", "m=1"]);
    let kept = ["x", "y", "z"].map(|name| local(disk, 1, name));
    assert_eq!(kept, [Some("local".into()), Some("local".into()), None]);
    assert_eq!(to.recover().unwrap()[0], staged.state);
    let left = || (staged_keys(disk), disk.bulks().unwrap());
    assert_eq!(left(), (0, Vec::new()));
    // Another one comes, and is not wanted.
    let next = stage(&to, group);
    assert!(next.token > staged.token);
    to.discard(&next);
    assert_eq!(left(), (0, Vec::new()));
    assert_eq!(contents(&to, group), SHOWN);
    // The group goes and comes again.
    to.destroy(group).unwrap();
    made(&to, group, &["c=old", "l=old"]);
    to.restore(&stage(&to, group)).unwrap();
    assert_eq!(contents(&to, group), SHOWN);
    to.destroy(group).unwrap();
    assert_eq!(contents(&to, group), "");
}

fn what_is_not_wanted_leaves_nothing<D: Disk + Clone>(disk: &D, group: &GroupDescriptor) {
    let to = machine(disk);
    let (state, chunks) = chunks(group, &NEW, 15);
    for given_up in 0..=chunks.len() {
        let mut sink = to.stage(&state).unwrap();
        for chunk in &chunks[..given_up] {
            sink.write(chunk.clone()).unwrap();
        }
        drop(sink);
        assert_eq!((staged_keys(disk), disk.bulks().unwrap()), (0, Vec::new()));
    }
    // Keys that do not ascend, and a chunk that comes twice.
    for order in [[1, 0], [0, 0]] {
        let mut sink = to.stage(&state).unwrap();
        sink.write(chunks[order[0]].clone()).unwrap();
        let refused = sink.write(chunks[order[1]].clone());
        assert!(
            matches!(refused, Err(StateMachineError::Group { .. })),
            "{refused:?}"
        );
        assert!(
            sink.write(chunks[2].clone()).is_err(),
            "nothing more is taken"
        );
        assert!(sink.finish().is_err());
        assert_eq!((staged_keys(disk), disk.bulks().unwrap()), (0, Vec::new()));
    }
    assert_eq!(contents(&to, group), "");
}

fn a_smaller_range_leaves_nothing_outside<D: Disk + Clone>(disk: &D) {
    let to = machine(disk);
    let (before, after) = (
        descriptor(1, Some(("a", "z"))),
        descriptor(1, Some(("c", "m"))),
    );
    made(&to, &before, &["a=old", "c=old", "m=old", "y=old"]);
    let staged = stage(&to, &after);
    to.restore(&staged).unwrap();
    assert_eq!(contents(&to, &before), SHOWN);
}

#[test]
fn on_the_modelled_disk() {
    suite(MemoryDisk::new);
}

#[cfg(feature = "rocksdb")]
mod rocks {
    use polyraft_store::RocksDisk;

    use super::*;

    #[test]
    fn on_rocksdb() {
        let dirs = std::cell::RefCell::new(Vec::new());
        suite(|| {
            let dir = tempfile::tempdir().unwrap();
            let disk = RocksDisk::open(dir.path(), Default::default()).unwrap();
            dirs.borrow_mut().push(dir);
            disk
        });
    }

    #[test]
    fn what_was_ingested_is_there_after_a_reopening_and_what_was_begun_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let group = descriptor(1, Some(("c", "m")));
        let open = || RocksDisk::open(dir.path(), Default::default()).unwrap();
        {
            let disk = open();
            let to = machine(&disk);
            made(&to, &group, &["c=old", "l=old"]);
            let staged = stage(&to, &group);
            to.restore(&staged).unwrap();
            // Whoever is killed takes nothing away, nor a link on its way into the engine.
            for name in [
                "0000000000000009-00000000.sst",
                "0000000000000009-00000000.link",
            ] {
                std::fs::write(dir.path().join("bulk").join(name), "not whole").unwrap();
            }
        }
        let disk = open();
        assert_eq!(disk.bulks().unwrap().len(), 1);
        let to = machine(&disk);
        assert_eq!(to.recover().unwrap(), [state(&group, 10)]);
        assert_eq!(contents(&to, &group), SHOWN);
        let left = std::fs::read_dir(dir.path().join("bulk")).unwrap();
        assert_eq!(left.count(), 0);
    }
}

/// A disk that takes so many steps.
#[derive(Clone)]
struct Dying(Arc<AtomicUsize>);

impl Dying {
    fn step(&self) -> Result<(), DiskError> {
        let one_less = |left: usize| left.checked_sub(1);
        match self.0.fetch_update(Relaxed, Relaxed, one_less) {
            Ok(_) => Ok(()),
            Err(_) => Err(DiskError::Fatal("the power is gone".to_owned())),
        }
    }
}

impl Writes<MemoryDisk> for Dying {
    fn write(
        &self,
        disk: &MemoryDisk,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.step()?;
        disk.write(batch, durability)
    }

    fn bulk(&self) -> Result<(), DiskError> {
        self.step()
    }
}

fn dying(disk: &MemoryDisk, steps: usize) -> Around<MemoryDisk, Dying> {
    Around(disk.clone(), Dying(Arc::new(steps.into())))
}

/// A disk with an old state of a group.
fn old(group: &GroupDescriptor) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let machine = machine(&disk);
    made(&machine, group, &["c=old", "l=old", "+z=old"]);
    machine.flush().unwrap();
    disk
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_and_no_files() {
    for range in [None, Some(("c", "m"))] {
        let group = descriptor(1, range);
        let mut outcomes = [0, 0];
        for steps in 0.. {
            // Received and installed, up to some step.
            let disk = old(&group);
            let machine = machine(&dying(&disk, steps));
            let staged = receive(&machine, &group);
            let done = staged.is_ok_and(|staged| machine.restore(&staged).is_ok());
            drop(machine);
            for keep in 0..3 {
                let crashed = disk.crash(keep);
                for again in 0..=steps {
                    let dying = dying(&crashed.crash(0), again);
                    // Its error is what is provoked here.
                    let _unfinished = self::machine(&dying).recover();
                    let disk = dying.0.crash(keep);
                    let machine = self::machine(&disk);
                    let found = machine.recover().unwrap();
                    let new = found == [state(&group, 10)];
                    if new {
                        assert_eq!(contents(&machine, &group), SHOWN);
                        assert_eq!(local(&disk, 1, "z"), None);
                    } else {
                        assert!(!done);
                        assert_eq!(found, [state(&group, 5)]);
                        assert_eq!(contents(&machine, &group), "c=old l=old");
                    }
                    assert_eq!((staged_keys(&disk), disk.bulks().unwrap()), (0, Vec::new()));
                    outcomes[usize::from(new)] += 1;
                }
            }
            if done {
                break;
            }
        }
        assert!(outcomes[0] > 9 && outcomes[1] > 9, "{outcomes:?}");
    }
}

fn receive<D: Disk + Clone>(
    to: &Machine<D>,
    group: &GroupDescriptor,
) -> Result<StagedSnapshot, StateMachineError> {
    let (state, chunks) = chunks(group, &NEW, 60);
    let mut sink = to.stage(&state)?;
    for chunk in chunks {
        sink.write(chunk)?;
    }
    sink.finish()
}

#[test]
fn a_small_snapshot_waits_without_files() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    let group = descriptor(1, Some(("c", "m")));
    let staged = stage(&machine, &group);
    assert_eq!(disk.bulks().unwrap(), []);
    machine.restore(&staged).unwrap();
    assert_eq!(contents(&machine, &group), SHOWN);
    assert_eq!(staged_keys(&disk), 0);
}
