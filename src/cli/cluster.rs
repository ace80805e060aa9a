//! `rrqctl cluster status`: whether the nodes of a cluster are there, lead, and keep up, and who waits to
//! be added. How members change is in `members.rs`.
//!
//! A node is *behind* in a group if it has not applied what some node had committed a moment before.
//! Under load every node but the leader is behind at any instant, so that whoever seems to be is asked
//! again: what it must have applied is what was committed at the first look.

use crate::base::ids::{GroupId, LogIndex, NodeId};
use crate::base::members::{Member, MemberRole};
use crate::base::report::Report;
use crate::cli::Common;
use crate::cli::Output;
use crate::cli::members::{self, View};
use crate::cli::status::{answers, hex};
use crate::cli::terminal::{count, print, say_json, table};
use crate::client::{Client, Error, NodeView, ServerHello};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl cluster status
  rrqctl cluster status --server queue1:7411,queue2:7411,queue3:7411
  rrqctl cluster add 4";

const STATUS_EXAMPLES: &str = "\
Examples:
  rrqctl cluster status
  rrqctl cluster status --output json | jq -r .verdict

A node is behind in a group if it has not applied what another had committed
200 ms before. Exit status 0 if every group has a leader, else 1.";

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(clap::Args, Debug)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    verb: ClusterVerb,
}

#[derive(clap::Subcommand, Debug)]
enum ClusterVerb {
    /// Show the nodes, what they lead and how far they are behind.
    #[command(after_help = STATUS_EXAMPLES)]
    Status,
    /// Add nodes that wait for it, under load.
    #[command(after_help = members::ADD_EXAMPLES)]
    Add(members::AddArgs),
    /// Give the place of a lost disk to the empty one that its node has now.
    #[command(after_help = members::REPLACE_EXAMPLES)]
    Replace(members::ReplaceArgs),
    /// Have a node hand over what it leads, until told otherwise or restarted.
    #[command(after_help = members::DRAIN_EXAMPLES)]
    Drain(members::DrainArgs),
    /// Let a node lead again.
    #[command(after_help = members::UNDRAIN_EXAMPLES)]
    Undrain(members::DrainArgs),
    /// Take a node out of the cluster for good.
    #[command(after_help = members::REMOVE_EXAMPLES)]
    Remove(members::RemoveArgs),
}

pub(super) async fn run(args: &ClusterArgs, common: &Common) -> Result<ExitCode, Report> {
    match &args.verb {
        ClusterVerb::Status => status(common).await,
        ClusterVerb::Add(args) => members::add(args, common).await,
        ClusterVerb::Replace(args) => members::replace(args, common).await,
        ClusterVerb::Drain(args) => members::drain(args, true, common).await,
        ClusterVerb::Undrain(args) => members::drain(args, false, common).await,
        ClusterVerb::Remove(args) => members::remove(args, common).await,
    }
}

async fn status(common: &Common) -> Result<ExitCode, Report> {
    let complain = |error: Error| common.complaint(&error);
    let client = common.connect().await?;
    let state = look(&client).await.map_err(complain)?;
    client.close().await;
    match common.output {
        Output::Json => say_json(&state.as_json())?,
        Output::Table => print(&state.as_text())?,
    }
    Ok(match state.leaderless {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// How the cluster is; after a second look, if at the first one it could be that groups were moving.
async fn look(client: &Client) -> Result<State, Error> {
    let nodes = client.nodes().await?;
    let due = committed(&nodes);
    let state = State::of(client.hello()?, nodes, &due);
    if state.is_settled() {
        return Ok(state);
    }
    tokio::time::sleep(LOOK_AGAIN).await;
    let nodes = client.nodes().await?;
    Ok(State::of(client.hello()?, nodes, &due))
}

/// Up to where each group is committed, as far as any node knows.
fn committed(nodes: &[NodeView]) -> BTreeMap<GroupId, LogIndex> {
    let mut committed: BTreeMap<GroupId, LogIndex> = BTreeMap::new();
    for group in answers(nodes).flat_map(|(_, shard)| &shard.groups) {
        let known = committed.entry(group.group).or_default();
        *known = group.commit.max(*known);
    }
    committed
}

/// A node as it is shown.
#[derive(Debug, Default)]
struct Row {
    address: String,
    version: Option<String>,
    /// Its zone, if it says one.
    zone: Option<String>,
    /// Why it does not answer.
    error: Option<String>,
    shards: usize,
    leads: usize,
    /// It hands over whatever it leads.
    draining: bool,
    /// It takes no new jobs, and hands over whatever it leads.
    disk_full: bool,
    /// Groups that do not serve.
    stopped: usize,
    /// Groups in which it lacks entries.
    behind: usize,
    /// The most entries that it lacks in one group.
    behind_entries: u64,
}

/// The cluster as it is shown.
#[derive(Debug)]
struct State {
    hello: ServerHello,
    nodes: BTreeMap<NodeId, Row>,
    /// Groups that no node that answers leads.
    leaderless: usize,
    /// The lowest and the highest term of any group.
    terms: Option<(u64, u64)>,
    view: View,
}

impl State {
    fn of(hello: ServerHello, nodes: Vec<NodeView>, due: &BTreeMap<GroupId, LogIndex>) -> Self {
        let groups = || answers(&nodes).flat_map(|(_, shard)| &shard.groups);
        let led: BTreeSet<GroupId> = groups()
            .filter(|group| group.leader)
            .map(|group| group.group)
            .collect();
        let terms: BTreeSet<u64> = groups().map(|group| group.term.0).collect();
        let terms = terms.first().copied().zip(terms.last().copied());
        let leaderless = (hello.groups as usize).saturating_sub(led.len());
        let view = View::of(&nodes, hello.groups as usize);
        let nodes = nodes.into_iter().map(|view| {
            let mut row = Row {
                address: view.addresses.into_iter().next().unwrap_or_default(),
                version: view.version,
                ..Row::default()
            };
            match view.shards {
                Err(error) => row.error = Some(error.to_string()),
                Ok(shards) => {
                    row.shards = shards.len();
                    let zone = shards.first().map(|shard| shard.zone.clone());
                    row.zone = zone.filter(|zone| !zone.is_empty());
                    row.draining = shards.iter().any(|shard| shard.draining);
                    row.disk_full = shards.iter().any(|shard| shard.disk_full);
                    for group in shards.iter().flat_map(|shard| &shard.groups) {
                        row.leads += usize::from(group.leader);
                        row.stopped += usize::from(!group.halted.is_empty());
                        let due = due.get(&group.group).copied().unwrap_or_default();
                        let lacks = due.0.saturating_sub(group.applied.0);
                        row.behind += usize::from(lacks > 0);
                        row.behind_entries = row.behind_entries.max(lacks);
                    }
                }
            }
            (view.node, row)
        });
        Self {
            nodes: nodes.collect(),
            hello,
            leaderless,
            terms,
            view,
        }
    }

    /// Whether a second look could find nothing else.
    fn is_settled(&self) -> bool {
        let keeps_up = self.nodes.values().all(|row| row.behind == 0);
        self.leaderless == 0 && keeps_up && self.view.unsettled == 0
    }

    /// One line: who is away, what has no leader, who is behind.
    fn verdict(&self) -> String {
        let all = self.nodes.len();
        let silent: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, row)| row.error.is_some())
            .map(|(node, _)| node.to_string())
            .collect();
        let mut parts = vec![match (&silent[..], all) {
            ([], 1) => "the node answers".to_owned(),
            ([], _) => format!("all {all} nodes answer"),
            ([one], _) => format!("node {one} does not answer"),
            (some, _) => format!("nodes {} do not answer", some.join(", ")),
        }];
        parts.push(match (self.leaderless, self.hello.groups) {
            (0, _) => "every group has a leader".to_owned(),
            (none, of) if none as u64 == u64::from(of) => "no group has a leader".to_owned(),
            (1, _) => "1 group has no leader".to_owned(),
            (some, of) => format!("{some} of {of} groups have no leader"),
        });
        for (node, row) in &self.nodes {
            if row.behind > 0 {
                let groups = count(row.behind as u64, "group");
                parts.push(format!("node {node} is behind in {groups}"));
            }
            if row.draining {
                parts.push(format!("node {node} is drained: it shall lead nothing"));
            }
            if row.disk_full {
                parts.push(format!(
                    "the disk of node {node} is full: it takes no new jobs, and others shall lead"
                ));
            }
            if row.stopped > 0 {
                let groups = count(row.stopped as u64, "group");
                parts.push(format!(
                    "node {node} has stopped {groups}: `rrqctl status` tells why"
                ));
            }
        }
        for waiting in &self.view.waiting {
            let node = waiting.id.node;
            let is_member = |member: &Member| member.voter.node == node;
            let verb = match self.view.members.iter().any(is_member) {
                true => "replace",
                false => "add",
            };
            parts.push(format!(
                "node {node} waits to be added: `rrqctl cluster {verb} {node}`"
            ));
        }
        if self.view.unsettled > 0 {
            let groups = count(self.view.unsettled as u64, "group");
            parts.push(format!("members change in {groups}"));
        }
        parts.join(", ")
    }

    /// What a node is: the best of its disks.
    fn role(&self, node: NodeId) -> &'static str {
        let members = self.view.members.iter();
        let roles = members.filter(|member| member.voter.node == node);
        match roles
            .map(|member| member.role)
            .min_by_key(|role| *role as u32)
        {
            Some(MemberRole::Voter) => "votes",
            Some(MemberRole::Learner | MemberRole::Incoming) => "learns",
            Some(MemberRole::Outgoing | MemberRole::Demoted) => "leaves",
            None => "-",
        }
    }

    fn as_text(&self) -> String {
        let mut out = format!(
            "cluster {}: {}, {}{}\n\n",
            hex(&self.hello.cluster.0),
            count(self.nodes.len() as u64, "node"),
            count(u64::from(self.hello.groups), "group"),
            match self.terms {
                Some((low, high)) if low < high => format!(", terms {low} to {high}"),
                Some((term, _)) => format!(", term {term}"),
                None => String::new(),
            },
        );
        // Where nobody has a zone there is nothing to show of them.
        let has_zones = self.nodes.values().any(|row| row.zone.is_some());
        let zone = |text: &str| has_zones.then(|| text.to_owned());
        let heads = ["node", "address", "state", "role", "version"];
        let heads = heads.into_iter().map(str::to_owned).chain(zone("zone"));
        let more = ["shards", "leads", "behind in", "entries"];
        let mut rows = vec![heads.chain(more.map(str::to_owned)).collect()];
        for (node, row) in &self.nodes {
            let is_up = row.error.is_none();
            let known = |number: String| if is_up { number } else { "-".to_owned() };
            let cells = [
                node.to_string(),
                row.address.clone(),
                if is_up { "up" } else { "NO ANSWER" }.to_owned(),
                self.role(*node).to_owned(),
                row.version.clone().unwrap_or_else(|| "-".to_owned()),
            ];
            let counts = [
                known(row.shards.to_string()),
                known(row.leads.to_string()),
                known(row.behind.to_string()),
                known(row.behind_entries.to_string()),
            ];
            let zone = zone(row.zone.as_deref().unwrap_or("-"));
            rows.push(cells.into_iter().chain(zone).chain(counts).collect());
        }
        out += &table(&rows);
        out + &format!("\n{}\n", self.verdict())
    }

    fn as_json(&self) -> Value {
        let nodes = self.nodes.iter().map(|(node, row)| {
            json!({
                "node": node.0,
                "address": row.address,
                "error": row.error,
                "role": self.role(*node),
                "version": row.version,
                "zone": row.zone,
                "shards": row.shards,
                "leads": row.leads,
                "draining": row.draining,
                "disk_full": row.disk_full,
                "stopped": row.stopped,
                "behind": row.behind,
                "behind_entries": row.behind_entries,
            })
        });
        let waiting = self.view.waiting.iter().map(|node| {
            json!({
                "node": node.id.node.0,
                "disk": node.id.disk.to_string(),
                "addresses": node.addresses,
            })
        });
        json!({
            "cluster": hex(&self.hello.cluster.0),
            "groups": self.hello.groups,
            "leaderless": self.leaderless,
            "members_unsettled": self.view.unsettled,
            "nodes": nodes.collect::<Vec<_>>(),
            "waiting": waiting.collect::<Vec<_>>(),
            "verdict": self.verdict(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::code::Code;
    use crate::base::ids::{ClusterId, Term};
    use crate::client::{GroupStatus, ShardStatus};

    fn hello(groups: u32) -> ServerHello {
        ServerHello {
            protocol: 1,
            version: "0.1.0".to_owned(),
            cluster: ClusterId([7; 16]),
            node: NodeId(1),
            shard: 0,
            groups,
            payload_bytes_max: 1,
            nodes: Vec::new(),
        }
    }

    /// A node with what it has committed and applied of each group, and which ones it leads.
    fn node(node: u32, groups: &[(u64, u64)], leads: &[u16]) -> NodeView {
        let group = |(at, (commit, applied)): (usize, &(u64, u64))| GroupStatus {
            group: GroupId(at as u16),
            term: Term(2),
            leader: leads.contains(&(at as u16)),
            commit: LogIndex(*commit),
            applied: LogIndex(*applied),
            base: LogIndex(0),
            sessions: 0,
            halted: String::new(),
            machine_version: 1,
            members_unsettled: false,
        };
        let shard = ShardStatus {
            shard: 0,
            shards: 1,
            uptime_ms: 1,
            connections: 1,
            log_bytes_since_checkpoint: 0,
            durable_lsn: 0,
            disk_full: false,
            groups: groups.iter().enumerate().map(group).collect(),
            members: Vec::new(),
            waiting: Vec::new(),
            draining: false,
            zone: String::new(),
        };
        NodeView {
            node: NodeId(node),
            addresses: vec![format!("n{node}:7411")],
            version: Some("0.1.0".to_owned()),
            shards: Ok(vec![shard]),
        }
    }

    fn state(nodes: Vec<NodeView>) -> State {
        let due = committed(&nodes);
        State::of(hello(2), nodes, &due)
    }

    #[test]
    fn a_cluster_in_which_all_is_well_says_so() {
        let at = [(9, 9), (5, 5)];
        let well = state(vec![
            node(1, &at, &[0]),
            node(2, &at, &[1]),
            node(3, &at, &[]),
        ]);
        assert!(well.is_settled());
        assert_eq!(
            well.verdict(),
            "all 3 nodes answer, every group has a leader"
        );
        let text = well.as_text();
        assert!(text.contains("2 groups, term 2\n"), "{text}");
        assert!(text.contains("n3:7411     up     -    0.1.0"), "{text}");
        let alone = state(vec![node(1, &at, &[0, 1])]);
        assert_eq!(
            alone.verdict(),
            "the node answers, every group has a leader"
        );
    }

    #[test]
    fn a_full_disk_is_named() {
        let mut full = node(1, &[(9, 9), (5, 5)], &[0, 1]);
        if let Ok(shards) = &mut full.shards {
            shards[0].disk_full = true;
        }
        let state = state(vec![full]);
        assert_eq!(
            state.verdict(),
            "the node answers, every group has a leader, the disk of node 1 is full: it takes no new \
             jobs, and others shall lead"
        );
        assert_eq!(state.as_json()["nodes"][0]["disk_full"], true);
    }

    #[test]
    fn zones_are_shown_where_a_node_has_one() {
        let in_zone = |number, zone: &str| {
            let mut node = node(number, &[(9, 9), (5, 5)], &[]);
            if let Ok(shards) = &mut node.shards {
                shards[0].zone = zone.to_owned();
            }
            node
        };
        let none = state(vec![in_zone(1, ""), in_zone(2, "")]);
        assert!(!none.as_text().contains("zone"), "{}", none.as_text());
        let some = state(vec![in_zone(1, "east"), in_zone(2, "")]);
        let text = some.as_text();
        let column: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .take(4)
            .collect();
        assert_eq!(column[1..], ["zone", "east", "-"], "{text}");
        assert_eq!(some.as_json()["nodes"][0]["zone"], "east");
    }

    #[test]
    fn who_is_silent_or_behind_is_named() {
        let mut silent = node(3, &[], &[]);
        silent.shards = Err(Error::new(Code::Unreachable, "gone"));
        let at = [(9, 9), (5, 5)];
        let nodes = vec![node(1, &at, &[0]), node(2, &[(9, 9), (4, 2)], &[]), silent];
        let state = state(nodes);
        assert!(!state.is_settled());
        assert_eq!(
            state.verdict(),
            "node 3 does not answer, 1 group has no leader, node 2 is behind in 1 group"
        );
        let row = &state.nodes[&NodeId(2)];
        assert_eq!((row.behind, row.behind_entries), (1, 3));
        assert!(state.as_text().contains("NO ANSWER"));
        assert_eq!(state.as_json()["leaderless"], 1);
    }
}
