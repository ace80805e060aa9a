//! How a cluster begins: once, without a layout step, and never twice.
//!
//! ```text
//!   1 (lowest id)                       2                            3
//!     hello: no cluster  <───────────> hello: no cluster <────────> hello: no cluster
//!     all are there and belong to none:
//!     id, members with disks ─> own superblock, durable
//!     formation ─────────────────────> own superblock, durable
//!     formation ──────────────────────────────────────────────────> own superblock, durable
//! ```
//!
//! Whoever has written it down serves at once and gives it to the listed members that have not. That
//! is safe, although some may not have it yet:
//!
//! - Another cluster of the same nodes begins only if *every* configured member says that it belongs to
//!   none, with the directory that it has now. A member that has written the cluster down never says so
//!   again; if none has but the first, and that one loses its disk, nothing was acknowledged: one of
//!   three is no majority.
//! - A member is a node *with its disk*. A directory that was emptied is another disk, and nobody lets
//!   it vote in place of the one that may have promised something. It waits until an operator has it
//!   added, and gets the cluster then as a founder does that was late.
//!
//! A node that is silent is waited for, by name. A crash at any step is continued by the next start.

use crate::base::ids::{ClusterId, NodeId, Voter};
use crate::base::report::Report;
use crate::base::units::WallTime;
use crate::runtime::data_dir::{self, DataDir};
use crate::runtime::peers::roster::{Known, Roster};
use crate::runtime::shard_task::Event;
use crate::snapshot::superblock::Superblock;
use crate::wire::peer::Formation;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

/// A hello that is older says nothing about now.
const FRESH: Duration = Duration::from_secs(2);
/// How often it looks at what was heard, although nothing new was.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After this it says for whom it waits, and again after each ten of it.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// A cluster of a node that stood alone and may grow from now on.
#[must_use]
pub fn of_one(superblock: &Superblock) -> Formation {
    let me = Voter {
        node: superblock.node,
        disk: superblock.disk,
    };
    Formation {
        cluster: superblock.cluster,
        groups: superblock.groups,
        formed_at: wall_time(),
        founders: vec![me],
        members: vec![me],
    }
}

fn wall_time() -> WallTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_millis() as u64);
    WallTime(now.min(WallTime::MAX.0))
}

/// Waits until this node belongs to a cluster, and writes that down. False if the process shall stop
/// before.
///
/// # Errors
/// If it cannot be written, or the process cannot go on.
pub fn form(roster: &Roster, dir: &mut DataDir, events: &Receiver<Event>) -> Result<bool, Report> {
    // Why not yet, since when, and when that was said.
    let mut waits: Option<(String, Instant, Option<Instant>)> = None;
    loop {
        match events.try_recv() {
            Ok(Event::Stop) | Err(TryRecvError::Disconnected) => return Ok(false),
            Ok(Event::Failed(report)) => return Err(report),
            Ok(_) | Err(TryRecvError::Empty) => {}
        }
        let mut known = roster.wait(LOOK_EVERY);
        let asked = known.asked.take();
        let formation = match asked {
            Some(formation) => acceptable(&known, roster, formation),
            None => propose(&known, roster),
        };
        drop(known);
        match formation {
            Ok(formation) => {
                dir.join(&formation)?;
                tracing::info!(cluster = %formation.cluster, "this node belongs to a cluster now");
                roster.change(|known| {
                    if let Some(warning) = crowded_zone(known, &formation) {
                        tracing::warn!("{warning}");
                    }
                    known.hello.cluster = Some(formation.cluster);
                    known.hello.groups = formation.groups;
                    known.formation = Some(formation);
                });
                return Ok(true);
            }
            Err(why) => {
                let now = Instant::now();
                let (_, since, said) = match &mut waits {
                    Some(waits) if waits.0 == why => waits,
                    waits => waits.insert((why.clone(), now, None)),
                };
                let again = said.is_none_or(|said| said.elapsed() > 10 * SAY_AFTER);
                if again && since.elapsed() > SAY_AFTER {
                    tracing::warn!("{why}");
                    *said = Some(now);
                }
            }
        }
    }
}

/// The cluster that this node begins, if it is up to it; else why not yet.
fn propose(known: &Known, roster: &Roster) -> Result<Formation, String> {
    let ours = &known.hello;
    let mut members = vec![Voter {
        node: ours.node,
        disk: ours.disk,
    }];
    let mut heard = known.heard.values();
    let member = heard.find_map(|(hello, at)| {
        let cluster = hello.cluster.filter(|_| at.elapsed() < FRESH);
        cluster.map(|cluster| (cluster, hello.node))
    });
    if let Some((cluster, node)) = member {
        return Err(waits_to_be_added(cluster, node, ours.node));
    }
    for other in &roster.others {
        let heard = known.heard.get(&other.node);
        let Some((hello, _)) = heard.filter(|(_, at)| at.elapsed() < FRESH) else {
            return Err(format!(
                "the cluster is not formed yet: node {} at {} is silent",
                other.node, other.address
            ));
        };
        members.push(Voter {
            node: other.node,
            disk: hello.disk,
        });
    }
    members.sort_unstable();
    if members.len().is_multiple_of(2) {
        return Err(format!(
            "a cluster is formed of 3, 5 or another odd number of nodes, since one more bears no further \
             loss, and cluster.members are {}: leave one out, and add it later",
            members.len()
        ));
    }
    let first = members[0].node;
    if first != ours.node {
        return Err(format!(
            "the cluster is not formed yet: node {first} begins it"
        ));
    }
    Ok(Formation {
        cluster: ClusterId(data_dir::random().map_err(|error| error.to_string())?),
        groups: ours.groups,
        formed_at: wall_time(),
        founders: members.clone(),
        members,
    })
}

/// That one zone has so many of the members that the cluster ends with it; if that is known of all members,
/// and any of them has a zone.
fn crowded_zone(known: &Known, formation: &Formation) -> Option<String> {
    let ours = &known.hello;
    let zone = |member: &Voter| match member.node == ours.node {
        true => Some(&ours.zone),
        false => known.heard.get(&member.node).map(|(hello, _)| &hello.zone),
    };
    let all = formation.members.len();
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for member in &formation.members {
        *counts.entry(zone(member)?).or_default() += 1;
    }
    let named = counts.into_iter().filter(|(zone, _)| !zone.is_empty());
    let (zone, count) = named.max_by_key(|(_, count)| *count)?;
    let part = match count {
        count if count == all => format!("all {all}"),
        count if count > all / 2 => format!("{count} of the {all}"),
        _ => return None,
    };
    Some(format!(
        "{part} members are in zone {zone} (cluster.zone): without that zone no group has a leader; spread \
         the nodes over three zones, none with a majority"
    ))
}

fn waits_to_be_added(cluster: ClusterId, by: NodeId, me: NodeId) -> String {
    format!(
        "node {by} belongs to cluster {cluster}, and this node's data directory to none: this node waits to \
         be added to it (rrqctl cluster add {me}), or to take the place of what it was in it \
         (rrqctl cluster replace {me})"
    )
}

/// A cluster that another node begins, if this node is in it and it is the one configured.
fn acceptable(known: &Known, roster: &Roster, formation: Formation) -> Result<Formation, String> {
    let me = Voter {
        node: known.hello.node,
        disk: known.hello.disk,
    };
    if !formation.members.contains(&me) {
        return Err(format!(
            "cluster {} knows this node with another data directory",
            formation.cluster
        ));
    }
    // Who comes later need not know all of them.
    if formation.members != formation.founders {
        return Ok(formation);
    }
    let theirs: Vec<NodeId> = formation.members.iter().map(|member| member.node).collect();
    let mut ours: Vec<NodeId> = roster.others.iter().map(|other| other.node).collect();
    ours.push(me.node);
    ours.sort_unstable();
    if theirs != ours {
        let list = |nodes: &[NodeId]| {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            nodes.join(", ")
        };
        return Err(format!(
            "cluster {} is one of nodes {}, and this node's cluster.members are {}: give every node the \
             same list",
            formation.cluster,
            list(&theirs),
            list(&ours)
        ));
    }
    Ok(formation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DiskId;
    use crate::runtime::config::Member;
    use crate::runtime::peers::roster::Process;
    use crate::wire::peer::{PEER_PROTOCOL_VERSION, PeerHello};

    fn member(node: u32) -> Voter {
        Voter {
            node: NodeId(node),
            disk: DiskId([node as u8; 16]),
        }
    }

    fn hello(node: u32, cluster: Option<ClusterId>) -> PeerHello {
        PeerHello {
            protocol_min: PEER_PROTOCOL_VERSION,
            protocol_max: PEER_PROTOCOL_VERSION,
            version: "0.1.0".to_owned(),
            cluster,
            node: NodeId(node),
            disk: member(node).disk,
            start: 1,
            shards: 1,
            groups: 64,
            machine_version_max: 2,
            heard: None,
            client_addresses: Vec::new(),
            nodes: Vec::new(),
            removed: false,
            zone: String::new(),
        }
    }

    /// A node of three that belongs to no cluster.
    fn node(number: u32) -> Roster {
        let configured = (1..=3).map(|node| Member {
            node: NodeId(node),
            address: format!("127.0.0.{node}:7421"),
        });
        let configured: Vec<Member> = configured.collect();
        let events = std::sync::mpsc::channel().0;
        let me = Process { id: 7, events };
        Roster::new(&configured, [].into(), me, hello(number, None), None)
    }

    fn proposed(roster: &Roster) -> Result<Formation, String> {
        propose(&roster.known(), roster)
    }

    #[test]
    fn the_first_of_all_nodes_begins_once_every_other_is_there_and_belongs_to_none() {
        let first = node(1);
        let silent = |node: u32| {
            format!("the cluster is not formed yet: node {node} at 127.0.0.{node}:7421 is silent")
        };
        assert_eq!(proposed(&first), Err(silent(2)));
        first.heard(&hello(2, None));
        assert_eq!(proposed(&first), Err(silent(3)));
        first.heard(&hello(3, None));
        let formation = proposed(&first).expect("all are there");
        assert_eq!(formation.members, [1, 2, 3].map(member));
        assert_eq!(formation.groups, 64);
        assert!(formation.cluster != ClusterId::default() && formation.formed_at > WallTime(0));
        // The others wait for it.
        let second = node(2);
        second.heard(&hello(1, None));
        second.heard(&hello(3, None));
        let words = "the cluster is not formed yet: node 1 begins it";
        assert_eq!(proposed(&second), Err(words.to_owned()));
    }

    #[test]
    fn a_zone_without_which_nothing_goes_on_is_named() {
        let of = |zones: [&str; 3]| {
            let first = node(1);
            first.change(|known| known.hello.zone = zones[0].to_owned());
            for (number, zone) in (2..).zip(&zones[1..]) {
                let zone = (*zone).to_owned();
                first.heard(&PeerHello {
                    zone,
                    ..hello(number, None)
                });
            }
            let formation = proposed(&first).expect("all are there");
            crowded_zone(&first.known(), &formation)
        };
        let begins = |zones, words: &str| {
            let warning = of(zones).unwrap_or_default();
            assert!(warning.starts_with(words), "{warning}");
        };
        begins(["a", "a", "a"], "all 3 members are in zone a (");
        begins(["b", "a", "b"], "2 of the 3 members are in zone b (");
        begins(["", "a", "a"], "2 of the 3 members are in zone a (");
        for zones in [["", "", ""], ["a", "b", "c"], ["a", "", ""]] {
            assert_eq!(of(zones), None, "{zones:?}");
        }
    }

    #[test]
    fn nobody_begins_a_second_cluster_beside_one_that_is_there() {
        let first = node(1);
        first.heard(&hello(2, None));
        first.heard(&hello(3, Some(ClusterId([9; 16]))));
        let words = proposed(&first).expect_err("node 3 has a cluster");
        assert!(
            words.starts_with("node 3 belongs to cluster 0909"),
            "{words}"
        );
    }

    #[test]
    fn what_was_heard_long_ago_says_nothing() {
        let first = node(1);
        first.heard(&hello(2, None));
        first.heard(&hello(3, None));
        let long_ago = Instant::now()
            .checked_sub(2 * FRESH)
            .expect("the machine is up");
        first.change(|known| known.heard.get_mut(&NodeId(2)).expect("it was heard").1 = long_ago);
        let words = "the cluster is not formed yet: node 2 at 127.0.0.2:7421 is silent";
        assert_eq!(proposed(&first), Err(words.to_owned()));
    }

    #[test]
    fn a_cluster_is_joined_by_who_is_listed_with_its_disk_and_lists_the_same() {
        let second = node(2);
        let formation = |members: &[u32]| Formation {
            cluster: ClusterId([9; 16]),
            groups: 64,
            formed_at: WallTime(5),
            founders: members.iter().copied().map(member).collect(),
            members: members.iter().copied().map(member).collect(),
        };
        let answer = |formation| acceptable(&second.known(), &second, formation);
        assert_eq!(answer(formation(&[1, 2, 3])), Ok(formation(&[1, 2, 3])));
        let mut other_disk = formation(&[1, 2, 3]);
        other_disk.members[1].disk = DiskId([7; 16]);
        let words = answer(other_disk).expect_err("another disk");
        assert!(
            words.ends_with("knows this node with another data directory"),
            "{words}"
        );
        let words = answer(formation(&[1, 2, 4])).expect_err("another list");
        assert!(
            words.contains("nodes 1, 2, 4, and this node's cluster.members are 1, 2, 3"),
            "{words}"
        );
    }
}
