//! What an answer cost, leg by leg, and the signatures that say so.

use cocoon_attest::Assurance;
use cocoon_payments::{NanoTon, SignedReceipt};
use serde::Serialize;

/// The bill of one answer. Receipts in it were verified: signature, key, session and counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    /// One per worker that took part, in order.
    pub legs: Vec<Leg>,
    /// Digest of the model, hexadecimal.
    pub model: String,
    /// Sum of the legs' costs. What failed legs took beyond that is in [`Leg::unused`].
    pub total: NanoTon,
}

/// What one worker did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Leg {
    /// Its peer id.
    pub worker: String,
    /// What our own verification of its evidence found.
    pub assurance: Assurance,
    /// The image that served, hexadecimal.
    pub measurement: String,
    /// Digest of the evidence, hexadecimal.
    pub evidence_digest: String,
    /// Tokens read and billed, an earlier leg's output included.
    pub input_tokens: u32,
    /// Tokens written by this worker and delivered.
    pub output_tokens: u32,
    /// What both cost.
    pub cost: NanoTon,
    /// Signed away for this leg beyond its cost when it failed. The worker may redeem it without
    /// having served it, so it counts against the request's ceiling; no part of `cost`.
    pub unused: NanoTon,
    /// The channel that paid.
    pub channel: String,
    /// The enclave's receipt. A worker that died left none: then the counts are our own.
    pub signed: Option<SignedReceipt>,
    /// Whether the counts are the enclave's signed ones.
    pub is_signed: bool,
    /// Why another worker had to go on, if one had to.
    pub failed: Option<String>,
}

impl Receipt {
    pub(super) fn new(model: &[u8; 32], legs: Vec<Leg>) -> Self {
        let total = legs.iter().fold(NanoTon::ZERO, |sum, leg| sum.saturating_add(leg.cost));
        Self { legs, model: hex::encode(model), total }
    }
}

impl Leg {
    /// Everything that this leg took.
    pub(super) fn taken(&self) -> NanoTon {
        self.cost.saturating_add(self.unused)
    }
}
