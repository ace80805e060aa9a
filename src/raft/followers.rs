//! The members that a leader leads, in their order: few, and looked up at every message, so that a list
//! beats a tree.

use crate::base::bugs::{self, Bug};
use crate::base::ids::LogIndex;
use crate::raft::membership::Membership;
use crate::raft::message::Voter;
use crate::raft::progress::Progress;
use crate::raft::quorum;

/// In which sets a member votes.
#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    new: bool,
    outgoing: bool,
}

impl Votes {
    fn of(member: Voter, members: &Membership) -> Self {
        Self {
            new: members.voters().contains(&member),
            outgoing: members.outgoing().contains(&member),
        }
    }
}

#[derive(Clone, Debug)]
struct Follower {
    voter: Voter,
    votes: Votes,
    progress: Progress,
}

/// What a leader knows of the other members.
#[derive(Clone, Debug, Default)]
pub(super) struct Followers {
    list: Vec<Follower>,
    /// The leader's own votes.
    own: Votes,
}

impl Followers {
    /// These are the members now; of those that are new nothing is known.
    pub(super) fn set(&mut self, me: Voter, members: &Membership, new: &Progress) {
        let mut before = std::mem::take(&mut self.list);
        let kept = |voter: Voter| {
            let known = before.iter().position(|other| other.voter == voter);
            let known = known.map(|place| before.swap_remove(place).progress);
            Follower {
                voter,
                votes: Votes::of(voter, members),
                progress: known.unwrap_or_else(|| new.clone()),
            }
        };
        let others = members.members().filter(|member| *member != me);
        self.list = others.map(kept).collect();
        self.own = Votes::of(me, members);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn get(&self, voter: Voter) -> Option<&Progress> {
        let found = self.list.iter().find(|other| other.voter == voter);
        found.map(|found| &found.progress)
    }

    pub(super) fn get_mut(&mut self, voter: Voter) -> Option<&mut Progress> {
        let found = self.list.iter_mut().find(|other| other.voter == voter);
        found.map(|found| &mut found.progress)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Voter, &Progress)> {
        self.list
            .iter()
            .map(|follower| (follower.voter, &follower.progress))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Voter, &mut Progress)> {
        self.list
            .iter_mut()
            .map(|follower| (follower.voter, &mut follower.progress))
    }

    /// The voters, while joint the new ones.
    pub(super) fn voters(&self) -> impl Iterator<Item = (Voter, &Progress)> {
        let voters = self.list.iter().filter(|follower| follower.votes.new);
        voters.map(|follower| (follower.voter, &follower.progress))
    }

    /// The highest index that a majority has, while joint of both sets; `own` is what the leader has.
    pub(super) fn reached(&self, own: LogIndex) -> LogIndex {
        let of = |votes: fn(&Votes) -> bool| {
            let theirs = self.list.iter().filter(move |other| votes(&other.votes));
            let theirs = theirs.map(|other| other.progress.counted());
            quorum::reached(theirs.chain(votes(&self.own).then_some(own)))
        };
        let new = of(|votes| votes.new).expect("a group has a voter");
        let old = of(|votes| votes.outgoing).filter(|_| !bugs::on(Bug::NewVotersAlone));
        old.map_or(new, |old| old.min(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::membership::{Change, Step};
    use crate::raft::message::voter;

    #[test]
    fn while_joint_a_majority_of_both_sets_counts() {
        let old = Membership::of_voters([1, 2, 3].map(voter));
        let steps = vec![Step::AddVoter(voter(4)), Step::Remove(voter(1))];
        let joint = old.changed(&Change::Enter(steps)).expect("it fits");
        let mut followers = Followers::default();
        followers.set(voter(1), &joint, &Progress::new(LogIndex(100)));
        for number in 2..=4 {
            let progress = followers.get_mut(voter(number)).expect("a member");
            progress.accepted(LogIndex(u64::from(number) * 10), LogIndex(1));
        }
        assert_eq!(
            followers.reached(LogIndex(10)),
            LogIndex(20),
            "of 10, 20 and 30"
        );
        assert_eq!(
            followers.reached(LogIndex(90)),
            LogIndex(30),
            "of 90, 20 and 30, and 20, 30, 40"
        );
        let after = joint.changed(&Change::Leave).expect("it is joint");
        followers.set(voter(1), &after, &Progress::new(LogIndex(100)));
        assert_eq!(
            followers.reached(LogIndex(90)),
            LogIndex(30),
            "the leader votes no more"
        );
        let kept = followers.get(voter(4)).map(Progress::matched);
        assert_eq!(kept, Some(LogIndex(40)), "what is known stays");
    }
}
