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
//!
//! `Open` ends with a proof that its sender holds the channel's key ([`Open::statement`]): everything else in
//! it is public, and a host gives a channel's session to whoever opens it.

use std::fmt;

use bincode::{Decode, Encode};
use bytes::Bytes;
/// Streams one voucher may credit.
pub use cocoon_payments::lane::MAX_ALLOCATIONS;
use cocoon_payments::{Address, SignedVoucher};
use serde::Serialize;
use sha2::{Digest, Sha256};

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
/// `Open` has one of its own, so that an older side can still read why it was refused. 2 added the proof.
const OPEN_VERSION: u8 = 2;
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
    /// The channel key's signature over [`Open::statement`], by [`cocoon_payments::lane::Payer::sign_session`].
    pub proof: [u8; 64],
}

impl Open {
    /// What the proof is made over: who talks to whom, under which evidence, in which handshake, on which
    /// channel. A proof taken from one session therefore opens no other, at no other worker; the same session
    /// opened once more is told by its handshake message, whose key the asker makes anew each time.
    ///
    /// `network ‖ length of the worker's id (2 bytes) ‖ id ‖ evidence ‖ SHA-256(noise) ‖ channel`, behind the
    /// label that [`cocoon_payments::lane::SESSION_LABEL`] puts in front.
    #[must_use]
    pub fn statement(&self, worker: &[u8], channel: &Address) -> Vec<u8> {
        // A peer id has 38 bytes; no length that is cut here belongs to one.
        let length = u16::try_from(worker.len()).unwrap_or(u16::MAX).to_be_bytes();
        let (handshake, channel) = (self.handshake(), channel.to_bytes());
        let parts: [&[u8]; 6] =
            [&self.network_id, &length, worker, &self.evidence_digest, &handshake, &channel];
        parts.concat()
    }

    /// Names the handshake: the hash of its first message, which no honest asker sends twice.
    #[must_use]
    pub fn handshake(&self) -> [u8; 32] {
        Sha256::digest(&self.noise).into()
    }
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
    /// The session's proof is not the channel key's, or was used before.
    ChannelProof,
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
            Self::ChannelProof => "channel-proof",
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
            Self::Open(open) => message(out, OPEN, OPEN_VERSION, "open", open),
            Self::Noise(record) => raw(out, record),
            Self::Voucher(voucher) => message(out, VOUCHER, VERSION, "voucher", voucher),
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
            OPEN => Ok(Self::Open(codec::decode::<_, MAX_OPEN>(&payload, OPEN_VERSION, "open")?)),
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
            Self::Accepted(accepted) => message(out, OPEN, VERSION, "accepted", accepted),
            Self::Noise(record) => raw(out, record),
            Self::Refused(refused) => {
                let cut = Refused { code: refused.code, message: cut(&refused.message) };
                message(out, VOUCHER, VERSION, "refused", &cut)
            }
            Self::Bye { reason } => message(out, BYE, VERSION, "bye", &cut(reason)),
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

fn message<T: Encode>(
    out: &mut Vec<u8>,
    kind: u8,
    version: u8,
    what: &'static str,
    value: &T,
) -> Result<(), FrameError> {
    out.push(kind);
    Ok(codec::encode_into(out, version, what, value)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: [u8; 38] = [9; 38];

    fn open() -> Open {
        Open {
            wire_version: 1,
            network_id: [1; 32],
            evidence_digest: [2; 32],
            policy: 1,
            noise: vec![3; 48],
            channel: vec![4; 165],
            proof: [5; 64],
        }
    }

    #[test]
    fn everything_that_names_a_session_is_in_its_statement() {
        let channel = Address::base([6; 32]);
        let statement = open().statement(&WORKER, &channel);
        assert_eq!(statement.len(), 32 + 2 + 38 + 32 + 32 + 33);
        let changes: [fn(&mut Open); 3] =
            [|open| open.network_id[0] ^= 1, |open| open.evidence_digest[0] ^= 1, |open| open.noise[0] ^= 1];
        for change in changes {
            let mut other = open();
            change(&mut other);
            assert_ne!(other.statement(&WORKER, &channel), statement);
        }
        assert_ne!(open().statement(&[8; 38], &channel), statement);
        assert_ne!(open().statement(&WORKER, &Address::base([7; 32])), statement);
        // The id's length is in it, so that no byte of the id can pass for one of the evidence's.
        assert_ne!(open().statement(&WORKER[..37], &channel).len(), statement.len());
    }

    #[test]
    fn an_open_without_a_proof_is_named_by_its_version() {
        let mut frame = ToHost::Open(open()).encode().unwrap();
        frame[1] = 1;
        frame.truncate(frame.len() - 64);
        let error = ToHost::decode(frame.into()).unwrap_err();
        assert!(
            matches!(error, FrameError::Codec(CodecError::Version { found: 1, expected: 2, .. })),
            "{error}"
        );
    }
}
