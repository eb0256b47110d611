//! Session streams.
//!
//! A session is one libp2p stream between two authenticated peers. The actor is asked to open it; after
//! that, its bytes go straight from the holder to the connection's task and never pass through the swarm.
//! Dropping a stream resets it, which is how either side cancels.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, Stream};
use tokio::sync::mpsc;

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
