//! One node or several as child processes, and what they say of who leads what.
//!
//! Each node of a cluster has an address of its own on this machine, 127.0.0.N, or in a network of the
//! bench's, and all the same ports: first those of its shards for clients, then those for the other nodes.

use crate::base::code::Code;
use crate::base::ids::{GroupId, LogIndex, NodeId};
use crate::base::report::Report;
use crate::client::{Client, Error, Options};
use crate::loadtest::network::Network;
use crate::loadtest::node::{Member, Node, NodeCommand, NodePlan, PORTS_FROM, free_ports, host_of};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// A cluster that does not agree on something after this never does.
const AGREE_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at what the nodes say.
const LOOK_EVERY: Duration = Duration::from_millis(30);
/// How long a node may take to say how it is.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// How many nodes a cluster may have.
pub(super) const NODES: [u32; 3] = [1, 3, 5];

/// # Errors
/// If there are no clusters of so many nodes.
pub(super) fn check_nodes(nodes: u32) -> Result<(), Report> {
    if NODES.contains(&nodes) {
        return Ok(());
    }
    let what = format!("--nodes must be 1, 3 or 5, not {nodes}");
    Err(Report::error(Code::BadArgument, what))
}

/// The plans of all nodes, below one folder, on this machine or in a network. One node is planned as a node
/// without others.
///
/// # Errors
/// If no ports are free.
pub(super) fn plans(
    command: &NodeCommand,
    folder: &Path,
    nodes: u32,
    shards: u16,
    port: u16,
    network: Option<&Network>,
) -> Result<Vec<NodePlan>, Report> {
    let count = u8::try_from(nodes).unwrap_or(u8::MAX);
    let is_cluster = count > 1;
    let ports = if is_cluster { 2 * shards } else { shards };
    let port = match (port, network) {
        (0, Some(_)) => PORTS_FROM,
        (0, None) => free_ports(ports, count)?,
        (port, _) => port,
    };
    let host = |id| network.map_or_else(|| host_of(id), |_| Network::host(id));
    let peer = |id| format!("{id}={}", SocketAddr::from((host(id), port + shards)));
    let members: Vec<String> = match is_cluster {
        true => (1..=count).map(peer).collect(),
        false => Vec::new(),
    };
    let plan = |id: u8| NodePlan {
        command: network.map_or_else(|| command.clone(), |network| network.place(id, command)),
        host: host(id),
        data_dir: match is_cluster {
            true => folder.join(id.to_string()),
            false => folder.to_owned(),
        },
        port,
        shards: Some(shards),
        member: is_cluster.then(|| Member {
            id,
            members: members.join(","),
        }),
    };
    Ok((1..=count).map(plan).collect())
}

/// The nodes, in the order of their numbers.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    /// Where they can be cut off; goes after them.
    network: Option<Network>,
}

impl Cluster {
    /// Starts all nodes and waits until they are ready.
    ///
    /// # Errors
    /// If one does not start: what it said.
    pub(super) fn start(plans: Vec<NodePlan>) -> Result<Self, Report> {
        let mut cluster = Self::spawn(plans)?;
        for node in &mut cluster.nodes {
            node.wait_ready()?;
        }
        Ok(cluster)
    }

    /// Starts all nodes without waiting.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub(super) fn spawn(plans: Vec<NodePlan>) -> Result<Self, Report> {
        let nodes: Result<Vec<Node>, Report> = plans.into_iter().map(Node::spawn).collect();
        Ok(Self {
            nodes: nodes?,
            network: None,
        })
    }

    /// In a network that was made for it.
    pub(super) fn within(self, network: Option<Network>) -> Self {
        Self { network, ..self }
    }

    /// Cuts the node at a place off from all others and from clients, or joins it again.
    ///
    /// # Errors
    /// If it is in no network of the bench's, or the kernel refuses.
    pub(super) fn cut(&self, at: usize, off: bool) -> Result<(), Report> {
        let no_network = || Report::error(Code::Bug, "a node without a network is to be cut off");
        let network = self.network.as_ref().ok_or_else(no_network)?;
        network.cut(at as u8 + 1, off)
    }

    /// What the nodes were started with.
    #[must_use]
    pub(super) fn plans(&self) -> Vec<NodePlan> {
        self.nodes.iter().map(|node| node.plan().clone()).collect()
    }

    /// Where clients reach it: all nodes, with commas between.
    #[must_use]
    pub(super) fn address(&self) -> String {
        let addresses = self.nodes.iter().map(|node| node.plan().address());
        let texts: Vec<String> = addresses.map(|address| address.to_string()).collect();
        texts.join(",")
    }

    /// The processes.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().map(Node::pid)
    }

    /// All nodes; the one with number `n` is at `n - 1`.
    pub(super) fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// # Errors
    /// If one has ended by itself: what it said.
    pub(super) fn check(&mut self) -> Result<(), Report> {
        self.nodes.iter_mut().try_for_each(Node::check)
    }

    /// Waits until the kernel has reaped all.
    ///
    /// # Errors
    /// If one is not ours to wait for.
    pub(super) fn reap(&mut self) -> Result<(), Report> {
        self.nodes
            .iter_mut()
            .try_for_each(|node| node.reap().map(drop))
    }
}

/// What all nodes said of their groups at about one time.
#[derive(Debug, Default)]
pub(super) struct View {
    groups: u32,
    /// Where each node's shards listen.
    addresses: BTreeMap<NodeId, Vec<String>>,
    /// Who leads, and up to where it has committed.
    leaders: BTreeMap<GroupId, (NodeId, LogIndex)>,
    /// Up to where each node has applied.
    applied: BTreeMap<(NodeId, GroupId), LogIndex>,
}

impl View {
    /// Asks all nodes that the cluster lists.
    async fn look(address: &str) -> Result<Self, Error> {
        let options = Options {
            deadline: LOOK_DEADLINE,
            ..Options::default()
        };
        // A new client, which knows what the nodes list now.
        let client = Client::connect_with(address, options).await?;
        let status = client.status().await;
        let hello = client.hello()?;
        client.close().await;
        let listed = hello.nodes.into_iter();
        let mut view = Self {
            groups: hello.groups,
            addresses: listed.map(|node| (node.node, node.addresses)).collect(),
            ..Self::default()
        };
        for (node, shard) in status? {
            for group in shard.groups {
                view.applied.insert((node, group.group), group.applied);
                if group.leader {
                    view.leaders.insert(group.group, (node, group.commit));
                }
            }
        }
        Ok(view)
    }

    /// Looks until all nodes are there and each group has a leader.
    ///
    /// # Errors
    /// If that does not come to be.
    pub(super) async fn of(address: &str, nodes: u32) -> Result<Self, Report> {
        let whole = |view: &Self| view.is_whole(nodes);
        Self::until(address, "each group to have a leader", whole).await
    }

    /// Looks until all nodes are there, and the leaders are spread over them and stay where they are.
    ///
    /// # Errors
    /// If that does not come to be.
    pub(super) async fn settled(address: &str, nodes: u32) -> Result<Self, Report> {
        let settled = |view: &Self| view.is_whole(nodes) && view.is_spread();
        Self::until(address, "the leaders to be spread over the nodes", settled).await
    }

    /// Looks until every node has applied what the leaders have committed. The load is to be off.
    ///
    /// # Errors
    /// If that does not come to be.
    pub(super) async fn all_caught_up(address: &str, nodes: u32) -> Result<Self, Report> {
        let caught_up = |view: &Self| view.is_whole(nodes) && view.is_level();
        Self::until(address, "all nodes to catch up", caught_up).await
    }

    async fn until(
        address: &str,
        what: &str,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<Self, Report> {
        let begun = Instant::now();
        let mut last = String::from("the nodes do not agree");
        while begun.elapsed() < AGREE_DEADLINE {
            match Self::look(address).await {
                Ok(view) if is_so(&view) => return Ok(view),
                Ok(view) => last = view.words(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let what = format!("waited {} s for {what}", AGREE_DEADLINE.as_secs());
        Err(Report::error(Code::Timeout, what).location(last))
    }

    fn is_whole(&self, nodes: u32) -> bool {
        let seen: BTreeSet<NodeId> = self.applied.keys().map(|(node, _)| *node).collect();
        seen.len() >= nodes as usize && self.leaders.len() >= self.groups as usize
    }

    /// Whether no node hands groups to another: each shard looks that no two nodes differ by more than
    /// one.
    fn is_spread(&self) -> bool {
        let leads = |node: &NodeId| {
            let leaders = self.leaders.values();
            leaders.filter(|(leader, _)| leader == node).count()
        };
        let leads: Vec<usize> = self.addresses.keys().map(leads).collect();
        let shards = self.addresses.values().map(Vec::len).max().unwrap_or(1);
        leads.iter().max() <= leads.iter().min().map(|least| least + shards).as_ref()
    }

    fn is_level(&self) -> bool {
        self.behind().next().is_none()
    }

    /// The groups of nodes that have not applied what their leader has committed.
    fn behind(&self) -> impl Iterator<Item = (NodeId, GroupId)> {
        let is_behind = |group: &GroupId, applied: LogIndex| {
            let leader = self.leaders.get(group);
            leader.is_none_or(|(_, commit)| applied < *commit)
        };
        let all = self.applied.iter();
        all.filter(move |((_, group), applied)| is_behind(group, **applied))
            .map(|(at, _)| *at)
    }

    fn words(&self) -> String {
        let mut behind: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
        for (node, group) in self.behind() {
            behind.entry(node).or_default().push(group);
        }
        let behind: String = behind
            .iter()
            .map(|(node, groups)| {
                let (count, first) = (groups.len(), groups[0]);
                format!("; node {} is behind in {count} of them, as {first}", node.0)
            })
            .collect();
        let nodes: Vec<String> = self
            .addresses
            .keys()
            .map(|node| node.0.to_string())
            .collect();
        format!(
            "nodes {} are listed; {} of {} groups have a leader{behind}",
            nodes.join(", "),
            self.leaders.len(),
            self.groups
        )
    }

    /// Where the leader's shard of a group listens.
    #[must_use]
    pub(super) fn leader_address(&self, group: GroupId) -> Option<&String> {
        let (leader, _) = self.leaders.get(&group)?;
        shard_of(self.addresses.get(leader)?, group)
    }

    /// Where the shards of a group listen, one of each node.
    #[must_use]
    pub(super) fn addresses_of(&self, group: GroupId) -> Vec<String> {
        let nodes = self.addresses.values();
        nodes
            .filter_map(|node| shard_of(node, group))
            .cloned()
            .collect()
    }

    /// The nodes, by how many of these groups they lead, the most first; of equals the lower number.
    #[must_use]
    pub(super) fn by_leads(&self, groups: &[GroupId]) -> Vec<NodeId> {
        let leads = |node: NodeId| {
            let leader = |group: &&GroupId| {
                let leader = self.leaders.get(group);
                leader.is_some_and(|(leader, _)| *leader == node)
            };
            groups.iter().filter(leader).count()
        };
        let mut nodes: Vec<NodeId> = self.addresses.keys().copied().collect();
        nodes.sort_by_key(|node| std::cmp::Reverse(leads(*node)));
        nodes
    }
}

fn shard_of(addresses: &[String], group: GroupId) -> Option<&String> {
    addresses.get(usize::from(group.0) % addresses.len().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(leaders: &[u32], applied: &[(u32, u64)]) -> View {
        let mut view = View {
            groups: leaders.len() as u32,
            ..View::default()
        };
        for (group, leader) in leaders.iter().enumerate() {
            let group = GroupId(group as u16);
            view.leaders.insert(group, (NodeId(*leader), LogIndex(9)));
            for (node, applied) in applied {
                view.applied
                    .insert((NodeId(*node), group), LogIndex(*applied));
            }
        }
        for (node, _) in applied {
            let addresses = vec![format!("n{node}:1"), format!("n{node}:2")];
            view.addresses.insert(NodeId(*node), addresses);
        }
        view
    }

    #[test]
    fn who_leads_most_comes_first() {
        let view = view(&[3, 1, 3, 2, 2, 3], &[(1, 9), (2, 9), (3, 9)]);
        let groups: Vec<GroupId> = (0..6).map(GroupId).collect();
        let order = |groups: &[GroupId]| -> Vec<u32> {
            view.by_leads(groups).iter().map(|node| node.0).collect()
        };
        assert_eq!(order(&groups), [3, 2, 1]);
        assert_eq!(order(&[GroupId(1)]), [1, 2, 3], "of these groups only");
        let address = view.leader_address(GroupId(1)).map(String::as_str);
        assert_eq!(address, Some("n1:2"));
        assert_eq!(view.addresses_of(GroupId(2)), ["n1:1", "n2:1", "n3:1"]);
    }

    #[test]
    fn a_node_behind_or_missing_is_seen() {
        assert!(view(&[1, 1], &[(1, 9), (2, 9), (3, 9)]).is_whole(3));
        assert!(!view(&[1, 1], &[(1, 9), (2, 9)]).is_whole(3));
        assert!(view(&[1, 1], &[(1, 9), (2, 9)]).is_level());
        let behind = view(&[1, 1], &[(1, 9), (2, 8)]);
        assert!(!behind.is_level());
        let words = behind.words();
        assert!(
            words.ends_with("node 2 is behind in 2 of them, as 0"),
            "{words}"
        );
        let mut leaderless = view(&[1, 1], &[(1, 9), (2, 9), (3, 9)]);
        leaderless.leaders.remove(&GroupId(1));
        assert!(!leaderless.is_whole(3) && !leaderless.is_level());
    }

    #[test]
    fn a_cluster_is_planned_at_addresses_of_its_own() {
        let command = NodeCommand::of("rrq-node".into());
        let three = plans(&command, Path::new("data"), 3, 2, 0, None).expect("ports");
        assert_eq!(three.len(), 3);
        let port = three[0].port;
        assert_eq!(three[2].address().to_string(), format!("127.0.0.3:{port}"));
        assert_eq!(three[1].data_dir, Path::new("data/2"));
        let members = &three[0].member.as_ref().expect("a member").members;
        let peer = port + 2;
        let due = format!("1=127.0.0.1:{peer},2=127.0.0.2:{peer},3=127.0.0.3:{peer}");
        assert_eq!(*members, due);
        let one = plans(&command, Path::new("data"), 1, 2, 0, None).expect("ports");
        assert!(one.len() == 1 && one[0].member.is_none());
        assert_eq!(one[0].data_dir, Path::new("data"));
        assert!(check_nodes(2).is_err() && check_nodes(5).is_ok());
    }
}
