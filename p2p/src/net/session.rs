//! Session streams.
//!
//! A session is one libp2p stream between two authenticated peers. Opening one asks the actor only for
//! the connection; the stream itself goes straight from the caller to the connection's task, so that the
//! traffic of a session never passes through the swarm. Dropping a stream resets it, which is how either
//! side cancels.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, StreamExt};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use tokio::sync::mpsc;

use super::shared::Shared;

/// A byte stream to one peer, encrypted and authenticated hop by hop by libp2p.
#[derive(Debug)]
pub struct SessionStream(Stream);

impl SessionStream {
    pub(crate) fn new(stream: Stream) -> Self {
        Self(stream)
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// Session streams that other peers opened.
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::Receiver<(PeerId, SessionStream)>,
}

impl Incoming {
    pub(crate) fn new(streams: mpsc::Receiver<(PeerId, SessionStream)>) -> Self {
        Self { streams }
    }

    /// The next one and who opened it; `None` after shutdown. Cancel-safe.
    pub async fn next(&mut self) -> Option<(PeerId, SessionStream)> {
        self.streams.recv().await
    }
}

/// libp2p drops an inbound stream when nobody polls for it at that moment, so that a task does nothing
/// but poll. When the application falls behind by a whole queue, further streams are reset: the opener
/// learns at once that this worker is overloaded.
pub(crate) async fn accept(
    mut streams: IncomingStreams,
    queue: mpsc::Sender<(PeerId, SessionStream)>,
    shared: Arc<Shared>,
) {
    while let Some((peer, stream)) = streams.next().await {
        match queue.try_send((peer, SessionStream::new(stream))) {
            Ok(()) => shared.counters.sessions_in.add(1),
            Err(mpsc::error::TrySendError::Full(_)) => {
                shared.counters.sessions_refused.add(1);
                tracing::warn!(%peer, "session refused: too many wait to be accepted");
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}
