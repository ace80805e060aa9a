//! Runs `tests/scripts/raft/*.txt`: situations of a group, readable as traces.
//!
//! A script is a list of blocks: commands, a line `----`, the output, an empty line; `#` begins a
//! comment. `UPDATE=1` writes the output anew; regenerate only what you can explain. What Raft
//! promises is held against all that happened after each command (`raft_kit`). Commands:
//!
//! ```text
//! members 1 2 3 [learners=4,5]  a group that starts from nothing
//! campaign 1 [transfer]         without waiting for the timeout
//! tick 1 [20] / tick all 20     time goes on
//! propose 1 a b c               entries
//! flood 1 70                    so many entries, each taken and sent by itself
//! change 1 +4 ~5 -2 2:9         add a voter, a learner; remove; node 2 has disk 9 now
//! transfer 1 2                  hand the lead over
//! read 1 77                     asks for a read; what is let through is shown by `reads`
//! ready 1 [2 3]                 what it wants done is taken; messages leave, the rest waits
//! write 1 [count=1]             what waits becomes durable; promises leave
//! apply 1                       what is committed is applied: that
//! deliver [1>2] [count=1]       messages arrive, oldest first;  `deliver 1>2 type=append`
//! drop [1>2] [type=append]      messages are lost
//! repeat 1>2 [type=append]      the oldest message is doubled
//! hold [1>2] [count=1]          messages are late, oldest first: nobody gets them before `release`
//! settle                        all of this, until nobody has anything to do; what was sent
//! quietly                       the same, and only the state after it
//! cut 1 2 / cut 1>2 / heal      members or links that nothing passes
//! crash 1                       loses what was not durable, and starts again
//! compact 1 5                   entries go into a checkpoint
//! install 2                     the checkpoint that it was offered arrives
//! failed 1 2                    tells the leader that it did not
//! rest 1 / lost 2 1             nothing to do: be quiet; the connection of 2 to 1 broke
//! died 2 1 / stand-in 3         1 is proved dead to 2; 3 has waited long enough for another
//! lose 2 5 [7] [vote] [told]    entries 5 to 7 of 2 are gone, or all from 5 on; its last votes too; it knows
//!                               which entry was the last
//! distrust 2                    the engine says that 2 may have lost what it promised
//! recovering                    who may have lost what it promised
//! add 4 knowing 1 2 3           an empty member that knows these voters
//! inject 1>2 t5 beat 3          a message as a bad peer may send it; see `injected`
//! state / log 1 / reads 1 / followers 1 / members-of 1
//! ```

#![cfg(feature = "engine")]

mod raft_kit;

use raft_kit::{Cluster, GROUP, LIFE, name, show, show_entry, voter};
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, Term};
use rrq::base::units::GroupTime;
use rrq::raft::membership::{Membership, Step};
use rrq::raft::message::{Body, Message, QueueChange, Voter, Why};
use rrq::raft::progress::Sending;
use std::fmt::Write as _;
use std::path::Path;

const FOLDER: &str = "tests/scripts/raft";

struct Script {
    cluster: Cluster,
    /// Messages that are late.
    held: Vec<Message>,
    seed: u64,
}

/// The words of a command, with `name=value` apart.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let (named, plain): (Vec<&str>, Vec<&str>) = line
            .split_whitespace()
            .skip(1)
            .partition(|word| word.contains('='));
        let pairs = named.into_iter().filter_map(|word| word.split_once('='));
        Self {
            plain,
            named: pairs.collect(),
        }
    }

    fn named(&self, name: &str) -> Option<&'a str> {
        let mut named = self.named.iter();
        named
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }

    fn count(&self) -> usize {
        self.named("count").map_or(usize::MAX, number)
    }

    fn first(&self) -> Voter {
        member(self.plain[0])
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// `2` is member 2; `2:9` is node 2 with disk 9.
fn member(text: &str) -> Voter {
    let (node, disk) = text.split_once(':').unwrap_or((text, text));
    Voter {
        disk: DiskId([number(disk); 16]),
        ..voter(number(node))
    }
}

fn link(text: &str) -> Option<(Voter, Voter)> {
    let (from, to) = text.split_once('>')?;
    Some((member(from), member(to)))
}

fn names<'a>(members: impl IntoIterator<Item = &'a Voter>) -> String {
    let names: Vec<String> = members.into_iter().map(|member| name(*member)).collect();
    names.join(" ")
}

fn lines(messages: &[Message]) -> String {
    messages
        .iter()
        .map(|message| show(message) + "\n")
        .collect()
}

fn is_of(message: &Message, words: &Words<'_>) -> bool {
    let link = words.plain.first().and_then(|text| link(text));
    let fits = link.is_none_or(|link| link == (message.from, message.to));
    let shown = show(message);
    let kind = words.named("type");
    fits && kind.is_none_or(|kind| shown.split(' ').nth(2) == Some(kind))
}

impl Script {
    fn run(&mut self, line: &str) -> String {
        let words = Words::of(line);
        let plain = &words.plain;
        match line.split_whitespace().next().expect("a command") {
            "members" => self.members(&words),
            "campaign" => {
                let why = if plain.len() > 1 {
                    Why::Transfer
                } else {
                    Why::Silence
                };
                self.cluster.node(words.first()).campaign(why);
                String::new()
            }
            "tick" => self.tick(plain),
            "propose" => self.propose(words.first(), &plain[1..]),
            "flood" => {
                for nth in 0..number(plain[1]) {
                    let text = format!("x{nth}");
                    self.cluster
                        .propose(words.first(), &text)
                        .expect("it leads");
                    self.cluster.settle();
                }
                String::new()
            }
            "change" => self.change(words.first(), &plain[1..]),
            "transfer" => {
                let result = self
                    .cluster
                    .node(words.first())
                    .transfer_to(member(plain[1]));
                result
                    .err()
                    .map_or(String::new(), |error| format!("{error}\n"))
            }
            "read" => {
                let result = self
                    .cluster
                    .node(words.first())
                    .read_index(number(plain[1]));
                result
                    .err()
                    .map_or(String::new(), |error| format!("{error}\n"))
            }
            "ready" => {
                let sent = plain.iter().flat_map(|me| self.cluster.ready(member(me)));
                lines(&sent.collect::<Vec<_>>())
            }
            "write" => lines(&self.cluster.write(words.first(), words.count())),
            "apply" => {
                let applied = self.cluster.apply(words.first());
                let applied: Vec<String> = applied.iter().map(show_entry).collect();
                format!("{} applies [{}]\n", plain[0], applied.join(" "))
            }
            "deliver" => self.deliver(&words),
            "drop" => {
                self.cluster
                    .network
                    .retain(|message| !is_of(message, &words));
                String::new()
            }
            "repeat" => {
                let mut network = self.cluster.network.iter();
                let message = network.find(|message| is_of(message, &words)).cloned();
                self.cluster
                    .network
                    .push(message.expect("one is under way"));
                String::new()
            }
            "hold" => {
                let mut left = words.count();
                for message in std::mem::take(&mut self.cluster.network) {
                    let is_late = left > 0 && is_of(&message, &words);
                    left -= usize::from(is_late);
                    let list = if is_late {
                        &mut self.held
                    } else {
                        &mut self.cluster.network
                    };
                    list.push(message);
                }
                String::new()
            }
            "release" => {
                self.cluster.network.append(&mut self.held);
                String::new()
            }
            "settle" => self.settle(),
            "quietly" => {
                self.cluster.settle();
                self.complaints() + &self.state()
            }
            "cut" => {
                for word in plain {
                    match link(word) {
                        Some(link) => drop(self.cluster.cut_links.insert(link)),
                        None => drop(self.cluster.cut.insert(member(word))),
                    }
                }
                String::new()
            }
            "heal" => {
                self.cluster.cut.clear();
                self.cluster.cut_links.clear();
                String::new()
            }
            "crash" => {
                plain.iter().for_each(|me| self.cluster.crash(member(me)));
                String::new()
            }
            "compact" => {
                self.cluster
                    .compact(words.first(), LogIndex(number(plain[1])));
                String::new()
            }
            "install" => match self.cluster.install(words.first()) {
                Some(base) => format!("installed {}@{}\n", base.0, base.1),
                None => "nothing was offered\n".to_owned(),
            },
            "failed" => {
                self.cluster
                    .node(words.first())
                    .install_failed(member(plain[1]));
                String::new()
            }
            "rest" => format!("{}\n", self.cluster.node(words.first()).rest()),
            "lost" => {
                self.cluster.node(words.first()).lost_peer(member(plain[1]));
                String::new()
            }
            "died" => {
                let waits = self.cluster.node(words.first()).died(member(plain[1]));
                let what = if waits { "waits\n" } else { "" };
                what.to_owned()
            }
            "stand-in" => {
                self.cluster.node(words.first()).stand_in();
                String::new()
            }
            "lose" => {
                let first = LogIndex(number(plain[1]));
                let last = plain.get(2);
                let last = last.filter(|word| !["vote", "told"].contains(word));
                let last = last.map_or(LogIndex(u64::MAX), |word| LogIndex(number(word)));
                let (vote, told) = (plain.contains(&"vote"), plain.contains(&"told"));
                let range = (first, last);
                self.cluster.lose_told(words.first(), range, vote, told);
                String::new()
            }
            "distrust" => {
                self.cluster.node(words.first()).distrust();
                String::new()
            }
            "recovering" => match &self.cluster.recovering()[..] {
                [] => "nobody\n".to_owned(),
                some => names(some) + "\n",
            },
            "add" => {
                let known = plain[2..].iter().map(|text| member(text));
                self.cluster
                    .add(words.first(), Membership::of_voters(known));
                String::new()
            }
            "inject" => {
                let message = self.injected(plain);
                let receiver = voter(message.to.node.0);
                if let Err(error) = self.cluster.node(receiver).step(message) {
                    return format!("{} refuses: {error}\n", name(receiver));
                }
                String::new()
            }
            "state" => self.state(),
            "log" => self.log(words.first()),
            "reads" => {
                let reads = std::mem::take(&mut self.cluster.member(words.first()).reads);
                let reads = reads.iter().map(|(id, index)| format!("{id} at {index}\n"));
                reads.collect()
            }
            "followers" => self.followers(words.first()),
            "members-of" => self.members_of(words.first()),
            other => panic!("`{other}` is no command"),
        }
    }

    fn members(&mut self, words: &Words<'_>) -> String {
        let voters: Vec<u32> = words.plain.iter().map(|text| number(text)).collect();
        let learners = words.named("learners").unwrap_or_default();
        let learners = learners.split(',').filter(|text| !text.is_empty());
        let learners: Vec<u32> = learners.map(number).collect();
        self.cluster = Cluster::new(&voters, &learners, self.seed);
        self.held.clear();
        String::new()
    }

    fn tick(&mut self, plain: &[&str]) -> String {
        let count: u32 = plain.get(1).map_or(1, |text| number(text));
        let who = match plain[0] {
            "all" => self.cluster.all(),
            me => vec![member(me)],
        };
        for _ in 0..count {
            who.iter().for_each(|me| self.cluster.node(*me).tick());
        }
        String::new()
    }

    fn propose(&mut self, me: Voter, texts: &[&str]) -> String {
        let mut out = String::new();
        for text in texts {
            if let Err(error) = self.cluster.propose(me, text) {
                writeln!(out, "{text}: {error}").expect("a string takes all");
            }
        }
        out
    }

    fn change(&mut self, me: Voter, texts: &[&str]) -> String {
        let steps = texts.iter().map(|text| match text.split_at(1) {
            ("+", who) => Step::AddVoter(member(who)),
            ("~", who) => Step::AddLearner(member(who)),
            ("-", who) => Step::Remove(member(who)),
            _ => {
                let new = member(text);
                Step::ReplaceDisk {
                    old: voter(new.node.0),
                    disk: new.disk,
                }
            }
        });
        let steps = steps.collect();
        match self.cluster.node(me).propose_change(steps) {
            Ok(_) => String::new(),
            Err(error) => format!("{error}\n"),
        }
    }

    fn deliver(&mut self, words: &Words<'_>) -> String {
        let mut left = words.count().min(self.cluster.network.len());
        let mut at = 0;
        let mut out = String::new();
        while left > 0 && at < self.cluster.network.len() {
            if is_of(&self.cluster.network[at], words) {
                let before = self.cluster.network.len();
                self.cluster.deliver(at);
                left -= 1;
                debug_assert!(self.cluster.network.len() < before);
            } else {
                at += 1;
            }
        }
        out.push_str(&self.complaints());
        out
    }

    /// Everything that is sent on the way to rest.
    fn settle(&mut self) -> String {
        let mut out = String::new();
        for _ in 0..1000 {
            for me in self.cluster.all() {
                for message in self.cluster.ready(me) {
                    writeln!(out, "{}", show(&message)).expect("a string takes all");
                }
                for message in self.cluster.write(me, usize::MAX) {
                    writeln!(out, "{} (durable)", show(&message)).expect("a string takes all");
                }
                self.cluster.apply(me);
            }
            if self.cluster.network.is_empty() {
                let idle = self
                    .cluster
                    .members
                    .values()
                    .all(|member| !member.node.has_ready());
                if idle {
                    return out + &self.complaints();
                }
            }
            for _ in 0..self.cluster.network.len() {
                self.cluster.deliver(0);
            }
        }
        panic!("the members talk for ever");
    }

    fn complaints(&mut self) -> String {
        let refused = std::mem::take(&mut self.cluster.refused);
        let refused = refused
            .iter()
            .map(|(me, error)| format!("{} refuses: {error}\n", name(*me)));
        refused.collect()
    }

    /// `1>2 t5 beat 3`; with the word `group` or `life`, of another group, or of another life of it.
    fn injected(&self, plain: &[&str]) -> Message {
        let (from, to) = link(plain[0]).expect("from and to");
        let term: u64 = number(plain[1].trim_start_matches('t'));
        let at = |place: usize| plain.get(place).map_or(0, |text| number(text));
        let entry = |index: u64, term: u64| {
            Entry {
                term: Term(term),
                index: LogIndex(index),
                time: GroupTime(0),
                kind: EntryKind::Data,
                machine_version: 1,
                flags: 0,
                crc: 0,
                payload: "bad".into(),
            }
            .sealed(GROUP, LIFE)
        };
        let body = match plain[2] {
            "beat" => Body::Beat { round: at(3) },
            "heartbeat" => Body::Heartbeat {
                commit: LogIndex(at(3)),
                round: 1,
                quiet: false,
                heir: false,
            },
            "appended" => Body::Appended {
                matched: LogIndex(at(3)),
            },
            "refused" => Body::Refused {
                prev: LogIndex(at(3)),
                hint: (LogIndex(at(4)), Term(at(5))),
            },
            // prev index and term, then index and term of an entry, each.
            "append" => Body::Append {
                prev: (LogIndex(at(3)), Term(at(4))),
                entries: (5..plain.len())
                    .step_by(2)
                    .map(|place| entry(at(place), at(place + 1)))
                    .collect(),
                commit: LogIndex(0),
            },
            "canvass" => Body::Canvass {
                pre: false,
                last: (LogIndex(at(3)), Term(at(4))),
                commit: (LogIndex(0), Term(0)),
                why: Why::Silence,
            },
            "pre-ballot" | "ballot" => Body::Ballot {
                pre: plain[2] == "pre-ballot",
                granted: plain[3] == "yes",
                commit: (LogIndex(0), Term(0)),
            },
            "timeout-now" => Body::TimeoutNow,
            other => panic!("`{other}` is no message"),
        };
        let strange = |name: &str| plain.contains(&name);
        // Of the member that it seems to come from: a later life would make it deaf to that member.
        let member = self.cluster.members.get(&from);
        let life = member.map_or(0, |member| {
            let anything = QueueChange::Done {
                home: GROUP,
                home_index: LogIndex(0),
            };
            member.node.tell_of(to, anything).life
        });
        Message {
            from,
            to,
            group: if strange("group") { GroupId(8) } else { GROUP },
            incarnation: if strange("life") {
                Incarnation(9)
            } else {
                LIFE
            },
            term: Term(term),
            life,
            recovering: false,
            body,
        }
    }

    fn state(&self) -> String {
        let line = |(me, member): (&Voter, &raft_kit::Member)| {
            let (node, log) = (&member.node, member.node.log());
            let leader = node.leader().map_or("nobody".to_owned(), name);
            format!(
                "{}: {} t{} of {leader}, committed {} of {}\n",
                name(*me),
                node.role().name(),
                node.term(),
                log.committed(),
                log.last_index()
            )
        };
        self.cluster.members.iter().map(line).collect()
    }

    fn log(&mut self, me: Voter) -> String {
        let log = self.cluster.node(me).log();
        let entries = log.slice(log.base().0.next(), usize::MAX);
        let entries: Vec<String> = entries.iter().map(show_entry).collect();
        let (base, term) = log.base();
        format!("{base}@{term} | {}\n", entries.join(" "))
    }

    fn followers(&mut self, me: Voter) -> String {
        let line = |(follower, progress): (Voter, &rrq::raft::progress::Progress)| {
            let sending = match progress.sending() {
                Sending::Probe { waits: true } => "probe, waits".to_owned(),
                Sending::Probe { waits: false } => "probe".to_owned(),
                Sending::Replicate => "replicate".to_owned(),
                Sending::Behind { waits: true } => "behind, waits".to_owned(),
                Sending::Behind { waits: false } => "behind".to_owned(),
                Sending::Snapshot { index } => format!("snapshot {index}"),
            };
            format!(
                "{}: matched {} next {} {sending}\n",
                name(follower),
                progress.matched(),
                progress.next()
            )
        };
        self.cluster.node(me).followers().map(line).collect()
    }

    fn members_of(&mut self, me: Voter) -> String {
        let members = self.cluster.node(me).members();
        let mut out = format!("voters {}", names(members.voters()));
        if members.is_joint() {
            write!(out, ", outgoing {}", names(members.outgoing())).expect("a string takes all");
        }
        if !members.learners().is_empty() {
            write!(out, ", learners {}", names(members.learners())).expect("a string takes all");
        }
        out + "\n"
    }
}

/// Runs a script; the text with what was printed.
fn replay(text: &str) -> String {
    let mut script = Script {
        cluster: Cluster::new(&[1], &[], 1),
        held: Vec::new(),
        seed: 1,
    };
    let mut out = String::new();
    let mut printed = String::new();
    let mut in_output = false;
    for line in text.lines() {
        match line {
            "----" => {
                out.push_str("----\n");
                out.push_str(&printed);
                printed.clear();
                in_output = true;
            }
            "" => {
                assert!(
                    printed.is_empty(),
                    "a block without `----` prints {printed}"
                );
                out.push('\n');
                in_output = false;
            }
            _ if in_output => {}
            _ => {
                out.push_str(line);
                out.push('\n');
                if !line.starts_with('#') {
                    printed.push_str(&script.run(line));
                }
            }
        }
    }
    out
}

#[test]
fn every_script_prints_what_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
    let entries = std::fs::read_dir(&folder).expect("the folder is there");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("it is listed").path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    paths.sort();
    let mut wrong = Vec::new();
    for path in &paths {
        let text = std::fs::read_to_string(path).expect("a script");
        let name = path
            .file_stem()
            .expect("it has a name")
            .to_string_lossy()
            .into_owned();
        let result = std::panic::catch_unwind(|| replay(&text));
        match result {
            Ok(printed) if printed == text => {}
            Ok(printed) if std::env::var_os("UPDATE").is_some() => {
                std::fs::write(path, printed).expect("it can be written");
            }
            Ok(printed) => wrong.push(format!("{name} prints\n{printed}")),
            Err(_) => wrong.push(format!("{name} panics")),
        }
    }
    assert!(paths.len() > 1, "there are scripts");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A trap that costs nothing but time, or that needs what no random run draws: with its bug planted the
/// script must print something else.
#[cfg(feature = "bug-bank")]
mod planted {
    use super::replay;
    use rrq::base::bugs::{Bug, plant};

    macro_rules! caught {
        ($($bug:ident by $script:ident)*) => {$(
            #[test]
            #[allow(non_snake_case)]
            fn $bug() {
                let text = include_str!(concat!("scripts/raft/", stringify!($script), ".txt"));
                assert_eq!(replay(text), text, "without the bug");
                plant(Some(Bug::$bug));
                let printed = std::panic::catch_unwind(|| replay(text));
                plant(None);
                assert!(printed.is_err() || printed.is_ok_and(|printed| printed != text));
            }
        )*};
    }

    caught! {
        LeaderNotForgotten by r01_a_pre_candidate_forgets_its_leader
        PastUnanswered by r02_terms_spread_through_refusals
        LeaderItselfRefused by r04_an_old_leader_may_ask_again
        PreVoteWithoutLog by r05_a_short_log_gets_no_pre_vote
        StrangersRefused by r07_who_does_not_know_the_change_votes_too
        CampaignOverChange by r08_nobody_campaigns_over_an_unapplied_change
        NewVotersAlone by r09_old_voters_must_agree
        OfferNotRepeated by r17_an_offer_is_made_once_and_again_if_it_is_lost
        EarlierLifeCounts by r21_strange_messages_are_refused
        VoterNotCaughtUp by r25_a_new_voter_must_have_the_log
        VoteNotRepeated by r27_a_vote_is_granted_again
        CampaignerDeaf by r28_a_candidate_follows_the_leader_of_its_term
        ChangeMarkForgotten by r29_nobody_forgets_two_changes
        ReplayPastChange by a_single_voter_replays_no_further_than_a_change
    }
}
