//! Real `rrq-node` processes whose network is cut between them, in one direction or both, while clients
//! reach them all: who hears no majority acknowledges nothing and answers no read, and the others go on.
#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod cluster_kit;
mod node_support;

use bytes::BytesMut;
use cluster_kit::{Cluster, Load, QUEUE};
use node_support::DEADLINE;
use node_support::client;
use rrq::base::ids::{GroupId, Partition, QueueUid, Term};
use rrq::shard::placement::home_group;
use rrq::wire::client::encode_request;
use rrq::wire::message::{ReplyBody, Request, RequestBody};
use rrq::wire::{Command, NewJob, Op};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For so long it is watched what a node that is cut off does.
const WATCHED: Duration = Duration::from_millis(1_500);

/// Two questions to one node over a connection of its own: a job for a queue that has the leader of [`QUEUE`],
/// and how that queue is.
struct Asked {
    client: client::Client,
}

/// A queue in the group of [`QUEUE`].
fn neighbour() -> String {
    let mut names = (0..).map(|number| format!("asked-{number}"));
    let name = names.find(|name| home_group(name, 64) == home());
    name.expect("some name has that home")
}

impl Asked {
    /// Asks node `number`, which is there.
    fn of(cluster: &Cluster, number: u32, queue: QueueUid) -> Self {
        let address = cluster.client_address(number).parse();
        let (mut client, _) = client::Client::greeted(address.expect("an address"));
        let enqueue = Op::Enqueue {
            queue,
            partition: Partition(0),
            items: vec![NewJob::default()],
        };
        let group = home();
        let command = Command {
            session: None,
            op: enqueue,
        };
        let bodies = [
            RequestBody::Command {
                group,
                command,
                wait_ms: 0,
            },
            RequestBody::GetQueue {
                name: neighbour(),
                create: false,
            },
        ];
        let mut out = BytesMut::new();
        for (id, body) in (1..).zip(bodies) {
            encode_request(&Request { id, body }, &mut out);
        }
        client.send(&out);
        Self { client }
    }

    /// What was granted of it while it was watched.
    fn granted(mut self) -> Vec<ReplyBody> {
        let patience = self.client.stream.set_read_timeout(Some(WATCHED));
        patience.expect("a timeout");
        let replies = std::iter::from_fn(|| self.client.try_reply());
        let bodies = replies.take(2).map(|reply| reply.body);
        bodies
            .filter(|body| !matches!(body, ReplyBody::Error(_)))
            .collect()
    }
}

/// The group of [`QUEUE`].
fn home() -> GroupId {
    home_group(QUEUE, 64)
}

/// The highest term of each group that any node knows.
fn terms(cluster: &Cluster) -> BTreeMap<GroupId, Term> {
    let mut terms = BTreeMap::new();
    let views = cluster.client().nodes().expect("they answer");
    let shards = views
        .into_iter()
        .map(|view| view.shards.expect("it serves"));
    for group in shards.flatten().flat_map(|shard| shard.groups) {
        let term: &mut Term = terms.entry(group.group).or_default();
        *term = (*term).max(group.term);
    }
    terms
}

/// The same of [`home`].
fn term(cluster: &Cluster) -> Term {
    terms(cluster)[&home()]
}

/// Nothing was lost of a load, and no request failed.
fn is_whole(load: Load) {
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}

/// Waits until another node than this leads the queue.
fn until_another_leads(cluster: &Cluster, number: u32) -> u32 {
    let begun = Instant::now();
    loop {
        let mut others = cluster.others(number).into_iter();
        if let Some(leader) = others.find(|other| cluster.leads(*other).contains(&home())) {
            return leader;
        }
        assert!(begun.elapsed() < DEADLINE, "nobody else leads");
    }
}

/// Makes the queue that is asked for.
fn queue(cluster: &Cluster) -> QueueUid {
    let made = cluster.client().queue(&neighbour()).expect("a queue");
    made.info().expect("it is there").0.uid
}

#[test]
fn a_leader_that_is_cut_off_grants_nothing_and_the_others_go_on() {
    let cluster = Cluster::start_on_relays("cut-off", 3);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let (leader, queue) = (cluster.leader(), queue(&cluster));
    for _ in 0..2 {
        cluster.relays().part(&[leader], &cluster.others(leader));
        let asked = Asked::of(&cluster, leader, queue);
        load.until_enqueued(500);
        assert_eq!(asked.granted(), [], "by a leader that is cut off");
        cluster.relays().heal();
        load.until_enqueued(500);
    }
    is_whole(load);
}

#[test]
fn of_five_two_that_are_cut_off_grant_nothing_and_three_go_on() {
    let cluster = Cluster::start_on_relays("two-of-five", 5);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let (leader, queue) = (cluster.leader(), queue(&cluster));
    let with = cluster.others(leader)[0];
    let majority: Vec<u32> = cluster
        .numbers()
        .filter(|it| ![leader, with].contains(it))
        .collect();
    cluster.relays().part(&[leader, with], &majority);
    let asked = [leader, with].map(|number| Asked::of(&cluster, number, queue));
    load.until_enqueued(500);
    for asked in asked {
        assert_eq!(asked.granted(), [], "by a minority");
    }
    cluster.relays().heal();
    load.until_enqueued(500);
    is_whole(load);
}

#[test]
fn nodes_that_hear_nobody_grant_nothing_until_they_do() {
    let cluster = Cluster::start_on_relays("all-apart", 3);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let queue = queue(&cluster);
    for number in cluster.numbers() {
        cluster.relays().part(&[number], &cluster.others(number));
    }
    let asked: Vec<Asked> = cluster
        .numbers()
        .map(|number| Asked::of(&cluster, number, queue))
        .collect();
    for asked in asked {
        assert_eq!(asked.granted(), [], "without a majority");
    }
    let before = load.enqueued();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(load.enqueued(), before, "somebody acknowledges");
    cluster.relays().heal();
    load.until_enqueued(500);
    is_whole(load);
}

/// A leader that can do one of two things, send and receive, is replaced, and comes back without another election.
fn is_replaced(name: &str, cut: fn(&Cluster, u32, &[u32])) {
    let cluster = Cluster::start_on_relays(name, 3);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let (leader, queue) = (cluster.leader(), queue(&cluster));
    cut(&cluster, leader, &cluster.others(leader));
    let next = until_another_leads(&cluster, leader);
    load.until_enqueued(500);
    assert_eq!(
        Asked::of(&cluster, leader, queue).granted(),
        [],
        "by the leader before"
    );
    let before = term(&cluster);
    cluster.relays().heal();
    load.until_enqueued(500);
    // Whoever was cut off did not raise its terms all the while.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(cluster.leader(), next, "it leads on");
    assert_eq!(term(&cluster), before, "nobody was elected anew");
    is_whole(load);
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    is_replaced("deaf", |cluster, leader, others| {
        cluster.relays().cut(others, &[leader]);
    });
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    is_replaced("mute", |cluster, leader, others| {
        cluster.relays().cut(&[leader], others);
    });
}

#[test]
fn followers_that_do_not_hear_each_other_disturb_nobody() {
    let cluster = Cluster::start_on_relays("followers", 3);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let leader = cluster.leader();
    let followers = cluster.others(leader);
    let before = term(&cluster);
    cluster.relays().part(&followers[..1], &followers[1..]);
    load.until_enqueued(500);
    std::thread::sleep(WATCHED);
    load.until_enqueued(500);
    cluster.relays().heal();
    load.until_enqueued(500);
    assert_eq!((cluster.leader(), term(&cluster)), (leader, before));
    is_whole(load);
}

#[test]
fn a_link_that_comes_and_goes_causes_no_storm_of_elections() {
    const FLAPS: u64 = 12;
    let cluster = Cluster::start_on_relays("flapping", 3);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let before = terms(&cluster);
    for _ in 0..FLAPS {
        // Longer than silence takes to be noticed.
        cluster.relays().part(&[leader], &[follower]);
        std::thread::sleep(Duration::from_millis(350));
        cluster.relays().heal();
        load.until_enqueued(50);
    }
    load.until_enqueued(500);
    // The third node hears both all the time: it grants no vote against a leader that it hears, also of groups
    // in which nothing happens, and all logs are equal.
    for (group, term) in terms(&cluster) {
        let rise = term.0 - before[&group].0;
        assert!(rise <= 2, "{rise} terms more of group {group}");
    }
    is_whole(load);
}
