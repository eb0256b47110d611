//! Many frames per read.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, Stream};

use super::{FrameError, HEADER_BYTES, frame_len};

/// What one read asks for: about what a yamux or QUIC stream delivers at once.
const READ_BYTES: usize = 16 * 1024;

/// Reads frames. Holds at most one frame and one read's worth of bytes.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    limit: usize,
    buffer: BytesMut,
    /// Set after an error: framing is lost, so that nothing more can be read.
    broken: bool,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of at most `limit` bytes from `io`.
    pub fn new(io: R, limit: usize) -> Self {
        Self { io, limit, buffer: BytesMut::new(), broken: false }
    }

    /// The next frame; `None` at the end of the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// The next frame if it is already buffered. Never waits, never reads.
    pub fn buffered(&mut self) -> Result<Option<Bytes>, FrameError> {
        self.split_frame()
    }

    /// Poll version of [`FrameReader::next`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, FrameError>> {
        if self.broken {
            return Poll::Ready(Ok(None));
        }
        loop {
            match self.split_frame() {
                Ok(Some(frame)) => return Poll::Ready(Ok(Some(frame))),
                Ok(None) => {}
                Err(error) => {
                    self.broken = true;
                    return Poll::Ready(Err(error));
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.buffer.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => {
                    self.broken = true;
                    return Poll::Ready(Err(FrameError::Truncated { missing: self.missing() }));
                }
                Ok(_) => {}
                Err(error) => {
                    self.broken = true;
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// Bytes that the frame being received still lacks.
    fn missing(&self) -> usize {
        match self.buffer.first_chunk::<HEADER_BYTES>() {
            None => HEADER_BYTES - self.buffer.len(),
            Some(header) => {
                (u32::from_be_bytes(*header) as usize + HEADER_BYTES).saturating_sub(self.buffer.len())
            }
        }
    }

    fn split_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let len = frame_len(*header, self.limit)?;
        if self.buffer.len() < HEADER_BYTES + len {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        // At most one read beyond the frame being received, whose length was checked.
        let want = self.missing().max(READ_BYTES);
        let have = self.buffer.len();
        self.buffer.resize(have + want, 0);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut self.buffer[have..]);
        let read = match &polled {
            Poll::Ready(Ok(read)) => (*read).min(want),
            _ => 0,
        };
        self.buffer.truncate(have + read);
        polled
    }

    /// The stream inside; bytes already buffered are lost.
    pub fn into_inner(self) -> R {
        self.io
    }
}

impl<R: AsyncRead + Unpin> Stream for FrameReader<R> {
    type Item = Result<Bytes, FrameError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_frame(cx).map(Result::transpose)
    }
}
