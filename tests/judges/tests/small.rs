//! Small runs of each judge, and a test of the judges: with a bug planted they must fail.

use rrq::base::bugs::Bug;
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{LogIndex, Term};
use rrq::base::units::GroupTime;
use rrq::raft::membership::{Change, Membership, Step};
use rrq::raft::message::{Body, Message, Why};
use rrq_judges::bounds::{Bounds, MODELS};
use rrq_judges::mixed::{self, Seen, runs};
use rrq_judges::translate::{
    GROUP, LIFE, Sender, conf_state, entry_to_ours, entry_to_theirs, life, members_of, to_ours,
    to_theirs, voter,
};
use rrq_judges::{IN_CLUSTERS, IN_MODELS, IN_TWINS, differential, model};
use std::time::Duration;

#[test]
fn mixed_clusters_keep_their_promises() {
    let count = 3000;
    let outcome = runs(0..count, None, |seed| mixed::run(seed, false));
    assert_eq!(outcome.failures, []);
    assert!(outcome.seen.is_enough(count as usize), "{:?}", outcome.seen);
}

#[test]
fn the_same_inputs_lead_both_to_the_same() {
    let outcome = runs(0..500, None, |seed| differential::run(seed, false));
    assert_eq!(outcome.failures, []);
    let seen = outcome.seen;
    assert!(
        seen.terms > 2000 && seen.committed > 5000 && seen.led[0] == seen.led[1],
        "{seen:?}"
    );
}

#[test]
fn small_models_keep_their_promises() {
    for bounds in MODELS.iter().filter(|bounds| bounds.is_quick) {
        let found = model::check(*bounds, 2, Duration::from_secs(600));
        assert!(
            found.broken.is_none(),
            "{}: {:?}",
            bounds.name,
            found.broken
        );
        assert!(found.whole, "{} took over ten minutes", bounds.name);
        println!(
            "{}: {} states in {:?}",
            bounds.name, found.states, found.took
        );
    }
}

fn must_be_caught(bugs: &[Bug], clusters: u64, run: fn(u64, bool) -> Seen) {
    for bug in bugs {
        let mut tried = 0;
        let caught = (0..clusters).any(|seed| {
            tried += 1;
            let outcome = runs(seed..=seed, Some(*bug), |seed| run(seed, false));
            !outcome.failures.is_empty()
        });
        assert!(caught, "{bug:?} lived through {tried} seeds");
        println!("{bug:?}: seed {}", tried - 1);
    }
}

#[test]
fn planted_bugs_are_caught_in_mixed_clusters() {
    must_be_caught(IN_CLUSTERS, 5000, mixed::run);
}

#[test]
fn planted_bugs_are_caught_by_comparison() {
    must_be_caught(IN_TWINS, 1000, differential::run);
}

#[test]
fn planted_bugs_are_caught_by_the_models() {
    for (bug, name) in IN_MODELS {
        let bounds = MODELS.iter().find(|bounds| bounds.name == *name);
        let bounds = Bounds {
            bug: Some(*bug),
            ..*bounds.expect("a model of that name")
        };
        let found = model::check(bounds, 2, Duration::from_secs(600));
        let (promise, way) = found
            .broken
            .unwrap_or_else(|| panic!("{name} lets {bug:?} pass"));
        assert!(!way.is_empty());
        println!("{bug:?}: {promise}");
    }
}

fn entry(index: u64, kind: EntryKind, payload: &'static [u8]) -> Entry {
    Entry {
        term: Term(3),
        index: LogIndex(index),
        time: GroupTime(0),
        kind,
        machine_version: 1,
        flags: 0,
        crc: 0,
        payload: payload.into(),
    }
    .sealed(GROUP, LIFE)
}

#[test]
fn entries_and_members_come_back_as_they_were() {
    let steps = vec![Step::AddVoter(voter(4)), Step::Remove(voter(1))];
    let change = Change::Enter(steps).encode();
    let mut entries = vec![
        entry(1, EntryKind::Data, b"x"),
        entry(2, EntryKind::Noop, b""),
        entry(3, EntryKind::Conf, b""),
    ];
    let enter = Entry {
        payload: change,
        ..entry(4, EntryKind::Conf, b"")
    };
    entries.push(enter.sealed(GROUP, LIFE));
    for entry in entries {
        assert_eq!(entry_to_ours(&entry_to_theirs(&entry)), entry);
    }
    let mut members = Membership::of_voters([1, 2, 3].map(voter));
    for steps in [
        vec![Step::AddLearner(voter(4))],
        vec![Step::AddVoter(voter(4)), Step::Remove(voter(1))],
    ] {
        members = members.changed(&Change::Enter(steps)).expect("it fits");
        assert_eq!(members_of(&conf_state(&members)), members);
    }
}

#[test]
fn messages_come_back_as_they_were() {
    let at = |index, term| (LogIndex(index), Term(term));
    let bodies = [
        Body::Canvass {
            pre: true,
            last: at(7, 3),
            commit: at(5, 2),
            why: Why::Silence,
        },
        Body::Canvass {
            pre: false,
            last: at(7, 3),
            commit: at(5, 2),
            why: Why::Transfer,
        },
        Body::Ballot {
            pre: true,
            granted: true,
            commit: at(5, 2),
        },
        Body::Ballot {
            pre: false,
            granted: false,
            commit: at(5, 2),
        },
        Body::Append {
            prev: at(6, 3),
            entries: vec![entry(7, EntryKind::Data, b"x")].into(),
            commit: LogIndex(5),
        },
        Body::Appended {
            matched: LogIndex(7),
        },
        Body::Refused {
            prev: LogIndex(9),
            hint: at(7, 3),
        },
        Body::Heartbeat {
            commit: LogIndex(5),
            round: 8,
            quiet: false,
            heir: false,
        },
        Body::Beat { round: 8 },
        Body::Offer { base: at(5, 2) },
        Body::TimeoutNow,
        Body::ReadIndex { id: 11 },
        Body::ReadAt {
            id: 11,
            index: LogIndex(7),
        },
    ];
    let members = Membership::of_voters([1, 2, 3].map(voter));
    let sender = Sender {
        term: 4,
        starts: 2,
        checkpoint: (at(5, 2), &members),
    };
    for body in bodies {
        let message = Message {
            from: voter(1),
            to: voter(2),
            group: GROUP,
            incarnation: LIFE,
            term: Term(4),
            life: life(2),
            recovering: false,
            body,
        };
        assert_eq!(
            to_ours(to_theirs(message.clone(), &sender), &sender),
            message
        );
    }
}
