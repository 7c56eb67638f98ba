//! Everything as etcd writes it.

use std::fmt::Write as _;

use bytes::Bytes;
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfChangeRefusal, ConfChangeV2, ConfState, Entry, EntryKind,
    Event, HardState, Message, MessageKind, Payload, ProgressState, ProgressStatus, ReplicaId,
    RoleName, Snapshot, Transition,
};

use crate::env::Level;

pub(crate) fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Follower => "StateFollower",
        RoleName::PreCandidate => "StatePreCandidate",
        RoleName::Candidate => "StateCandidate",
        RoleName::Leader => "StateLeader",
    }
}

pub(crate) fn kind(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Append => "MsgApp",
        MessageKind::AppendResponse => "MsgAppResp",
        MessageKind::Heartbeat => "MsgHeartbeat",
        MessageKind::HeartbeatResponse => "MsgHeartbeatResp",
        MessageKind::PreVote => "MsgPreVote",
        MessageKind::PreVoteResponse => "MsgPreVoteResp",
        MessageKind::Propose => "MsgProp",
        MessageKind::ReadIndex => "MsgReadIndex",
        MessageKind::ReadIndexResponse => "MsgReadIndexResp",
        MessageKind::Snapshot => "MsgSnap",
        MessageKind::TimeoutNow => "MsgTimeoutNow",
        MessageKind::TransferLeader => "MsgTransferLeader",
        MessageKind::Vote => "MsgVote",
        MessageKind::VoteResponse => "MsgVoteResp",
    }
}

fn vote_kind(pre: bool) -> &'static str {
    if pre { "MsgPreVote" } else { "MsgVote" }
}

/// Go's `%q` for what occurs in payloads.
pub(crate) fn quoted(data: &[u8]) -> String {
    let mut out = String::from("\"");
    for c in String::from_utf8_lossy(data).chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(crate) fn entry(entry: &Entry) -> String {
    let id = format!("{}/{}", entry.term, entry.index);
    match entry.kind {
        EntryKind::Normal => format!("{id} EntryNormal {}", quoted(&entry.data)),
        EntryKind::Host => format!("{id} EntryHost {}", quoted(&entry.data)),
        EntryKind::ConfChange => {
            let change = ConfChange::decode(&entry.data)
                .expect("a valid change")
                .into_v2();
            with_changes(format!("{id} EntryConfChange"), &change)
        }
        EntryKind::ConfChangeV2 => {
            let change = ConfChangeV2::decode(&entry.data).expect("a valid change");
            with_changes(format!("{id} EntryConfChangeV2"), &change)
        }
    }
}

fn with_changes(mut out: String, change: &ConfChangeV2) -> String {
    for (kind, id) in &change.changes {
        let letter = match kind {
            ConfChangeKind::AddVoter => 'v',
            ConfChangeKind::AddLearner => 'l',
            ConfChangeKind::Remove => 'r',
            ConfChangeKind::Update => 'u',
        };
        let _ = write!(out, " {letter}{id}");
    }
    out
}

pub(crate) fn target(id: u64) -> String {
    match id {
        0 => "None".to_owned(),
        APPEND_THREAD => "AppendThread".to_owned(),
        APPLY_THREAD => "ApplyThread".to_owned(),
        id => format!("{id:x}"),
    }
}

pub(crate) const APPEND_THREAD: u64 = u64::MAX;
pub(crate) const APPLY_THREAD: u64 = u64::MAX - 1;

/// A message as it is written, whatever it was made from.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) name: &'static str,
    pub(crate) term: u64,
    pub(crate) log_term: u64,
    pub(crate) index: u64,
    pub(crate) reject: Option<u64>,
    pub(crate) commit: u64,
    pub(crate) vote: u64,
    pub(crate) entries: Vec<String>,
    pub(crate) snapshot: Option<String>,
    pub(crate) responses: Vec<Self>,
}

impl Written {
    pub(crate) fn render(&self, indent: &str) -> String {
        let mut out = format!(
            "{indent}{}->{} {} Term:{} Log:{}/{}",
            target(self.from),
            target(self.to),
            self.name,
            self.term,
            self.log_term,
            self.index
        );
        if let Some(hint) = self.reject {
            let _ = write!(out, " Rejected (Hint: {hint})");
        }
        if self.commit != 0 {
            let _ = write!(out, " Commit:{}", self.commit);
        }
        if self.vote != 0 {
            let _ = write!(out, " Vote:{}", self.vote);
        }
        match self.entries.as_slice() {
            [] => {}
            [one] => {
                let _ = write!(out, " Entries:[{one}]");
            }
            many => {
                out.push_str(" Entries:[");
                for entry in many {
                    let _ = write!(out, "\n{indent}  {entry}");
                }
                let _ = write!(out, "\n{indent}]");
            }
        }
        if let Some(snapshot) = &self.snapshot {
            let _ = write!(out, "\n{indent}  Snapshot: {snapshot}");
        }
        if !self.responses.is_empty() {
            out.push_str(" Responses:[");
            for response in &self.responses {
                let _ = write!(out, "\n{}", response.render(&format!("{indent}  ")));
            }
            let _ = write!(out, "\n{indent}]");
        }
        out
    }
}

pub(crate) fn message(m: &Message) -> Written {
    let mut out = Written {
        from: m.from.0,
        to: m.to.0,
        name: kind(m.payload.kind()),
        term: m.term.0,
        ..Written::default()
    };
    match &m.payload {
        Payload::Append {
            prev,
            entries,
            commit,
        } => {
            (out.log_term, out.index, out.commit) = (prev.term.0, prev.index.0, commit.0);
            out.entries = entries.iter().map(entry).collect();
        }
        Payload::AppendResponse { index, reject } => {
            out.index = index.0;
            if let Some(hint) = reject {
                out.reject = Some(hint.index.0);
                out.log_term = hint.term.0;
            }
        }
        Payload::Vote { last, .. } => (out.log_term, out.index) = (last.term.0, last.index.0),
        Payload::VoteResponse { reject, .. } => out.reject = reject.then_some(0),
        Payload::Heartbeat { commit, .. } => out.commit = commit.0,
        Payload::Snapshot(snapshot) => out.snapshot = Some(self::snapshot(snapshot)),
        Payload::Propose { entries } => out.entries = entries.iter().map(entry).collect(),
        Payload::ReadIndex { context } => out.entries = vec![context_entry(context)],
        Payload::ReadIndexResponse { index, context } => {
            out.index = index.0;
            out.entries = vec![context_entry(context)];
        }
        Payload::HeartbeatResponse { .. } | Payload::TransferLeader | Payload::TimeoutNow => {}
    }
    out
}

fn context_entry(context: &Bytes) -> String {
    format!("0/0 EntryNormal {}", quoted(context))
}

pub(crate) fn conf_state(state: &ConfState) -> String {
    let list = |ids: &[ReplicaId]| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        format!("[{}]", ids.join(" "))
    };
    format!(
        "Voters:{} VotersOutgoing:{} Learners:{} LearnersNext:{} AutoLeave:{}",
        list(&state.voters),
        list(&state.voters_outgoing),
        list(&state.learners),
        list(&state.learners_next),
        state.auto_leave
    )
}

pub(crate) fn snapshot(snapshot: &Snapshot) -> String {
    let meta = &snapshot.meta;
    let state = conf_state(&meta.conf_state);
    format!(
        "Index:{} Term:{} ConfState:{state}",
        meta.last.index, meta.last.term
    )
}

pub(crate) fn hard_state(state: &HardState) -> String {
    let mut out = format!("HardState Term:{}", state.term);
    if !state.vote.is_none() {
        let _ = write!(out, " Vote:{}", state.vote);
    }
    let _ = write!(out, " Commit:{}", state.commit);
    out
}

pub(crate) fn progress(p: &ProgressStatus) -> String {
    let name = match p.state {
        ProgressState::Probe => "StateProbe",
        ProgressState::Replicate => "StateReplicate",
        ProgressState::Snapshot(_) => "StateSnapshot",
    };
    let mut out = format!("{name} match={} next={}", p.matched, p.next);
    if p.learner {
        out.push_str(" learner");
    }
    if p.paused {
        out.push_str(" paused");
    }
    if let ProgressState::Snapshot(pending) = p.state {
        let _ = write!(out, " pendingSnap={pending}");
    }
    if !p.recently_active {
        out.push_str(" inactive");
    }
    if p.inflight_messages > 0 {
        let _ = write!(out, " inflight={}", p.inflight_messages);
        if p.inflight_full {
            out.push_str("[full]");
        }
    }
    out
}

fn change_text(change: &ConfChangeV2) -> String {
    let transition = match change.transition {
        Transition::Auto => "ConfChangeTransitionAuto",
        Transition::JointImplicit => "ConfChangeTransitionJointImplicit",
        Transition::JointExplicit => "ConfChangeTransitionJointExplicit",
    };
    let mut out = format!("transition:{transition}");
    for (kind, id) in &change.changes {
        let kind = match kind {
            ConfChangeKind::AddVoter => "ConfChangeAddNode",
            ConfChangeKind::AddLearner => "ConfChangeAddLearnerNode",
            ConfChangeKind::Remove => "ConfChangeRemoveNode",
            ConfChangeKind::Update => "ConfChangeUpdateNode",
        };
        let _ = write!(out, " changes:{{type:{kind} node_id:{id}}}");
    }
    if !change.context.is_empty() {
        let _ = write!(out, " context:{}", quoted(&change.context));
    }
    out
}

/// The log lines for an event, with their levels; none for what etcd does not log at debug.
pub(crate) fn event(id: ReplicaId, event: &Event) -> Vec<(Level, String)> {
    let me = format!("{:x}", id.0);
    let one = |level, text| vec![(level, text)];
    match event {
        Event::AppendRejected {
            from,
            own_term,
            prev,
        } => one(
            Level::Debug,
            format!(
                "{me} [logterm: {own_term}, index: {}] rejected MsgApp [logterm: {}, index: {}] from {:x}",
                prev.index, prev.term, prev.index, from.0
            ),
        ),
        Event::AutoLeaveInitiated { config } => one(
            Level::Info,
            format!("initiating automatic transition out of joint configuration {config}"),
        ),
        Event::BecameRole { role, term } => {
            let name = match role {
                RoleName::Follower => "follower",
                RoleName::PreCandidate => "pre-candidate",
                RoleName::Candidate => "candidate",
                RoleName::Leader => "leader",
            };
            one(Level::Info, format!("{me} became {name} at term {term}"))
        }
        Event::CampaignStarted { term } => one(
            Level::Info,
            format!("{me} is starting a new election at term {term}"),
        ),
        Event::ConfChangeIgnored {
            change,
            config,
            reason,
            ..
        } => {
            let reason = match reason {
                ConfChangeRefusal::InJoint => {
                    "must transition out of joint config first".to_owned()
                }
                ConfChangeRefusal::NotInJoint => {
                    "not in joint state; refusing empty conf change".to_owned()
                }
                ConfChangeRefusal::Pending { index, applied } => format!(
                    "possible unapplied conf change at index {index} (applied to {applied})"
                ),
            };
            let change = change_text(change);
            one(
                Level::Info,
                format!("{me} ignoring conf change {change} at config {config}: {reason}"),
            )
        }
        Event::ConfigSwitched { config } => one(
            Level::Info,
            format!("{me} switched to configuration {config}"),
        ),
        Event::ConflictFound {
            index,
            existing,
            conflicting,
        } => one(
            Level::Info,
            format!(
                "found conflict at index {index} [existing term: {existing}, conflicting term: {conflicting}]"
            ),
        ),
        Event::HigherTerm {
            from,
            kind: k,
            own,
            term,
        } => one(
            Level::Info,
            format!(
                "{me} [term: {own}] received a {} message with higher term from {:x} [term: {term}]",
                kind(*k),
                from.0
            ),
        ),
        Event::LeaderForgotten { leader, term } => one(
            Level::Info,
            format!("{me} forgetting leader {:x} at term {term}", leader.0),
        ),
        Event::ForgetLeaderRefused => one(
            Level::Error,
            "ignoring MsgForgetLeader due to ReadOnlyLeaseBased".to_owned(),
        ),
        Event::LowerTermIgnored {
            from,
            kind: k,
            own,
            term,
        } => one(
            Level::Info,
            format!(
                "{me} [term: {own}] ignored a {} message with lower term from {:x} [term: {term}]",
                kind(*k),
                from.0
            ),
        ),
        Event::LowerTermReceiptIgnored { own, term } => one(
            Level::Info,
            format!(
                "{me} [term: {own}] ignored entry appends from a MsgStorageAppendResp message with lower term [term: {term}]"
            ),
        ),
        Event::NoLeaderForProposal { term } => one(
            Level::Info,
            format!("{me} no leader at term {term}; dropping proposal"),
        ),
        Event::NodeCreated {
            hard_state,
            config,
            applied,
            last,
        } => {
            let peers: Vec<String> = config
                .voters()
                .iter()
                .map(|id| format!("{:x}", id.0))
                .collect();
            one(
                Level::Info,
                format!(
                    "newRaft {me} [peers: [{}], term: {}, commit: {}, applied: {applied}, lastindex: {}, lastterm: {}]",
                    peers.join(","),
                    hard_state.term,
                    hard_state.commit,
                    last.index,
                    last.term
                ),
            )
        }
        Event::ProgressDecreased { progress: p } => one(
            Level::Debug,
            format!(
                "{me} decreased progress of {:x} to [{}]",
                p.id.0,
                progress(p)
            ),
        ),
        Event::ReceiptMissing { index } => one(
            Level::Info,
            format!("entry at index {index} missing from unstable log; ignoring"),
        ),
        Event::ReceiptMismatched { receipt, waiting } => one(
            Level::Info,
            format!(
                "entry at (index,term)=({},{}) mismatched with entry at ({},{}) in unstable log; ignoring",
                receipt.index, receipt.term, waiting.index, waiting.term
            ),
        ),
        Event::RejectionReceived { from, index, hint } => one(
            Level::Debug,
            format!(
                "{me} received MsgAppResp(rejected, hint: (index {}, term {})) from {:x} for index {index}",
                hint.index, hint.term, from.0
            ),
        ),
        Event::Restored {
            snapshot,
            commit,
            last,
        } => vec![
            (
                Level::Info,
                format!(
                    "{me} [commit: {commit}, lastindex: {}, lastterm: {}] restored snapshot [index: {}, term: {}]",
                    last.index, last.term, snapshot.index, snapshot.term
                ),
            ),
            (
                Level::Info,
                format!(
                    "{me} [commit: {commit}] restored snapshot [index: {}, term: {}]",
                    snapshot.index, snapshot.term
                ),
            ),
        ],
        Event::RestoreStarted {
            snapshot,
            cursors: c,
        } => one(
            Level::Info,
            format!(
                "log [committed={}, applied={}, applying={}, unstable.offset={}, unstable.offsetInProgress={}, len(unstable.Entries)={}] starts to restore snapshot [index: {}, term: {}]",
                c.committed,
                c.applied,
                c.applying,
                c.unstable_offset,
                c.unstable_next,
                c.unstable_len,
                snapshot.index,
                snapshot.term
            ),
        ),
        Event::SnapshotRecovered { progress: p } => one(
            Level::Debug,
            format!(
                "{me} recovered from needing snapshot, resumed sending replication messages to {:x} [{}]",
                p.id.0,
                progress(p)
            ),
        ),
        Event::SnapshotSent {
            first,
            commit,
            snapshot,
            before,
            after,
        } => vec![
            (
                Level::Debug,
                format!(
                    "{me} [firstindex: {first}, commit: {commit}] sent snapshot[index: {}, term: {}] to {:x} [{}]",
                    snapshot.index,
                    snapshot.term,
                    before.id.0,
                    progress(before)
                ),
            ),
            (
                Level::Debug,
                format!(
                    "{me} paused sending replication messages to {:x} [{}]",
                    after.id.0,
                    progress(after)
                ),
            ),
        ],
        Event::SteppedDownWithoutQuorum => one(
            Level::Warn,
            format!("{me} stepped down to follower since quorum is not active"),
        ),
        Event::TimeoutNowSent { to, at_once: true } => one(
            Level::Info,
            format!(
                "{me} sends MsgTimeoutNow to {0:x} immediately as {0:x} already has up-to-date log",
                to.0
            ),
        ),
        Event::TimeoutNowReceived { from, term } => one(
            Level::Info,
            format!(
                "{me} [term {term}] received MsgTimeoutNow from {:x} and starts an election to get leadership.",
                from.0
            ),
        ),
        Event::TransferStarted { to, term } => one(
            Level::Info,
            format!(
                "{me} [term {term}] starts to transfer leadership to {:x}",
                to.0
            ),
        ),
        Event::Unpromotable => one(
            Level::Warn,
            format!("{me} is unpromotable and can not campaign"),
        ),
        Event::UnstableReplaced { from } => one(
            Level::Info,
            format!("replace the unstable entries from index {from}"),
        ),
        Event::Unreachable { progress: p } => one(
            Level::Debug,
            format!(
                "{me} failed to send message to {:x} because it is unreachable [{}]",
                p.id.0,
                progress(p)
            ),
        ),
        Event::VoteCounted {
            pre,
            granted,
            rejected,
        } => one(
            Level::Info,
            format!(
                "{me} has received {granted} {}Resp votes and {rejected} vote rejections",
                vote_kind(*pre)
            ),
        ),
        Event::VoteDecided {
            pre,
            granted,
            from,
            candidate,
            last,
            vote,
            term,
        } => {
            let (verb, from_or_for) = if *granted {
                ("cast", "for")
            } else {
                ("rejected", "from")
            };
            one(
                Level::Info,
                format!(
                    "{me} [logterm: {}, index: {}, vote: {:x}] {verb} {} {from_or_for} {:x} [logterm: {}, index: {}] at term {term}",
                    last.term,
                    last.index,
                    vote.0,
                    vote_kind(*pre),
                    from.0,
                    candidate.term,
                    candidate.index
                ),
            )
        }
        Event::VoteIgnoredInLease {
            pre,
            from,
            candidate,
            last,
            vote,
            term,
            remaining_ticks,
        } => one(
            Level::Info,
            format!(
                "{me} [logterm: {}, index: {}, vote: {:x}] ignored {} from {:x} [logterm: {}, index: {}] at term {term}: lease is not expired (remaining ticks: {remaining_ticks})",
                last.term,
                last.index,
                vote.0,
                vote_kind(*pre),
                from.0,
                candidate.term,
                candidate.index
            ),
        ),
        Event::VoteReceived {
            pre,
            granted,
            from,
            term,
        } => {
            let rejection = if *granted { "" } else { " rejection" };
            one(
                Level::Info,
                format!(
                    "{me} received {}Resp{rejection} from {:x} at term {term}",
                    vote_kind(*pre),
                    from.0
                ),
            )
        }
        Event::VoteRequested {
            pre,
            to,
            last,
            term,
        } => one(
            Level::Info,
            format!(
                "{me} [logterm: {}, index: {}] sent {} request to {:x} at term {term}",
                last.term,
                last.index,
                vote_kind(*pre),
                to.0
            ),
        ),
        // Not logged there, or in situations that its files do not reach.
        _ => Vec::new(),
    }
}
