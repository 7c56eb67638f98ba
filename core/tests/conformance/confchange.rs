//! The cases of `confchange/`: one configuration per file, changed step by step.

use std::collections::BTreeMap;

use polyraft_core::{Configuration, ReplicaId};

use crate::commands::parse_changes;
use crate::reader::Case;

pub(crate) fn suite() -> Box<dyn FnMut(&Case) -> String> {
    let mut world = World::default();
    Box::new(move |case| world.run(case))
}

#[derive(Default)]
struct World {
    config: Configuration,
    /// The next index of each member, fixed when it came in.
    next: BTreeMap<ReplicaId, u64>,
    last: u64,
}

impl World {
    fn run(&mut self, case: &Case) -> String {
        let changes = parse_changes(&case.input);
        let changed = match case.command.as_str() {
            "simple" => self.config.simple(&changes),
            "enter-joint" => self
                .config
                .enter_joint(case.value("autoleave") == Some("true"), &changes),
            "leave-joint" => self.config.leave_joint(),
            other => return format!("unknown command {other}"),
        };
        let out = match changed {
            Ok(config) => self.switch(config),
            Err(error) => error.to_string(),
        };
        self.last += 1;
        out
    }

    fn switch(&mut self, config: Configuration) -> String {
        let members = config.members();
        self.next.retain(|id, _| members.contains(id));
        for id in members {
            self.next.entry(id).or_insert(self.last.max(1));
        }
        let mut out = format!("{config}\n");
        for (id, next) in &self.next {
            let learner = if config.is_learner(*id) {
                " learner"
            } else {
                ""
            };
            out.push_str(&format!("{id}: StateProbe match=0 next={next}{learner}\n"));
        }
        self.config = config;
        out
    }
}
