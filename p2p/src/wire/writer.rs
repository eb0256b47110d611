//! Many frames per write and per flush.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::AsyncWrite;
use tokio::sync::mpsc;

use super::{FrameError, frame_header};

/// A writer with this much queued should be flushed before more is queued.
const HIGH_WATER: usize = 64 * 1024;
/// Queue memory above this is given back after a flush.
const KEEP_BYTES: usize = 256 * 1024;

/// Collects frames and sends them together.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    limit: usize,
    queue: Vec<u8>,
    /// Bytes at the front of `queue` that the transport has.
    sent: usize,
    accepted: u64,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames of at most `limit` bytes to `io`.
    pub fn new(io: W, limit: usize) -> Self {
        Self { io, limit, queue: Vec::new(), sent: 0, accepted: 0 }
    }

    /// Adds one frame, made of `parts`, to what the next [`FrameWriter::flush`] sends. Nothing is
    /// written yet; a caller that queues without end checks [`FrameWriter::is_full`].
    pub fn queue(&mut self, parts: &[&[u8]]) -> Result<(), FrameError> {
        let (header, len) = frame_header(parts, self.limit)?;
        self.drop_sent();
        self.queue.reserve(header.len() + len);
        self.queue.extend_from_slice(&header);
        for part in parts {
            self.queue.extend_from_slice(part);
        }
        Ok(())
    }

    /// Whether enough is queued that it should be flushed before more is added.
    pub fn is_full(&self) -> bool {
        self.queued() >= HIGH_WATER
    }

    /// Bytes queued and not yet accepted by the transport.
    pub fn queued(&self) -> usize {
        self.queue.len() - self.sent
    }

    /// Bytes the transport has accepted since the writer was made. Whether this grows is how an owner tells
    /// a slow peer from one that takes nothing.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Forgets what was sent. A peer that always leaves a little in the queue would otherwise keep every byte
    /// ever sent to it in memory, since a flush that never completes never clears the queue. Waiting until at
    /// least half of the queue is sent makes the moves cost less than the sending.
    fn drop_sent(&mut self) {
        if self.sent >= HIGH_WATER && self.sent >= self.queued() {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Sends everything queued. Cancel-safe: call it again and it goes on where it stopped.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        Ok(poll_fn(|cx| self.poll_flush(cx)).await?)
    }

    /// Queues one frame and flushes.
    pub async fn send(&mut self, parts: &[&[u8]]) -> Result<(), FrameError> {
        self.queue(parts)?;
        self.flush().await
    }

    /// Poll version of [`FrameWriter::flush`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.queue.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.queue[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => {
                    self.sent += n;
                    self.accepted = self.accepted.saturating_add(n as u64);
                }
            }
        }
        self.queue.clear();
        self.sent = 0;
        if self.queue.capacity() > KEEP_BYTES {
            self.queue.shrink_to(HIGH_WATER);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Flushes and closes the sending side.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        self.flush().await?;
        Ok(poll_fn(|cx| Pin::new(&mut self.io).poll_close(cx)).await?)
    }

    /// The stream inside; what was queued and not flushed is lost.
    pub fn into_inner(self) -> W {
        self.io
    }
}

/// Sends frames from a channel until it closes, with one flush for all that queued up meanwhile, and
/// then closes the stream. Under light load every frame leaves at once; under heavy load the batches
/// grow by themselves.
pub async fn pump<W>(mut frames: mpsc::Receiver<Bytes>, mut writer: FrameWriter<W>) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    while let Some(first) = frames.recv().await {
        writer.queue(&[&first])?;
        while !writer.is_full() {
            match frames.try_recv() {
                Ok(next) => writer.queue(&[&next])?,
                Err(_) => break,
            }
        }
        writer.flush().await?;
    }
    writer.close().await
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::{
        super::{HEADER_BYTES, MAX_SESSION_FRAME},
        *,
    };

    /// A peer that takes a fixed number of bytes each time it is asked, and then nothing until the next time.
    struct Sipping {
        bytes: usize,
        thirsty: bool,
    }

    impl AsyncWrite for Sipping {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if !std::mem::take(&mut self.thirsty) {
                return Poll::Pending;
            }
            Poll::Ready(Ok(buf.len().min(self.bytes)))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_queue_that_is_never_empty_does_not_keep_what_was_sent() {
        const FRAME: usize = 16 * 1024;
        let mut writer = FrameWriter::new(Sipping { bytes: FRAME, thirsty: false }, MAX_SESSION_FRAME);
        let mut cx = Context::from_waker(Waker::noop());
        let frame = vec![7; FRAME - HEADER_BYTES];
        writer.queue(&[&frame]).unwrap();
        let mut sent = 0;
        for _ in 0..1000 {
            writer.queue(&[&frame]).unwrap();
            writer.io.thirsty = true;
            assert!(writer.poll_flush(&mut cx).is_pending(), "a frame is always left over");
            sent += FRAME as u64;
            assert_eq!(writer.accepted(), sent);
            assert_eq!(writer.queued(), FRAME);
            assert!(writer.queue.len() <= 256 * 1024, "{} bytes are kept", writer.queue.len());
        }
    }
}
