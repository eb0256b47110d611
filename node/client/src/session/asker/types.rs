//! What goes into the asker's machine and comes out of it.

use std::sync::Arc;

use cocoon_attest::{Policy, Verified, VerifyError, noise::NoiseError};
use cocoon_inference::{AnswerForm, FinishReason, GenerateRequest, Token, Usage};
use cocoon_payments::{
    NanoTon, ReceiptError, SignedReceipt,
    lane::{AdoptError, PayError},
};

use crate::session::{
    inner::{FailCode, RecordError, Welcome},
    meter::{Bill, MeterError},
    outer::{self, FrameError, Refused},
};

/// What a worker's evidence and ad promise; the session holds it to them.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The asker's own verdict on the evidence.
    pub verified: Arc<Verified>,
    /// The evidence's collateral: a live quote of the same TEE verifies against it.
    pub collateral: Arc<[u8]>,
    /// Under which policy.
    pub policy: Arc<Policy>,
    /// Whether this session must be bound to a fresh quote.
    pub challenge: Option<[u8; 32]>,
    /// The worker's peer id.
    pub worker: Vec<u8>,
    /// The model advertised.
    pub model: [u8; 32],
    /// The ad's price, in nanoTON per million input tokens.
    pub price_input: u64,
    /// The ad's price, in nanoTON per million output tokens.
    pub price_output: u64,
    /// The largest quantum the network allows at that price.
    pub quantum: NanoTon,
}

/// How long a worker may say nothing about a stream.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until the handshake is answered and the welcome (and live proof) is here.
    pub ready_ms: u64,
    /// Until the first token, queueing and prefill included.
    pub first_token_ms: u64,
    /// Between tokens.
    pub next_token_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { ready_ms: 5_000, first_token_ms: 15_000, next_token_ms: 5_000 }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// The host refused.
    #[error("the worker refused ({code}): {message}", code = .0.code, message = .0.message)]
    Refused(Refused),
    /// The host ended it.
    #[error("the worker ended the session: {0}")]
    Bye(String),
    /// The attested channel failed.
    #[error("the attested channel failed: {0}")]
    Noise(#[from] NoiseError),
    /// A record that is not messages.
    #[error("the enclave sent an unreadable record: {0}")]
    Record(#[from] RecordError),
    /// A frame that is none.
    #[error("the worker sent an unreadable frame: {0}")]
    Frame(#[from] FrameError),
    /// The welcome breaks what ad or evidence promised.
    #[error("the enclave's welcome: {field} is {found}, expected {expected}")]
    Terms {
        /// Which field.
        field: &'static str,
        /// What the enclave says.
        found: String,
        /// What was promised.
        expected: String,
    },
    /// The live quote does not bind this session.
    #[error("the live binding failed: {0}")]
    Live(Box<VerifyError>),
    /// Tokens that were not paid for, or counts that do not add up.
    #[error("the enclave's metering disagrees with ours: {0}")]
    Meter(#[from] MeterError),
    /// A message that does not belong here.
    #[error("the enclave broke the protocol: {0}")]
    Protocol(&'static str),
    /// A receipt that disagrees with what was delivered.
    #[error("receipt of stream {stream}: {field} is {found}, expected {expected}")]
    Receipt {
        /// Which stream.
        stream: u32,
        /// Which field.
        field: &'static str,
        /// What the receipt says.
        found: String,
        /// What we counted.
        expected: String,
    },
    /// A receipt whose signature does not verify.
    #[error("receipt of stream {stream}: {error}")]
    ReceiptSignature {
        /// Which stream.
        stream: u32,
        /// What is wrong with it.
        error: ReceiptError,
    },
    /// The newest voucher that the worker presents is not ours.
    #[error(transparent)]
    Voucher(AdoptError),
    /// Nothing was heard for too long.
    #[error("the worker said nothing for {0} ms")]
    Silent(u64),
    /// The stream to the worker ended.
    #[error("the connection to the worker was lost: {0}")]
    Lost(String),
}

/// A request for one leg of an answer.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What to answer; its prefix is what other legs delivered.
    pub request: GenerateRequest,
    /// Ceiling for this leg.
    pub max_cost: NanoTon,
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The session may carry requests now.
    Ready(Welcome),
    /// The input was counted.
    Quoted {
        /// Which.
        stream: u32,
        /// Tokens of prompt and prefix.
        input_tokens: u32,
        /// What they cost.
        cost: NanoTon,
        /// How the answer is to be read.
        form: AnswerForm,
    },
    /// More of the answer.
    Tokens {
        /// Which.
        stream: u32,
        /// In order, without gaps.
        tokens: Vec<Token>,
    },
    /// The answer is complete and its receipt verified.
    Finished {
        /// Which.
        stream: u32,
        /// Why it ended.
        reason: FinishReason,
        /// Text held back until now.
        text: String,
        /// Counts of this leg.
        usage: Usage,
        /// Verified: key, session, counts and signature.
        receipt: Box<SignedReceipt>,
    },
    /// The stream ended without an answer. Money already paid for it stays in the session's pool.
    Failed {
        /// Which.
        stream: u32,
        /// Why.
        why: StreamFailure,
        /// What it came to by the asker's own count.
        bill: Bill,
    },
}

/// Why one stream failed while its session lives.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StreamFailure {
    /// The enclave's words.
    #[error("{message}")]
    Enclave {
        /// For programs.
        code: FailCode,
        /// For people.
        message: String,
    },
    /// The channel's deposit is used up.
    #[error("the channel's deposit is used up: {0}")]
    Unfunded(PayError),
    /// The input alone costs more than the request allows.
    #[error("{0}")]
    Ceiling(MeterError),
    /// The request does not fit a record.
    #[error("{0}")]
    TooLarge(RecordError),
    /// The enclave said nothing about it for too long.
    #[error("the worker said nothing for {0} ms")]
    Silent(u64),
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Transmit {
    /// A sealed record: `outer::NOISE ‖ record`.
    Record(Vec<u8>),
    /// A payment.
    Voucher(outer::Voucher),
}
