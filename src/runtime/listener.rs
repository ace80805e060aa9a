//! Accepts the clients of one shard, as many as the node admits, and gives each a task.

use crate::base::code::Code;
use crate::runtime::connection::{self, Connection};
use crate::runtime::mesh::error_reply;
use crate::runtime::shard_task::Hub;
use crate::runtime::sys;
use crate::shard::input::{Input, Origin};
use crate::wire::client::encode_reply;
use bytes::BytesMut;
use futures_lite::AsyncWriteExt;
use glommio::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Without descriptors, accepting is tried again after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How many clients the node has and may have, over all shards.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Now.
    pub clients: Arc<AtomicUsize>,
    /// At most.
    pub max: usize,
}

impl Admission {
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
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "no client can be accepted");
                glommio::timer::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        if hub.stopping() {
            continue;
        }
        if !admission.enter() {
            let text = format!(
                "{} clients are connected, no more are admitted (limits.connections_max)",
                admission.max
            );
            glommio::spawn_local(refuse(stream, text)).detach();
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

async fn serve(stream: TcpStream, hub: &Hub) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a client left at once");
        return;
    }
    sys::keep_alive(&stream);
    let connection = Rc::new(Connection::default());
    let conn = hub.add(connection.clone());
    let origin = Origin {
        shard: hub.shard(),
        conn,
    };
    connection::serve(stream, origin, &connection, hub).await;
    hub.remove(conn);
    connection::Shard::push(hub, Input::ClientClosed { from: origin });
}

/// Says why, and closes; a client that does not take it does not get it.
async fn refuse(mut stream: TcpStream, text: String) {
    let mut out = BytesMut::new();
    encode_reply(&error_reply(0, Code::Busy, text), &mut out);
    let timeout = stream.set_write_timeout(Some(Duration::from_secs(1)));
    if timeout.is_ok() && stream.write_all(&out).await.is_ok() {
        let _ = stream.close().await;
    }
}
