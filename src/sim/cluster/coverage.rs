//! What a node was doing when something befell it. A batch of runs that never meets a pair of the list
//! proves nothing about it, and fails by its name.

use super::options::Fault;
use super::{Cluster, Options};
use crate::raft::role::Role;
use crate::shard::engine::ShardEngine;
use crate::sim::cluster::judges::groups;

/// What a node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doing {
    /// It leads a group.
    Leads,
    /// It leads none.
    Follows,
    /// It reads its groups after a start.
    Loads,
    /// A group of it may have lost what it promised.
    Recovers,
    /// It writes a checkpoint.
    Checkpoints,
    /// It takes a checkpoint of another node.
    Installs,
    /// Nothing of one of the others reaches it.
    CutOff,
    /// It is dead.
    Dead,
}

impl Doing {
    /// Everything.
    pub const ALL: [Self; 8] = [
        Self::Leads,
        Self::Follows,
        Self::Loads,
        Self::Recovers,
        Self::Checkpoints,
        Self::Installs,
        Self::CutOff,
        Self::Dead,
    ];
}

/// The pairs that a batch must meet: all but those that cannot be, or mean nothing.
pub(super) fn must_meet() -> Vec<(Fault, Doing)> {
    let all = Fault::ALL.into_iter();
    let all = all.flat_map(|fault| Doing::ALL.into_iter().map(move |doing| (fault, doing)));
    all.filter(|(fault, doing)| is_listed(*fault, *doing))
        .collect()
}

fn is_listed(fault: Fault, doing: Doing) -> bool {
    match doing {
        Doing::Leads | Doing::Follows => true,
        Doing::CutOff => fault != Fault::LoseDisk,
        // Who is dead can only lose what it has.
        Doing::Dead => fault.is_harm() && fault != Fault::LostWrite,
        // These are short.
        Doing::Checkpoints => matches!(
            fault,
            Fault::Crash | Fault::PowerLoss | Fault::Pause | Fault::FullDisk | Fault::WriteError
        ),
        Doing::Loads => matches!(fault, Fault::Crash | Fault::PowerLoss),
        Doing::Recovers => matches!(
            fault,
            Fault::Crash | Fault::PowerLoss | Fault::Partition | Fault::OneWay
        ),
        // It is counted, and so short that a batch of usual size may miss it.
        Doing::Installs => false,
    }
}

impl Cluster<'_> {
    /// A fault befalls a node; what it does.
    pub(super) fn note_doing(&mut self, fault: Fault, node: usize) {
        let options: &Options = &self.options;
        let place = &self.nodes[node];
        let mut doing = Vec::new();
        if place.runs() {
            let members = (0..).zip(&place.engines).flat_map(|(shard, engine)| {
                groups(place, options, shard).map(move |group| engine.member(group))
            });
            let members: Vec<_> = members.collect();
            let leads = members.iter().any(|raft| raft.role() == Role::Leader);
            doing.push(if leads { Doing::Leads } else { Doing::Follows });
            let is = |what, holds: bool| holds.then_some(what);
            let engines = || place.engines.iter();
            doing.extend(is(
                Doing::Recovers,
                members.iter().any(|raft| raft.is_recovering()),
            ));
            // Who dies while it loads is noted by itself, whatever kills it.
            let dies = matches!(fault, Fault::Crash | Fault::PowerLoss);
            doing.extend(is(Doing::Loads, place.loads() && !dies));
            let checkpoints = engines().any(ShardEngine::writes_checkpoint);
            doing.extend(is(Doing::Checkpoints, checkpoints));
            doing.extend(is(Doing::Installs, engines().any(ShardEngine::installs)));
            let others = (0..options.nodes).filter(|other| *other != node);
            let mut cuts = others.filter(|other| self.is_cut(*other, node));
            doing.extend(is(Doing::CutOff, cuts.next().is_some()));
        } else {
            doing.push(Doing::Dead);
        }
        for doing in doing {
            self.has_met(fault, doing);
        }
    }

    pub(super) fn has_met(&mut self, fault: Fault, doing: Doing) {
        *self.report.met.entry((fault, doing)).or_default() += 1;
    }
}
