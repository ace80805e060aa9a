//! The bug bank: bugs that tests plant to prove that the tests would catch them.
//!
//! [`on`] is the constant `false` unless the feature `bug-bank` is built, so the product carries
//! neither the branch nor the bug. With the feature, a test switches one bug on for its thread.
//!
//! R1 to R29 are traps that other implementations of Raft have fallen into; the code that avoids one
//! names it.

/// A bug that can be planted. Each says what is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    // Raft.
    /// Entries count as durable when their write is submitted, not when it is synced (R14).
    AckBeforeSync,
    /// An append is acknowledged before it is on disk.
    AppendedBeforeSync,
    /// A vote leaves before it is on disk (R15).
    VoteBeforeSync,
    /// A vote is given to a candidate whose log lacks entries.
    VoteWithoutLogCheck,
    /// A vote is given although another has it.
    VoteTwice,
    /// Term and vote are forgotten by a start (R20).
    VoteForgotten,
    /// An entry of an earlier term is committed by counting (R26).
    OldTermCommitted,
    /// A heartbeat tells a commit mark that its receiver's log need not have (R13).
    HeartbeatBeyondMatched,
    /// A tail that a checkpoint contradicts is kept (R16).
    TailKeptAtInstall,
    /// A read is answered before it is proved that its leader leads still (R11).
    ReadUnproved,
    /// A leader that reaches no majority leads on (R3).
    QuorumUnchecked,
    /// A probe that was lost is never sent again (R18).
    ProbeNotRepeated,
    /// A group at rest does not notice that its leader is gone (R22).
    RestNotWoken,
    /// A transfer to a member that is gone never ends (R10).
    TransferNeverEnds,
    /// What waits to be applied is counted for ever once it was replaced (R19).
    ReplacedStillCounted,
    /// Who campaigns goes on believing in the leader that it does not hear (R1).
    LeaderNotForgotten,
    /// A message of an earlier term is not answered (R2).
    PastUnanswered,
    /// A leader that asks for votes is refused by who believes in it (R4).
    LeaderItselfRefused,
    /// A candidate is promised votes whatever its log has (R5).
    PreVoteWithoutLog,
    /// Who is no voter by what it knows gives no vote, and gets none (R7).
    StrangersRefused,
    /// A member campaigns over a change of the members that is committed (R8).
    CampaignOverChange,
    /// While the members change, a majority of the new ones is enough (R9).
    NewVotersAlone,
    /// An offer of a checkpoint that was lost is not made again (R17).
    OfferNotRepeated,
    /// What belongs to an earlier life of the group counts (R21).
    EarlierLifeCounts,
    /// What a recycled file still holds is taken for the log (R23).
    StaleTailRead,
    /// A new voter counts before it has the log (R25).
    VoterNotCaughtUp,
    /// A vote whose answer was lost is not given again (R27).
    VoteNotRepeated,
    /// Who campaigns does not hear the leader of its own term (R28).
    CampaignerDeaf,
    /// That a change of the members is committed may be forgotten by a start (R29).
    ChangeMarkForgotten,
    /// The only voter replays what lies behind a change of the members.
    ReplayPastChange,
    /// A start applies what its log holds, committed or not.
    ReplayPastCommit,
    /// A follower does not take over the time of what it gets, so that it starts over as a leader.
    TimeOfEntriesForgotten,

    // Members that may have lost what they promised.
    /// A start forgets that its log is in doubt.
    RecoveringForgotten,
    /// Who may have lost a vote votes.
    RecoveringVotes,
    /// What a recovering member says is counted.
    RecoveringCounts,
    /// A member is sound again as soon as it hears a leader.
    SoundByLeaderAlone,
    /// A member that recovers takes the commit mark of a heartbeat for what is left of its log.
    MarkBelievedInRecovery,
    /// One definite answer is enough to cut a log.
    CutByOneAnswer,
    /// Who says that it lacks an entry has not taken the asker's term.
    AbsenceWithoutPromise,
    /// What others have heard of the end of a log is not looked at.
    EchoIgnored,
    /// A process says how long its logs are before it has noted what it was told that they have lost.
    LossNotNoted,
    /// What others have heard of logs from before a change of the number of shards counts for nothing.
    EarlierLogsVoid,

    // The log.
    /// Recovery cuts the log at the first bad batch even where a later one proves it acknowledged.
    CutOnProof,
    /// A batch counts as durable although one before it is not.
    DurableWithGap,
    /// A batch says that all before it is durable, when it was only handed to the disk.
    DurableClaimedEarly,
    /// A manifest says so.
    ManifestClaimsEarly,
    /// A segment is closed before the next one has its name.
    FooterBeforeSuccessor,
    /// Segments are dropped up to the newest base instead of the previous one, before it is durable.
    DropBeforeBase,
    /// The head of a segment does not repeat term and vote.
    HeadWithoutVote,
    /// What a batch says again of the one before is not looked at where that is damaged.
    RecapsIgnored,
    /// A batch does not say the bases of the one before again.
    BasesNotToldAgain,
    /// A log write that failed counts as done.
    WriteErrorIgnored,

    // Checkpoints.
    /// A checkpoint leaves the outcomes of the sessions out, so that a retry runs twice.
    SessionsForgotten,
    /// Ids of sessions are given again after a checkpoint.
    SessionIdsReused,
    /// Payload files are in force before they are synced.
    PayloadsUnsynced,
    /// Files are dropped while it is not known yet who needs them.
    OrphansDroppedEarly,
    /// A file gets the name of one of an earlier start.
    FileNamesReused,
    /// A round waits for the entry of a leader that does not serve yet.
    RoundWaitsUnserved,
    /// Files of a checkpoint that was replaced stay for ever.
    FilesNeverDropped,
    /// What is on the disk alone is taken for what is not there.
    AbsentIsNothing,
    /// A leaf is let go of although somebody runs a job in it.
    LetGoInFlight,
    /// A page is taken for that of another node because it stands at the same place.
    PlaceWithoutHash,
    /// The body of one job is taken for that of another in its page.
    BodyOfAnotherJob,

    /// What cannot be read because its file was dropped is taken for damage.
    DroppedIsDamage,

    // Queues.
    /// A token of an earlier grant is still accepted.
    StaleTokenAccepted,
    /// A grant has the token of the one before.
    TokenReused,
    /// A command whose outcome the client has seen is applied again.
    SupersededApplied,
    /// The outcome of a command is not kept.
    OutcomeNotKept,
    /// A session that beats is taken for silent.
    BeatIgnored,
    /// A session whose leases were ended gets new ones.
    GrantAfterEnd,
    /// Leases end by the wall clock.
    LeaseByWallClock,
    /// A change of one home group counts for another.
    ChangeOfAnotherHome,

    // The client library.
    /// What is sent again has a new number.
    ResendRenumbered,
    /// A command that was sent and not answered ends as one that was refused.
    UnansweredAsRefused,
    /// A command says that all answers before its own are here.
    LowestTooHigh,
    /// Jobs of a lease that nobody waits for any more are kept.
    AbandonedLeaseKept,
    /// Jobs that the servers hold for the client, and that no answer tells it of, are kept.
    UnseenGrantsKept,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 77] = [
        Self::AckBeforeSync,
        Self::AppendedBeforeSync,
        Self::VoteBeforeSync,
        Self::VoteWithoutLogCheck,
        Self::VoteTwice,
        Self::VoteForgotten,
        Self::OldTermCommitted,
        Self::HeartbeatBeyondMatched,
        Self::TailKeptAtInstall,
        Self::ReadUnproved,
        Self::QuorumUnchecked,
        Self::ProbeNotRepeated,
        Self::RestNotWoken,
        Self::TransferNeverEnds,
        Self::ReplacedStillCounted,
        Self::LeaderNotForgotten,
        Self::PastUnanswered,
        Self::LeaderItselfRefused,
        Self::PreVoteWithoutLog,
        Self::StrangersRefused,
        Self::CampaignOverChange,
        Self::NewVotersAlone,
        Self::OfferNotRepeated,
        Self::EarlierLifeCounts,
        Self::StaleTailRead,
        Self::VoterNotCaughtUp,
        Self::VoteNotRepeated,
        Self::CampaignerDeaf,
        Self::ChangeMarkForgotten,
        Self::ReplayPastChange,
        Self::ReplayPastCommit,
        Self::TimeOfEntriesForgotten,
        Self::RecoveringForgotten,
        Self::RecoveringVotes,
        Self::RecoveringCounts,
        Self::SoundByLeaderAlone,
        Self::MarkBelievedInRecovery,
        Self::CutByOneAnswer,
        Self::AbsenceWithoutPromise,
        Self::EchoIgnored,
        Self::LossNotNoted,
        Self::EarlierLogsVoid,
        Self::CutOnProof,
        Self::DurableWithGap,
        Self::DurableClaimedEarly,
        Self::ManifestClaimsEarly,
        Self::FooterBeforeSuccessor,
        Self::DropBeforeBase,
        Self::HeadWithoutVote,
        Self::RecapsIgnored,
        Self::BasesNotToldAgain,
        Self::WriteErrorIgnored,
        Self::SessionsForgotten,
        Self::SessionIdsReused,
        Self::PayloadsUnsynced,
        Self::OrphansDroppedEarly,
        Self::FileNamesReused,
        Self::RoundWaitsUnserved,
        Self::FilesNeverDropped,
        Self::AbsentIsNothing,
        Self::LetGoInFlight,
        Self::PlaceWithoutHash,
        Self::BodyOfAnotherJob,
        Self::DroppedIsDamage,
        Self::StaleTokenAccepted,
        Self::TokenReused,
        Self::SupersededApplied,
        Self::OutcomeNotKept,
        Self::BeatIgnored,
        Self::GrantAfterEnd,
        Self::LeaseByWallClock,
        Self::ChangeOfAnotherHome,
        Self::ResendRenumbered,
        Self::UnansweredAsRefused,
        Self::LowestTooHigh,
        Self::AbandonedLeaseKept,
        Self::UnseenGrantsKept,
    ];
}

/// Whether `bug` is planted in this thread.
#[cfg(not(feature = "bug-bank"))]
#[must_use]
pub const fn on(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "bug-bank")]
mod bank {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether `bug` is planted in this thread.
    #[must_use]
    pub fn on(bug: Bug) -> bool {
        PLANTED.with(|planted| planted.get() == Some(bug))
    }

    /// Plants one bug in this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.with(|planted| planted.set(bug));
    }
}

#[cfg(feature = "bug-bank")]
pub use bank::{on, plant};
