//! Messages between an asker and an enclave, inside the attested Noise channel.
//!
//! One Noise record carries `version ‖ message ‖ message ‖ …`: what became ready together travels
//! and is sealed together. The enclave speaks first, with [`Welcome`]: its prices are fixed for
//! the session, and an asker that finds them above the ad leaves without having said anything.
//!
//! Tokens carry the position of the first of them, counted over the whole answer (a resumed
//! answer starts behind its prefix), so a gap or a repetition is seen at once.

use bincode::{Decode, Encode};
use cocoon_attest::noise;
use cocoon_inference::{
    AnswerForm, FinishReason, GenerateRequest, RequestError, Token, Usage, limits::MAX_TOP_LOGPROBS,
};
use cocoon_payments::SignedReceipt;

use crate::codec::{self, CodecError};

/// A record is one Noise message.
pub const MAX_RECORD: usize = noise::MAX_MESSAGE;
/// Messages in one record: bounds what a small hostile record can unfold into.
pub const MAX_BATCH: usize = 256;
/// Tokens in one message.
pub const MAX_TOKENS: usize = 1024;

/// 2 brought the sampling options and log-probabilities, 3 the structure of requests and answers. The enclave's first message says which version it
/// speaks, so an older peer leaves with a typed error before a request is sent or paid.
const VERSION: u8 = 3;

/// Asker → enclave.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToEnclave {
    /// Answer this.
    Request {
        /// Counts up from 1 within the session.
        stream: u32,
        /// What to answer.
        request: Box<GenerateRequest>,
        /// Ceiling in nanoTON for input and output together.
        max_cost: u64,
    },
    /// Stop; a receipt for what was done follows.
    Cancel {
        /// Which.
        stream: u32,
    },
    /// Bind this channel to a fresh quote (see [`cocoon_attest::live`]).
    Challenge {
        /// Chosen by the asker.
        nonce: [u8; 32],
    },
}

/// The enclave's first message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// NanoTON per million input tokens.
    pub price_input: u64,
    /// NanoTON per million output tokens.
    pub price_output: u64,
    /// Payment quantum in nanoTON.
    pub quantum: u64,
    /// Digest of the model loaded.
    pub model: [u8; 32],
    /// Its context in tokens.
    pub context: u32,
    /// The key that signs receipts; must be the evidence's.
    pub receipt_key: [u8; 32],
}

/// Enclave → asker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToAsker {
    /// First of all messages.
    Welcome(Welcome),
    /// What the input comes to; prefill begins when it is paid.
    Quoted {
        /// Which.
        stream: u32,
        /// Tokens of the rendered prompt, prefix included.
        input_tokens: u32,
        /// Their cost in nanoTON.
        input_cost: u64,
        /// How the answer is to be read.
        form: AnswerForm,
    },
    /// Part of the answer.
    Tokens {
        /// Which.
        stream: u32,
        /// Position in the whole answer of the first of them.
        start: u32,
        /// At most [`MAX_TOKENS`].
        tokens: Vec<Token>,
    },
    /// The answer is complete, or was cancelled.
    Finished {
        /// Which.
        stream: u32,
        /// Why it ended.
        reason: FinishReason,
        /// Text held back until now.
        text: String,
        /// Counts of this leg.
        usage: Usage,
        /// What it came to, signed.
        receipt: Box<SignedReceipt>,
    },
    /// The stream is over without an answer, and without a charge unless tokens were released.
    Failed {
        /// Which.
        stream: u32,
        /// For programs.
        code: FailCode,
        /// For people.
        message: String,
    },
    /// The answer to a challenge: an encoded [`cocoon_attest::live::LiveProof`].
    Live(Vec<u8>),
}

/// Why a stream failed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FailCode {
    /// The request itself cannot be served; another worker would say the same.
    Request(RequestError),
    /// No free slot; another worker may have one.
    Busy,
    /// The request's own price ceiling is below what its input costs.
    Ceiling {
        /// Needed for the input, in nanoTON.
        needed: u64,
    },
    /// The asker stopped paying.
    Unpaid,
    /// Ids out of order, too many streams: the asker's mistake.
    Protocol,
    /// The engine failed; another worker may not.
    Engine,
}

impl FailCode {
    /// Whether the same request may succeed at another worker.
    #[must_use]
    pub fn worth_another_worker(&self) -> bool {
        matches!(self, Self::Busy | Self::Engine | Self::Protocol)
            || matches!(self, Self::Request(RequestError::UnknownModel))
    }
}

/// Why a record is not a batch of messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not decodable.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No message at all.
    #[error("record carries no message")]
    NoMessage,
    /// More than [`MAX_BATCH`].
    #[error("record carries more than {MAX_BATCH} messages")]
    TooMany,
    /// More than [`MAX_TOKENS`] in one message.
    #[error("tokens.tokens has {0} entries, at most {MAX_TOKENS} are accepted")]
    Tokens(usize),
    /// Log-probabilities that no model has, or more of them than anybody may ask for.
    #[error(
        "tokens.tokens[{0}].logprobs is unsound: it must hold at most {MAX_TOP_LOGPROBS} alternatives, likeliest \
         first, with values from -9999 to 0"
    )]
    Logprobs(usize),
    /// Larger than a Noise message.
    #[error("record has {0} bytes, at most {MAX_RECORD} fit; send shorter messages")]
    TooLarge(usize),
}

/// Collects messages into as few records as hold them.
#[derive(Debug, Default)]
pub struct Batch {
    records: Vec<Vec<u8>>,
    in_last: usize,
}

impl Batch {
    /// Appends a message; begins another record when it does not fit.
    pub fn push<M: Message>(&mut self, message: &M) -> Result<(), RecordError> {
        let mut body = Vec::with_capacity(128);
        codec::encode_body(&mut body, M::WHAT, message)?;
        if body.len() + 1 > MAX_RECORD {
            return Err(RecordError::TooLarge(body.len() + 1));
        }
        match self.records.last_mut() {
            Some(last) if last.len() + body.len() <= MAX_RECORD && self.in_last < MAX_BATCH => {
                last.extend_from_slice(&body);
                self.in_last += 1;
            }
            _ => {
                let mut record = Vec::with_capacity(1 + body.len());
                record.push(VERSION);
                record.extend_from_slice(&body);
                self.records.push(record);
                self.in_last = 1;
            }
        }
        Ok(())
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records, each ready to be sealed.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        self.in_last = 0;
        std::mem::take(&mut self.records)
    }
}

/// Encodes messages as one record.
pub fn encode<M: Message>(messages: &[M]) -> Result<Vec<u8>, RecordError> {
    match messages.len() {
        0 => return Err(RecordError::NoMessage),
        1..=MAX_BATCH => {}
        _ => return Err(RecordError::TooMany),
    }
    let mut out = vec![VERSION];
    for message in messages {
        codec::encode_body(&mut out, M::WHAT, message)?;
    }
    match out.len() {
        size if size > MAX_RECORD => Err(RecordError::TooLarge(size)),
        _ => Ok(out),
    }
}

/// Decodes a record into its messages, in order.
pub fn decode<M: Message>(record: &[u8]) -> Result<Vec<M>, RecordError> {
    let mut body = codec::body::<MAX_RECORD>(record, VERSION, M::WHAT)?;
    let mut messages = Vec::new();
    while !body.is_empty() {
        if messages.len() == MAX_BATCH {
            return Err(RecordError::TooMany);
        }
        let (message, used): (M, usize) = codec::decode_some::<_, MAX_RECORD>(body, M::WHAT)?;
        message.check()?;
        // A message of no bytes would never end; no variant encodes to nothing, this makes sure.
        if used == 0 {
            return Err(RecordError::NoMessage);
        }
        body = &body[used..];
        messages.push(message);
    }
    if messages.is_empty() { Err(RecordError::NoMessage) } else { Ok(messages) }
}

/// A message of one of the two directions.
pub trait Message: Encode + Decode<()> {
    /// Its name in errors.
    const WHAT: &'static str;
    /// Bounds that the encoding does not enforce.
    fn check(&self) -> Result<(), RecordError>;
}

impl Message for ToEnclave {
    const WHAT: &'static str = "message to the enclave";

    fn check(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

impl Message for ToAsker {
    const WHAT: &'static str = "message to the asker";

    fn check(&self) -> Result<(), RecordError> {
        match self {
            Self::Tokens { tokens, .. } if tokens.len() > MAX_TOKENS => {
                Err(RecordError::Tokens(tokens.len()))
            }
            Self::Tokens { tokens, .. } => {
                let unsound = |token: &Token| {
                    token.logprobs.as_ref().is_some_and(|logprobs| !logprobs.is_sound(MAX_TOP_LOGPROBS))
                };
                tokens.iter().position(unsound).map_or(Ok(()), |at| Err(RecordError::Logprobs(at)))
            }
            _ => Ok(()),
        }
    }
}
