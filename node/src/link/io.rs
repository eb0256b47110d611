//! Frames over a byte stream: one `read` fills a buffer that many frames are then taken from, and many frames
//! are queued before one `write`.
//!
//! Both halves are cancel-safe: dropping a pending [`LinkReader::fill`] or [`LinkWriter::flush`] loses no
//! byte, so they can stand in a `select!`.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::Frame;
use super::{LinkError, MAX_FRAME};
use crate::instruments::{Direction, PLACE_LINK, Tap};

/// A read of this size takes dozens of token frames at once and is still small beside a session.
const READ_CHUNK: usize = 64 * 1024;

/// A buffer larger than this is given back after it has been written, so that one burst does not stay in
/// memory.
const KEEP_BUFFER: usize = 1024 * 1024;

/// The reading half.
pub struct LinkReader<R> {
    io: R,
    buffer: BytesMut,
    tap: Option<Arc<dyn Tap>>,
}

impl<R> std::fmt::Debug for LinkReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkReader").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin> LinkReader<R> {
    /// Reads from `io`; `tap` sees every frame.
    pub fn new(io: R, tap: Option<Arc<dyn Tap>>) -> Self {
        Self { io, buffer: BytesMut::with_capacity(READ_CHUNK), tap }
    }

    /// Takes the next whole frame out of the buffer, without reading.
    ///
    /// # Errors
    /// A length out of range or a frame that does not decode; the stream is then useless.
    pub fn take<F: Frame>(&mut self) -> Result<Option<F>, LinkError> {
        let Some(length) = self.length()? else { return Ok(None) };
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let body = self.buffer.split_to(length).freeze();
        if let Some(tap) = &self.tap {
            tap.record(PLACE_LINK, Direction::In, &body);
        }
        F::decode(body).map(Some)
    }

    /// The length of the frame at the front of the buffer, if its header is there.
    fn length(&self) -> Result<Option<usize>, LinkError> {
        let Some((header, _)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let found = u32::from_be_bytes(*header) as usize;
        if found == 0 || found > MAX_FRAME {
            return Err(LinkError::Length { found });
        }
        Ok(Some(found))
    }

    /// Reads once. False at the end of the stream.
    ///
    /// # Errors
    /// The socket's own, or an end in the middle of a frame.
    pub async fn fill(&mut self) -> Result<bool, LinkError> {
        let want = match self.length()? {
            Some(length) => (4 + length).saturating_sub(self.buffer.len()).max(READ_CHUNK),
            None => READ_CHUNK,
        };
        self.buffer.reserve(want);
        if self.io.read_buf(&mut self.buffer).await? > 0 {
            return Ok(true);
        }
        match self.length()? {
            None if self.buffer.is_empty() => Ok(false),
            None => Err(LinkError::Truncated { missing: 4 - self.buffer.len() }),
            Some(length) => {
                Err(LinkError::Truncated { missing: (4 + length).saturating_sub(self.buffer.len()) })
            }
        }
    }

    /// The next frame, reading as needed; `None` at the end of the stream.
    ///
    /// # Errors
    /// See [`LinkReader::take`] and [`LinkReader::fill`].
    pub async fn next<F: Frame>(&mut self) -> Result<Option<F>, LinkError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }
}

/// The writing half.
pub struct LinkWriter<W> {
    io: W,
    buffer: Vec<u8>,
    written: usize,
    tap: Option<Arc<dyn Tap>>,
}

impl<W> std::fmt::Debug for LinkWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkWriter")
            .field("queued", &(self.buffer.len() - self.written))
            .finish_non_exhaustive()
    }
}

impl<W: AsyncWrite + Unpin> LinkWriter<W> {
    /// Writes to `io`; `tap` sees every frame.
    pub fn new(io: W, tap: Option<Arc<dyn Tap>>) -> Self {
        Self { io, buffer: Vec::with_capacity(READ_CHUNK), written: 0, tap }
    }

    /// Queues a frame. Nothing is written before [`LinkWriter::flush`].
    ///
    /// # Errors
    /// A frame beyond the size limit, which is then not queued.
    pub fn queue<F: Frame>(&mut self, frame: &F) -> Result<(), LinkError> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        if let Err(error) = frame.encode(&mut self.buffer) {
            self.buffer.truncate(start);
            return Err(error);
        }
        let length = self.buffer.len() - start - 4;
        if length > MAX_FRAME {
            self.buffer.truncate(start);
            return Err(LinkError::Length { found: length });
        }
        if let Some(tap) = &self.tap {
            tap.record(PLACE_LINK, Direction::Out, self.buffer.get(start + 4..).unwrap_or_default());
        }
        // `length` is at most MAX_FRAME, far below u32::MAX.
        if let Some(header) = self.buffer.get_mut(start..start + 4) {
            header.copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
        }
        Ok(())
    }

    /// Whether something waits for [`LinkWriter::flush`].
    pub fn is_pending(&self) -> bool {
        self.written < self.buffer.len()
    }

    /// Writes all that is queued.
    ///
    /// # Errors
    /// The socket's own.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        while self.written < self.buffer.len() {
            let rest = self.buffer.get(self.written..).unwrap_or_default();
            match self.io.write(rest).await? {
                0 => return Err(LinkError::Io("the other side closed it".to_owned())),
                count => self.written += count,
            }
        }
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BUFFER);
        self.written = 0;
        Ok(())
    }
}
