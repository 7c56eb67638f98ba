//! Handling a Ready, and the two storage threads.

use polyraft_core::{
    Append, ConfChange, ConfChangeV2, Entry, EntryKind, HardState, ReadState, Ready, Snapshot,
    SoftState,
};

use crate::env::{Env, Face, Parcel, What};
use crate::text::{self, APPEND_THREAD, APPLY_THREAD, Written};

/// What a Ready shows, whichever face it came from.
#[derive(Default)]
struct Shown {
    must_sync: bool,
    soft_state: Option<SoftState>,
    hard_state: Option<HardState>,
    reads: Vec<ReadState>,
    entries: Vec<Entry>,
    snapshot: Option<Snapshot>,
    committed: Vec<Entry>,
    messages: Vec<Written>,
}

impl Shown {
    fn render(&self) -> String {
        let mut out = String::new();
        if let Some(state) = &self.soft_state {
            out.push_str(&format!(
                "Lead:{} State:{}\n",
                state.leader,
                text::role(state.role)
            ));
        }
        if let Some(state) = &self.hard_state {
            out.push_str(&format!("{}\n", text::hard_state(state)));
        }
        if !self.reads.is_empty() {
            let each = |read: &ReadState| format!("{}@{}", text::quoted(&read.context), read.index);
            let reads: Vec<String> = self.reads.iter().map(each).collect();
            out.push_str(&format!("ReadStates {}\n", reads.join(" ")));
        }
        list(&mut out, "Entries:", self.entries.iter().map(text::entry));
        if let Some(snapshot) = &self.snapshot {
            out.push_str(&format!("Snapshot {}\n", text::snapshot(snapshot)));
        }
        list(
            &mut out,
            "CommittedEntries:",
            self.committed.iter().map(text::entry),
        );
        list(
            &mut out,
            "Messages:",
            self.messages.iter().map(|m| m.render("")),
        );
        if out.is_empty() {
            return "<empty Ready>".to_owned();
        }
        format!("Ready MustSync={}:\n{out}", self.must_sync)
    }
}

fn list(out: &mut String, title: &str, items: impl Iterator<Item = String>) {
    let items: Vec<String> = items.collect();
    if !items.is_empty() {
        out.push_str(&format!("{title}\n{}\n", items.join("\n")));
    }
}

pub(crate) fn process_ready(env: &mut Env, id: u64) -> Result<(), String> {
    match &env.node(id).face {
        Face::Sync(_) => process_sync(env, id),
        Face::Async(_) => process_async(env, id),
    }
}

fn process_sync(env: &mut Env, id: u64) -> Result<(), String> {
    let Face::Sync(node) = &mut env.node(id).face else {
        unreachable!("checked by the caller")
    };
    let ready = node.ready().expect("a ready");
    let shown = Shown {
        must_sync: ready.must_sync,
        soft_state: ready.soft_state,
        hard_state: ready.hard_state,
        reads: ready.reads,
        entries: ready.entries.clone(),
        snapshot: ready.snapshot.clone(),
        committed: ready.committed.clone(),
        messages: ready.messages.iter().map(text::message).collect(),
    };
    env.log_events(id, &ready.events);
    env.write(&shown.render());
    store(env, id, ready.hard_state, ready.entries, ready.snapshot);
    apply(env, id, &ready.committed);
    env.messages
        .extend(ready.messages.into_iter().map(Parcel::message));
    let Face::Sync(node) = &mut env.node(id).face else {
        unreachable!("checked by the caller")
    };
    node.advance().expect("advance");
    let events = node.node().take_events();
    env.log_events(id, &events);
    Ok(())
}

fn process_async(env: &mut Env, id: u64) -> Result<(), String> {
    let Face::Async(node) = &mut env.node(id).face else {
        unreachable!("checked by the caller")
    };
    let Ready {
        soft_state,
        messages,
        append,
        committed,
        reads,
        events,
        ..
    } = node.ready().expect("a ready");
    let mut shown = Shown {
        soft_state,
        reads,
        committed,
        ..Shown::default()
    };
    shown.messages = messages.iter().map(text::message).collect();
    if let Some(append) = &append {
        shown.must_sync = append.entries_or_vote();
        shown.hard_state = append.hard_state();
        shown.entries = append.entries().to_vec();
        shown.snapshot = append.snapshot().cloned();
        shown.messages.push(append_message(id, append, true));
    }
    if !shown.committed.is_empty() {
        shown
            .messages
            .push(apply_message(id, &shown.committed, true));
    }
    env.log_events(id, &events);
    env.write(&shown.render());
    env.messages
        .extend(messages.into_iter().map(Parcel::message));
    env.node(id).append_work.extend(append);
    if !shown.committed.is_empty() {
        env.node(id).apply_work.push_back(shown.committed);
    }
    Ok(())
}

fn append_message(id: u64, append: &Append, with_responses: bool) -> Written {
    let mut out = Written {
        from: id,
        to: APPEND_THREAD,
        name: "MsgStorageAppend",
        entries: append.entries().iter().map(text::entry).collect(),
        snapshot: append.snapshot().map(text::snapshot),
        ..Written::default()
    };
    if let Some(state) = append.hard_state() {
        (out.term, out.vote, out.commit) = (state.term.0, state.vote.0, state.commit.0);
    }
    if with_responses {
        let (held, _) = append.inspect();
        out.responses = held.iter().map(text::message).collect();
        out.responses.extend(append_response(id, append));
    }
    out
}

fn append_response(id: u64, append: &Append) -> Option<Written> {
    let (_, receipt) = append.inspect();
    let (term, last) = receipt?;
    let last = last.unwrap_or_default();
    Some(Written {
        from: APPEND_THREAD,
        to: id,
        name: "MsgStorageAppendResp",
        term: term.0,
        log_term: last.term.0,
        index: last.index.0,
        snapshot: append.snapshot().map(text::snapshot),
        ..Written::default()
    })
}

fn apply_message(id: u64, committed: &[Entry], with_responses: bool) -> Written {
    Written {
        from: id,
        to: APPLY_THREAD,
        name: "MsgStorageApply",
        entries: committed.iter().map(text::entry).collect(),
        responses: if with_responses {
            vec![apply_response(id, committed)]
        } else {
            Vec::new()
        },
        ..Written::default()
    }
}

fn apply_response(id: u64, committed: &[Entry]) -> Written {
    Written {
        from: APPLY_THREAD,
        to: id,
        name: "MsgStorageApplyResp",
        entries: committed.iter().map(text::entry).collect(),
        ..Written::default()
    }
}

pub(crate) fn process_append_thread(env: &mut Env, id: u64) -> Result<(), String> {
    let Some(mut append) = env.node(id).append_work.pop_front() else {
        env.write("no append work to perform");
        return Ok(());
    };
    env.line("Processing:");
    env.line(&append_message(id, &append, false).render(""));
    let receipt = append_response(id, &append);
    let (hard_state, snapshot) = (append.hard_state(), append.snapshot().cloned());
    let entries = append.take_entries();
    store(env, id, hard_state, entries, snapshot);
    let (held, token) = append.into_parts();
    env.line("Responses:");
    let mut parcels: Vec<Parcel> = held.into_iter().map(Parcel::message).collect();
    if let (Some(text), Some(token)) = (receipt, token) {
        parcels.push(Parcel {
            to: id,
            text,
            what: What::Persisted(token),
        });
    }
    for parcel in parcels {
        env.line(&parcel.text.render(""));
        env.messages.push(parcel);
    }
    Ok(())
}

pub(crate) fn process_apply_thread(env: &mut Env, id: u64) -> Result<(), String> {
    let Some(committed) = env.node(id).apply_work.pop_front() else {
        env.write("no apply work to perform");
        return Ok(());
    };
    env.line("Processing:");
    env.line(&apply_message(id, &committed, false).render(""));
    apply(env, id, &committed);
    env.line("Responses:");
    let text = apply_response(id, &committed);
    env.line(&text.render(""));
    let index = committed.last().expect("not empty").index;
    let bytes = committed.iter().map(Entry::size).sum();
    env.messages.push(Parcel {
        to: id,
        text,
        what: What::Applied(index, bytes),
    });
    Ok(())
}

fn store(
    env: &mut Env,
    id: u64,
    hard_state: Option<HardState>,
    entries: Vec<Entry>,
    snapshot: Option<Snapshot>,
) {
    let log = &mut env.node(id).raft().storage_mut().log;
    if let Some(state) = hard_state {
        log.set_hard_state(state);
    }
    if let Some(snapshot) = snapshot {
        assert!(
            entries.is_empty(),
            "can't apply snapshot and entries at the same time"
        );
        log.apply_snapshot(snapshot).expect("a newer snapshot");
    } else {
        log.append(&entries).expect("no gap");
    }
}

fn apply(env: &mut Env, id: u64, entries: &[Entry]) {
    for entry in entries {
        let change = match entry.kind {
            EntryKind::Normal | EntryKind::Host => None,
            EntryKind::ConfChange => Some(ConfChange::decode(&entry.data).map(ConfChange::into_v2)),
            EntryKind::ConfChangeV2 => Some(ConfChangeV2::decode(&entry.data)),
        };
        let new = change.map(|change| {
            let change = change.expect("a valid change");
            env.with(id, |node| node.apply_conf_change(&change))
                .expect("a possible change")
        });
        let storage = env.node(id).raft().storage_mut();
        let mut next = storage.history.last().cloned().unwrap_or_default();
        next.meta.last = entry.id();
        let mut data = next.data.to_vec();
        data.extend_from_slice(&entry.data);
        next.data = data.into();
        if let Some(state) = new {
            storage.log.set_conf_state(state.clone());
            next.meta.conf_state = state;
        }
        storage.history.push(next);
    }
}
