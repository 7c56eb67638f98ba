//! The commands of interaction files.

use bytes::Bytes;
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfChangeV2, ConfState, Config, EntryId, Index, MemoryStorage,
    Message, Payload, RaftNode, ReadMode, ReplicaId, RoleName, Snapshot, SnapshotMeta, Storage,
    SyncNode, Transition,
};

use crate::env::{Env, Face, Level, Node, NodeStorage, Parcel, What};
use crate::reader::Case;
use crate::ready::{process_append_thread, process_apply_thread, process_ready};
use crate::text;

pub(crate) fn run(env: &mut Env, case: &Case) -> String {
    env.output.clear();
    let result = dispatch(env, case);
    let output = std::mem::take(&mut env.output);
    match result {
        Err(error) if env.level == Level::None => error,
        Err(error) => output + &error,
        Ok(()) if output.is_empty() => "ok".to_owned(),
        Ok(()) => output,
    }
}

fn dispatch(env: &mut Env, case: &Case) -> Result<(), String> {
    let first = || case.ids()[0];
    match case.command.as_str() {
        "_breakpoint" => Ok(()),
        "log-level" => set_level(env, case.bare().next().unwrap_or_default()),
        "add-nodes" => add_nodes(env, case),
        "campaign" => env
            .with(first(), RaftNode::campaign)
            .map_err(|e| e.to_string()),
        "propose" => propose(env, case),
        "propose-conf-change" => propose_conf_change(env, case),
        "process-ready" => each(env, case, "handling Ready", process_ready),
        "process-append-thread" => {
            each(env, case, "processing append thread", process_append_thread)
        }
        "process-apply-thread" => each(env, case, "processing apply thread", process_apply_thread),
        "deliver-msgs" => deliver_msgs(env, case),
        "stabilize" => stabilize(env, case),
        "tick-election" => tick(env, first(), 3),
        "tick-heartbeat" => tick(env, first(), 1),
        "set-randomized-election-timeout" => {
            let ticks = case.numbers("timeout")[0];
            env.with(first(), |node| {
                node.set_randomized_election_timeout(ticks as u32)
            });
            Ok(())
        }
        "transfer-leadership" => {
            let (from, to) = (case.numbers("from")[0], case.numbers("to")[0]);
            env.with(from, |n| n.transfer_leader(ReplicaId(to)))
                .map_err(|e| e.to_string())
        }
        "forget-leader" => {
            env.with(first(), RaftNode::forget_leader);
            Ok(())
        }
        "report-unreachable" => {
            let ids = case.ids();
            env.with(ids[0], |node| node.report_unreachable(ReplicaId(ids[1])));
            Ok(())
        }
        "send-snapshot" => send_snapshot(env, case),
        "compact" => {
            let ids = case.ids();
            let log = &mut env.node(ids[0]).raft().storage_mut().log;
            log.truncate_to(Index(ids[1])).map_err(|e| e.to_string())?;
            raft_log(env, ids[0])
        }
        "raft-log" => raft_log(env, first()),
        "raft-state" => raft_state(env),
        "status" => status(env, first()),
        // This project's own.
        "read-index" => read_index(env, case),
        "restart" => restart(env, first()),
        _ => Err("unknown command".to_owned()),
    }
}

fn set_level(env: &mut Env, name: &str) -> Result<(), String> {
    let names = "log levels must be either of [DEBUG INFO WARN ERROR FATAL NONE]";
    env.level = Level::parse(name).ok_or(names)?;
    Ok(())
}

fn each(
    env: &mut Env,
    case: &Case,
    what: &str,
    run: fn(&mut Env, u64) -> Result<(), String>,
) -> Result<(), String> {
    let ids = case.ids();
    if let [id] = ids.as_slice() {
        return run(env, *id);
    }
    for id in ids {
        env.line(&format!("> {id} {what}"));
        env.indented(|env| run(env, id))?;
    }
    Ok(())
}

fn add_nodes(env: &mut Env, case: &Case) -> Result<(), String> {
    let replicas = |key| case.numbers(key).into_iter().map(ReplicaId).collect();
    let number = |key| case.numbers(key).first().copied();
    let flag = |key| case.value(key) == Some("true");
    let mut snapshot = Snapshot {
        meta: SnapshotMeta {
            last: EntryId::new(0, number("index").unwrap_or(0)),
            conf_state: ConfState {
                voters: replicas("voters"),
                learners: replicas("learners"),
                ..ConfState::default()
            },
        },
        data: Bytes::from(case.value("content").unwrap_or_default().to_owned()),
    };
    let bootstrap = snapshot != Snapshot::default();
    if bootstrap {
        if snapshot.meta.last.index <= Index(1) {
            return Err("index must be specified as > 1 due to bootstrap".to_owned());
        }
        snapshot.meta.last.term.0 = 1;
    }
    for _ in 0..case.ids()[0] {
        let id = ReplicaId(env.nodes.len() as u64 + 1);
        let config = Config {
            election_ticks: 3,
            heartbeat_ticks: 1,
            applied: snapshot.meta.last.index,
            max_message_bytes: number("max-size-per-msg").unwrap_or(u64::MAX),
            max_committed_bytes: number("max-committed-size-per-ready").unwrap_or(0),
            max_uncommitted_bytes: number("max-uncommitted-size").unwrap_or(0),
            max_inflight_messages: number("inflight").unwrap_or(i32::MAX as u64) as usize,
            max_inflight_bytes: number("inflight-bytes").unwrap_or(0),
            check_quorum: flag("checkquorum"),
            pre_vote: flag("prevote"),
            read_mode: match case.value("read-only") {
                Some("lease-based") => ReadMode::LeaseBased,
                _ => ReadMode::Safe,
            },
            disable_conf_change_validation: flag("disable-conf-change-validation"),
            step_down_on_removal: flag("step-down-on-removal"),
            ..Config::new(id)
        };
        let mut log = MemoryStorage::new();
        if bootstrap {
            log.apply_snapshot(snapshot.clone())
                .map_err(|e| e.to_string())?;
        }
        let storage = NodeStorage {
            log,
            history: vec![snapshot.clone()],
        };
        start(env, config, storage, flag("async-storage-writes"), None);
    }
    Ok(())
}

fn start(
    env: &mut Env,
    config: Config,
    storage: NodeStorage,
    asynchronous: bool,
    at: Option<usize>,
) {
    let id = config.id.0;
    let face = if asynchronous {
        let node = RaftNode::new(config.clone(), storage).expect("a node starts");
        Face::Async(Box::new(node))
    } else {
        let node = SyncNode::new(config.clone(), storage).expect("a node starts");
        Face::Sync(Box::new(node))
    };
    let node = Node {
        face,
        config,
        append_work: Default::default(),
        apply_work: Default::default(),
    };
    match at {
        Some(at) => env.nodes[at] = node,
        None => env.nodes.push(node),
    }
    env.with(id, |_| ());
}

fn propose(env: &mut Env, case: &Case) -> Result<(), String> {
    let words: Vec<&str> = case.bare().collect();
    let id = words[0].parse().expect("a node id");
    let payloads: Vec<Bytes> = words[1..]
        .iter()
        .map(|word| Bytes::from((*word).to_owned()))
        .collect();
    env.with(id, |node| node.propose(payloads))
        .map_err(|e| e.to_string())?;
    Ok(())
}

/// `v1 l2 r3 u4`.
pub(crate) fn parse_changes(input: &str) -> Vec<(ConfChangeKind, ReplicaId)> {
    let change = |token: &str| {
        let kind = match token.as_bytes()[0] {
            b'v' => ConfChangeKind::AddVoter,
            b'l' => ConfChangeKind::AddLearner,
            b'r' => ConfChangeKind::Remove,
            b'u' => ConfChangeKind::Update,
            _ => panic!("unknown change {token}"),
        };
        (kind, ReplicaId(token[1..].parse().expect("a node id")))
    };
    input.split_whitespace().map(change).collect()
}

fn propose_conf_change(env: &mut Env, case: &Case) -> Result<(), String> {
    let transition = match case.value("transition") {
        None | Some("auto") => Transition::Auto,
        Some("implicit") => Transition::JointImplicit,
        Some("explicit") => Transition::JointExplicit,
        Some(other) => return Err(format!("unknown transition {other}")),
    };
    let changes = parse_changes(&case.input);
    let id = case.ids()[0];
    let result = if case.value("v1") == Some("true") {
        let (&[(kind, replica)], Transition::Auto) = (changes.as_slice(), transition) else {
            return Err("v1 conf change can only have one operation and no transition".to_owned());
        };
        let change = ConfChange {
            kind,
            replica,
            context: Bytes::new(),
        };
        env.with(id, |node| node.propose_conf_change_v1(&change))
    } else {
        let change = ConfChangeV2 {
            transition,
            changes,
            context: Bytes::new(),
        };
        env.with(id, |node| node.propose_conf_change(&change))
    };
    result.map(|_| ()).map_err(|e| e.to_string())
}

fn deliver_msgs(env: &mut Env, case: &Case) -> Result<(), String> {
    let wanted = case.value("type");
    let mut any = false;
    for argument in &case.arguments {
        match argument.key.as_str() {
            "type" => {}
            "drop" => {
                for id in &argument.values {
                    any |= deliver(env, id.parse().expect("a node id"), wanted, true);
                }
            }
            id => any |= deliver(env, id.parse().expect("a node id"), wanted, false),
        }
    }
    if !any {
        env.line("no messages");
    }
    Ok(())
}

/// Delivers or drops what is on its way to `id`. Returns whether there was anything.
fn deliver(env: &mut Env, id: u64, wanted: Option<&str>, drop: bool) -> bool {
    let all = std::mem::take(&mut env.messages);
    let (taken, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|parcel| {
        parcel.to == id
            && wanted.is_none_or(|name| parcel.text.name == name)
            && !(drop && parcel.is_local())
    });
    env.messages = rest;
    let any = !taken.is_empty();
    for parcel in taken {
        let text = parcel.text.render("");
        if drop {
            env.line(&format!("dropped: {text}"));
            continue;
        }
        env.line(&text);
        match parcel.what {
            What::Message(message) => {
                if let Err(error) = env.with(id, |node| node.step_any(message)) {
                    env.line(&error.to_string());
                }
            }
            What::Persisted(token) => {
                env.with(id, |node| node.on_persisted(token))
                    .expect("a receipt is accepted");
            }
            What::Applied(index, bytes) => {
                env.with(id, |node| node.on_applied(index, bytes))
                    .expect("applied");
            }
        }
    }
    any
}

fn stabilize(env: &mut Env, case: &Case) -> Result<(), String> {
    let before = env.level;
    if let Some(name) = case.value("log-level") {
        set_level(env, name)?;
    }
    let mut ids = case.ids();
    if ids.is_empty() {
        ids = (1..=env.nodes.len() as u64).collect();
    }
    while stabilize_round(env, &ids)? {}
    env.level = before;
    Ok(())
}

fn stabilize_round(env: &mut Env, ids: &[u64]) -> Result<bool, String> {
    let mut any = false;
    for &id in ids {
        if env.node(id).has_ready() {
            any = true;
            env.line(&format!("> {id} handling Ready"));
            env.indented(|env| process_ready(env, id))?;
        }
    }
    for &id in ids {
        if env.messages.iter().any(|parcel| parcel.to == id) {
            any = true;
            env.line(&format!("> {id} receiving messages"));
            env.indented(|env| {
                deliver(env, id, None, false);
                Ok(())
            })?;
        }
    }
    for &id in ids {
        if !env.node(id).append_work.is_empty() {
            any = true;
            env.line(&format!("> {id} processing append thread"));
            while !env.node(id).append_work.is_empty() {
                env.indented(|env| process_append_thread(env, id))?;
            }
        }
    }
    for &id in ids {
        if !env.node(id).apply_work.is_empty() {
            any = true;
            env.line(&format!("> {id} processing apply thread"));
            while !env.node(id).apply_work.is_empty() {
                env.indented(|env| process_apply_thread(env, id))?;
            }
        }
    }
    Ok(any)
}

fn tick(env: &mut Env, id: u64, count: usize) -> Result<(), String> {
    for _ in 0..count {
        env.with(id, RaftNode::tick).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn send_snapshot(env: &mut Env, case: &Case) -> Result<(), String> {
    let ids = case.ids();
    let node = env.node(ids[0]).raft();
    let snapshot = node.storage().history.last().cloned().unwrap_or_default();
    let parcel = Parcel::message(Message {
        from: ReplicaId(ids[0]),
        to: ReplicaId(ids[1]),
        term: node.term(),
        payload: Payload::Snapshot(snapshot.into()),
    });
    env.write(&parcel.text.render(""));
    env.messages.push(parcel);
    Ok(())
}

fn raft_log(env: &mut Env, id: u64) -> Result<(), String> {
    let log = &env.node(id).raft().storage().log;
    let lines: Vec<String> = log.all().iter().map(text::entry).collect();
    let empty = format!(
        "log is empty: first index={}, last index={}",
        log.first_index(),
        log.last_index()
    );
    if lines.is_empty() {
        env.write(&empty);
    }
    for line in lines {
        env.line(&line);
    }
    Ok(())
}

fn raft_state(env: &mut Env) -> Result<(), String> {
    for id in 1..=env.nodes.len() as u64 {
        let status = env.node(id).raft().status();
        let (state, conf) = (status.basic.soft_state, &status.conf_state);
        let voter =
            conf.voters.contains(&ReplicaId(id)) || conf.voters_outgoing.contains(&ReplicaId(id));
        let voter = if voter { "Voter" } else { "Non-Voter" };
        let (role, term) = (text::role(state.role), status.basic.hard_state.term);
        env.line(&format!(
            "{id}: {role} ({voter}) Term:{term} Lead:{}",
            state.leader
        ));
    }
    Ok(())
}

fn status(env: &mut Env, id: u64) -> Result<(), String> {
    for progress in env.node(id).raft().status().progress {
        env.line(&format!("{}: {}", progress.id, text::progress(&progress)));
    }
    Ok(())
}

/// `read-index <id> <context>`.
fn read_index(env: &mut Env, case: &Case) -> Result<(), String> {
    let words: Vec<&str> = case.bare().collect();
    let id = words[0].parse().expect("a node id");
    let context = Bytes::from(words[1].to_owned());
    env.with(id, |node| node.read_index(context))
        .map_err(|e| e.to_string())
}

/// `restart <id>`: everything but the stable storage and the applied state is forgotten.
fn restart(env: &mut Env, id: u64) -> Result<(), String> {
    let at = id as usize - 1;
    let node = env.node(id);
    assert_ne!(
        node.raft().role(),
        RoleName::PreCandidate,
        "a transcript restarts settled nodes"
    );
    let asynchronous = matches!(node.face, Face::Async(_));
    let mut config = node.config.clone();
    let old = node.raft().storage();
    let storage = NodeStorage {
        log: old.log.clone(),
        history: old.history.clone(),
    };
    let applied = storage
        .history
        .last()
        .map_or(Index(0), |snapshot| snapshot.meta.last.index);
    // An installed snapshot is applied by being stored.
    config.applied = applied.max(storage.first_index().prev());
    start(env, config, storage, asynchronous, Some(at));
    Ok(())
}
