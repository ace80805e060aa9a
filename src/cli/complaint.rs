//! Errors of the client library as people see them: what, why, and what to do.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::client::Error;

/// What to give instead of an id that names no job.
pub(super) const NO_SUCH_JOB: &str =
    "rrqctl job get takes an id as enqueue prints it, or -q NAME --key KEY";

/// The report of an error of a call to `server`.
pub(super) fn of(error: &Error, server: &str) -> Report {
    let code = error.code();
    let report = match code {
        Code::Unreachable | Code::ConnectionTimeout => {
            Report::error(code, format!("no server answers at {server}"))
                .location(error.message())
                .fix(
                    "start one (rrq-node), or say where it is: \
                     --server HOST:PORT or the variable RRQ_SERVER",
                )
        }
        Code::BadArgument => Report::error(code, error.message())
            .location("--server, or the variable RRQ_SERVER")
            .fix("--server 127.0.0.1:7411"),
        Code::BadFrame | Code::ProtocolMismatch => Report::error(code, error.message())
            .location(server)
            .fix("--server with the client port that rrq-node prints, of the same version"),
        _ => Report::error(code, error.message()),
    };
    let report = match why(code) {
        Some(why) => report.why(why),
        None if error.maybe_applied() => {
            report.why("the answer was lost, so that it may or may not have taken effect")
        }
        None => report,
    };
    match fix(code) {
        Some(fix) => report.fix(fix),
        None => report,
    }
}

fn why(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::IdempotencyConflict => {
            "a key names one job, with one payload, for the queue's window"
        }
        Code::LeaseLost => "its time ended before, or the job was cancelled",
        Code::Draining => "the queue is being emptied",
        Code::DiskFull | Code::MemoryFull => {
            "jobs can be run and finished; new ones wait until there is room"
        }
        _ => return None,
    })
}

fn fix(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::DiskFull => "make room on the disk of the server, then try again",
        Code::MemoryFull => "try again when jobs are done; rrqctl status shows the queues",
        Code::Busy | Code::Timeout | Code::Stopping | Code::NotLeader => "try again later",
        Code::Unknown => "try again; with --key, no second job can come of it",
        Code::NoSuchQueue => "rrqctl queue list shows the queues",
        Code::QueueExists => "--if-absent leaves it as it is; rrqctl queue alter changes it",
        Code::VersionMismatch => "the same command again",
        Code::Draining => "rrqctl queue resume NAME lets it take jobs again",
        Code::WrongState => "rrqctl job get shows its state",
        Code::Unsupported => "a newer rrq-node; rrqctl status --groups shows what each group knows",
        Code::GroupHalted => {
            "stop the node, then `rrqctl repair --data-dir DIR` shows what is damaged"
        }
        Code::IdempotencyConflict => "another --key, or the payload of that job",
        Code::QuotaExceeded | Code::IdempotencyWindowFull => {
            "try again when jobs are done; rrqctl status shows the queue"
        }
        Code::NotFound => NO_SUCH_JOB,
        _ => return None,
    })
}
