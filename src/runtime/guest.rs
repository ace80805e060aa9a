//! Connections to the admin port: few, and none that stays without a reason.
//!
//! A request must be there whole within [`REQUEST_WITHIN`] of its first byte or of the answer before
//! it, and its answer be taken within [`REQUEST_WITHIN`] of its own; else the connection ends. At
//! most [`GUESTS_MAX`] are served, further ones wait in the kernel's queue until one has ended. So
//! clients that are slow or silent cost a bounded number of descriptors, for a bounded time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections served at once.
pub const GUESTS_MAX: usize = 64;
/// For a request to arrive, and for its answer to be taken.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Without descriptors, accepting is tried again after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The listener.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Door {
    /// Nobody is inside.
    #[must_use]
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(GUESTS_MAX)),
        }
    }
}

impl axum::serve::Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let place = self.places.clone().acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => return (Guest::new(stream, place), address),
                Err(error) => {
                    tracing::debug!(%error, "no guest can be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection.
#[derive(Debug)]
pub struct Guest {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    /// Whether the last that happened was a piece of an answer.
    answering: bool,
    _place: OwnedSemaphorePermit,
}

impl Guest {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            deadline: Box::pin(tokio::time::sleep(REQUEST_WITHIN)),
            answering: false,
            _place: place,
        }
    }

    /// A request has begun, or an answer: it has time of its own.
    fn turn(&mut self, answering: bool) {
        if self.answering != answering {
            self.answering = answering;
            self.deadline
                .as_mut()
                .reset(Instant::now() + REQUEST_WITHIN);
        }
    }

    fn too_late(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                self.turn(false);
                self.too_late(context)?;
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                self.too_late(context)?;
                Poll::Pending
            }
            ready => ready,
        }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.turn(true);
        self.too_late(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
