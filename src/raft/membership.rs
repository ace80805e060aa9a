//! Who belongs to a group, and how that changes (thesis chapter 4, with joint consensus, 4.3).
//!
//! ```text
//!   voters {1 2 3}                     an entry of kind Conf, and its applying
//!        │  enter: +4 -1
//!   voters {2 3 4}  outgoing {1 2 3}   joint: decisions need a majority of each
//!        │  leave, proposed by the leader by itself
//!   voters {2 3 4}
//! ```
//!
//! # Invariants
//!
//! - There is a voter. Nobody is voter and learner; a learner that waits in `learners_next` is an
//!   outgoing voter.
//! - A change acts when its entry is *applied*, on every member at the same index; what is only in a
//!   log changes nothing (traps R8, R9).
//! - One change at a time: while joint, only leaving is allowed.
//! - A change that touches no voter (learners come and go) needs no joint step.
//!
//! A voter is a node with a disk, so that [`Step::ReplaceDisk`] takes one voter out and another in:
//! what the old disk promised is not expected of the new one.
//!
//! Left out on purpose: that a new voter has caught up. That is the leader's business when it is asked
//! ([`propose_change`](crate::raft::node::RaftNode::propose_change)).

use crate::base::bugs::{self, Bug};
use crate::base::ids::{DiskId, NodeId};
use crate::base::limits::{LEARNERS_MAX, MEMBER_STEPS_MAX, VOTERS_MAX};
use crate::base::members::{Member, MemberRole};
use crate::raft::message::Voter;
use crate::raft::quorum::{self, Tally};
use bytes::Bytes;
use std::collections::BTreeSet;

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    voters: BTreeSet<Voter>,
    outgoing: BTreeSet<Voter>,
    learners: BTreeSet<Voter>,
    /// Outgoing voters that become learners when the joint configuration is left.
    learners_next: BTreeSet<Voter>,
}

/// One step of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Votes from now on; a learner stops being one.
    AddVoter(Voter),
    /// Gets the log and does not vote; a voter stops being one.
    AddLearner(Voter),
    /// Belongs no more.
    Remove(Voter),
    /// The node's new disk votes in place of the old one.
    ReplaceDisk {
        /// The voter as it was.
        old: Voter,
        /// The disk that it has now.
        disk: DiskId,
    },
}

/// What an entry of kind Conf holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Steps, all at once.
    Enter(Vec<Step>),
    /// The joint configuration is left.
    Leave,
}

/// Why a change cannot be made. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another change is not finished.
    #[error("another change of the members is under way")]
    UnderWay,
    /// There is no joint configuration to leave.
    #[error("there is no change to finish")]
    NotJoint,
    /// No step, too many, or two for the same member.
    #[error("a change has 1 to {MEMBER_STEPS_MAX} steps, each for another member")]
    BadSteps,
    /// More than a group has room for.
    #[error("a group has at most {VOTERS_MAX} voters and {LEARNERS_MAX} learners")]
    TooMany,
    /// Nobody would vote any more.
    #[error("the group would be left without voters")]
    NoVoters,
    /// A member is named that is none.
    #[error("node {0} with this disk is no voter of the group")]
    NoSuchVoter(NodeId),
    /// The bytes are no change.
    #[error("the change cannot be read")]
    Malformed,
}

impl Membership {
    /// A group of voters alone.
    ///
    /// # Panics
    /// If there is none, or there are more than [`VOTERS_MAX`].
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = Voter>) -> Self {
        let voters: BTreeSet<Voter> = voters.into_iter().collect();
        let count = voters.len();
        assert!(
            (1..=VOTERS_MAX).contains(&count),
            "a group has 1 to {VOTERS_MAX} voters, not {count}"
        );
        Self {
            voters,
            ..Self::default()
        }
    }

    /// The members as they are written down; nobody is one as long as a replica has no state to begin
    /// with.
    ///
    /// # Errors
    /// If they cannot be the members of a group.
    pub fn from_list(list: &[Member]) -> Result<Self, ChangeError> {
        let of = |roles: &[MemberRole]| -> BTreeSet<Voter> {
            let members = list.iter().filter(|member| roles.contains(&member.role));
            members.map(|member| member.voter).collect()
        };
        use MemberRole::{Demoted, Incoming, Learner, Outgoing, Voter as Votes};
        let is_joint = !of(&[Incoming, Outgoing, Demoted]).is_empty();
        let members = Self {
            voters: of(&[Votes, Incoming]),
            outgoing: if is_joint {
                of(&[Votes, Outgoing, Demoted])
            } else {
                BTreeSet::new()
            },
            learners: of(&[Learner]),
            learners_next: of(&[Demoted]),
        };
        let all: BTreeSet<Voter> = list.iter().map(|member| member.voter).collect();
        let is_group = !members.voters.is_empty() && members.is_joint() == is_joint;
        let fits = members.voters.len() <= VOTERS_MAX
            && members.outgoing.len() <= VOTERS_MAX
            && members.learners.len() <= LEARNERS_MAX;
        match fits {
            false => Err(ChangeError::TooMany),
            true if all.len() < list.len() => Err(ChangeError::BadSteps),
            true if !list.is_empty() && !is_group => Err(ChangeError::NoVoters),
            true => Ok(members),
        }
    }

    /// The members as they are written down, ascending.
    #[must_use]
    pub fn to_list(&self) -> Vec<Member> {
        let role = |member: Voter| {
            let is_old = self.outgoing.contains(&member);
            match self.voters.contains(&member) {
                true if is_old || !self.is_joint() => MemberRole::Voter,
                true => MemberRole::Incoming,
                false if self.learners_next.contains(&member) => MemberRole::Demoted,
                false if is_old => MemberRole::Outgoing,
                false => MemberRole::Learner,
            }
        };
        let members = self.members().map(|voter| Member {
            voter,
            role: role(voter),
        });
        members.collect()
    }

    /// Whether there is no group yet, for all that this replica knows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// The voters; while joint, the new ones.
    #[must_use]
    pub fn voters(&self) -> &BTreeSet<Voter> {
        &self.voters
    }

    /// While joint, the old voters; else nobody.
    #[must_use]
    pub fn outgoing(&self) -> &BTreeSet<Voter> {
        &self.outgoing
    }

    /// Who gets the log and does not vote.
    #[must_use]
    pub fn learners(&self) -> &BTreeSet<Voter> {
        &self.learners
    }

    /// Whether a change is half done.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether it votes, in the old set or the new.
    #[must_use]
    pub fn is_voter(&self, member: Voter) -> bool {
        self.voters.contains(&member) || self.outgoing.contains(&member)
    }

    /// Whether it belongs to the group.
    #[must_use]
    pub fn contains(&self, member: Voter) -> bool {
        self.is_voter(member) || self.learners.contains(&member)
    }

    /// Whether `member` is the only voter, so that there is nobody to wait for.
    #[must_use]
    pub fn is_only_voter(&self, member: Voter) -> bool {
        !self.is_joint() && self.voters.len() == 1 && self.voters.contains(&member)
    }

    /// All members, rising.
    pub fn members(&self) -> impl Iterator<Item = Voter> {
        let all = self.voters.iter().chain(&self.outgoing);
        let all: BTreeSet<Voter> = all.chain(&self.learners).copied().collect();
        all.into_iter()
    }

    /// How a vote stands; while joint it is won in both sets or not at all.
    pub fn tally(&self, vote: impl Fn(Voter) -> Option<bool>) -> Tally {
        let new = quorum::tally(&self.voters, &vote);
        if bugs::on(Bug::NewVotersAlone) {
            return new;
        }
        match (new, quorum::tally(&self.outgoing, &vote)) {
            (Tally::Won, Tally::Won) => Tally::Won,
            (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
            _ => Tally::Open,
        }
    }

    /// The members after a change.
    ///
    /// # Errors
    /// [`ChangeError`]: the change does not fit these members. Every member finds the same, so that an
    /// entry with such a change changes nothing anywhere.
    pub fn changed(&self, change: &Change) -> Result<Self, ChangeError> {
        let next = match change {
            Change::Enter(steps) => self.entered(steps)?,
            Change::Leave => self.left()?,
        };
        next.assert_sound();
        Ok(next)
    }

    fn entered(&self, steps: &[Step]) -> Result<Self, ChangeError> {
        if self.is_joint() {
            return Err(ChangeError::UnderWay);
        }
        let named: BTreeSet<Voter> = steps.iter().flat_map(|step| step.members()).collect();
        let names: usize = steps.iter().map(|step| step.members().count()).sum();
        if !(1..=MEMBER_STEPS_MAX).contains(&steps.len()) || named.len() != names {
            return Err(ChangeError::BadSteps);
        }
        let mut next = self.clone();
        for step in steps {
            next.take(*step, self)?;
        }
        if next.voters.is_empty() {
            return Err(ChangeError::NoVoters);
        }
        if next.voters.len() > VOTERS_MAX || next.learners.len() > LEARNERS_MAX {
            return Err(ChangeError::TooMany);
        }
        if next.voters != self.voters {
            next.outgoing.clone_from(&self.voters);
            // What still votes in the old set becomes a learner when that is left.
            let (later, now) = (next.learners.iter().copied())
                .partition(|learner| next.outgoing.contains(learner));
            (next.learners_next, next.learners) = (later, now);
        }
        Ok(next)
    }

    fn take(&mut self, step: Step, before: &Self) -> Result<(), ChangeError> {
        match step {
            Step::AddVoter(member) => {
                self.learners.remove(&member);
                self.voters.insert(member);
            }
            Step::AddLearner(member) => {
                self.voters.remove(&member);
                self.learners.insert(member);
            }
            Step::Remove(member) => {
                self.voters.remove(&member);
                self.learners.remove(&member);
            }
            Step::ReplaceDisk { old, disk } => {
                if !before.voters.contains(&old) {
                    return Err(ChangeError::NoSuchVoter(old.node));
                }
                let new = Voter { disk, ..old };
                self.voters.remove(&old);
                self.learners.remove(&new);
                self.voters.insert(new);
            }
        }
        Ok(())
    }

    fn left(&self) -> Result<Self, ChangeError> {
        if !self.is_joint() {
            return Err(ChangeError::NotJoint);
        }
        Ok(Self {
            voters: self.voters.clone(),
            outgoing: BTreeSet::new(),
            learners: self.learners.union(&self.learners_next).copied().collect(),
            learners_next: BTreeSet::new(),
        })
    }

    fn assert_sound(&self) {
        let sound = !self.voters.is_empty()
            && self.voters.is_disjoint(&self.learners)
            && self.outgoing.is_disjoint(&self.learners)
            && self.learners_next.is_subset(&self.outgoing)
            && self.learners_next.is_disjoint(&self.voters);
        assert!(sound, "members that contradict each other: {self:?}");
    }
}

impl Step {
    /// The members that it names.
    fn members(self) -> impl Iterator<Item = Voter> {
        let (first, second) = match self {
            Self::AddVoter(member) | Self::AddLearner(member) | Self::Remove(member) => {
                (member, None)
            }
            Self::ReplaceDisk { old, disk } => (old, Some(Voter { disk, ..old })),
        };
        std::iter::once(first).chain(second)
    }

    /// Who votes because of it.
    #[must_use]
    pub fn new_voter(self) -> Option<Voter> {
        match self {
            Self::AddVoter(member) => Some(member),
            Self::ReplaceDisk { old, disk } => Some(Voter { disk, ..old }),
            Self::AddLearner(_) | Self::Remove(_) => None,
        }
    }
}

// The numbers are in logs for ever.
const ADD_VOTER: u8 = 1;
const ADD_LEARNER: u8 = 2;
const REMOVE: u8 = 3;
const REPLACE_DISK: u8 = 4;
/// Of a step: what, node (u32, little-endian), disk, second disk or zeros.
const STEP_BYTES: usize = 1 + 4 + 16 + 16;

impl Change {
    /// The payload of its entry: its steps one after the other, nothing for leaving.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Self::Enter(steps) = self else {
            return Bytes::new();
        };
        let mut out = Vec::with_capacity(steps.len() * STEP_BYTES);
        for step in steps {
            let (kind, member, disk) = match *step {
                Step::AddVoter(member) => (ADD_VOTER, member, DiskId::default()),
                Step::AddLearner(member) => (ADD_LEARNER, member, DiskId::default()),
                Step::Remove(member) => (REMOVE, member, DiskId::default()),
                Step::ReplaceDisk { old, disk } => (REPLACE_DISK, old, disk),
            };
            out.push(kind);
            out.extend_from_slice(&member.node.0.to_le_bytes());
            out.extend_from_slice(&member.disk.0);
            out.extend_from_slice(&disk.0);
        }
        out.into()
    }

    /// The change that a payload holds.
    ///
    /// # Errors
    /// [`ChangeError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, ChangeError> {
        if payload.is_empty() {
            return Ok(Self::Leave);
        }
        let (steps, rest) = payload.as_chunks::<STEP_BYTES>();
        if !rest.is_empty() || steps.len() > MEMBER_STEPS_MAX {
            return Err(ChangeError::Malformed);
        }
        let steps = steps.iter().map(step_of).collect::<Option<Vec<_>>>();
        steps.map(Self::Enter).ok_or(ChangeError::Malformed)
    }
}

fn step_of(bytes: &[u8; STEP_BYTES]) -> Option<Step> {
    let (kind, rest) = bytes.split_first()?;
    let (node, rest) = rest.split_first_chunk::<4>()?;
    let (disk, second) = rest.split_first_chunk::<16>()?;
    let member = Voter {
        node: NodeId(u32::from_le_bytes(*node)),
        disk: DiskId(*disk),
    };
    let second = DiskId(second.try_into().ok()?);
    let has_one_disk = second == DiskId::default();
    match *kind {
        ADD_VOTER if has_one_disk => Some(Step::AddVoter(member)),
        ADD_LEARNER if has_one_disk => Some(Step::AddLearner(member)),
        REMOVE if has_one_disk => Some(Step::Remove(member)),
        REPLACE_DISK => Some(Step::ReplaceDisk {
            old: member,
            disk: second,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::message::voter;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    fn group(voters: impl IntoIterator<Item = u32>) -> Membership {
        Membership::of_voters(voters.into_iter().map(voter))
    }

    fn enter(steps: &[Step]) -> Change {
        Change::Enter(steps.to_vec())
    }

    #[test]
    fn voters_change_through_a_joint_configuration() {
        let before = group([1, 2, 3]);
        let change = enter(&[Step::AddVoter(voter(4)), Step::Remove(voter(1))]);
        let joint = before.changed(&change).expect("it fits");
        assert!(joint.is_joint() && joint.is_voter(voter(1)) && joint.is_voter(voter(4)));
        // Two of the old and two of the new: 1 counts among the old only, 4 among the new only.
        let yes = |names: &'static [u32]| {
            move |member: Voter| names.contains(&member.node.0).then_some(true)
        };
        assert_eq!(joint.tally(yes(&[1, 2])), Tally::Open);
        assert_eq!(joint.tally(yes(&[1, 2, 4])), Tally::Won);
        assert_eq!(joint.tally(yes(&[2, 3])), Tally::Won);
        assert_eq!(joint.changed(&change), Err(ChangeError::UnderWay));
        let after = joint.changed(&Change::Leave).expect("it is joint");
        assert_eq!(after, group([2, 3, 4]));
        assert_eq!(after.changed(&Change::Leave), Err(ChangeError::NotJoint));
    }

    #[test]
    fn while_joint_no_majority_of_one_set_alone_decides() {
        let [four, five] = [4, 5].map(|new| Step::AddVoter(voter(new)));
        let [one, two] = [1, 2].map(|old| Step::Remove(voter(old)));
        let change = enter(&[four, five, one, two]);
        let joint = group([1, 2, 3]).changed(&change).expect("it fits");
        let says = |names: &'static [u32], what: bool| {
            move |member: Voter| names.contains(&member.node.0).then_some(what)
        };
        let tally = |names| {
            (
                joint.tally(says(names, true)),
                joint.tally(says(names, false)),
            )
        };
        assert_eq!(tally(&[4, 5]), (Tally::Open, Tally::Lost), "new ones only");
        assert_eq!(tally(&[3, 4, 5]), (Tally::Open, Tally::Lost), "all of them");
        assert_eq!(tally(&[1, 2]), (Tally::Open, Tally::Lost), "old ones only");
        assert_eq!(tally(&[1, 2, 3]), (Tally::Open, Tally::Lost), "all of them");
        assert_eq!(tally(&[1, 4]), (Tally::Open, Tally::Open), "one of each");
        assert_eq!(tally(&[1, 3, 4]), (Tally::Won, Tally::Lost), "two of each");
        assert_eq!(tally(&[]), (Tally::Open, Tally::Open));
    }

    #[test]
    fn a_new_majority_does_not_stand_for_one_of_two_old_voters() {
        let steps = [3, 4, 5].map(|new| Step::AddVoter(voter(new)));
        let joint = group([1, 2]).changed(&enter(&steps)).expect("it fits");
        let yes = |names: &'static [u32]| {
            move |member: Voter| names.contains(&member.node.0).then_some(true)
        };
        assert_eq!(joint.tally(yes(&[1, 3, 4, 5])), Tally::Open, "2 is old");
        assert_eq!(joint.tally(yes(&[1, 2])), Tally::Open, "two of five");
        assert_eq!(joint.tally(yes(&[1, 2, 3])), Tally::Won);
    }

    #[test]
    fn learners_come_and_go_in_one_step() {
        let with = group([1]).changed(&enter(&[Step::AddLearner(voter(2))]));
        let with = with.expect("it fits");
        assert!(!with.is_joint() && with.learners().contains(&voter(2)));
        assert!(with.is_only_voter(voter(1)) && !with.is_voter(voter(2)));
        let without = with.changed(&enter(&[Step::Remove(voter(2))]));
        assert_eq!(without, Ok(group([1])));
    }

    #[test]
    fn a_voter_that_becomes_a_learner_votes_until_the_change_is_left() {
        let joint = group([1, 2, 3]).changed(&enter(&[Step::AddLearner(voter(3))]));
        let joint = joint.expect("it fits");
        assert!(joint.is_voter(voter(3)) && joint.learners().is_empty());
        let after = joint.changed(&Change::Leave).expect("it is joint");
        assert!(!after.is_voter(voter(3)) && after.learners().contains(&voter(3)));
    }

    #[test]
    fn a_replaced_disk_is_another_voter() {
        let disk = DiskId([9; 16]);
        let old = voter(3);
        let step = Step::ReplaceDisk { old, disk };
        let joint = group([1, 2, 3]).changed(&enter(&[step])).expect("it fits");
        let after = joint.changed(&Change::Leave).expect("it is joint");
        assert!(after.is_voter(Voter { disk, ..old }) && !after.contains(old));
        let again = after.changed(&enter(&[step]));
        assert_eq!(again, Err(ChangeError::NoSuchVoter(NodeId(3))));
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let before = group([1, 2]);
        let none = before.changed(&enter(&[Step::Remove(voter(1)), Step::Remove(voter(2))]));
        assert_eq!(none, Err(ChangeError::NoVoters));
        let twice = before.changed(&enter(&[Step::AddVoter(voter(3)), Step::Remove(voter(3))]));
        assert_eq!(twice, Err(ChangeError::BadSteps));
        assert_eq!(before.changed(&enter(&[])), Err(ChangeError::BadSteps));
        let many = (10..27).map(|node| Step::AddVoter(voter(node)));
        let many = before.changed(&Change::Enter(many.collect()));
        assert_eq!(many, Err(ChangeError::BadSteps));
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let member = any::<(u32, u8)>().prop_map(|(node, disk)| Voter {
            node: NodeId(node),
            disk: DiskId([disk; 16]),
        });
        let step = (member, any::<u8>(), 0..4).prop_map(|(member, disk, kind)| match kind {
            0 => Step::AddVoter(member),
            1 => Step::AddLearner(member),
            2 => Step::Remove(member),
            _ => Step::ReplaceDisk {
                old: member,
                disk: DiskId([disk; 16]),
            },
        });
        vec(step, 1..MEMBER_STEPS_MAX)
    }

    #[test]
    fn members_are_read_as_they_were_written_also_while_joint() {
        let disk = DiskId([9; 16]);
        let mut members = group([1, 2, 3, 4]);
        let changes = [
            enter(&[Step::AddLearner(voter(5)), Step::AddLearner(voter(6))]),
            enter(&[
                Step::AddVoter(voter(5)),
                Step::Remove(voter(1)),
                Step::AddLearner(voter(2)),
                Step::ReplaceDisk {
                    old: voter(3),
                    disk,
                },
            ]),
            Change::Leave,
        ];
        for change in changes {
            members = members.changed(&change).expect("it fits");
            let list = members.to_list();
            assert!(list.is_sorted());
            assert_eq!(Membership::from_list(&list), Ok(members.clone()));
        }
        assert_eq!(Membership::from_list(&[]), Ok(Membership::default()));
    }

    #[test]
    fn what_cannot_be_the_members_of_a_group_is_refused() {
        let of = |roles: &[(u32, MemberRole)]| {
            let members = roles.iter().map(|(node, role)| Member {
                voter: voter(*node),
                role: *role,
            });
            Membership::from_list(&members.collect::<Vec<_>>())
        };
        use MemberRole::{Incoming, Learner, Outgoing, Voter as Votes};
        assert_eq!(of(&[(1, Learner)]), Err(ChangeError::NoVoters));
        assert_eq!(of(&[(1, Outgoing)]), Err(ChangeError::NoVoters));
        assert_eq!(
            of(&[(1, Incoming)]),
            Err(ChangeError::NoVoters),
            "no old set"
        );
        assert_eq!(of(&[(1, Votes), (1, Learner)]), Err(ChangeError::BadSteps));
        let many: Vec<_> = (1..=16).map(|node| (node, Votes)).collect();
        assert_eq!(of(&many), Err(ChangeError::TooMany));
    }

    proptest! {
        #[test]
        fn changes_are_read_as_they_were_written(steps in steps()) {
            let change = Change::Enter(steps);
            assert_eq!(Change::decode(&change.encode()), Ok(change));
        }

        #[test]
        fn any_payload_is_a_change_or_is_refused(
            payload in prop_oneof![vec(any::<u8>(), 0..200), vec(0..5_u8, 37..75)]
        ) {
            if let Ok(change) = Change::decode(&payload) {
                assert_eq!(change.encode().as_ref(), payload);
            }
        }

        #[test]
        fn members_stay_sound_through_any_changes(all in vec(steps_of_few(), 1..20)) {
            let mut members = group([1, 2, 3]);
            for steps in all {
                // `changed` asserts the invariants of what it makes.
                if let Ok(next) = members.changed(&Change::Enter(steps)) {
                    members = next.changed(&Change::Leave).unwrap_or(next);
                }
            }
            assert!(!members.is_joint() && !members.voters().is_empty());
        }
    }

    fn steps_of_few() -> impl Strategy<Value = Vec<Step>> {
        let step = (1..6_u32, 0..4).prop_map(|(node, kind)| match kind {
            0 => Step::AddVoter(voter(node)),
            1 => Step::AddLearner(voter(node)),
            2 => Step::Remove(voter(node)),
            _ => Step::ReplaceDisk {
                old: voter(node),
                disk: DiskId([99; 16]),
            },
        });
        vec(step, 1..4)
    }
}
