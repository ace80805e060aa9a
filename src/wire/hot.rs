//! The messages of a job's life, straight between bytes and values.
//!
//! Enqueue, lease, ack and their answers are nearly all that a busy node reads and writes. The general
//! codec makes the generated structs of protobuf on the way, which took a seventh of a shard's time to
//! read requests alone; here there is nothing in between.
//!
//! Only one form of each value is taken: the one that the general codec writes (fields rising,
//! defaults left out, numbers as short as can be). Whatever else comes, and whatever these messages
//! hold rarely (headers, a backoff of its own), is `None` and goes the general way, which also says
//! what is wrong with it. So there are never two opinions on a message; the tests hold both codecs
//! against each other.

mod reader;
mod writer;

pub(super) use self::reader::{read_command, read_reply, read_request};
pub(super) use self::writer::{put_command, put_reply, put_request};

#[cfg(test)]
mod tests;
