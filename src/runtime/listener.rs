//! Accepts the clients of one shard, as many as the node admits, and gives each a task.
//!
//! What the node itself needs of descriptors is kept from clients: the log must be able to go on in
//! its next segment whoever has connected. Who is too many is told so and let go.

use crate::base::code::Code;
use crate::runtime::connection;
use crate::runtime::mesh::error_reply;
use crate::runtime::shard_task::Hub;
use crate::runtime::sys;
use crate::shard::input::{Input, Origin};
use crate::wire::client::encode_reply;
use bytes::BytesMut;
use futures_lite::AsyncWriteExt;
use glommio::net::{TcpListener, TcpStream};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Without descriptors, accepting is tried again after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What hinders accepting is said at most so often.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// How long who is refused may take to hear it.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// Refused clients that are waited for, a shard; others are told and left.
pub const REFUSED_MAX: usize = 16;

/// How many clients the node has and may have, over all shards.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Now.
    pub clients: Arc<AtomicUsize>,
    /// At most.
    pub max: usize,
    /// What sets this bound.
    pub bound: &'static str,
}

impl Admission {
    /// As many as are configured, but no more than there are descriptors besides those that the node
    /// itself needs.
    #[must_use]
    pub fn new(clients: Arc<AtomicUsize>, connections_max: usize, descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let bound = if descriptors < connections_max {
            "RLIMIT_NOFILE"
        } else {
            "limits.connections_max"
        };
        Self {
            clients,
            max: connections_max.min(descriptors),
            bound,
        }
    }

    fn enter(&self) -> bool {
        let before = self.clients.fetch_add(1, Ordering::Relaxed);
        if before >= self.max {
            self.leave();
        }
        before < self.max
    }

    fn leave(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until the node stops.
pub async fn accept(listener: TcpListener, hub: Rc<Hub>, admission: Admission) {
    let refused = Rc::new(Cell::new(0));
    let mut trouble = Trouble::default();
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                if trouble.is_to_be_said(Instant::now()) {
                    tracing::warn!(%error, "no client can be accepted; it is tried again");
                }
                glommio::timer::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        if trouble.is_over() {
            tracing::info!("clients are accepted again");
        }
        if hub.stopping() {
            continue;
        }
        if !admission.enter() {
            let text = format!(
                "{} clients are connected, no more are admitted ({})",
                admission.max, admission.bound
            );
            glommio::spawn_local(refuse(stream, text, hub.clone(), refused.clone())).detach();
            continue;
        }
        let (hub, admission) = (hub.clone(), admission.clone());
        glommio::spawn_local(async move {
            serve(stream, &hub).await;
            admission.leave();
        })
        .detach();
    }
}

/// What was said of a lack of descriptors. It may come and go with each client that leaves, so it is
/// said once in a while only.
#[derive(Default)]
struct Trouble {
    said_at: Option<Instant>,
    lasts: bool,
}

impl Trouble {
    fn is_to_be_said(&mut self, now: Instant) -> bool {
        let again = |said_at| now >= said_at + SAID_AGAIN;
        let say = self.said_at.is_none_or(again);
        if say {
            self.said_at = Some(now);
            self.lasts = true;
        }
        say
    }

    /// Whether it was said that it lasts, and now it does not.
    fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.lasts)
    }
}

async fn serve(stream: TcpStream, hub: &Hub) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a client left at once");
        return;
    }
    sys::keep_alive(&stream);
    let (conn, connection) = hub.add();
    let origin = Origin {
        shard: hub.shard(),
        conn,
    };
    connection::serve(stream, origin, &connection, hub).await;
    hub.remove(conn);
    connection::Shard::push(hub, Input::ClientClosed { from: origin });
}

/// Says why, and closes; a client that does not take it does not get it.
async fn refuse(mut stream: TcpStream, text: String, hub: Rc<Hub>, refused: Rc<Cell<usize>>) {
    let mut out = BytesMut::new();
    encode_reply(&error_reply(0, Code::Busy, text), &mut out);
    let timeout = stream.set_write_timeout(Some(REFUSED_WITHIN));
    if timeout.is_err() || stream.write_all(&out).await.is_err() {
        return;
    }
    if refused.get() >= REFUSED_MAX {
        return;
    }
    refused.set(refused.get() + 1);
    connection::hear_out(&mut stream, &*hub, REFUSED_WITHIN).await;
    refused.set(refused.get() - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_the_node_its_descriptors_and_are_told_which_bound_it_is() {
        let of = |connections_max, descriptors| {
            let admission = Admission::new(Arc::default(), connections_max, descriptors);
            (admission.max, admission.bound)
        };
        assert_eq!(of(10, 20), (10, "limits.connections_max"));
        assert_eq!(of(20, 20), (20, "limits.connections_max"));
        assert_eq!(of(20, 10), (10, "RLIMIT_NOFILE"));
        assert_eq!(of(20, u64::MAX), (20, "limits.connections_max"));
    }

    #[test]
    fn trouble_that_comes_and_goes_is_said_once_in_a_while() {
        let (mut trouble, begun) = (Trouble::default(), Instant::now());
        assert!(!trouble.is_over());
        assert!(trouble.is_to_be_said(begun) && !trouble.is_to_be_said(begun));
        assert!(trouble.is_over() && !trouble.is_over());
        assert!(!trouble.is_to_be_said(begun + SAID_AGAIN / 2) && !trouble.is_over());
        assert!(trouble.is_to_be_said(begun + SAID_AGAIN));
    }

    #[test]
    fn a_place_is_given_away_once() {
        let admission = Admission::new(Arc::default(), 1, 9);
        assert!(admission.enter() && !admission.enter());
        admission.leave();
        assert!(admission.enter());
    }
}
