//! The frames, each as the bytes after the length: a type byte and a payload.
//!
//! Structured payloads are bincode; `Data` and `Credit`, which travel with every few tokens, have fixed
//! layouts (session u64 BE, then the record, or stream u32 BE and amount u64 BE).

use bincode::{Decode, Encode};
use bytes::Bytes;
use thiserror::Error;

use super::{MAX_FRAME, VERSION, codec};

/// Why a frame, or the peer that sent it, is refused. Either side closes the socket on any of these.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LinkError {
    /// A length of zero or beyond the limit.
    #[error(
        "link frame: field `length` is {found}, expected 1 to {MAX_FRAME}; the other side is not a cocoon process"
    )]
    Length {
        /// What the four bytes said.
        found: usize,
    },
    /// A type byte this version does not define for this direction.
    #[error(
        "link frame: field `type` is {0:#04x}, which version {VERSION} does not define in this direction"
    )]
    Type(u8),
    /// A payload that does not decode as its type says.
    #[error("link frame: the payload of `{0}` does not decode; upgrade host and enclave together")]
    Payload(&'static str),
    /// The other side speaks another version.
    #[error(
        "link frame: field `version` of `Hello` is {found}, expected {VERSION}; upgrade host and enclave together"
    )]
    Version {
        /// The other side's version.
        found: u16,
    },
    /// Something other than `Hello` came first.
    #[error("link frame: the first frame is `{0}`, expected `Hello`")]
    NoHello(&'static str),
    /// The other side closed the socket in the middle of a frame.
    #[error("link frame: the socket closed {missing} bytes before the end of a frame")]
    Truncated {
        /// How many bytes of the frame never came, as far as its header told.
        missing: usize,
    },
    /// The socket failed.
    #[error("host-enclave socket: {0}")]
    Io(String),
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// Which worker the enclave works for; bound into every evidence it makes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct HostHello {
    /// Hash of the genesis file.
    pub network_id: [u8; 32],
    /// The host's libp2p identity (at most 64 bytes).
    pub peer_id: Vec<u8>,
}

/// What the enclave serves and how it can prove it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EnclaveHello {
    /// The model's name.
    pub model: String,
    /// Digest of the model's manifest, computed over the loaded files.
    pub model_digest: [u8; 32],
    /// Tokens of context, prompt and answer together.
    pub context: u32,
    /// Number format of the weights.
    pub quantisation: String,
    /// Engine kind, as configured.
    pub engine: String,
    /// Which quoter makes the quotes: `software-tee` or `tsm`.
    pub tee: String,
    /// Digest of the measured part of the enclave's configuration.
    pub config_digest: [u8; 32],
    /// Answers produced at once.
    pub slots: u16,
}

/// A recent block of the chain: evidence that names it was not made before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Beacon {
    /// Masterchain sequence number.
    pub seqno: u32,
    /// Root hash of the block.
    pub hash: [u8; 32],
}

/// Asks for a new epoch: fresh keys and evidence over them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Attest {
    /// A block that exists by now.
    pub beacon: Beacon,
    /// Start of validity, Unix seconds.
    pub not_before: u64,
    /// End of validity, at most 24 h later.
    pub not_after: u64,
}

/// Prices of one session, fixed when it opens; nanoTON per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Prices {
    /// For tokens the prompt holds.
    pub input: u64,
    /// For tokens of the answer.
    pub output: u64,
    /// The voucher quantum in nanoTON.
    pub quantum: u64,
}

/// A peer asks for a session.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Open {
    /// The host's number for it; never used twice on one socket.
    pub session: u64,
    /// The peer's first Noise message.
    pub noise: Vec<u8>,
    /// Prologue: the session protocol's version.
    pub wire_version: u16,
    /// Prologue: which evidence the peer verified. Selects the epoch's key.
    pub evidence_digest: [u8; 32],
    /// Prologue: the peer's live-binding policy.
    pub policy: u8,
    /// What the session costs.
    pub prices: Prices,
    /// The payment channel (workchain, then hash), named in receipts.
    pub channel: Option<[u8; 33]>,
}

/// Why the enclave refused a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum RefusedWhy {
    /// No room for another session.
    Busy,
    /// The evidence named is of no epoch whose keys still exist.
    StaleEvidence,
    /// The Noise message does not open under the epoch's key and the prologue.
    Handshake,
}

/// How loaded the engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Load {
    /// Answers being produced.
    pub active: u16,
    /// Answers waiting for a slot.
    pub queued: u16,
    /// Answers that could start at once.
    pub free_slots: u16,
    /// Expected wait of a request that came now.
    pub queue_ms: u32,
    /// Output tokens per second of late.
    pub tokens_per_second: u32,
}

/// Host to enclave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToEnclave {
    /// First frame.
    Hello(HostHello),
    /// Make keys and evidence for a new epoch.
    Attest(Attest),
    /// A peer asks for a session.
    Open(Open),
    /// One Noise record from the peer.
    Data {
        /// Which session.
        session: u64,
        /// The record.
        record: Bytes,
    },
    /// The host verified and stored this much more money.
    Credit {
        /// Which session.
        session: u64,
        /// Which of its streams; 0 is the session's pool.
        stream: u32,
        /// NanoTON, in addition to what was credited before.
        amount: u64,
    },
    /// The peer reads too slowly: release nothing more for now.
    Pause {
        /// Which session.
        session: u64,
    },
    /// The peer caught up.
    Resume {
        /// Which session.
        session: u64,
    },
    /// The peer left.
    Close {
        /// Which session.
        session: u64,
    },
    /// Forget everything and exit.
    Shutdown,
}

/// Enclave to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// First frame.
    Hello(EnclaveHello),
    /// Evidence of the epoch asked for.
    Evidence(Bytes),
    /// The quoter failed; the text names the fix.
    AttestFailed(String),
    /// The session stands; the second Noise message.
    Opened {
        /// Which session.
        session: u64,
        /// For the peer.
        noise: Bytes,
    },
    /// The session does not stand.
    Refused {
        /// Which session.
        session: u64,
        /// Why not.
        why: RefusedWhy,
    },
    /// One Noise record for the peer.
    Data {
        /// Which session.
        session: u64,
        /// The record.
        record: Bytes,
    },
    /// The enclave ended the session.
    Closed {
        /// Which session.
        session: u64,
        /// A sentence without anything of the conversation in it.
        reason: String,
    },
    /// How loaded the engine is; sent on change, a few times a second at most.
    Load(Load),
}

mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const ATTEST: u8 = 0x02;
    pub(super) const OPEN: u8 = 0x03;
    pub(super) const DATA: u8 = 0x04;
    pub(super) const CREDIT: u8 = 0x05;
    pub(super) const PAUSE: u8 = 0x06;
    pub(super) const RESUME: u8 = 0x07;
    pub(super) const CLOSE: u8 = 0x08;
    pub(super) const SHUTDOWN: u8 = 0x09;
    pub(super) const EVIDENCE: u8 = 0x12;
    pub(super) const OPENED: u8 = 0x13;
    pub(super) const REFUSED: u8 = 0x14;
    pub(super) const CLOSED: u8 = 0x15;
    pub(super) const LOAD: u8 = 0x16;
    pub(super) const ATTEST_FAILED: u8 = 0x17;
}

/// A frame of one direction: what [`super::io`] needs to know of it.
pub trait Frame: Sized {
    /// Appends type byte and payload, without the length.
    ///
    /// # Errors
    /// When the payload exceeds [`MAX_FRAME`]; `out` is then as it was.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), LinkError>;

    /// Reads type byte and payload. Records keep sharing `body`'s memory.
    ///
    /// # Errors
    /// An unknown type, or a payload that does not decode.
    fn decode(body: Bytes) -> Result<Self, LinkError>;

    /// The frame's name, for errors.
    fn name(&self) -> &'static str;
}

fn put<T: Encode>(out: &mut Vec<u8>, kind: u8, name: &'static str, value: &T) -> Result<(), LinkError> {
    out.push(kind);
    if codec::encode_into(value, out) {
        Ok(())
    } else {
        out.pop();
        Err(LinkError::Payload(name))
    }
}

fn put_hello<T: Encode>(out: &mut Vec<u8>, value: &T) -> Result<(), LinkError> {
    let start = out.len();
    out.push(kind::HELLO);
    out.extend_from_slice(&VERSION.to_be_bytes());
    if codec::encode_into(value, out) {
        Ok(())
    } else {
        out.truncate(start);
        Err(LinkError::Payload("Hello"))
    }
}

fn put_session(out: &mut Vec<u8>, kind: u8, session: u64, rest: &[u8]) {
    out.reserve(9 + rest.len());
    out.push(kind);
    out.extend_from_slice(&session.to_be_bytes());
    out.extend_from_slice(rest);
}

fn get<T: Decode<()>>(payload: &[u8], name: &'static str) -> Result<T, LinkError> {
    codec::decode(payload).ok_or(LinkError::Payload(name))
}

fn get_hello<T: Decode<()>>(payload: &[u8]) -> Result<T, LinkError> {
    let (version, rest) = payload.split_first_chunk::<2>().ok_or(LinkError::Payload("Hello"))?;
    let found = u16::from_be_bytes(*version);
    if found != VERSION {
        return Err(LinkError::Version { found });
    }
    get(rest, "Hello")
}

/// Splits the session number off a payload.
fn get_session(payload: &Bytes, name: &'static str) -> Result<(u64, Bytes), LinkError> {
    let (session, _) = payload.split_first_chunk::<8>().ok_or(LinkError::Payload(name))?;
    Ok((u64::from_be_bytes(*session), payload.slice(8..)))
}

fn get_only_session(payload: &Bytes, name: &'static str) -> Result<u64, LinkError> {
    match get_session(payload, name)? {
        (session, rest) if rest.is_empty() => Ok(session),
        _ => Err(LinkError::Payload(name)),
    }
}

fn split(body: &Bytes) -> Result<(u8, Bytes), LinkError> {
    match body.first() {
        Some(&kind) if body.len() <= MAX_FRAME => Ok((kind, body.slice(1..))),
        _ => Err(LinkError::Length { found: body.len() }),
    }
}

impl Frame for ToEnclave {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), LinkError> {
        match self {
            Self::Hello(hello) => put_hello(out, hello),
            Self::Attest(attest) => put(out, kind::ATTEST, self.name(), attest),
            Self::Open(open) => put(out, kind::OPEN, self.name(), open),
            Self::Data { session, record } => {
                put_session(out, kind::DATA, *session, record);
                Ok(())
            }
            Self::Credit { session, stream, amount } => {
                let mut rest = [0; 12];
                rest[..4].copy_from_slice(&stream.to_be_bytes());
                rest[4..].copy_from_slice(&amount.to_be_bytes());
                put_session(out, kind::CREDIT, *session, &rest);
                Ok(())
            }
            Self::Pause { session } => {
                put_session(out, kind::PAUSE, *session, &[]);
                Ok(())
            }
            Self::Resume { session } => {
                put_session(out, kind::RESUME, *session, &[]);
                Ok(())
            }
            Self::Close { session } => {
                put_session(out, kind::CLOSE, *session, &[]);
                Ok(())
            }
            Self::Shutdown => {
                out.push(kind::SHUTDOWN);
                Ok(())
            }
        }
    }

    fn decode(body: Bytes) -> Result<Self, LinkError> {
        let (kind, payload) = split(&body)?;
        Ok(match kind {
            kind::HELLO => Self::Hello(get_hello(&payload)?),
            kind::ATTEST => Self::Attest(get(&payload, "Attest")?),
            kind::OPEN => Self::Open(get(&payload, "Open")?),
            kind::DATA => {
                let (session, record) = get_session(&payload, "Data")?;
                Self::Data { session, record }
            }
            kind::CREDIT => {
                let (session, rest) = get_session(&payload, "Credit")?;
                let (stream, amount) = rest.split_first_chunk::<4>().ok_or(LinkError::Payload("Credit"))?;
                let amount: [u8; 8] = amount.try_into().map_err(|_| LinkError::Payload("Credit"))?;
                Self::Credit {
                    session,
                    stream: u32::from_be_bytes(*stream),
                    amount: u64::from_be_bytes(amount),
                }
            }
            kind::PAUSE => Self::Pause { session: get_only_session(&payload, "Pause")? },
            kind::RESUME => Self::Resume { session: get_only_session(&payload, "Resume")? },
            kind::CLOSE => Self::Close { session: get_only_session(&payload, "Close")? },
            kind::SHUTDOWN if payload.is_empty() => Self::Shutdown,
            kind::SHUTDOWN => return Err(LinkError::Payload("Shutdown")),
            other => return Err(LinkError::Type(other)),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Attest(_) => "Attest",
            Self::Open(_) => "Open",
            Self::Data { .. } => "Data",
            Self::Credit { .. } => "Credit",
            Self::Pause { .. } => "Pause",
            Self::Resume { .. } => "Resume",
            Self::Close { .. } => "Close",
            Self::Shutdown => "Shutdown",
        }
    }
}

impl Frame for ToHost {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), LinkError> {
        match self {
            Self::Hello(hello) => put_hello(out, hello),
            Self::Evidence(evidence) => {
                out.push(kind::EVIDENCE);
                out.extend_from_slice(evidence);
                Ok(())
            }
            Self::AttestFailed(why) => put(out, kind::ATTEST_FAILED, self.name(), why),
            Self::Opened { session, noise } => {
                put_session(out, kind::OPENED, *session, noise);
                Ok(())
            }
            Self::Refused { session, why } => put(out, kind::REFUSED, self.name(), &(*session, *why)),
            Self::Data { session, record } => {
                put_session(out, kind::DATA, *session, record);
                Ok(())
            }
            Self::Closed { session, reason } => {
                put_session(out, kind::CLOSED, *session, reason.as_bytes());
                Ok(())
            }
            Self::Load(load) => put(out, kind::LOAD, self.name(), load),
        }
    }

    fn decode(body: Bytes) -> Result<Self, LinkError> {
        let (kind, payload) = split(&body)?;
        Ok(match kind {
            kind::HELLO => Self::Hello(get_hello(&payload)?),
            kind::EVIDENCE => Self::Evidence(payload),
            kind::ATTEST_FAILED => Self::AttestFailed(get(&payload, "AttestFailed")?),
            kind::OPENED => {
                let (session, noise) = get_session(&payload, "Opened")?;
                Self::Opened { session, noise }
            }
            kind::REFUSED => {
                let (session, why) = get(&payload, "Refused")?;
                Self::Refused { session, why }
            }
            kind::DATA => {
                let (session, record) = get_session(&payload, "Data")?;
                Self::Data { session, record }
            }
            kind::CLOSED => {
                let (session, reason) = get_session(&payload, "Closed")?;
                let reason = std::str::from_utf8(&reason).map_err(|_| LinkError::Payload("Closed"))?;
                Self::Closed { session, reason: reason.to_owned() }
            }
            kind::LOAD => Self::Load(get(&payload, "Load")?),
            other => return Err(LinkError::Type(other)),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Evidence(_) => "Evidence",
            Self::AttestFailed(_) => "AttestFailed",
            Self::Opened { .. } => "Opened",
            Self::Refused { .. } => "Refused",
            Self::Data { .. } => "Data",
            Self::Closed { .. } => "Closed",
            Self::Load(_) => "Load",
        }
    }
}
