//! A test of the tests: each bug of the bank is planted, and a judge of the simulator must find it
//! within the stated number of seeds.
//!
//! A bug counts as found only where a judge says so, which is a panic in `src/sim`. That the product's
//! own assertions stop some of the runs before is well, but proves nothing about the simulator; the
//! hunt goes on then.
//!
//! `RRQ_BUG=Name` hunts one bug alone (with commas: several), `RRQ_BUG_SEEDS` sets another number of
//! seeds for all.

use rrq::base::bugs::{Bug, plant};
use rrq::sim::cluster::{Cluster, Fault, Plan};
use rrq::sim::world::World;
use std::cell::RefCell;
use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Instant;

thread_local! {
    /// Set where this thread hunts: where its last panic was, and what it said.
    static SAID: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// In which runs a bug is looked for.
#[derive(Clone, Copy, Debug)]
enum Where {
    /// Clusters as the seeds draw them.
    Anywhere,
    /// One node.
    Alone,
    /// Many elections: nodes die and are cut off all the time.
    Elections,
    /// Disks lose what they said was safe.
    Harm,
    /// The same, on any number of them.
    Helpless,
    /// All logs are damaged at once, each elsewhere, while there are many checkpoints.
    Helix,
    /// Data directories are replaced by older images.
    Images,
    /// The same, and who starts on one dies again before it has written much.
    BriefImages,
    /// The same, and nodes have other numbers of shards.
    OtherShards,
    /// Processes die, and there are many checkpoints.
    Storage,
    /// The same, and it is looked at what is stored.
    Looked,
    /// Followers fall behind and need checkpoints.
    Behind,
    /// Connections break and messages are late.
    Late,
    /// Long cuts, and groups at rest.
    Rest,
    /// All clients use the client library, and their nodes die and stand still.
    Library,
}

impl Where {
    /// Nothing stored is looked at: that finds none of these bugs, and makes the rare ones rarer.
    fn quiet() -> Plan {
        Plan {
            scrubs: Some(false),
            ..Plan::default()
        }
    }

    fn plan(self) -> Plan {
        use Fault::{
            Crash, LostWrite, Misdirected, OldImage, OneWay, OtherShards, Partition, Pause,
            PowerLoss, Reset, Rot, SlowDisk, Stale, Stop, WriteError, Zeroed,
        };
        let on = |faults: &[Fault]| Plan {
            faults: Some(faults.to_vec()),
            fault_ms: Some(10_000),
            ..Self::quiet()
        };
        match self {
            Self::Anywhere | Self::Alone => Self::quiet(),
            Self::Elections => Plan {
                nodes: Some(3),
                groups: Some(8),
                fault_gap_ms: Some(150),
                think_us: Some(20_000),
                ..on(&[
                    Crash, PowerLoss, Partition, OneWay, Pause, SlowDisk, SlowDisk,
                ])
            },
            Self::Harm => Plan {
                nodes: Some(3),
                groups: Some(8),
                fault_gap_ms: Some(200),
                think_us: Some(40_000),
                helpless: Some(false),
                ..on(&[
                    Rot, Zeroed, Stale, LostWrite, LostWrite, Crash, PowerLoss, Partition,
                ])
            },
            Self::Helpless => Plan {
                nodes: Some(3),
                groups: Some(8),
                fault_gap_ms: Some(150),
                think_us: Some(40_000),
                helpless: Some(true),
                ..on(&[Rot, Zeroed, Stale, Misdirected, Crash, PowerLoss, Partition])
            },
            Self::Helix => Plan {
                nodes: Some(3),
                groups: Some(4),
                fault_ms: Some(2_000),
                fault_gap_ms: Some(300),
                payload_bytes: Some(16_000),
                think_us: Some(20_000),
                checkpoint_log_bytes: Some(128 << 10),
                helix: Some(true),
                ..on(&[Partition, Pause, Crash, OneWay])
            },
            Self::Images => Plan {
                nodes: Some(3),
                groups: Some(8),
                fault_gap_ms: Some(200),
                helpless: Some(false),
                ..on(&[OldImage, OldImage, Crash, Pause, Partition, OneWay])
            },
            Self::BriefImages => Plan {
                nodes: Some(3),
                groups: Some(8),
                fault_gap_ms: Some(50),
                helpless: Some(false),
                ..on(&[OldImage, OldImage, Crash, Crash, SlowDisk, SlowDisk])
            },
            Self::OtherShards => Plan {
                nodes: Some(3),
                groups: Some(8),
                fault_gap_ms: Some(200),
                helpless: Some(false),
                ..on(&[OldImage, OldImage, OtherShards, Crash, Partition, OneWay])
            },
            Self::Storage => Plan {
                fault_gap_ms: Some(300),
                payload_bytes: Some(16_000),
                think_us: Some(20_000),
                checkpoint_log_bytes: Some(128 << 10),
                ..on(&[Crash, PowerLoss, WriteError, SlowDisk, Stop])
            },
            Self::Looked => Plan {
                scrubs: Some(true),
                ..Self::Storage.plan()
            },
            Self::Behind => Plan {
                nodes: Some(3),
                fault_gap_ms: Some(500),
                payload_bytes: Some(16_000),
                think_us: Some(10_000),
                checkpoint_log_bytes: Some(128 << 10),
                ..on(&[Partition, Pause, Crash, PowerLoss])
            },
            Self::Late => Plan {
                groups: Some(2),
                network_us: Some(20_000),
                think_us: Some(10_000),
                fault_gap_ms: Some(500),
                ..on(&[Reset, Partition, Pause, Crash])
            },
            Self::Library => Plan {
                library: Some(true),
                think_us: Some(10_000),
                fault_gap_ms: Some(500),
                ..on(&[Crash, PowerLoss, Pause, Pause, Partition, Stop])
            },
            Self::Rest => Plan {
                groups: Some(8),
                think_us: Some(400_000),
                fault_gap_ms: Some(1_000),
                ..on(&[Partition, OneWay, Crash, Stop])
            },
        }
    }
}

/// Where each bug is looked for, and within how many seeds it must be found.
const HUNTS: &[(Bug, Where, u64)] = &[
    (Bug::AckBeforeSync, Where::Anywhere, 20),
    (Bug::AppendedBeforeSync, Where::Anywhere, 20),
    (Bug::VoteBeforeSync, Where::Anywhere, 20),
    (Bug::VoteWithoutLogCheck, Where::Elections, 100),
    (Bug::VoteTwice, Where::Elections, 100),
    (Bug::VoteForgotten, Where::Elections, 100),
    (Bug::OldTermCommitted, Where::Elections, 100),
    (Bug::HeartbeatBeyondMatched, Where::Anywhere, 20),
    (Bug::TailKeptAtInstall, Where::Behind, 400),
    (Bug::ReadUnproved, Where::Late, 400),
    (Bug::QuorumUnchecked, Where::Anywhere, 20),
    (Bug::ProbeNotRepeated, Where::Anywhere, 20),
    (Bug::RestNotWoken, Where::Rest, 100),
    (Bug::TransferNeverEnds, Where::Anywhere, 100),
    (Bug::ReplacedStillCounted, Where::Anywhere, 20),
    (Bug::OfferNotRepeated, Where::Anywhere, 100),
    (Bug::CampaignerDeaf, Where::Anywhere, 20),
    (Bug::ReplayPastCommit, Where::Anywhere, 20),
    (Bug::TimeOfEntriesForgotten, Where::Anywhere, 20),
    (Bug::RecoveringForgotten, Where::Harm, 100),
    (Bug::RecoveringVotes, Where::Harm, 100),
    (Bug::RecoveringCounts, Where::Images, 100),
    (Bug::SoundByLeaderAlone, Where::Images, 100),
    (Bug::MarkBelievedInRecovery, Where::Images, 400),
    (Bug::CutByOneAnswer, Where::Helpless, 100),
    (Bug::AbsenceWithoutPromise, Where::Helpless, 400),
    (Bug::EchoIgnored, Where::Images, 100),
    (Bug::LossNotNoted, Where::BriefImages, 400),
    (Bug::EarlierLogsVoid, Where::OtherShards, 100),
    (Bug::CutOnProof, Where::Harm, 400),
    (Bug::DurableWithGap, Where::Anywhere, 20),
    (Bug::DurableClaimedEarly, Where::Storage, 100),
    (Bug::ManifestClaimsEarly, Where::Storage, 400),
    (Bug::FooterBeforeSuccessor, Where::Storage, 400),
    (Bug::DropBeforeBase, Where::Storage, 100),
    (Bug::HeadWithoutVote, Where::Anywhere, 20),
    (Bug::StaleTailRead, Where::Anywhere, 100),
    (Bug::RecapsIgnored, Where::Helix, 20),
    (Bug::BasesNotToldAgain, Where::Helix, 400),
    (Bug::WriteErrorIgnored, Where::Anywhere, 20),
    (Bug::SessionsForgotten, Where::Anywhere, 20),
    (Bug::SessionIdsReused, Where::Anywhere, 20),
    (Bug::PayloadsUnsynced, Where::Anywhere, 20),
    (Bug::OrphansDroppedEarly, Where::Anywhere, 20),
    (Bug::FileNamesReused, Where::Anywhere, 20),
    (Bug::RoundWaitsUnserved, Where::Storage, 100),
    (Bug::FilesNeverDropped, Where::Storage, 20),
    (Bug::AbsentIsNothing, Where::Storage, 100),
    (Bug::LetGoInFlight, Where::Storage, 100),
    (Bug::PlaceWithoutHash, Where::Behind, 100),
    (Bug::BodyOfAnotherJob, Where::Behind, 20),
    (Bug::DroppedIsDamage, Where::Looked, 100),
    (Bug::StaleTokenAccepted, Where::Anywhere, 20),
    (Bug::TokenReused, Where::Anywhere, 20),
    (Bug::SupersededApplied, Where::Anywhere, 100),
    (Bug::OutcomeNotKept, Where::Anywhere, 20),
    (Bug::BeatIgnored, Where::Anywhere, 20),
    (Bug::GrantAfterEnd, Where::Late, 400),
    (Bug::LeaseByWallClock, Where::Anywhere, 20),
    (Bug::ChangeOfAnotherHome, Where::Alone, 100),
    (Bug::ResendRenumbered, Where::Library, 100),
    (Bug::UnansweredAsRefused, Where::Library, 20),
    (Bug::LowestTooHigh, Where::Library, 20),
    (Bug::AbandonedLeaseKept, Where::Library, 100),
    (Bug::UnseenGrantsKept, Where::Library, 300),
];

/// Runs one seed and takes its panic: the source file it was in, and what it said.
fn run(place: Where, plan: &Plan, seed: u64) -> Option<(String, String)> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let kept = SAID.with(|said| {
                let mut said = said.borrow_mut();
                let runs = said.is_some();
                if runs {
                    let file = info.location().map_or("", |at| at.file()).to_owned();
                    *said = Some((file, info.to_string()));
                }
                runs
            });
            if !kept {
                others(info);
            }
        }));
    });
    SAID.set(Some(Default::default()));
    let ended = panic::catch_unwind(|| match place {
        Where::Alone => drop(World::run(seed)),
        _ => drop(Cluster::run_as(seed, plan, None)),
    });
    let said = SAID.take();
    if ended.is_err() { said } else { None }
}

/// Traps that cost nothing but time where they are not avoided, or that need what no random run draws: a script
/// shows each (`planted` in tests/raft_scripts.rs).
const BY_SCRIPT: &[Bug] = &[
    Bug::LeaderNotForgotten,
    Bug::PastUnanswered,
    Bug::LeaderItselfRefused,
    Bug::PreVoteWithoutLog,
    Bug::StrangersRefused,
    Bug::CampaignOverChange,
    Bug::NewVotersAlone,
    Bug::EarlierLifeCounts,
    Bug::VoterNotCaughtUp,
    Bug::VoteNotRepeated,
    Bug::ChangeMarkForgotten,
    Bug::ReplayPastChange,
];

/// The first seed with which a judge finds the bug, and what it says; or what the product said.
fn hunt(bug: Bug, place: Where, seeds: u64) -> Result<(u64, String), String> {
    let mut product = "nothing was noticed".to_owned();
    let plan = place.plan();
    for seed in 1..=seeds {
        plant(Some(bug));
        let ended = run(place, &plan, seed);
        plant(None);
        if let Some((file, said)) = ended {
            if file.contains("src/sim/") {
                return Ok((seed, said));
            }
            product = format!("the product noticed, with seed {seed}: {said}");
        }
    }
    Err(format!(
        "{bug:?} is not found {place:?} within {seeds} seeds: {product}"
    ))
}

#[test]
fn each_planted_bug_is_found_by_a_judge() {
    let only = std::env::var("RRQ_BUG").ok();
    let only: Option<Vec<&str>> = only.as_deref().map(|names| names.split(',').collect());
    let seeds = std::env::var("RRQ_BUG_SEEDS").ok();
    let seeds: Option<u64> = seeds.map(|text| text.parse().expect("a number"));
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    let hunts = || {
        while let Some(&(bug, place, within)) = HUNTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = format!("{bug:?}");
            if only.as_ref().is_some_and(|only| !only.contains(&&*name)) {
                continue;
            }
            let begun = Instant::now();
            let found = hunt(bug, place, seeds.unwrap_or(within));
            let took = begun.elapsed().as_secs_f64();
            match found {
                Ok((seed, said)) => {
                    let said: String = said.replace('\n', " ").chars().take(200).collect();
                    println!("{name}: seed {seed}, {took:.1} s: {said}");
                }
                Err(why) => {
                    println!("{why} ({took:.1} s)");
                    missed.lock().expect("no hunter panics").push(why);
                }
            }
        }
    };
    // The other tests here are short.
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(hunts);
        }
    });
    let missed = missed.into_inner().expect("no hunter panics");
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn without_a_bug_the_same_runs_keep_their_promises() {
    for &(bug, place, _) in HUNTS {
        // Each place once; the first of its seeds are those that find most.
        let first = HUNTS
            .iter()
            .find(|(_, other, _)| format!("{other:?}") == format!("{place:?}"));
        if first.is_some_and(|(first, ..)| *first != bug) {
            continue;
        }
        for seed in 1..=6 {
            if let Some((_, said)) = run(place, &place.plan(), seed) {
                panic!("{place:?}: seed {seed} fails without a bug: {said}");
            }
        }
    }
}

#[test]
fn every_bug_is_hunted() {
    for bug in Bug::ALL {
        let hunts = HUNTS.iter().filter(|(hunted, ..)| *hunted == bug);
        let by_script = BY_SCRIPT.iter().filter(|named| **named == bug);
        assert_eq!(hunts.count() + by_script.count(), 1, "{bug:?}");
    }
}
