//! A real server for the tests of programs that use rrq: `rrq-node`, on a folder and ports of its
//! own, gone with the test.
//!
//! ```no_run
//! #[tokio::test]
//! async fn a_job_comes_back() {
//!     let server = rrq::test::Server::start().expect("rrq-node is installed");
//!     let client = rrq::client::Client::connect(server.address()).await.expect("connected");
//!     // ...
//! }
//! ```
//!
//! The program is looked for in this order: the file that `RRQ_NODE` names; `rrq-node` beside the
//! test's own program and up to two folders above it (cargo's `target/PROFILE`); `PATH`.
//! `cargo install` of rrq puts it there.
//!
//! The node is started by a small shell script that reads from a pipe. A word in the pipe, or its
//! end, ends the node: so none is left behind, also if the test's process is killed. All of it
//! blocks the calling thread, for some ten milliseconds at a start.

mod server;

pub use server::Server;
