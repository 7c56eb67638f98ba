//! What the command line says about a group, in the shape that tests ask about.
//!
//! The only place that knows the fields of `polyraft group describe -o json`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Cluster;

/// One group as its leader describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// Its number.
    pub group: u64,
    /// The store that leads it.
    pub leader: Option<u64>,
    /// Stores with a vote.
    pub voters: BTreeSet<u64>,
    /// Stores with a learner.
    pub learners: BTreeSet<u64>,
    /// Ids of all replicas, ascending.
    pub replicas: Vec<u64>,
    /// Counts changes of membership.
    pub membership_epoch: u64,
    /// Index of the last entry that is no longer in the leader's log.
    pub truncated: u64,
    /// Index of the last entry of the leader's log.
    pub last: u64,
}

impl Cluster {
    /// Numbers of all groups.
    ///
    /// # Errors
    ///
    /// No store answers, or the answer has another shape.
    pub fn groups(&self) -> Result<Vec<u64>, String> {
        let list = self.json(&["group", "list"])?;
        list["groups"]
            .as_array()
            .ok_or("no `groups`")?
            .iter()
            .map(|group| number(group, "group"))
            .collect()
    }

    /// One group as its leader sees it.
    ///
    /// # Errors
    ///
    /// No store answers, the group has no leader now, or the answer has another shape.
    pub fn describe(&self, group: u64) -> Result<GroupView, String> {
        let id = group.to_string();
        let said = self.json(&["group", "describe", &id])?;
        let members = said["members"].as_array().ok_or("no `members`")?;
        let stores = |role: &str| -> Result<BTreeSet<u64>, String> {
            let those = members.iter().filter(|member| member["role"] == role);
            those.map(|member| number(member, "store")).collect()
        };
        let mut replicas = members
            .iter()
            .map(|m| number(m, "replica"))
            .collect::<Result<Vec<_>, _>>()?;
        replicas.sort_unstable();
        Ok(GroupView {
            group: number(&said, "group")?,
            leader: said["leader_store"].as_u64().filter(|store| *store > 0),
            voters: stores("voter")?,
            learners: stores("learner")?,
            replicas,
            membership_epoch: number(&said["epoch"], "membership")?,
            truncated: number(&said, "truncated_index")?,
            last: number(&said, "last_index")?,
        })
    }

    /// The store that leads `group`, once there is one.
    #[track_caller]
    pub fn leader_of(&self, group: u64) -> u64 {
        super::eventually("a leader", || {
            self.describe(group)?
                .leader
                .ok_or_else(|| "none yet".to_owned())
        })
    }
}

fn number(value: &Value, field: &str) -> Result<u64, String> {
    value[field]
        .as_u64()
        .ok_or_else(|| format!("no number `{field}` in {value}"))
}
