//! The ranges that the key space of a new cluster is cut into.
//!
//! `Init` may reach any store, and several at once. All are handed to the founder, which keeps what
//! the first one asked for before anything is created ([`Plan`]); the groups, their ranges and their
//! members follow from that alone, so an init that was cut short is completed by the next.

use std::time::Duration;

use bytes::Bytes;
use polyraft_multiraft::KeyRange;
use tokio::time::{Instant, sleep, timeout_at};

use super::joining::{say_hello, shown};
use super::plan::{PLAN, Plan};
use crate::directory::command::{Command, Reply};
use crate::directory::lead::replicas_at_first;
use crate::directory::{DIRECTORY, Named};
use crate::embed::new_descriptor;
use crate::failure::{Failure, Reason};
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{HelloRequest, InitRequest, InitResponse};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// More groups than this in one request are taken for a mistake.
const GROUPS_MAX: u64 = 1_000_000;
/// Groups whose creation is under way at once.
const CREATIONS: usize = 64;

impl Server {
    /// `Init` as any store answers it.
    pub(super) async fn init(
        &self,
        request: InitRequest,
        call: Call,
    ) -> Result<InitResponse, Failure> {
        if request.groups == 0 || request.groups > GROUPS_MAX {
            let text = format!("the number of groups must be between 1 and {GROUPS_MAX}");
            return Err(Failure::new(Reason::BadRequest, text));
        }
        if self.founder == self.me {
            return self.create_ranges(request, call).await;
        }
        let founder = self.founder;
        if call.forwarded {
            let text = format!("this store did not begin the cluster; store {founder} did");
            return Err(Failure::new(Reason::Refused, text));
        }
        let channel = self.channel_to(founder)?;
        let answer = AdminClient::new(channel).init(call.forward(request)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            let failure = Failure::from_status(&status, false);
            if failure.reason == Reason::Unreachable {
                let address = self.peers.address(founder).unwrap_or_default();
                let text = format!(
                    "store {founder} at {address}, which began the cluster and decides on its ranges, \
                     cannot be reached"
                );
                return Failure { message: text, ..failure };
            }
            failure
        })
    }

    /// Creates the groups of the plan; the first request makes the plan.
    async fn create_ranges(
        &self,
        request: InitRequest,
        call: Call,
    ) -> Result<InitResponse, Failure> {
        let InitRequest { groups, replicas } = request;
        // At once, and not behind an init that is at work: a request for something else is refused.
        if let Some(plan) = self.plan()? {
            plan.must_match(groups, replicas)?;
        }
        let busy = || Failure::new(Reason::Stale, "another init is at work; try again");
        let Ok(_turn) = timeout_at(call.deadline, self.init_turn.lock()).await else {
            return Err(busy());
        };
        let plan = match self.plan()? {
            Some(plan) => {
                plan.must_match(groups, replicas)?;
                plan
            }
            None => self.make_plan(groups, replicas, call).await?,
        };
        if plan.done {
            return Ok(InitResponse {
                groups,
                already: true,
            });
        }
        self.carry_out(&plan, call).await?;
        self.keep_plan(&Plan { done: true, ..plan })?;
        self.refresh_local_routes();
        Ok(InitResponse {
            groups,
            already: false,
        })
    }

    fn plan(&self) -> Result<Option<Plan>, Failure> {
        let internal = |text: String| Failure::new(Reason::Internal, text);
        let kept = self
            .meta
            .get_server(PLAN)
            .map_err(|error| internal(error.to_string()))?;
        let Some(kept) = kept else {
            return Ok(None);
        };
        let plan = Plan::decode(&kept).ok_or_else(|| {
            internal("what this store keeps of the first init is malformed".to_owned())
        })?;
        Ok(Some(plan))
    }

    fn keep_plan(&self, plan: &Plan) -> Result<(), Failure> {
        let kept = self.meta.put_server(PLAN, plan.encode());
        kept.map_err(|error| Failure::new(Reason::Internal, error.to_string()))
    }

    async fn make_plan(&self, groups: u64, replicas: u32, call: Call) -> Result<Plan, Failure> {
        let stores = self.wait_for_all(call).await?;
        let replicas = Plan::replicas(replicas, stores.len())?;
        let known = self.list_everywhere(self.list_here()).await.groups;
        if let Some(group) = known.first() {
            let text = format!(
                "group {} exists, and this store knows of no init",
                Named(group.group)
            );
            return Err(Failure::new(Reason::Refused, text));
        }
        let plan = Plan {
            groups,
            replicas,
            stores,
            done: false,
        };
        self.keep_plan(&plan)?;
        Ok(plan)
    }

    async fn carry_out(&self, plan: &Plan, call: Call) -> Result<(), Failure> {
        // First of all: later groups get higher numbers than the ranges, wherever they are created.
        self.begin_directory(plan, call).await?;
        let numbers: Vec<u64> = (1..=plan.groups).collect();
        for some in numbers.chunks(CREATIONS) {
            let each = some.iter().map(|number| {
                let range = range_of(*number - 1, plan.groups);
                let members = members_of(*number - 1, &plan.stores, plan.replicas as usize);
                let descriptor = new_descriptor(*number, Some(range), &members);
                async move { self.create_replicas(&descriptor, call).await }
            });
            if let Some((store, failure)) = futures_join(each).await.into_iter().flatten().next() {
                return Err(again(store, failure));
            }
        }
        Ok(())
    }

    /// Creates the directory, and tells it which stores and numbers there are.
    async fn begin_directory(&self, plan: &Plan, call: Call) -> Result<(), Failure> {
        let stores = &plan.stores[..replicas_at_first(plan.stores.len())];
        let descriptor = new_descriptor(DIRECTORY, None, stores);
        let failures = self.create_replicas(&descriptor, call).await;
        if let Some((store, failure)) = failures.into_iter().next() {
            return Err(again(store, failure));
        }
        let address = |store: &u64| (*store, self.peers.address(*store).unwrap_or_default());
        let begin = Command::Begin {
            groups: plan.groups,
            stores: plan.stores.iter().map(address).collect(),
        };
        match self.change_directory(&begin, call).await? {
            Reply::Done => Ok(()),
            other => {
                let text = format!("told to begin, the directory answered {other:?}");
                Err(Failure::new(Reason::Internal, text))
            }
        }
    }

    /// All stores that are known, once each of them has joined and can be heard.
    async fn wait_for_all(&self, call: Call) -> Result<Vec<u64>, Failure> {
        let greeting = self.greeting();
        loop {
            let mut waits_for = None;
            let others = self.peers.others();
            let hellos = others.iter().map(|s| say_hello(&self.peers, *s, &greeting));
            for (store, hello) in others.iter().zip(futures_join(hellos).await) {
                match hello {
                    Some(hello) if hello.store != *store => {
                        let text = format!("store {} answers for store {store}", hello.store);
                        return Err(Failure::new(Reason::Refused, text));
                    }
                    Some(hello) if hello.cluster == self.cluster => {
                        self.meet(*store, shown(&hello), true)
                            .map_err(|why| Failure::new(Reason::Refused, why))?;
                    }
                    Some(hello) if hello.cluster != 0 => {
                        let address = self.peers.address(*store).unwrap_or_default();
                        let text = format!("store {store} at {address} belongs to another cluster");
                        return Err(Failure::new(Reason::Refused, text));
                    }
                    _ => waits_for = waits_for.or(Some(*store)),
                }
            }
            let connected = self.peers.connected();
            let unheard = others.iter().find(|store| !connected.contains(store));
            let Some(store) = waits_for.or(unheard.copied()) else {
                return Ok(self.peers.addresses().into_keys().collect());
            };
            if Instant::now() >= call.deadline {
                let address = self.peers.address(store).unwrap_or_default();
                let text = format!(
                    "store {store} at {address} has not joined: start all stores, then init"
                );
                return Err(Failure::new(Reason::NotInitialised, text));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn greeting(&self) -> HelloRequest {
        HelloRequest {
            store: self.me,
            cluster: self.cluster,
            address: self.peers.address(self.me).unwrap_or_default(),
            instance: self.instance.id,
            incarnation: self.instance.incarnation,
        }
    }
}

/// An init that was cut short at a store.
fn again(store: u64, failure: Failure) -> Failure {
    Failure {
        message: format!("store {store}: {}; run init again", failure.message),
        ..failure
    }
}

/// Range `i` of `n` that cut the key space evenly by the first eight bytes of a key.
fn range_of(i: u64, n: u64) -> KeyRange {
    KeyRange {
        start: cut(i, n),
        end: (i + 1 < n).then(|| cut(i + 1, n)),
    }
}

fn cut(i: u64, n: u64) -> Bytes {
    let at = u64::try_from((u128::from(i) << 64) / u128::from(n))
        .unwrap_or(u64::MAX)
        .to_be_bytes();
    // Trailing zeros mean nothing in a lower bound, and short bounds are easier to read.
    let length = at
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    Bytes::copy_from_slice(&at[..length])
}

/// The stores of range `i`, its first leader first: both go round.
fn members_of(i: u64, stores: &[u64], replicas: usize) -> Vec<u64> {
    let begin = i as usize % stores.len();
    let mut members: Vec<u64> = (0..replicas)
        .map(|n| stores[(begin + n) % stores.len()])
        .collect();
    members.truncate(replicas);
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_the_key_space_without_a_gap() {
        for n in [1, 2, 3, 8, 256, 1000, 70_000] {
            assert!(range_of(0, n).start.is_empty());
            assert_eq!(range_of(n - 1, n).end, None);
            for i in 1..n {
                assert_eq!(range_of(i - 1, n).end.as_ref(), Some(&range_of(i, n).start));
                assert!(range_of(i - 1, n).start < range_of(i, n).start);
            }
        }
        assert_eq!(&range_of(1, 2).start[..], [0x80]);
    }

    #[test]
    fn members_and_leaders_go_round() {
        assert_eq!(members_of(0, &[1, 2, 3], 3), [1, 2, 3]);
        assert_eq!(members_of(1, &[1, 2, 3], 3), [2, 3, 1]);
        assert_eq!(members_of(5, &[1, 2, 3, 4], 3), [2, 3, 4]);
        assert_eq!(members_of(3, &[1], 1), [1]);
    }
}
