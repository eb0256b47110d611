//! Links: libp2p's in-memory transport with latency, under the same Noise and Yamux as over TCP.
//!
//! Each connection draws its latency once; every chunk read from it arrives that much after it was
//! written. Order is kept, nothing is lost.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use cocoon_p2p::{Keypair, net::Substrate};
use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    Transport,
    core::{muxing::StreamMuxerBox, transport::MemoryTransport, upgrade::Version},
    noise, yamux,
};
use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use tokio::time::{Instant, Sleep, sleep};

use crate::trace::Trace;

/// Chunks in flight on one link; the writer waits beyond that.
const IN_FLIGHT: usize = 256;
const CHUNK: usize = 16 * 1024;

/// What all links of a world share.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    /// One-way latency in milliseconds, drawn per connection and side.
    pub(crate) latency_ms: Range<u64>,
    /// Where latencies come from; not the worlds' entropy, so that a change in how much of that a protocol
    /// draws does not change the network.
    pub(crate) rng: Arc<Mutex<ChaCha12Rng>>,
    /// Every chunk that arrives is part of the trace.
    pub(crate) trace: Trace,
}

impl Links {
    /// A transport of one peer of this world.
    pub(crate) fn substrate(&self, keypair: &Keypair) -> Result<Substrate, noise::Error> {
        let links = self.clone();
        Ok(MemoryTransport::default()
            .map(move |channel, _| links.link(channel))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(keypair)?)
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed())
    }

    fn link<S>(&self, inner: S) -> Link<S> {
        let millis = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            rng.random_range(self.latency_ms.clone())
        };
        Link {
            inner,
            latency: Duration::from_millis(millis),
            arriving: VecDeque::new(),
            timer: Box::pin(sleep(Duration::ZERO)),
            armed: None,
            ended: false,
            trace: self.trace.clone(),
        }
    }
}

struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
    read: usize,
}

/// One side of a connection.
struct Link<S> {
    inner: S,
    latency: Duration,
    arriving: VecDeque<Chunk>,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    ended: bool,
    trace: Trace,
}

impl<S: AsyncRead + Unpin> Link<S> {
    /// Takes in what was written at the other end; it becomes readable when its latency has passed.
    fn take_in(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut buffer = [0u8; CHUNK];
        while !self.ended && self.arriving.len() < IN_FLIGHT {
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(n)) => {
                    let due = now() + self.latency;
                    self.arriving.push_back(Chunk { due, bytes: buffer[..n].to_vec(), read: 0 });
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

#[allow(clippy::disallowed_methods, reason = "tokio's clock, which is virtual here")]
fn now() -> Instant {
    Instant::now()
}

impl<S: AsyncRead + Unpin> AsyncRead for Link<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let link = &mut *self;
        link.take_in(cx)?;
        let Some(chunk) = link.arriving.front_mut() else {
            return if link.ended { Poll::Ready(Ok(0)) } else { Poll::Pending };
        };
        if link.armed != Some(chunk.due) {
            link.timer.as_mut().reset(chunk.due);
            link.armed = Some(chunk.due);
        }
        if chunk.due > now() {
            ready!(link.timer.as_mut().poll(cx));
        }
        if chunk.read == 0 {
            link.trace.event("arrived", &chunk.bytes);
        }
        let n = into.len().min(chunk.bytes.len() - chunk.read);
        into[..n].copy_from_slice(&chunk.bytes[chunk.read..chunk.read + n]);
        chunk.read += n;
        if chunk.read == chunk.bytes.len() {
            link.arriving.pop_front();
        }
        Poll::Ready(Ok(n))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Link<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
