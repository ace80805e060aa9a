//! The nodes of the cluster and where they listen, as their hellos tell.
//!
//! What a node says of itself holds. What it says of another holds where that one has not spoken for
//! itself, or could not be reached where it said. A node that is not listed any more is kept: a hello
//! right after a start lists few, and a node that is gone is asked last.

use crate::base::ids::{GroupId, NodeId};
use crate::wire::message::{NodeAddresses, ServerHello};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// Names by which nodes were reached are remembered up to so many.
const NAMES_MAX: usize = 64;

#[derive(Debug)]
struct Known {
    addresses: Vec<String>,
    /// Whether it said so itself.
    is_first_hand: bool,
}

/// The nodes as last heard.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: BTreeMap<NodeId, Known>,
    /// Addresses that led to a node and are not listed, as the other names of a host.
    names: BTreeMap<String, NodeId>,
}

impl Nodes {
    /// Takes what a node says; `is_lost` tells who could not be reached where it was.
    pub(super) fn learn(&mut self, hello: &ServerHello, is_lost: impl Fn(NodeId) -> bool) {
        for listed in hello.nodes.iter().filter(|node| !node.addresses.is_empty()) {
            let is_first_hand = listed.node == hello.node;
            let holds = self
                .known
                .get(&listed.node)
                .is_some_and(|known| known.is_first_hand && !is_lost(listed.node));
            if is_first_hand || !holds {
                let addresses = listed.addresses.clone();
                let known = Known {
                    addresses,
                    is_first_hand,
                };
                self.known.insert(listed.node, known);
            }
        }
    }

    /// This address led to that node.
    pub(super) fn reached(&mut self, address: String, node: NodeId) {
        if self.names.len() < NAMES_MAX || self.names.contains_key(&address) {
            self.names.insert(address, node);
        }
    }

    /// As a hello lists them.
    pub(super) fn listed(&self) -> Vec<NodeAddresses> {
        let listed = |(node, known): (&NodeId, &Known)| NodeAddresses {
            node: *node,
            addresses: known.addresses.clone(),
        };
        self.known.iter().map(listed).collect()
    }

    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    pub(super) fn address(&self, node: NodeId, shard: u16) -> Option<&String> {
        self.known.get(&node)?.addresses.get(usize::from(shard))
    }

    /// The shard of a node that a group lives on.
    pub(super) fn shard_of(&self, node: NodeId, group: GroupId) -> Option<u16> {
        let shards = self.known.get(&node)?.addresses.len();
        u16::try_from(usize::from(group.0) % shards).ok()
    }

    /// Who listens at an address.
    pub(super) fn at(&self, address: &str) -> Option<NodeId> {
        let has = |known: &Known| known.addresses.iter().any(|listed| listed == address);
        let listed = self.known.iter().find(|(_, known)| has(known));
        listed
            .map(|(node, _)| *node)
            .or_else(|| self.names.get(address).copied())
    }

    /// Who listens at an address that is named as that of a group's leader. Nobody, if by its list that is
    /// another shard of a node than the group's: then the node has other shards by now, and says so itself.
    pub(super) fn leader_at(&self, address: &str, group: GroupId) -> Option<NodeId> {
        let node = self.at(address)?;
        let known = self.known.get(&node);
        let mut listed = known.into_iter().flat_map(|known| &known.addresses);
        let shard = listed.position(|listed| listed == address);
        let shard = shard.and_then(|shard| u16::try_from(shard).ok());
        (shard.is_none() || shard == self.shard_of(node, group)).then_some(node)
    }

    /// All but `node`, from the one after it on; all, after no node.
    pub(super) fn after(&self, node: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let from = node.map_or(Unbounded, Excluded);
        let rest = node.map(|node| self.known.range(..node));
        let ring = self.known.range((from, Unbounded));
        ring.chain(rest.into_iter().flatten())
            .map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ClusterId;

    fn hello(node: u32, nodes: &[(u32, &str)]) -> ServerHello {
        let listed = |(node, address): &(u32, &str)| NodeAddresses {
            node: NodeId(*node),
            addresses: address.split_whitespace().map(str::to_owned).collect(),
        };
        ServerHello {
            protocol: 1,
            version: String::new(),
            cluster: ClusterId([1; 16]),
            node: NodeId(node),
            shard: 0,
            groups: 4,
            payload_bytes_max: 1,
            nodes: nodes.iter().map(listed).collect(),
        }
    }

    #[test]
    fn a_node_speaks_for_itself_and_others_only_where_it_is_lost() {
        let mut nodes = Nodes::default();
        nodes.learn(&hello(1, &[(1, "a:1"), (2, "b:1")]), |_| false);
        assert_eq!(nodes.at("b:1"), Some(NodeId(2)));
        nodes.learn(&hello(2, &[(2, "b:2"), (1, "a:0")]), |_| false);
        assert_eq!(nodes.address(NodeId(2), 0).map(String::as_str), Some("b:2"));
        assert_eq!(nodes.address(NodeId(1), 0).map(String::as_str), Some("a:1"));
        assert_eq!((nodes.at("b:1"), nodes.at("a:0")), (None, None));
        nodes.learn(&hello(2, &[(2, "b:2"), (1, "a:9")]), |node| node.0 == 1);
        assert_eq!(nodes.address(NodeId(1), 0).map(String::as_str), Some("a:9"));
    }

    #[test]
    fn who_is_not_listed_any_more_is_kept_and_who_lists_nothing_is_not_taken() {
        let mut nodes = Nodes::default();
        nodes.learn(&hello(1, &[(1, "a:1 a:2"), (2, "b:1"), (3, "")]), |_| false);
        nodes.learn(&hello(1, &[(1, "a:1 a:2")]), |_| false);
        assert_eq!(nodes.count(), 2);
        assert_eq!(nodes.shard_of(NodeId(1), GroupId(3)), Some(1));
        assert_eq!(nodes.shard_of(NodeId(2), GroupId(3)), Some(0));
        assert_eq!(nodes.shard_of(NodeId(3), GroupId(3)), None);
    }

    #[test]
    fn a_leader_at_another_shard_than_its_groups_is_to_be_asked_for_its_shards() {
        let mut nodes = Nodes::default();
        nodes.learn(&hello(1, &[(1, "a:1 a:2"), (2, "b:1")]), |_| false);
        let at = |nodes: &Nodes, address, group| nodes.leader_at(address, GroupId(group));
        assert_eq!(at(&nodes, "a:1", 2), Some(NodeId(1)));
        assert_eq!(at(&nodes, "a:2", 3), Some(NodeId(1)));
        assert_eq!(at(&nodes, "a:1", 3), None, "it has one shard now");
        assert_eq!(at(&nodes, "b:1", 3), Some(NodeId(2)));
        assert_eq!(at(&nodes, "c:1", 3), None);
        nodes.reached("c:1".to_owned(), NodeId(2));
        assert_eq!(at(&nodes, "c:1", 3), Some(NodeId(2)), "another name");
    }

    #[test]
    fn the_others_come_in_a_ring() {
        let mut nodes = Nodes::default();
        nodes.learn(&hello(1, &[(1, "a"), (2, "b"), (3, "c")]), |_| false);
        let after = |node| nodes.after(node).map(|node| node.0).collect::<Vec<_>>();
        assert_eq!(after(Some(NodeId(1))), [2, 3]);
        assert_eq!(after(Some(NodeId(2))), [3, 1]);
        assert_eq!(after(Some(NodeId(3))), [1, 2]);
        assert_eq!(after(None), [1, 2, 3]);
    }

    #[test]
    fn another_name_of_a_node_is_remembered() {
        let mut nodes = Nodes::default();
        nodes.learn(&hello(1, &[(1, "a:1")]), |_| false);
        nodes.reached("localhost:1".to_owned(), NodeId(1));
        assert_eq!(nodes.at("localhost:1"), Some(NodeId(1)));
        assert_eq!(nodes.at("localhost:2"), None);
    }
}
