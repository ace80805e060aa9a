//! What the tests of the client share: a deadline for all, and a wire that can be cut.

// Each test program uses its own part of it.
#![allow(dead_code)]

pub(crate) mod script;

use rrq::client::{Client, QueueStats};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Long enough for a crowded machine; a test that waits so long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for something that must come.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{place}: it does not come"),
        }
    }
}

/// Waits until the counters of a queue are as they should.
pub(crate) async fn stats_are(client: &Client, queue: &str, due: impl Fn(&QueueStats) -> bool) {
    soon(async {
        let queue = client.find_queue(queue).await.expect("it is there");
        loop {
            let (_, stats) = queue.info().await.expect("its counters");
            if due(&stats) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Whole,
    /// What the server says is thrown away.
    Mute,
    Cut,
}

/// Stands before a server. A client that comes this way and is cut off goes on to the address that
/// the server told it.
pub(crate) struct Proxy {
    pub(crate) address: String,
    wire: watch::Sender<Wire>,
}

impl Proxy {
    pub(crate) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (wire, state) = watch::channel(Wire::Whole);
        let server = server.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("it listens");
                tokio::spawn(carry(client, server, state.clone()));
            }
        });
        Self { address, wire }
    }

    /// From now on the client hears nothing, though it is heard.
    pub(crate) fn mute(&self) {
        self.wire.send_replace(Wire::Mute);
    }

    pub(crate) fn cut(&self) {
        self.wire.send_replace(Wire::Cut);
    }
}

async fn carry(client: TcpStream, server: TcpStream, mut state: watch::Receiver<Wire>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let muted = state.clone();
    let up = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            if to_server.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            let heard = *muted.borrow() == Wire::Whole;
            if heard && to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = state.wait_for(|wire| *wire == Wire::Cut) => {}
    }
}
