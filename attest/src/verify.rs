//! The asker's verdict on a worker's evidence.
//!
//! [`verify()`] is a pure function of bytes, expectation, policy and time. Checks run from cheap to
//! dear and from "can I read it" to "do I want it"; the first that fails is the error, and every
//! error names its check ([`VerifyError::check`]) so that "refused" never needs guessing:
//!
//! | check | question |
//! |---|---|
//! | `evidence`, `evidence-digest`, `claims` | can it be read, and is it what was advertised? |
//! | `validity` | do the claims hold now, for at most a day? |
//! | `quote-format`, `trust-root`, `certificates`, `collateral`, `quoting-enclave`, `quote-signature` | did a TEE of an accepted vendor sign it? |
//! | `debug`, `td-attributes`, `tcb-status`, `tcb-evaluation` | is that TEE sound? |
//! | `report-data` | did the quoted code choose these claims? |
//! | `measurement`, `enclave-config`, `model-digest` | is it code, configuration and model that the network allows? |
//! | `network-id`, `peer-id` | is it meant for us, and is it this peer's own? |
//! | `assurance` | is that enough for this asker? |
//! | `live-binding` | is the session bound to a fresh quote ([`crate::live`])? |

use serde::Serialize;
use thiserror::Error;

use crate::{
    claims::{Claims, ClaimsError, MAX_VALIDITY_S},
    evidence::{Evidence, EvidenceError},
    hash::sha256,
    hexed,
    live::LiveError,
    measurement::Measurement,
    policy::{Assurance, Expect, Policy},
    quote::{QuoteCheck, verify_quote},
};

/// What verified evidence proves. Made by [`verify()`] only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// What the enclave claims, all of it quoted.
    pub claims: Claims,
    /// The code that runs there.
    pub measurement: Measurement,
    /// What the evidence amounts to.
    pub assurance: Assurance,
    /// Name of the trust root it rests on.
    pub root: String,
    /// The platform's TCB status in the vendor's words.
    pub tcb_status: String,
    /// Advisories that apply to the platform.
    pub advisories: Vec<String>,
    /// Number of the TCB evaluation that the collateral comes from.
    pub tcb_evaluation: u32,
    /// The physical platform, where its certificate names one.
    #[serde(serialize_with = "hexed::optional")]
    pub platform: Option<[u8; 16]>,
    /// Unix seconds after which the verdict must not be reused: claims or collateral expire.
    pub expires_at: u64,
    /// The name of the evidence.
    #[serde(serialize_with = "hexed::bytes")]
    pub evidence_digest: [u8; 32],
}

/// Why evidence was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The evidence cannot be read.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// It is other evidence than was advertised.
    #[error("the evidence has digest {found}, but {expected} was advertised; fetch it again")]
    EvidenceDigest {
        /// Digest advertised.
        expected: String,
        /// Digest found.
        found: String,
    },
    /// The claims cannot be read.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The claims hold for an impossible or too long time.
    #[error(
        "the claims hold from {not_before} to {not_after}; that must be a span of at most {MAX_VALIDITY_S} s"
    )]
    Span {
        /// Unix seconds.
        not_before: u64,
        /// Unix seconds.
        not_after: u64,
    },
    /// The claims do not hold yet.
    #[error("the claims hold from {not_before}, now is {now}; check this machine's clock and the worker's")]
    NotYetValid {
        /// Unix seconds.
        not_before: u64,
        /// Unix seconds.
        now: u64,
    },
    /// The claims no longer hold.
    #[error("the claims expired at {not_after}, now is {now}; fetch the worker's current evidence")]
    Expired {
        /// Unix seconds.
        not_after: u64,
        /// Unix seconds.
        now: u64,
    },
    /// The quote rests on a root that the network does not accept.
    #[error("the quote rests on root certificate {found}; this network accepts {allowed:?}")]
    TrustRoot {
        /// SHA-256 of the certificate found.
        found: String,
        /// Names of the roots accepted.
        allowed: Vec<String>,
    },
    /// The quote or its collateral was refused.
    #[error("the quote was refused by check {check}: {detail}")]
    Quote {
        /// By which check.
        check: QuoteCheck,
        /// In which words.
        detail: String,
    },
    /// The quote is over something else than these claims.
    #[error("the quote's report data is not the hash of the claims: they do not belong together")]
    ReportData,
    /// The claims name another image than was measured.
    #[error("the claims name image {claimed}, the TEE measured {measured}")]
    Image {
        /// In the claims.
        claimed: Measurement,
        /// In the quote.
        measured: Measurement,
    },
    /// The code is not allowed.
    #[error("measurement {measured} is none of the {known} enclave images this network allows")]
    UnknownImage {
        /// In the quote.
        measured: Measurement,
        /// How many are allowed.
        known: usize,
    },
    /// The configuration is not allowed.
    #[error("enclave configuration {found} is none of the {known} this network allows")]
    EnclaveConfig {
        /// In the claims.
        found: String,
        /// How many are allowed.
        known: usize,
    },
    /// The model is not allowed.
    #[error("model {found} is none of the {known} this network allows")]
    UnknownModel {
        /// In the claims.
        found: String,
        /// How many are allowed.
        known: usize,
    },
    /// The model is not the one asked for.
    #[error("the enclave serves model {found}, {expected} was asked for")]
    OtherModel {
        /// In the claims.
        found: String,
        /// Asked for.
        expected: String,
    },
    /// The claims are for another network.
    #[error("the claims are for network {found}, this is {expected}")]
    NetworkId {
        /// In the claims.
        found: String,
        /// Ours.
        expected: String,
    },
    /// The evidence belongs to another peer.
    #[error("the claims are of peer {found}, but peer {expected} presented them")]
    PeerId {
        /// In the claims.
        found: String,
        /// Who presented them.
        expected: String,
    },
    /// Sound evidence, but not of the level that the asker demands.
    #[error("the evidence amounts to assurance \"{found}\", at least \"{minimum}\" is required")]
    Assurance {
        /// What it amounts to.
        found: Assurance,
        /// What is required.
        minimum: Assurance,
    },
    /// The session is not bound to a fresh quote.
    #[error("the live proof was refused: {0}")]
    Live(#[from] LiveError),
}

impl VerifyError {
    pub(crate) fn quote(check: QuoteCheck, detail: impl Into<String>) -> Self {
        VerifyError::Quote { check, detail: detail.into() }
    }

    /// The stable name of the check that refused; see the module's table.
    pub fn check(&self) -> &'static str {
        match self {
            VerifyError::Evidence(_) => "evidence",
            VerifyError::EvidenceDigest { .. } => "evidence-digest",
            VerifyError::Claims(_) => "claims",
            VerifyError::Span { .. } | VerifyError::NotYetValid { .. } | VerifyError::Expired { .. } => {
                "validity"
            }
            VerifyError::TrustRoot { .. } => "trust-root",
            VerifyError::Quote { check, .. } => check.name(),
            VerifyError::ReportData => "report-data",
            VerifyError::Image { .. } | VerifyError::UnknownImage { .. } => "measurement",
            VerifyError::EnclaveConfig { .. } => "enclave-config",
            VerifyError::UnknownModel { .. } | VerifyError::OtherModel { .. } => "model-digest",
            VerifyError::NetworkId { .. } => "network-id",
            VerifyError::PeerId { .. } => "peer-id",
            VerifyError::Assurance { .. } => "assurance",
            VerifyError::Live(_) => "live-binding",
        }
    }
}

/// Verifies encoded [`Evidence`] at `now_unix` (seconds).
///
/// The verdict may be kept until [`Verified::expires_at`], and only for the same policy.
///
/// # Errors
/// The first check that refused.
pub fn verify(
    evidence: &[u8],
    expect: &Expect<'_>,
    policy: &Policy,
    now_unix: u64,
) -> Result<Verified, VerifyError> {
    let parts = Evidence::decode(evidence)?;
    let evidence_digest = sha256(&[evidence]);
    if let Some(expected) = expect.evidence_digest
        && expected != evidence_digest
    {
        return Err(VerifyError::EvidenceDigest {
            expected: hex::encode(expected),
            found: hex::encode(evidence_digest),
        });
    }
    let claims = Claims::decode(&parts.claims)?;
    check_window(&claims, policy.clock_skew_s, now_unix)?;

    let quote = verify_quote(&parts.quote, &parts.collateral, policy, now_unix)?;
    if quote.report_data != claims.report_data() {
        return Err(VerifyError::ReportData);
    }
    if quote.measurement != claims.image {
        return Err(VerifyError::Image { claimed: claims.image, measured: quote.measurement });
    }
    check_registry(&claims, policy)?;
    check_expectation(&claims, expect, policy)?;
    if quote.assurance < policy.minimum {
        return Err(VerifyError::Assurance { found: quote.assurance, minimum: policy.minimum });
    }

    Ok(Verified {
        expires_at: quote.expires_at.min(claims.not_after),
        claims,
        measurement: quote.measurement,
        assurance: quote.assurance,
        root: quote.root,
        tcb_status: quote.tcb_status,
        advisories: quote.advisories,
        tcb_evaluation: quote.tcb_evaluation,
        platform: quote.platform,
        evidence_digest,
    })
}

fn check_window(claims: &Claims, skew: u64, now: u64) -> Result<(), VerifyError> {
    let Claims { not_before, not_after, .. } = *claims;
    if not_after.checked_sub(not_before).is_none_or(|span| span > MAX_VALIDITY_S) {
        return Err(VerifyError::Span { not_before, not_after });
    }
    if now.saturating_add(skew) < not_before {
        return Err(VerifyError::NotYetValid { not_before, now });
    }
    if not_after.saturating_add(skew) < now {
        return Err(VerifyError::Expired { not_after, now });
    }
    Ok(())
}

/// Is this code, configuration and model allowed on the network at all?
fn check_registry(claims: &Claims, policy: &Policy) -> Result<(), VerifyError> {
    if !policy.measurements.contains(&claims.image) {
        return Err(VerifyError::UnknownImage { measured: claims.image, known: policy.measurements.len() });
    }
    if !policy.config_digests.contains(&claims.config_digest) {
        return Err(VerifyError::EnclaveConfig {
            found: hex::encode(claims.config_digest),
            known: policy.config_digests.len(),
        });
    }
    if !policy.model_digests.contains(&claims.model_digest) {
        return Err(VerifyError::UnknownModel {
            found: hex::encode(claims.model_digest),
            known: policy.model_digests.len(),
        });
    }
    Ok(())
}

/// Is it the worker we meant?
fn check_expectation(claims: &Claims, expect: &Expect<'_>, policy: &Policy) -> Result<(), VerifyError> {
    if let Some(expected) = expect.model_digest
        && expected != claims.model_digest
    {
        return Err(VerifyError::OtherModel {
            found: hex::encode(claims.model_digest),
            expected: hex::encode(expected),
        });
    }
    if claims.network_id != policy.network_id {
        return Err(VerifyError::NetworkId {
            found: hex::encode(claims.network_id),
            expected: hex::encode(policy.network_id),
        });
    }
    if claims.peer_id != expect.peer_id {
        return Err(VerifyError::PeerId {
            found: hex::encode(&claims.peer_id),
            expected: hex::encode(expect.peer_id),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::tests::sample;

    #[test]
    fn claims_hold_from_start_to_end_with_skew_on_both_sides() {
        let claims = Claims { not_before: 1000, not_after: 2000, ..sample() };
        for (now, ok) in [(989, false), (990, true), (1500, true), (2010, true), (2011, false)] {
            assert_eq!(check_window(&claims, 10, now).is_ok(), ok, "at {now}");
        }
    }

    #[test]
    fn a_window_is_at_most_a_day_and_not_reversed() {
        let span =
            |not_before, not_after| check_window(&Claims { not_before, not_after, ..sample() }, u64::MAX, 0);
        assert_eq!(span(5, 5 + MAX_VALIDITY_S), Ok(()));
        assert!(matches!(span(5, 6 + MAX_VALIDITY_S), Err(VerifyError::Span { .. })));
        assert!(matches!(span(6, 5), Err(VerifyError::Span { .. })));
        assert!(matches!(span(0, u64::MAX), Err(VerifyError::Span { .. })));
    }
}
