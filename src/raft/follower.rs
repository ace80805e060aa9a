//! What a follower does with what its leader sends.

use crate::base::bugs::{self, Bug};
use crate::base::ids::LogIndex;
use crate::base::units::GroupTime;
use crate::raft::membership::Membership;
use crate::raft::message::{Body, Entries, Position, Voter};
use crate::raft::node::RaftNode;
use crate::raft::role::Role;

/// A checkpoint that a follower has got in place of entries.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The last entry that is in it.
    pub base: Position,
    /// Its stamp.
    pub time: GroupTime,
    /// The version of the job machine from there on.
    pub machine_version: u16,
    /// The members as of it.
    pub members: Membership,
}

impl RaftNode {
    pub(super) fn on_append(&mut self, prev: Position, entries: Entries, commit: LogIndex) {
        let leader = self.leader.expect("it was just heard");
        if self.is_blank() {
            // Not even the beginning is here: only a checkpoint can be gone on from.
            let hint = self.log.base();
            return self.send(leader, Body::Refused { prev: prev.0, hint });
        }
        let committed = self.log.committed();
        if prev.0 < committed {
            // An old message, or one of a leader that knows too little: what is committed is here.
            return self.promise(leader, Body::Appended { matched: committed });
        }
        match self.log.follow(prev, entries) {
            Ok(matched) => {
                self.go_on_from_log();
                self.follows_leader(matched);
                // What lies behind may be another leader's.
                self.log.commit_to(commit.min(matched).max(committed));
                self.look_at_anchor();
                self.promise(leader, Body::Appended { matched });
            }
            Err(hint) => self.send(leader, Body::Refused { prev: prev.0, hint }),
        }
    }

    pub(super) fn on_heartbeat(&mut self, commit: LogIndex, round: u64, quiet: bool) {
        let leader = self.leader.expect("it was just heard");
        if commit > self.log.last_index() {
            // The leader has counted on what is not here any more (trap R13).
            self.distrust();
        }
        self.log.commit_to(commit.min(self.followed()));
        self.look_at_anchor();
        if bugs::on(Bug::SoundByLeaderAlone) && self.is_recovering() {
            self.recovered();
        }
        self.ask_for_anchor();
        self.quiet = quiet && self.log.committed() == self.log.last_index();
        self.send(leader, Body::Beat { round });
    }

    pub(super) fn on_offer(&mut self, base: Position) {
        let leader = self.leader.expect("it was just heard");
        let committed = self.log.committed();
        if base.0 <= committed {
            // It is not needed: the log goes on from here.
            self.promise(leader, Body::Appended { matched: committed });
        } else {
            self.offered = Some((leader, base));
        }
    }

    /// A checkpoint that this member needs, and who has it; once.
    pub fn take_offer(&mut self) -> Option<(Voter, Position)> {
        self.offered.take()
    }

    /// A checkpoint shall be installed: no leader of an earlier term is heeded any more, whose entries
    /// could contradict what follows it. False if that cannot be: this member leads, or has applied as
    /// much.
    pub fn prepare_install(&mut self, base: Position) -> bool {
        if self.role == Role::Leader || base.0 <= self.log.applied() {
            return false;
        }
        if base.1 > self.term {
            self.become_follower(base.1, None);
        } else if self.role != Role::Follower {
            // What it asked for its votes with is no more.
            self.become_follower(self.term, None);
        }
        true
    }

    /// A checkpoint was installed, durably. One that is not ahead of what is applied here changes
    /// nothing.
    pub fn installed(&mut self, checkpoint: Installed) {
        if checkpoint.base.0 > self.log.applied() {
            let is_here = self.log.term_at(checkpoint.base.0) == Some(checkpoint.base.1);
            if !is_here && self.role != Role::Follower {
                // Whoever has it shall lead.
                self.become_follower(self.term, None);
            }
            self.log.install(checkpoint.base);
            self.go_on_from_base(checkpoint.time, checkpoint.machine_version);
            self.go_on_from_log();
            self.members = checkpoint.members;
        }
        if let Some(leader) = self.leader.filter(|leader| *leader != self.config.me) {
            let matched = self.log.committed();
            self.promise(leader, Body::Appended { matched });
        }
    }
}
