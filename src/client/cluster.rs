//! The nodes of the cluster, each with what it says of itself, or why it says nothing.

use crate::base::limits::CLUSTER_GROUP;
use crate::client::call::strange;
use crate::client::session::Route;
use crate::client::{Client, Code, Error, MemberChange, NodeId, ShardStatus};
use crate::wire::message::{ReplyBody, RequestBody};
use std::time::Duration;

/// A node that does not say how it is within this is taken for away.
const PATIENCE: Duration = Duration::from_secs(2);

/// A node, as [`Client::nodes`] finds it.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its number.
    pub node: NodeId,
    /// `host:port` of each of its shards, in order, as last listed.
    pub addresses: Vec<String>,
    /// The version that it last said it has; `None` if this client never reached it.
    pub version: Option<String>,
    /// What its shards say, in order; or why one of them does not.
    pub shards: Result<Vec<ShardStatus>, Error>,
}

impl Client {
    /// All nodes that the cluster lists; one that cannot be reached is listed as such. Waits at most 2 s
    /// for it, or [`Options::deadline`](crate::client::Options::deadline) if that is less.
    ///
    /// # Errors
    /// [`Code::Unreachable`]; no node was ever reached.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, Error> {
        let patience = PATIENCE.min(self.inner.options.deadline);
        let ask = |node: NodeId, shard: usize| {
            let shard = u16::try_from(shard).unwrap_or(u16::MAX);
            let route = Route::Shard(node, shard);
            self.inner.driver.ask(route, RequestBody::Status, patience)
        };
        let mut asked = Vec::new();
        for listed in self.hello()?.nodes {
            let shards = 0..listed.addresses.len();
            let answers: Vec<_> = shards.map(|shard| ask(listed.node, shard)).collect();
            asked.push((listed, answers));
        }
        let mut nodes = Vec::new();
        for (listed, answers) in asked {
            let mut shards = Ok(Vec::new());
            for answer in answers {
                let said = match answer.answer().await {
                    Ok(reply) => match reply.body {
                        ReplyBody::Status(status) => Ok(status),
                        other => Err(strange(&other)),
                    },
                    Err(error) => Err(error),
                };
                shards = shards.and_then(|mut shards: Vec<ShardStatus>| {
                    shards.push(said?);
                    Ok(shards)
                });
            }
            nodes.push(NodeView {
                node: listed.node,
                addresses: listed.addresses,
                version: self
                    .inner
                    .driver
                    .with_core(|core| core.version(listed.node).cloned()),
                shards,
            });
        }
        Ok(nodes)
    }

    /// Changes the members of the cluster. Done once the change is in the log: the groups follow, and a
    /// node that was added votes when it has caught up, which [`Self::nodes`] shows. What is so already
    /// is done.
    ///
    /// # Errors
    /// [`Code::MembersRefused`] with the reason;
    /// [`Code::Busy`] while another change is under way; and what a call can
    /// end with.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), Error> {
        let body = RequestBody::ChangeMembers(change);
        let reply = self.call(Route::Group(CLUSTER_GROUP), body).await?;
        match reply.body {
            ReplyBody::Outcome(_) => Ok(()),
            other => Err(strange(&other)),
        }
    }

    /// A node hands over what it leads, and goes on doing so until this is taken back or its process ends.
    /// Done once every shard of it knows.
    ///
    /// # Errors
    /// [`Code::Unreachable`] if no such node is known; and what a call
    /// can end with.
    pub async fn drain(&self, node: NodeId, on: bool) -> Result<(), Error> {
        let listed = self.hello()?.nodes;
        let listed = listed.iter().find(|listed| listed.node == node);
        let shards = listed.map_or(0, |listed| listed.addresses.len());
        if shards == 0 {
            let words = format!("there is no node {node}");
            return Err(Error::new(Code::Unreachable, words));
        }
        for shard in (0..shards).map(|shard| u16::try_from(shard).unwrap_or(u16::MAX)) {
            let reply = self.call(Route::Shard(node, shard), RequestBody::Drain { on });
            match reply.await?.body {
                ReplyBody::Outcome(_) => {}
                other => return Err(strange(&other)),
            }
        }
        Ok(())
    }
}
