//! Groups made and destroyed while the stores run.

use polyraft_tests::process::{Cluster, Options, eventually};

/// A group is created, and destroyed while one of its stores is down: when that store comes back it
/// must not bring the group back, neither on itself nor on the others.
#[test]
fn a_destroyed_group_does_not_come_back() {
    let mut cluster = Cluster::start(Options::default());
    let before = cluster.groups().expect("groups");
    let made = eventually("a new group", || {
        cluster.json(&["group", "create", "--stores", "1,2,3"])
    });
    let group = made["group"].as_u64().expect("the new group's number");
    assert!(!before.contains(&group), "{group} is new");
    cluster.leader_of(group);

    cluster.store(3).kill();
    let id = group.to_string();
    eventually("the group to be destroyed", || {
        cluster.cli(&["group", "destroy", &id]).success()
    });
    cluster.store(3).start();
    cluster.wait_for_leaders();

    eventually("the group to be gone from every store", || {
        for endpoint in cluster.endpoints() {
            let list = cluster
                .cli_at(
                    std::slice::from_ref(&endpoint),
                    &["group", "list", "-o", "json"],
                )
                .success()?
                .json()?;
            let groups = list["groups"].as_array().ok_or("no list")?;
            if groups.iter().any(|listed| listed["group"] == group) {
                return Err(format!("{endpoint} still lists group {group}"));
            }
        }
        Ok(())
    });
    let created = eventually("another group", || {
        cluster.json(&["group", "create", "--stores", "1,2,3"])
    });
    assert_ne!(
        created["group"], group,
        "the number of a destroyed group is not used again"
    );
}

/// What Raft would do but nobody means: a vote lost by adding, a group that shrinks by replacing, keys that
/// belong to nobody.
#[test]
fn slips_that_cost_votes_or_keys_are_refused() {
    let cluster = Cluster::start(Options::default());
    let group = cluster.groups().expect("groups")[0];
    let id = group.to_string();
    for (arguments, word) in [
        (
            &["group", "add-learner", &id, "--store", "1"][..],
            "is a voter",
        ),
        (
            &["group", "replace", &id, "--from", "1", "--to", "2"],
            "only shrink",
        ),
        (&["group", "destroy", &id], "--force"),
    ] {
        let refusal = eventually("a refusal", || match cluster.cli(arguments).success() {
            Err(text) if text.contains(word) => Ok(text),
            other => Err(format!("{other:?}")),
        });
        assert!(!refusal.is_empty());
    }
    let members = |cluster: &Cluster| cluster.describe(group).map(|view| view.voters.len());
    assert_eq!(members(&cluster), Ok(3));
    eventually("a demotion", || {
        // Asked again after a lost answer it changes nothing and succeeds.
        cluster
            .cli(&["group", "demote", &id, "--store", "3"])
            .success()
    });
    assert_eq!(members(&cluster), Ok(2));
    eventually("the group to be destroyed", || {
        cluster.cli(&["group", "destroy", &id, "--force"]).success()
    });
}
