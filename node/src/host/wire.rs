//! One session stream as outer frames, read and written in batches, with the tap that tests may hang on it.

use std::sync::Arc;

use bytes::Bytes;
use cocoon_client::session::outer::{self, ToClient, ToHost};
use cocoon_p2p::wire::{FrameError, FrameReader, FrameWriter, framed};
use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncRead, AsyncWrite};
use thiserror::Error;

use crate::instruments::{Direction, PLACE_SESSION, Tap};

/// Why a session stream ended.
#[derive(Debug, Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the asker's frame is malformed: {0}")]
    Malformed(#[from] outer::FrameError),
}

/// The reading half.
pub(super) struct SessionReader<S> {
    frames: FrameReader<ReadHalf<S>>,
    tap: Option<Arc<dyn Tap>>,
}

/// The writing half. It queues without limit by itself: [`SessionWriter::queued`] is what its owner throttles
/// enclave and asker by, see [`super::outflow`].
pub(super) struct SessionWriter<S> {
    frames: FrameWriter<WriteHalf<S>>,
    unflushed: bool,
    tap: Option<Arc<dyn Tap>>,
}

/// Splits a stream into frames.
pub(super) fn session<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    tap: Option<Arc<dyn Tap>>,
) -> (SessionReader<S>, SessionWriter<S>) {
    let (reader, writer) = framed(stream, outer::MAX_FRAME);
    (
        SessionReader { frames: reader, tap: tap.clone() },
        SessionWriter { frames: writer, unflushed: false, tap },
    )
}

impl<S: AsyncRead + Unpin> SessionReader<S> {
    /// The next frame; `None` at the end of the stream. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<ToHost>, WireError> {
        let frame = self.frames.next().await?;
        self.decode(frame)
    }

    /// The next frame if it was read already.
    pub(super) fn buffered(&mut self) -> Result<Option<ToHost>, WireError> {
        let frame = self.frames.buffered()?;
        self.decode(frame)
    }

    fn decode(&self, frame: Option<Bytes>) -> Result<Option<ToHost>, WireError> {
        let Some(frame) = frame else { return Ok(None) };
        if let Some(tap) = &self.tap {
            tap.record(PLACE_SESSION, Direction::In, &frame);
        }
        Ok(Some(ToHost::decode(frame)?))
    }
}

impl<S: AsyncWrite + Unpin> SessionWriter<S> {
    /// Queues a frame for the next [`SessionWriter::flush`].
    pub(super) fn queue(&mut self, frame: &ToClient) -> Result<(), WireError> {
        let body = frame.encode()?;
        self.record(&[&body]);
        self.unflushed = true;
        Ok(self.frames.queue(&[&body])?)
    }

    /// Queues a Noise record without copying it through an encoder.
    pub(super) fn queue_record(&mut self, record: &[u8]) -> Result<(), WireError> {
        let parts: [&[u8]; 2] = [&[outer::NOISE], record];
        self.record(&parts);
        self.unflushed = true;
        Ok(self.frames.queue(&parts)?)
    }

    fn record(&self, parts: &[&[u8]]) {
        if let Some(tap) = &self.tap {
            tap.record(PLACE_SESSION, Direction::Out, &parts.concat());
        }
    }

    /// Whether [`SessionWriter::flush`] has something to do.
    pub(super) fn needs_flush(&self) -> bool {
        self.unflushed
    }

    /// Bytes the peer has not taken yet.
    pub(super) fn queued(&self) -> usize {
        self.frames.queued()
    }

    /// Bytes the transport has taken since the beginning.
    pub(super) fn accepted(&self) -> u64 {
        self.frames.accepted()
    }

    /// Writes all that is queued. Cancel-safe.
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        self.frames.flush().await?;
        self.unflushed = false;
        Ok(())
    }

    /// Flushes and closes the sending side.
    pub(super) async fn close(&mut self) {
        let _ = self.frames.close().await;
    }
}
