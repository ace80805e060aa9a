//! `rrqctl status`: nodes, shards, groups, queues with their counters.

use crate::base::ids::NodeId;
use crate::base::report::Report;
use crate::cli::terminal::{bytes, count, print, say_json, span, table};
use crate::cli::{Common, Output, queue};
use crate::client::{Error, GroupId, NodeView, QueueInfo, QueueStats, ServerHello, ShardStatus};
use crate::runtime::json;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;
use tokio::task::JoinSet;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl status
  rrqctl status --groups
  rrqctl status --output json | jq '.queues[] | {name, pending}'";

#[derive(clap::Args, Debug)]
pub(super) struct StatusArgs {
    /// Show each group too, not only those that do not serve.
    #[arg(long)]
    groups: bool,
}

type Queues = Vec<(QueueInfo, QueueStats)>;

pub(super) async fn run(args: &StatusArgs, common: &Common) -> Result<(), Report> {
    let complain = |error: Error| common.complaint(&error);
    let client = common.connect().await?;
    let hello = client.hello().map_err(complain)?;
    let nodes = client.nodes().await.map_err(complain)?;
    let groups = answers(&nodes).flat_map(|(_, shard)| &shard.groups);
    // Each is on every node.
    let serving: BTreeSet<GroupId> = groups
        .filter(|group| group.halted.is_empty())
        .map(|group| group.group)
        .collect();
    let mut calls = JoinSet::new();
    for group in serving {
        let client = client.clone();
        calls.spawn(async move { client.queues_of(group).await });
    }
    let mut queues: Queues = Vec::new();
    while let Some(Ok(part)) = calls.join_next().await {
        queues.extend(part.map_err(complain)?);
    }
    queues.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    client.close().await;
    match common.output {
        Output::Json => say_json(&as_json(&hello, &nodes, &queues)),
        Output::Table => print(&as_text(args, &hello, &nodes, &queues)),
    }
}

/// What the shards say that say something, with their node.
pub(super) fn answers(nodes: &[NodeView]) -> impl Iterator<Item = (NodeId, &ShardStatus)> {
    let of = |node: &NodeView| node.node;
    let shards = nodes
        .iter()
        .filter_map(move |node| Some((of(node), node.shards.as_ref().ok()?)));
    shards.flat_map(|(node, shards)| shards.iter().map(move |shard| (node, shard)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_text(args: &StatusArgs, hello: &ServerHello, nodes: &[NodeView], queues: &Queues) -> String {
    let mut out = format!(
        "cluster {}: {}, {}, {}\n",
        hex(&hello.cluster.0),
        count(nodes.len() as u64, "node"),
        count(
            nodes.iter().map(|node| node.addresses.len() as u64).sum(),
            "shard"
        ),
        count(u64::from(hello.groups), "group"),
    );
    for node in nodes {
        match &node.shards {
            Ok(shards) => shards
                .iter()
                .for_each(|shard| show_shard(&mut out, node, shard)),
            Err(error) => {
                let address = node.addresses.first().map_or("?", String::as_str);
                let _ = writeln!(out, "node {} at {address}: NO ANSWER: {error}", node.node);
            }
        }
    }
    if args.groups {
        out.push('\n');
        let heads = [
            "group",
            "node",
            "shard",
            "leads",
            "term",
            "committed",
            "applied",
            "base",
            "sessions",
            "version",
        ];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for (node, shard) in answers(nodes) {
            rows.extend(shard.groups.iter().map(|group| {
                vec![
                    group.group.to_string(),
                    node.to_string(),
                    shard.shard.to_string(),
                    if group.leader { "yes" } else { "no" }.to_owned(),
                    group.term.to_string(),
                    group.commit.to_string(),
                    group.applied.to_string(),
                    group.base.to_string(),
                    group.sessions.to_string(),
                    group.machine_version.to_string(),
                ]
            }));
        }
        out += &table(&rows);
    }
    out.push('\n');
    out + &queue::as_table(queues)
}

fn show_shard(out: &mut String, node: &NodeView, shard: &ShardStatus) {
    let address = node.addresses.get(usize::from(shard.shard));
    let _ = writeln!(
        out,
        "node {} shard {} at {}: up {}, leads {} of {}, {}, {} of log since the last checkpoint{}",
        node.node,
        shard.shard,
        address.map_or("?", String::as_str),
        span(Duration::from_millis(shard.uptime_ms)),
        shard.groups.iter().filter(|group| group.leader).count(),
        count(shard.groups.len() as u64, "group"),
        count(shard.connections, "connection"),
        bytes(shard.log_bytes_since_checkpoint),
        if shard.disk_full {
            ", DISK FULL: no new jobs"
        } else {
            ""
        },
    );
    for group in shard.groups.iter().filter(|group| !group.halted.is_empty()) {
        let _ = writeln!(out, "  STOPPED: {}", group.halted);
    }
}

fn as_json(hello: &ServerHello, nodes: &[NodeView], queues: &Queues) -> Value {
    let nodes = nodes.iter().map(|node| {
        let shards = node.shards.iter().flatten();
        json!({
            "node": node.node.0,
            "addresses": node.addresses,
            "error": node.shards.as_ref().err().map(ToString::to_string),
            "shards": shards.map(json::shard).collect::<Vec<_>>(),
        })
    });
    let queues = queues.iter().map(|(info, stats)| json::queue(info, stats));
    json!({
        "cluster": hex(&hello.cluster.0),
        "version": hello.version,
        "groups": hello.groups,
        "nodes": nodes.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
    })
}
