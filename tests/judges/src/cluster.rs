//! Members of both kinds in one network of which the harness decides what arrives.

use crate::history::History;
use crate::member::{Kind, Member, Settings};
use crate::translate::{Wire, voter};
use raft::eraftpb::MessageType;
use rrq::raft::membership::Membership;
use rrq::raft::message::Voter;
use rrq::raft::quorum::Tally;
use std::collections::BTreeSet;

/// A cluster. Members are numbered from 1.
pub struct Cluster {
    members: Vec<Member>,
    /// Under way, oldest first.
    pub network: Vec<Wire>,
    /// Nothing leaves them or arrives.
    pub cut: BTreeSet<u32>,
    /// Single links that are cut: from, to.
    pub cut_links: BTreeSet<(u32, u32)>,
    /// What happened.
    pub history: History,
    /// Checkpoints that were installed in place of a log.
    pub installs: usize,
    /// Messages that crossed from one kind to the other.
    pub crossed: usize,
    /// Where what happens is printed.
    pub trace: bool,
}

impl Cluster {
    /// Members with empty disks; the first `voters` of them vote.
    #[must_use]
    pub fn new(settings: &[Settings], voters: u32) -> Self {
        let kinds: Vec<Kind> = settings.iter().map(|it| it.kind).collect();
        let first = Membership::of_voters((1..=voters).map(voter));
        let members = settings
            .iter()
            .map(|settings| Member::new(*settings, &kinds, first.clone()));
        Self {
            members: members.collect(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            cut_links: BTreeSet::new(),
            history: History::default(),
            installs: 0,
            crossed: 0,
            trace: false,
        }
    }

    /// The numbers of all members.
    pub fn all(&self) -> impl Iterator<Item = u32> + use<> {
        1..=u32::try_from(self.members.len()).expect("a cluster is small")
    }

    /// A member, to look at.
    #[must_use]
    pub fn member(&self, me: u32) -> &Member {
        &self.members[me as usize - 1]
    }

    fn member_mut(&mut self, me: u32) -> &mut Member {
        &mut self.members[me as usize - 1]
    }

    /// Lets a member do something, and holds what it comes to against what ever happened.
    pub fn act<T>(&mut self, me: u32, act: impl FnOnce(&mut Member) -> T) -> T {
        let result = act(self.member_mut(me));
        self.look_at(me);
        result
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", text());
        }
    }

    /// A member in a line.
    #[must_use]
    pub fn state(&self, me: u32) -> String {
        let member = self.member(me);
        let kind = member.kind();
        let leads = if member.leads() { " leads" } else { "" };
        let (term, last) = (member.term(), member.last());
        let (committed, applied) = (member.committed(), member.applied());
        let disk = &member.disk;
        let (base, durable) = (disk.base.0, disk.base.0.0 + disk.entries.len() as u64);
        format!(
            "{me} {kind:?}{leads} term={term} last={last} commit={committed} applied={applied} \
             base={base} durable={durable} voters={} outgoing={} learners={}",
            numbers(member.members().voters()),
            numbers(member.members().outgoing()),
            numbers(member.members().learners())
        )
    }

    fn look_at(&mut self, me: u32) {
        self.tell(|| self.state(me));
        let member = &self.members[me as usize - 1];
        let term_at = |index| member.term_at(index);
        let base = member.base();
        if member.leads() {
            self.history.leads(me, member.term(), base, term_at);
        }
        let (committed, last) = (member.committed(), member.last());
        assert!(
            committed <= last,
            "member {me} commits {committed} of {last}"
        );
        let news = self
            .history
            .commits(me, member.term(), committed, base, term_at);
        if let Some(first) = news {
            assert!(member.leads(), "member {me} knew first of commit {first}");
            for index in first..=committed {
                let term = member.term_at(index).expect("it is held");
                let has = |it: u32| self.member(it).disk.has(index, term);
                let has = |it: Voter| has(it.node.0).then_some(true);
                let tally = member.members().tally(has);
                assert_eq!(
                    tally,
                    Tally::Won,
                    "{index} is committed, and not on a majority"
                );
            }
        }
    }

    /// Takes what a member wants done: messages leave, the rest waits for [`Self::write`].
    pub fn ready(&mut self, me: u32) {
        let member = &mut self.members[me as usize - 1];
        let sent = member.ready(&mut self.history);
        self.tell(|| format!("{me} ready, sends {sent:?}"));
        self.send(sent);
        self.look_at(me);
    }

    /// In the order of the receivers, where theirs has that of a hash.
    fn send(&mut self, mut sent: Vec<Wire>) {
        sent.sort_by_key(Wire::to);
        self.network.extend(sent);
    }

    /// So many of a member's oldest writes become durable.
    pub fn write(&mut self, me: u32, count: usize) {
        let member = &mut self.members[me as usize - 1];
        let sent = member.write(count, &mut self.history);
        self.tell(|| format!("{me} writes, sends {sent:?}"));
        self.send(sent);
        self.look_at(me);
    }

    /// A member applies all that is committed.
    pub fn apply(&mut self, me: u32) {
        while self.members[me as usize - 1].apply_next(&self.history) {
            // Fewer voters may have made more committed.
            self.look_at(me);
        }
    }

    /// A member loses what is not durable, and starts again.
    pub fn crash(&mut self, me: u32) {
        self.tell(|| format!("{me} crashes"));
        let member = &mut self.members[me as usize - 1];
        member.crash(&mut self.history);
        self.look_at(me);
    }

    /// The checkpoint that a member was offered arrives: the newest of who offered it.
    pub fn install(&mut self, me: u32) {
        if let Some(source) = self.member_mut(me).take_offer() {
            let disk = &self.member(source).disk;
            let (base, members) = (disk.base, disk.members.clone());
            self.tell(|| format!("{me} installs {base:?} of {source}: {members:?}"));
            let installed = self.act(me, |member| member.install(base, members));
            self.installs += usize::from(installed);
        }
    }

    /// Whether a message would get through.
    #[must_use]
    pub fn passes(&self, from: u32, to: u32) -> bool {
        let is_cut = self.cut.contains(&from) || self.cut.contains(&to);
        !is_cut && !self.cut_links.contains(&(from, to))
    }

    /// Takes a message out of the network and gives it to its receiver, if it gets through.
    pub fn deliver(&mut self, place: usize) {
        let message = self.network.remove(place);
        let (from, to) = (message.from(), message.to());
        if !self.passes(from, to) {
            return;
        }
        let kinds = (self.member(from).kind(), self.member(to).kind());
        self.crossed += usize::from(kinds.0 != kinds.1);
        if let Wire::Theirs(message) = &message
            && message.get_msg_type() == MessageType::MsgSnapshot
        {
            self.installs += 1;
        }
        self.tell(|| format!("{from}>{to} {message:?}"));
        self.act(to, |member| member.step(message));
    }

    /// Until nobody has anything to do: everything is written, delivered and applied at once.
    ///
    /// # Panics
    /// If there is no end to it.
    pub fn settle(&mut self) {
        for _ in 0..20_000 {
            for me in self.all() {
                self.ready(me);
                self.write(me, usize::MAX);
                self.apply(me);
            }
            if !self.network.is_empty() {
                self.deliver(0);
            } else if self.members.iter().all(Member::is_idle) {
                return;
            }
        }
        panic!("the members talk for ever");
    }

    /// Whoever leads the highest term.
    #[must_use]
    pub fn leader(&self) -> Option<u32> {
        let leading = self.all().filter(|me| self.member(*me).leads());
        leading.max_by_key(|me| self.member(*me).term())
    }
}

fn numbers(members: &BTreeSet<Voter>) -> String {
    let numbers: Vec<String> = members.iter().map(|it| it.node.to_string()).collect();
    numbers.join(",")
}
