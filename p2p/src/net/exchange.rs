//! Small questions between two peers: evidence by digest, and snapshots of ads.
//!
//! One request–response protocol carries both. Requests and responses are single frames of at most
//! [`MAX_REQUEST`] and [`MAX_RESPONSE`] bytes, checked before anything is allocated; a peer that sends
//! more loses its stream and some of its standing.

use std::io;

use bincode::{Decode, Encode};
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};

use crate::{
    codec,
    wire::{read_frame, write_frame},
};

/// A request is a tag, a digest and a count.
pub(crate) const MAX_REQUEST: usize = 64;
/// Evidence is at most 64 KiB; a snapshot is cut to [`SNAPSHOT_BYTES`].
pub(crate) const MAX_RESPONSE: usize = 192 * 1024;
/// Bytes of ads in one snapshot: some hundreds of ordinary ads.
pub(crate) const SNAPSHOT_BYTES: usize = 160 * 1024;
/// Ads in one snapshot.
pub(crate) const SNAPSHOT_ADS: usize = 512;
/// Largest evidence blob served or accepted.
pub const MAX_EVIDENCE_BYTES: usize = 64 * 1024;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Request {
    /// The evidence with this SHA-256 digest.
    Evidence { digest: [u8; 32] },
    /// Current ads, of one model or of any.
    Ads { model: Option<[u8; 32]>, limit: u16 },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Response {
    /// The blob asked for.
    Evidence(Vec<u8>),
    /// Encoded signed ads; each is verified by the asker like one from gossip.
    Ads(Vec<Vec<u8>>),
    /// Not served here.
    NotFound,
    /// The asker asks too often.
    Busy,
}

pub(crate) fn decode_request(bytes: &[u8]) -> io::Result<Request> {
    codec::decode::<_, MAX_REQUEST>(bytes).map_err(invalid)
}

pub(crate) fn decode_response(bytes: &[u8]) -> io::Result<Response> {
    codec::decode::<_, MAX_RESPONSE>(bytes).map_err(invalid)
}

fn invalid(error: codec::CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The libp2p codec of the protocol.
#[derive(Debug, Clone, Default)]
pub(crate) struct Codec;

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T, limit: usize) -> io::Result<bytes::Bytes> {
    let frame = read_frame(io, limit).await?;
    frame.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

async fn write<T, M>(io: &mut T, message: &M, limit: usize) -> io::Result<()>
where
    T: AsyncWrite + Unpin + Send,
    M: Encode,
{
    let bytes = codec::encode(message).map_err(invalid)?;
    write_frame(io, &[&bytes], limit).await?;
    io.close().await
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    /// `None` is a request that was oversize or did not decode. libp2p reports failed reads of requests to
    /// nobody, and the actor wants to know who sends such.
    type Request = Option<Request>;
    type Response = Response;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Option<Request>>
    where
        T: AsyncRead + Unpin + Send,
    {
        match read(io, MAX_REQUEST).await.and_then(|frame| decode_request(&frame)) {
            Ok(request) => Ok(Some(request)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        decode_response(&read(io, MAX_RESPONSE).await?)
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Option<Request>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let request = request.ok_or(io::ErrorKind::InvalidInput)?;
        write(io, &request, MAX_REQUEST).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Response,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &response, MAX_RESPONSE).await
    }
}
