//! What a call can end with, other than what was asked for.

use crate::base::code::Code;
use crate::wire::Rejection;
use crate::wire::message::ErrorReply;
use std::fmt;

/// An error of a call: a stable code, words for people, and whether the call may have taken effect.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: String,
    maybe_applied: bool,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            maybe_applied: false,
        }
    }

    /// Nobody can know whether the call took effect.
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self {
            code: Code::Unknown,
            message: message.into(),
            maybe_applied: true,
        }
    }

    /// The same, of a call of which a part may have taken effect.
    pub(crate) fn and_maybe_applied(self) -> Self {
        Self {
            maybe_applied: true,
            ..self
        }
    }

    pub(crate) fn rejected(rejection: Rejection) -> Self {
        let code = rejection.code();
        let message = match rejection {
            Rejection::QueueChanged => "the queue is not here any more: resolve its name again",
            Rejection::QueueExists => "a queue of this name exists",
            Rejection::VersionMismatch => "the settings were changed meanwhile: read them again",
            Rejection::Invalid => "a name, setting or field is out of its bounds",
            Rejection::Unsupported => {
                "the server still runs an older version of the job machine, which cannot do this"
            }
            Rejection::QuotaExceeded => "the queue is at its bound of jobs or bytes",
            Rejection::IdempotencyWindowFull => "the queue remembers as many keys as it may",
            Rejection::IdempotencyConflict => "the key belongs to a job with another payload",
            Rejection::LeaseLost => {
                "the lease is lost: the job was granted anew, went back or was cancelled"
            }
            Rejection::Finished => "the job is finished",
            Rejection::NotFound => "no such job was ever made",
            Rejection::WrongState => "the job is not in a state that allows this",
            Rejection::SessionExpired => "the session has expired",
            Rejection::Superseded => "the answer to this was already taken",
            Rejection::WindowExceeded => "too many requests of one session are under way",
            Rejection::Reattach => "the leases of the session were ended",
            Rejection::TooManySessions => "the group has as many sessions as it may",
            Rejection::IdsExhausted => "no ids are left in this group",
            Rejection::Draining => "the queue is being drained: it takes no jobs",
        };
        Self::new(code, message)
    }

    pub(crate) fn from_reply(reply: &ErrorReply) -> Self {
        Self {
            code: reply.code,
            message: reply.message.clone(),
            maybe_applied: reply.maybe_applied,
        }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// Words for people, without the code.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same call may succeed later: the server was away, busy, full or stopping, or a
    /// bound was reached that others may make room in. The client has tried until its deadline
    /// already. After [`Code::Unknown`] look at [`Self::maybe_applied`] first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.code,
            Code::Unreachable
                | Code::NotLeader
                | Code::Busy
                | Code::DiskFull
                | Code::MemoryFull
                | Code::Stopping
                | Code::Unknown
                | Code::Timeout
                | Code::ConnectionTimeout
                | Code::QueueChanged
                | Code::QuotaExceeded
                | Code::IdempotencyWindowFull
                | Code::TooManySessions
        )
    }

    /// Whether the call may have taken effect although it ended with an error, as with
    /// [`Code::Unknown`]: it was sent, and its answer never came. This happens
    ///
    /// - when the answer does not come within [`Options::deadline`](super::Options::deadline),
    ///   because the server or the way to it is away for longer;
    /// - when the connection is lost and the client has no sessions
    ///   ([`Options::sessions`](super::Options::sessions));
    /// - when the session expired before the answer could be asked for again, after a quarter of
    ///   an hour out of touch;
    /// - when the client is closed under it;
    /// - of a batch with keys, when one partition failed and another did not.
    ///
    /// What to do then: repeat an enqueue with its idempotency key, which makes it the same job;
    /// one without a key may become a second job. Repeat an ack, nack or release: if it took effect,
    /// the answer is [`Code::Finished`] or [`Code::LeaseLost`]. Leases that nobody heard of go back
    /// by themselves.
    ///
    /// An error without this never took effect: it was refused, or never left.
    #[must_use]
    pub fn maybe_applied(&self) -> bool {
        self.maybe_applied
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if self.maybe_applied {
            f.write_str(" (it may or may not have taken effect)")?;
        }
        Ok(())
    }
}

/// The code's name, then as for people: what a `main` that returns the error shows.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {self}", self.code.name())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_well_wherever_it_is_shown() {
        let error = Error::unknown("no answer within the deadline");
        let words = "RRQ-4008: no answer within the deadline (it may or may not have taken effect)";
        assert_eq!(error.to_string(), words);
        assert_eq!(format!("{error:?}"), format!("Unknown, {words}"));
    }

    #[test]
    fn every_rejection_has_the_code_of_its_name() {
        for rejection in Rejection::ALL {
            let code = Error::rejected(rejection).code();
            assert_eq!(code.name(), format!("{rejection:?}"));
        }
    }

    #[test]
    fn every_rejection_is_told_in_these_words() {
        let told = Rejection::ALL.map(|rejection| Error::rejected(rejection).to_string() + "\n");
        let pinned = include_str!("../../tests/snapshots/errors/rejections.txt");
        assert_eq!(told.concat(), pinned);
    }
}
