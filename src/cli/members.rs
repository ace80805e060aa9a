//! `rrqctl cluster add`, `replace`, `remove` and `drain`: who belongs to the cluster, and who may lead.
//!
//! One request, to the leader of group 0, decides; the nodes do the rest by themselves. What is printed
//! meanwhile is only watched: a command that was ended is given again, and finds the change done or
//! goes on watching.

use crate::base::code::Code;
use crate::base::ids::{NodeId, Voter};
use crate::base::members::{Member, MemberRole};
use crate::base::report::Report;
use crate::cli::Common;
use crate::cli::Output;
use crate::cli::status::answers;
use crate::cli::terminal::{count, may, print, say_json, warn};
use crate::client::{Client, Error, MemberChange, NodeView, ShardStatus, WaitingNode};
use serde_json::json;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(super) const ADD_EXAMPLES: &str = "\
Examples:
  rrq-node --id 4 --members 1=q1:7421,2=q2:7421,3=q3:7421,4=q4:7421   on the new machine
  rrqctl cluster add 4
  rrqctl cluster add 2 3                     a node that stood alone becomes three

A node is added with an empty data directory. It learns first, and votes once it
has every job; producers and workers go on meanwhile.";

pub(super) const REPLACE_EXAMPLES: &str = "\
Examples:
  rrq-node --id 3 --members 1=q1:7421,2=q2:7421,3=q3:7421   with an empty directory
  rrqctl cluster replace 3

For a node whose disk is lost. The new disk takes the place of the old one, which
can never come back.";

pub(super) const DRAIN_EXAMPLES: &str = "\
Examples:
  rrqctl cluster drain 2                     before work on its machine

A drained node goes on voting and holds every job: nothing is less safe. It leads
again when told so, or when it is restarted.";

pub(super) const UNDRAIN_EXAMPLES: &str = "\
Examples:
  rrqctl cluster undrain 2

It gets its share within seconds.";

pub(super) const REMOVE_EXAMPLES: &str = "\
Examples:
  rrqctl cluster remove 4
  rrqctl cluster remove 4 --yes

The node hands over what it leads, leaves every group and stops by itself. Most of
the nodes that are left must be there.";

/// Between two looks at how far a change has come.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between two words on how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// A node has handed over everything within this, if it can.
const DRAINED_WITHIN: Duration = Duration::from_secs(10);
/// A change that does not go on for so long is given up being watched.
const STANDS_STILL: Duration = Duration::from_secs(60);

#[derive(clap::Args, Debug)]
pub(super) struct AddArgs {
    /// The numbers of the nodes.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<u32>,
}

#[derive(clap::Args, Debug)]
pub(super) struct ReplaceArgs {
    /// The number of the node.
    #[arg(value_name = "NODE")]
    node: u32,
}

#[derive(clap::Args, Debug)]
pub(super) struct DrainArgs {
    /// The number of the node.
    #[arg(value_name = "NODE")]
    node: u32,
}

#[derive(clap::Args, Debug)]
pub(super) struct RemoveArgs {
    /// The number of the node.
    #[arg(value_name = "NODE")]
    node: u32,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn add(args: &AddArgs, common: &Common) -> Result<ExitCode, Report> {
    let client = common.connect().await?;
    let view = View::look(&client, common).await?;
    let mut nodes = Vec::new();
    for node in args.nodes.iter().copied().map(NodeId) {
        let has = view.disks_of(node);
        match view.waiting(node) {
            Some(_) if !has.is_empty() => return Err(is_member(node)),
            Some(waiting) => nodes.push(waiting.id),
            None if has.is_empty() => return Err(does_not_wait(node)),
            // It was added before, by whoever gave the command.
            None => nodes.extend(has),
        }
    }
    bring_in(client, common, nodes).await
}

pub(super) async fn replace(args: &ReplaceArgs, common: &Common) -> Result<ExitCode, Report> {
    let client = common.connect().await?;
    let view = View::look(&client, common).await?;
    let node = NodeId(args.node);
    let has = view.disks_of(node);
    if has.is_empty() {
        let what = format!("node {node} is no member of the cluster");
        return Err(Report::error(Code::MembersRefused, what).fix(format!(
            "rrqctl cluster add {node}, or rrqctl cluster status for those that are"
        )));
    }
    let new = match view.waiting(node) {
        Some(waiting) => waiting.id,
        // It is on its way, by a command that was given before: the disk that learns.
        None => view.learner(node).ok_or_else(|| does_not_wait(node))?,
    };
    bring_in(client, common, vec![new]).await
}

pub(super) async fn remove(args: &RemoveArgs, common: &Common) -> Result<ExitCode, Report> {
    let node = NodeId(args.node);
    let client = common.connect().await?;
    let view = View::look(&client, common).await?;
    if !view.disks_of(node).is_empty() {
        let left = view.nodes().len().saturating_sub(1);
        let what = format!("leave {}", count(left as u64, "node"));
        if !may(&what, args.yes)? {
            return Ok(ExitCode::FAILURE);
        }
    }
    let complain = |error: Error| common.complaint(&error);
    let change = MemberChange::Remove(node);
    client.change_members(change).await.map_err(complain)?;
    let gone = |view: &View| view.disks_of(node).is_empty();
    client.close().await;
    follow(common, gone).await?;
    say(
        common,
        &format!("node {node} belongs to the cluster no more"),
        &[node],
    )
}

pub(super) async fn drain(args: &DrainArgs, on: bool, common: &Common) -> Result<ExitCode, Report> {
    let node = NodeId(args.node);
    let complain = |error: Error| common.complaint(&error);
    let client = common.connect().await?;
    client.drain(node, on).await.map_err(complain)?;
    let begun = Instant::now();
    while on && leads(&client.nodes().await.map_err(complain)?, node) > 0 {
        if begun.elapsed() > DRAINED_WITHIN {
            let what = format!(
                "node {node} still leads groups after {} s",
                DRAINED_WITHIN.as_secs()
            );
            return Err(Report::error(Code::Timeout, what)
                .why("it goes on handing them over as soon as another voter of them is there")
                .fix("rrqctl cluster status"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    client.close().await;
    let text = match on {
        true => format!("node {node} leads nothing"),
        false => format!("node {node} may lead again"),
    };
    say(common, &text, &[node])
}

/// How many groups a node leads, as it says.
fn leads(nodes: &[NodeView], node: NodeId) -> usize {
    let shards = answers(nodes).filter(|(of, _)| *of == node);
    let groups = shards.flat_map(|(_, shard)| &shard.groups);
    groups.filter(|group| group.leader).count()
}

/// Adds these disks, and watches until they vote.
async fn bring_in(client: Client, common: &Common, nodes: Vec<Voter>) -> Result<ExitCode, Report> {
    let change = MemberChange::Add(nodes.clone());
    let changed = client.change_members(change).await;
    changed.map_err(|error| common.complaint(&error))?;
    let votes = |view: &View| nodes.iter().all(|node| view.votes(*node));
    client.close().await;
    follow(common, votes).await?;
    let numbers: Vec<NodeId> = nodes.iter().map(|voter| voter.node).collect();
    let names: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let text = match &names[..] {
        [one] => format!("node {one} votes in every group"),
        some => format!("nodes {} vote in every group", some.join(", ")),
    };
    say(common, &text, &numbers)
}

fn say(common: &Common, text: &str, nodes: &[NodeId]) -> Result<ExitCode, Report> {
    match common.output {
        Output::Json => {
            let nodes: Vec<u32> = nodes.iter().map(|node| node.0).collect();
            say_json(&json!({ "nodes": nodes, "verdict": text }))?;
        }
        Output::Table => print(&format!("{text}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Watches until the change has come to every group, each time by new connections: a node that has just
/// come is in newer lists only.
async fn follow(common: &Common, is_done: impl Fn(&View) -> bool) -> Result<(), Report> {
    let (mut left, mut said) = (None, None);
    let mut since = Instant::now();
    loop {
        // Leaders change meanwhile: who does not answer now does later.
        if let Ok(view) = View::fresh(common).await {
            if is_done(&view) && view.is_settled() {
                return Ok(());
            }
            if left != Some(view.unsettled) {
                left = Some(view.unsettled);
                since = Instant::now();
            }
            if view.unsettled > 0 && said.is_none_or(|said: Instant| said.elapsed() > SAY_EVERY) {
                warn(&format!("{} to go", count(view.unsettled as u64, "group")));
                said = Some(Instant::now());
            }
        }
        if since.elapsed() > STANDS_STILL {
            let what = format!(
                "the change is under way and has not come further for {} s",
                STANDS_STILL.as_secs()
            );
            return Err(Report::error(Code::Timeout, what)
                .why("it goes on by itself as soon as it can: a node that was added must be there")
                .fix("rrqctl cluster status; the same command again to go on watching"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn does_not_wait(node: NodeId) -> Report {
    let what = format!("node {node} does not wait to be added");
    Report::error(Code::MembersRefused, what)
        .why("a node waits when it runs with an empty data directory and lists nodes of this cluster")
        .fix(format!(
            "rrq-node --id {node} --members {node}=HOST:PORT,1=HOST:PORT,... on its machine"
        ))
}

fn is_member(node: NodeId) -> Report {
    let what = format!("node {node} is a member already, with another disk");
    Report::error(Code::MembersRefused, what)
        .why("what waits has an empty disk: it can take the place of the one that it had")
        .fix(format!(
            "rrqctl cluster replace {node}, if that disk is lost"
        ))
}

/// The members as those nodes see them that answer.
#[derive(Debug, Default)]
pub(super) struct View {
    /// As the leader of group 0 knows them, else as anybody does.
    pub(super) members: Vec<Member>,
    pub(super) waiting: Vec<WaitingNode>,
    /// Groups that have other members than the cluster on some node that answers.
    pub(super) unsettled: usize,
    /// Groups that nobody who answers leads.
    leaderless: usize,
}

impl View {
    async fn look(client: &Client, common: &Common) -> Result<Self, Report> {
        let complain = |error: Error| common.complaint(&error);
        let nodes = client.nodes().await.map_err(complain)?;
        let groups = client.hello().map_err(complain)?.groups as usize;
        Ok(Self::of(&nodes, groups))
    }

    async fn fresh(common: &Common) -> Result<Self, Report> {
        let client = common.connect().await?;
        let view = Self::look(&client, common).await;
        client.close().await;
        view
    }

    pub(super) fn of(nodes: &[NodeView], groups: usize) -> Self {
        let shards = || answers(nodes).map(|(_, shard)| shard);
        let leads_it = |shard: &&ShardStatus| {
            let mut groups = shard.groups.iter();
            groups.any(|group| group.group.0 == 0 && group.leader)
        };
        let knows = |shard: &&ShardStatus| !shard.members.is_empty();
        let source = shards().filter(knows).find(leads_it);
        let source = source.or_else(|| shards().find(knows));
        let mut waiting: Vec<WaitingNode> = Vec::new();
        for node in shards().flat_map(|shard| &shard.waiting) {
            if !waiting.iter().any(|known| known.id == node.id) {
                waiting.push(node.clone());
            }
        }
        let led = || {
            shards()
                .flat_map(|shard| &shard.groups)
                .filter(|group| group.leader)
        };
        // A leader alone may know that a change is done: if it is lost then, the others need who has left.
        let all = shards().flat_map(|shard| &shard.groups);
        let unsettled = all.filter(|group| group.members_unsettled);
        let unsettled: BTreeSet<_> = unsettled.map(|group| group.group).collect();
        let leaders: BTreeSet<_> = led().map(|group| group.group).collect();
        Self {
            members: source
                .map(|shard| shard.members.clone())
                .unwrap_or_default(),
            waiting,
            unsettled: unsettled.len(),
            leaderless: groups.saturating_sub(leaders.len()),
        }
    }

    /// Whether nothing is under way, in any group.
    fn is_settled(&self) -> bool {
        let is_voter = |member: &Member| member.role == MemberRole::Voter;
        self.unsettled == 0 && self.leaderless == 0 && self.members.iter().all(is_voter)
    }

    fn nodes(&self) -> BTreeSet<NodeId> {
        self.members
            .iter()
            .map(|member| member.voter.node)
            .collect()
    }

    fn disks_of(&self, node: NodeId) -> Vec<Voter> {
        let members = self.members.iter().map(|member| member.voter);
        members.filter(|member| member.node == node).collect()
    }

    fn learner(&self, node: NodeId) -> Option<Voter> {
        let learns = |member: &&Member| {
            member.voter.node == node
                && matches!(member.role, MemberRole::Learner | MemberRole::Incoming)
        };
        self.members.iter().find(learns).map(|member| member.voter)
    }

    fn waiting(&self, node: NodeId) -> Option<&WaitingNode> {
        self.waiting.iter().find(|waiting| waiting.id.node == node)
    }

    fn votes(&self, node: Voter) -> bool {
        self.members.contains(&Member::voting(node))
    }
}
