//! Frames between an asker and a worker's host, on one libp2p stream.
//!
//! A frame is `length (u32, big endian) ‖ type (1 byte) ‖ payload`, at most [`MAX_FRAME`] bytes
//! after the length, which `cocoon_p2p::wire` adds and removes. Noise bytes are the payload as they
//! are, so that token traffic is neither parsed nor copied: write `[&[outer::NOISE], &record]`.
//! Every other payload is a version byte and one bincode message.
//!
//! | type | asker → host | host → asker |
//! |---|---|---|
//! | 1 | `Open` | `Accepted` |
//! | 2 | Noise record | Noise record |
//! | 3 | `Voucher` | `Refused` |
//! | 4 | `Bye` | `Bye` |

use std::fmt;

use bincode::{Decode, Encode};
use bytes::Bytes;
use cocoon_payments::SignedVoucher;
/// Streams one voucher may credit.
pub use cocoon_payments::lane::MAX_ALLOCATIONS;
use serde::Serialize;

use crate::codec::{self, CodecError};

/// Bytes of a frame after its length: one Noise record (64 KiB at most) with room.
pub const MAX_FRAME: usize = 128 * 1024;
/// `Open` carries a handshake message and channel parameters, nothing larger.
pub const MAX_OPEN: usize = 4 * 1024;
/// One voucher with all its allocations.
pub const MAX_VOUCHER: usize = 2 * 1024;
/// Text of a refusal.
pub const MAX_MESSAGE: usize = 1024;

/// Bytes in front of a payload: length and type.
pub const HEADER: usize = 5;

const VERSION: u8 = 1;
const OPEN: u8 = 1;
/// Type byte of a frame whose payload is a Noise record.
pub const NOISE: u8 = 2;
const VOUCHER: u8 = 3;
const BYE: u8 = 4;

/// The asker's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Open {
    /// [`super::WIRE_VERSION`].
    pub wire_version: u16,
    /// Which network.
    pub network_id: [u8; 32],
    /// Which evidence the asker verified.
    pub evidence_digest: [u8; 32],
    /// The live-binding policy ([`cocoon_attest::Live::id`]); in the Noise prologue too.
    pub policy: u8,
    /// First Noise message.
    pub noise: Vec<u8>,
    /// Encoded channel parameters: the worker recomputes the channel's address from them.
    pub channel: Vec<u8>,
}

/// A voucher and how its increase is divided.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Voucher {
    /// The voucher.
    pub signed: SignedVoucher,
    /// `(stream, nanoTON)`: together exactly what the voucher adds to the newest one the worker
    /// holds.
    pub allocations: Vec<(u32, u64)>,
}

/// Asker → host.
#[derive(Debug, Clone, PartialEq)]
pub enum ToHost {
    /// Open the session.
    Open(Open),
    /// A record for the enclave.
    Noise(Bytes),
    /// A payment.
    Voucher(Voucher),
    /// The asker leaves.
    Bye,
}

/// The session is open.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Accepted {
    /// Second Noise message.
    pub noise: Vec<u8>,
    /// The newest voucher the worker holds for the channel.
    pub newest: Option<SignedVoucher>,
}

/// The host ends the session, or will not begin it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Refused {
    /// For programs.
    pub code: RefusalCode,
    /// For people; at most [`MAX_MESSAGE`] bytes.
    pub message: String,
}

/// Why a host refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// No free session; try again or elsewhere.
    Busy,
    /// Too many sessions or frames from this asker.
    RateLimited,
    /// Another wire version.
    WireVersion,
    /// Another network.
    UnknownNetwork,
    /// The evidence was replaced; fetch the new one.
    StaleEvidence,
    /// A frame that cannot be read or does not belong here.
    Malformed,
    /// The enclave refused the handshake.
    Handshake,
    /// Channel parameters this worker cannot accept (wrong payee, key, code or close delay).
    ChannelTerms,
    /// The channel is not on the chain, or not opened yet.
    ChannelUnknown,
    /// The channel is closing.
    ChannelClosing,
    /// The channel expires too soon.
    ChannelExpiring,
    /// The confirmed deposit does not cover it.
    ChannelUnderfunded,
    /// The worker has not seen the chain for too long to take the channel's word.
    ChannelStale,
    /// The voucher's signature, network, address or id is wrong.
    VoucherInvalid,
    /// The voucher is not newer than the newest one.
    VoucherStale,
    /// The voucher exceeds the deposit, or unsettled value exceeds the worker's cap.
    VoucherOverdraft,
    /// The allocations do not add up to the voucher's increase.
    VoucherAllocation,
    /// The enclave is not running.
    EnclaveDown,
    /// A fault of the worker itself.
    Internal,
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "busy",
            Self::RateLimited => "rate-limited",
            Self::WireVersion => "wire-version",
            Self::UnknownNetwork => "unknown-network",
            Self::StaleEvidence => "stale-evidence",
            Self::Malformed => "malformed",
            Self::Handshake => "handshake",
            Self::ChannelTerms => "channel-terms",
            Self::ChannelUnknown => "channel-unknown",
            Self::ChannelClosing => "channel-closing",
            Self::ChannelExpiring => "channel-expiring",
            Self::ChannelUnderfunded => "channel-underfunded",
            Self::ChannelStale => "channel-stale",
            Self::VoucherInvalid => "voucher-invalid",
            Self::VoucherStale => "voucher-stale",
            Self::VoucherOverdraft => "voucher-overdraft",
            Self::VoucherAllocation => "voucher-allocation",
            Self::EnclaveDown => "enclave-down",
            Self::Internal => "internal",
        })
    }
}

/// Host → asker.
#[derive(Debug, Clone, PartialEq)]
pub enum ToClient {
    /// The session is open.
    Accepted(Accepted),
    /// A record from the enclave.
    Noise(Bytes),
    /// The session is over, for a reason.
    Refused(Refused),
    /// The session is over.
    Bye {
        /// For people; at most [`MAX_MESSAGE`] bytes.
        reason: String,
    },
}

/// Why a frame cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("frame has {0} bytes, at most {MAX_FRAME} are accepted")]
    TooLarge(usize),
    /// No type byte.
    #[error("frame is empty, expected a type byte")]
    Empty,
    /// No such frame type in this direction.
    #[error("frame type {0} is unknown in this direction")]
    Type(u8),
    /// `Bye` of the asker carries nothing.
    #[error("frame `bye` carries {0} unexpected bytes")]
    Trailing(usize),
    /// The payload is not what its type says.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// More allocations than a voucher may have.
    #[error("voucher.allocations has {0} entries, at most {MAX_ALLOCATIONS} are accepted")]
    Allocations(usize),
}

impl ToHost {
    /// The frame without its length.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(256);
        self.body_into(&mut out).map(|()| out)
    }

    /// Appends the whole frame, length included.
    pub fn frame_into(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        framed(out, |out| self.body_into(out))
    }

    fn body_into(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::Open(open) => message(out, OPEN, "open", open),
            Self::Noise(record) => raw(out, record),
            Self::Voucher(voucher) => message(out, VOUCHER, "voucher", voucher),
            Self::Bye => {
                out.push(BYE);
                Ok(())
            }
        }
    }

    /// Reads a frame without its length.
    pub fn decode(frame: Bytes) -> Result<Self, FrameError> {
        let (kind, payload) = split(frame)?;
        match kind {
            OPEN => Ok(Self::Open(codec::decode::<_, MAX_OPEN>(&payload, VERSION, "open")?)),
            NOISE => Ok(Self::Noise(payload)),
            VOUCHER => {
                let voucher: Voucher = codec::decode::<_, MAX_VOUCHER>(&payload, VERSION, "voucher")?;
                match voucher.allocations.len() {
                    0..=MAX_ALLOCATIONS => Ok(Self::Voucher(voucher)),
                    entries => Err(FrameError::Allocations(entries)),
                }
            }
            BYE if payload.is_empty() => Ok(Self::Bye),
            BYE => Err(FrameError::Trailing(payload.len())),
            other => Err(FrameError::Type(other)),
        }
    }
}

impl ToClient {
    /// The frame without its length. Long texts are cut to [`MAX_MESSAGE`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(256);
        self.body_into(&mut out).map(|()| out)
    }

    /// Appends the whole frame, length included. Long texts are cut to [`MAX_MESSAGE`].
    pub fn frame_into(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        framed(out, |out| self.body_into(out))
    }

    fn body_into(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::Accepted(accepted) => message(out, OPEN, "accepted", accepted),
            Self::Noise(record) => raw(out, record),
            Self::Refused(refused) => {
                let cut = Refused { code: refused.code, message: cut(&refused.message) };
                message(out, VOUCHER, "refused", &cut)
            }
            Self::Bye { reason } => message(out, BYE, "bye", &cut(reason)),
        }
    }

    /// Reads a frame without its length.
    pub fn decode(frame: Bytes) -> Result<Self, FrameError> {
        // A refusal's text and its code, with room for the length.
        const MAX_TEXT: usize = MAX_MESSAGE + 16;
        let (kind, payload) = split(frame)?;
        match kind {
            OPEN => Ok(Self::Accepted(codec::decode::<_, MAX_OPEN>(&payload, VERSION, "accepted")?)),
            NOISE => Ok(Self::Noise(payload)),
            VOUCHER => Ok(Self::Refused(codec::decode::<_, MAX_TEXT>(&payload, VERSION, "refused")?)),
            BYE => {
                let reason = codec::decode::<_, MAX_TEXT>(&payload, VERSION, "bye")?;
                Ok(Self::Bye { reason })
            }
            other => Err(FrameError::Type(other)),
        }
    }
}

fn framed(
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), FrameError>,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let written = body(out).and_then(|()| {
        let len = out.len() - start - 4;
        let fits = u32::try_from(len).ok().filter(|_| len <= MAX_FRAME);
        fits.ok_or(FrameError::TooLarge(len))
    });
    match written {
        Ok(len) => {
            out[start..start + 4].copy_from_slice(&len.to_be_bytes());
            Ok(())
        }
        // Half a frame must never reach the wire behind whole ones.
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

fn message<T: Encode>(out: &mut Vec<u8>, kind: u8, what: &'static str, value: &T) -> Result<(), FrameError> {
    out.push(kind);
    Ok(codec::encode_into(out, VERSION, what, value)?)
}

fn raw(out: &mut Vec<u8>, record: &[u8]) -> Result<(), FrameError> {
    out.reserve(record.len() + 1);
    out.push(NOISE);
    out.extend_from_slice(record);
    Ok(())
}

fn split(mut frame: Bytes) -> Result<(u8, Bytes), FrameError> {
    if frame.len() > MAX_FRAME {
        return Err(FrameError::TooLarge(frame.len()));
    }
    let kind = *frame.first().ok_or(FrameError::Empty)?;
    Ok((kind, frame.split_off(1)))
}

/// Cuts at a character boundary.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
