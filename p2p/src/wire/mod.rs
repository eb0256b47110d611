//! Frames on a byte stream.
//!
//! A frame is a `u32` length in big-endian order and that many bytes; what the bytes mean is the
//! caller's business. The length is checked against the limit before anything is allocated.
//!
//! Token streams are many small frames, so both directions work in batches: [`FrameReader`] reads what
//! the transport has in one go and hands out every complete frame in it without copying, and
//! [`FrameWriter`] collects frames and hands them to the transport in one write and one flush.
//! [`pump`] is the usual way to use the writer: a task that sends whatever has queued up since its last
//! flush. All of them are cancel-safe: a dropped future loses no byte.
//!
//! [`read_frame`] and [`write_frame`] are the plain versions for request–response exchanges.

mod reader;
mod writer;

use std::io;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
pub use reader::FrameReader;
use thiserror::Error;
pub use writer::{FrameWriter, pump};

/// Length prefix of a frame.
pub const HEADER_BYTES: usize = 4;
/// Frames on session streams: the largest Noise record with its envelope, rounded up.
pub const MAX_SESSION_FRAME: usize = 128 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length prefix, or the frame to be sent, is above the limit.
    #[error("a frame of {found} bytes; at most {limit} are allowed on this stream")]
    TooLarge {
        /// Bytes announced or given.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, {missing} bytes early")]
    Truncated {
        /// Bytes missing.
        missing: usize,
    },
    /// The transport failed.
    #[error("the stream failed")]
    Io(#[from] io::Error),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => error,
            FrameError::TooLarge { .. } => Self::new(io::ErrorKind::InvalidData, error),
            FrameError::Truncated { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
        }
    }
}

/// The length in a frame header, checked.
pub(crate) fn frame_len(header: [u8; HEADER_BYTES], limit: usize) -> Result<usize, FrameError> {
    let found = u32::from_be_bytes(header) as usize;
    match found <= limit {
        true => Ok(found),
        false => Err(FrameError::TooLarge { found, limit }),
    }
}

/// The header of a frame made of `parts`, and its length.
pub(crate) fn frame_header(parts: &[&[u8]], limit: usize) -> Result<([u8; HEADER_BYTES], usize), FrameError> {
    let found = parts.iter().map(|part| part.len()).sum();
    match u32::try_from(found) {
        Ok(len) if found <= limit => Ok((len.to_be_bytes(), found)),
        _ => Err(FrameError::TooLarge { found, limit }),
    }
}

/// Reads one frame of at most `limit` bytes; `None` at the end of the stream.
pub async fn read_frame<R>(io: &mut R, limit: usize) -> Result<Option<Bytes>, FrameError>
where
    R: AsyncRead + Unpin,
{
    let mut header = [0u8; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match io.read(&mut header[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(FrameError::Truncated { missing: HEADER_BYTES - have }),
            n => have += n,
        }
    }
    let len = frame_len(header, limit)?;
    let mut frame = vec![0u8; len];
    let mut have = 0;
    while have < len {
        match io.read(&mut frame[have..]).await? {
            0 => return Err(FrameError::Truncated { missing: len - have }),
            n => have += n,
        }
    }
    Ok(Some(frame.into()))
}

/// Writes one frame, made of `parts`, and flushes it.
pub async fn write_frame<W>(io: &mut W, parts: &[&[u8]], limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    let mut writer = FrameWriter::new(io, limit);
    writer.queue(parts)?;
    writer.flush().await
}

/// Splits a duplex stream into a reader and a writer of frames that may live in different tasks.
pub fn framed<S>(
    stream: S,
    limit: usize,
) -> (FrameReader<futures::io::ReadHalf<S>>, FrameWriter<futures::io::WriteHalf<S>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (read, write) = AsyncReadExt::split(stream);
    (FrameReader::new(read, limit), FrameWriter::new(write, limit))
}

/// Closes a stream's sending side, ignoring that the other end may be gone already.
pub async fn close<W: AsyncWrite + Unpin>(io: &mut W) {
    let _ = io.close().await;
}

#[cfg(test)]
mod tests;
