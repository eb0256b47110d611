//! Judging a quote: which TEE signed it, in which state, and what it measured.
//!
//! dcap-qvl walks the chain of signatures (Intel's DCAP: root CA → PCK certificate → quoting enclave
//! → attestation key → TD report) together with revocation lists, TCB levels and TD attributes, and
//! is always called with an explicit root, clock and the strict policy: `UpToDate` only, debug off.
//! Three platform flags are tolerated, because practically every cloud host sets them: dynamic
//! platform (multi-package), cached keys and SMT.
//!
//! Around it stand the checks for what nobody signed, so that **no byte of a quote or its collateral
//! can change without a refusal**: lengths and paddings of the quote, the spelling of certificate
//! chains, the root inside them (equal to the policy's) and the chain that signed the PCK's
//! revocation list (equal to the PCK's own issuer).

use std::fmt;

use dcap_qvl::{
    QuoteClaims, QuoteCollateralV3, QuotePolicy,
    quote::{AuthData, AuthDataV4, Quote, TDReport10},
    verify::QuoteVerifier,
};

use crate::{
    collateral,
    hash::{sha256, sha384},
    measurement::Measurement,
    pem,
    policy::{Assurance, Policy, TrustRoot},
    verify::VerifyError,
};

/// TDX quotes have about 5 KB; configfs-tsm hands them out padded to 8 KB.
pub const MAX_QUOTE_BYTES: usize = 16 * 1024;

/// Certification data types of Intel's quote format (DCAP library reference, quote version 4).
const QE_REPORT_CERTIFICATION: u16 = 6;
const PCK_CERTIFICATE_CHAIN: u16 = 5;

/// dcap-qvl's words can quote long fields of the input.
const MAX_DETAIL_CHARS: usize = 240;

/// Which part of quote verification refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum QuoteCheck {
    /// The bytes are no TDX quote of version 4 or 5, or more than one.
    Format,
    /// The vendor's statements are malformed, forged, expired or about another platform.
    Collateral,
    /// A certificate chain is malformed, forged, expired or revoked.
    Certificates,
    /// The quoting enclave is not the vendor's.
    QuotingEnclave,
    /// A signature inside the quote does not match what it signs.
    Signature,
    /// The TD can be read by its host's debugger.
    Debug,
    /// Other TD attributes that void confidentiality.
    Attributes,
    /// The platform's firmware has known flaws, or its level is unknown.
    TcbStatus,
    /// The list of known flaws is too old.
    TcbEvaluation,
}

impl QuoteCheck {
    /// The name under which the check shows in errors, logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            QuoteCheck::Format => "quote-format",
            QuoteCheck::Collateral => "collateral",
            QuoteCheck::Certificates => "certificates",
            QuoteCheck::QuotingEnclave => "quoting-enclave",
            QuoteCheck::Signature => "quote-signature",
            QuoteCheck::Debug => "debug",
            QuoteCheck::Attributes => "td-attributes",
            QuoteCheck::TcbStatus => "tcb-status",
            QuoteCheck::TcbEvaluation => "tcb-evaluation",
        }
    }
}

impl fmt::Display for QuoteCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a quote proves once it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedQuote {
    /// The code that was running, by MRTD and the registers that code is extended into.
    pub measurement: Measurement,
    /// The 64 bytes which that code chose.
    pub report_data: [u8; 64],
    /// Name of the trust root.
    pub root: String,
    /// What that root is worth.
    pub assurance: Assurance,
    /// The platform's TCB status in the vendor's words.
    pub tcb_status: String,
    /// Advisories that apply to the platform.
    pub advisories: Vec<String>,
    /// Number of the TCB evaluation that the collateral comes from.
    pub tcb_evaluation: u32,
    /// The physical platform, where its certificate names one.
    pub platform: Option<[u8; 16]>,
    /// Unix seconds until which collateral and certificates hold.
    pub expires_at: u64,
}

/// Verifies a TDX quote against canonical collateral, at `now_unix`, under the policy's roots.
///
/// Claims are not looked at: most callers want [`crate::verify()`].
///
/// # Errors
/// A [`VerifyError`] that names the check which refused.
pub fn verify_quote(
    quote: &[u8],
    collateral: &[u8],
    policy: &Policy,
    now_unix: u64,
) -> Result<VerifiedQuote, VerifyError> {
    let collateral = collateral::parse(collateral)
        .map_err(|error| VerifyError::quote(QuoteCheck::Collateral, error.to_string()))?;
    let parsed = parse(quote)?;
    let root = trust_root(&parsed, &collateral, policy)?;

    let appraisal = Appraisal {
        strict: QuotePolicy::strict(now_unix)
            .allow_dynamic_platform(true)
            .allow_cached_keys(true)
            .allow_smt(true),
        min_tcb_evaluation: policy.min_tcb_evaluation,
    };
    let claims = QuoteVerifier::new(root.certificate.clone())
        .verify_with_policy(quote, collateral, now_unix, &appraisal)
        .map_err(|error| refusal(&error))?;
    let report = claims
        .report
        .as_td10()
        .ok_or_else(|| VerifyError::quote(QuoteCheck::Format, "not a quote of a trust domain"))?;

    Ok(VerifiedQuote {
        measurement: measured(report),
        report_data: report.report_data,
        root: root.name.clone(),
        assurance: root.assurance,
        tcb_status: claims.tcb.status.to_string(),
        advisories: claims.tcb.advisory_ids,
        tcb_evaluation: claims.tcb.eval_data_number,
        platform: claims.platform.pck.platform_instance_id,
        expires_at: claims.earliest_expiration_date,
    })
}

/// The measurement inside a quote that nothing has verified: what an enclave asks its own TEE, to claim it.
///
/// # Errors
/// [`VerifyError::Quote`] if it is not a TDX quote.
pub fn quoted_measurement(quote: &[u8]) -> Result<Measurement, VerifyError> {
    let format = |detail: String| VerifyError::quote(QuoteCheck::Format, detail);
    let quote = Quote::parse(quote).map_err(|error| format(short(&error)))?;
    let report = quote.report.as_td10().ok_or_else(|| format("not a quote of a trust domain".into()))?;
    Ok(measured(report))
}

/// The identity of everything that could run in a trust domain.
///
/// MRTD covers what the domain was built from. On hardware that is the virtual firmware only: kernel,
/// command line and programs are extended into RTMR0 to RTMR3 afterwards, and MRCONFIGID is what the
/// host set at launch. If these are all zero, MRTD is the identity (the software TEE puts its whole
/// executable there); otherwise it is SHA-384 over a label and all of them. Neither form can be passed
/// off as the other: one is a register, the other a hash that covers it.
fn measured(report: &TDReport10) -> Measurement {
    let extended = [&report.mr_config_id, &report.rt_mr0, &report.rt_mr1, &report.rt_mr2, &report.rt_mr3];
    if extended.iter().all(|register| **register == [0; 48]) {
        return Measurement(report.mr_td);
    }
    let [config, zero, one, two, three] = extended.map(|register| register.as_slice());
    Measurement(sha384(&[b"cocoon/measurement/v1", &report.mr_td, config, zero, one, two, three]))
}

/// The chain inside a quote, in the only layout accepted.
struct Parsed {
    pck_chain: Vec<Vec<u8>>,
}

/// Parses a quote and accounts for each of its bytes: signed, or fixed by the rest.
fn parse(bytes: &[u8]) -> Result<Parsed, VerifyError> {
    let format = |detail: String| VerifyError::quote(QuoteCheck::Format, detail);
    if bytes.len() > MAX_QUOTE_BYTES {
        return Err(format(format!(
            "the quote has {} bytes, at most {MAX_QUOTE_BYTES} are allowed",
            bytes.len()
        )));
    }
    let quote = Quote::parse(bytes).map_err(|error| format(short(&error)))?;
    let (AuthData::V4(auth), true) = (&quote.auth_data, quote.report.as_td10().is_some()) else {
        return Err(format("not a TDX quote of version 4 or 5".into()));
    };

    let length_at = quote.signed_length();
    let expected = length_of(auth).map_err(|detail| format(detail.into()))?;
    let (declared, rest) = bytes
        .get(length_at..)
        .and_then(|rest| rest.split_first_chunk::<4>())
        .ok_or_else(|| format("it ends before its signature".into()))?;
    if u32::from_le_bytes(*declared) as usize != expected {
        return Err(format("the length of its signature data does not fit the content".into()));
    }
    if rest.iter().skip(expected).any(|&byte| byte != 0) {
        return Err(format("bytes other than zero follow it".into()));
    }

    // Quoting enclaves end the text with zeros up to a fixed size.
    let chain = &auth.qe_report_data.certification_data.body.data;
    let text = match chain.iter().rposition(|&byte| byte != 0) {
        Some(last) => chain.get(..=last).unwrap_or_default(),
        None => &[],
    };
    let pck_chain = std::str::from_utf8(text)
        .map_err(|_| "it is not text".to_owned())
        .and_then(|text| pem::certificates(text).map_err(|error| error.to_string()))
        .map_err(|detail| {
            VerifyError::quote(QuoteCheck::Certificates, format!("the quote's PCK chain: {detail}"))
        })?;
    Ok(Parsed { pck_chain })
}

/// The length that signature data must declare to hold exactly its parts.
fn length_of(auth: &AuthDataV4) -> Result<usize, &'static str> {
    let inner = &auth.qe_report_data;
    if auth.certification_data.cert_type != QE_REPORT_CERTIFICATION
        || inner.certification_data.cert_type != PCK_CERTIFICATE_CHAIN
    {
        return Err("its certification data is not a QE report with a PCK certificate chain");
    }
    let body = inner.qe_report.len()
        + inner.qe_report_signature.len()
        + size_of::<u16>()
        + inner.qe_auth_data.data.len()
        + size_of::<u16>()
        + size_of::<u32>()
        + inner.certification_data.body.data.len();
    if auth.certification_data.body.data.len() != body {
        return Err("the length of its certification data does not fit the content");
    }
    Ok(auth.ecdsa_signature.len()
        + auth.ecdsa_attestation_key.len()
        + size_of::<u16>()
        + size_of::<u32>()
        + body)
}

/// Finds the policy's root at the end of every chain.
///
/// Only a lookup: the signatures under the root are verified afterwards.
fn trust_root<'a>(
    quote: &Parsed,
    collateral: &QuoteCollateralV3,
    policy: &'a Policy,
) -> Result<&'a TrustRoot, VerifyError> {
    let certificates = |detail: &str| VerifyError::quote(QuoteCheck::Certificates, detail);
    let [_, pck_issuer, found] = quote.pck_chain.as_slice() else {
        return Err(certificates("the quote's PCK chain is not leaf, issuer and root"));
    };
    let Some(root) = policy.roots.iter().find(|root| root.certificate == *found) else {
        return Err(VerifyError::TrustRoot {
            found: hex::encode(sha256(&[found])),
            allowed: policy.roots.iter().map(|root| root.name.clone()).collect(),
        });
    };
    for (name, text, signer) in [
        ("pck_crl_issuer_chain", &collateral.pck_crl_issuer_chain, Some(pck_issuer)),
        ("tcb_info_issuer_chain", &collateral.tcb_info_issuer_chain, None),
        ("qe_identity_issuer_chain", &collateral.qe_identity_issuer_chain, None),
    ] {
        let refuse =
            |detail: &str| VerifyError::quote(QuoteCheck::Collateral, format!("collateral.{name}: {detail}"));
        let chain = pem::certificates(text).map_err(|error| refuse(&error.to_string()))?;
        let [issuer, end] = chain.as_slice() else {
            return Err(refuse("not a signer and a root"));
        };
        if *end != root.certificate {
            return Err(refuse("it does not end in the quote's root"));
        }
        if signer.is_some_and(|signer| signer != issuer) {
            return Err(refuse("it is not the issuer of the quote's PCK certificate"));
        }
    }
    Ok(root)
}

/// The strict policy of dcap-qvl, with refusals that keep their type through its `anyhow` errors.
struct Appraisal {
    strict: QuotePolicy,
    min_tcb_evaluation: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
struct Refusal {
    check: QuoteCheck,
    detail: String,
}

impl dcap_qvl::Policy for Appraisal {
    fn validate(&self, claims: &QuoteClaims) -> anyhow::Result<()> {
        let found = claims.tcb.eval_data_number;
        if found < self.min_tcb_evaluation {
            let detail =
                format!("TCB evaluation {found} is older than the required {}", self.min_tcb_evaluation);
            return Err(Refusal { check: QuoteCheck::TcbEvaluation, detail }.into());
        }
        self.strict.validate(claims).map_err(|error| {
            let detail = format!(
                "{error} (status {}, advisories: {})",
                claims.tcb.status,
                if claims.tcb.advisory_ids.is_empty() {
                    "none".into()
                } else {
                    claims.tcb.advisory_ids.join(" ")
                },
            );
            Refusal { check: QuoteCheck::TcbStatus, detail }.into()
        })
    }
}

fn refusal(error: &anyhow::Error) -> VerifyError {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return VerifyError::quote(refusal.check, refusal.detail.clone());
    }
    let detail = short(error);
    VerifyError::quote(classify(&detail), detail)
}

/// dcap-qvl's errors are text. This only picks the name a refusal is shown under; that it is a
/// refusal does not depend on it. The tests meet each row, so a rewording upstream shows.
fn classify(detail: &str) -> QuoteCheck {
    const WORDS: &[(&str, QuoteCheck)] = &[
        ("Debug mode", QuoteCheck::Debug),
        ("TD profiling", QuoteCheck::Debug),
        ("TD attributes", QuoteCheck::Attributes),
        ("TD migration", QuoteCheck::Attributes),
        ("SERVTD_EXT", QuoteCheck::Attributes),
        ("SEPT_VE_DISABLE", QuoteCheck::Attributes),
        ("service TD", QuoteCheck::Attributes),
        ("invalid: Revoked", QuoteCheck::TcbStatus),
        ("matching TCB level", QuoteCheck::TcbStatus),
        ("TDX module", QuoteCheck::TcbStatus),
        ("TEE_TCB_SVN2", QuoteCheck::TcbStatus),
        ("QE MRSIGNER", QuoteCheck::QuotingEnclave),
        ("QE ISVPRODID", QuoteCheck::QuotingEnclave),
        ("QE MISCSELECT", QuoteCheck::QuotingEnclave),
        ("QE ATTRIBUTES", QuoteCheck::QuotingEnclave),
        ("QE ISVSVN", QuoteCheck::QuotingEnclave),
        ("QE report validation", QuoteCheck::QuotingEnclave),
        ("QE vendor", QuoteCheck::Format),
        ("attestation key type", QuoteCheck::Format),
        ("qe_report in quote", QuoteCheck::Signature),
        ("QE report hash", QuoteCheck::Signature),
        ("QE auth data", QuoteCheck::Signature),
        ("enclave report signature", QuoteCheck::Signature),
        ("CRL", QuoteCheck::Collateral),
        ("CrlExpired", QuoteCheck::Collateral),
        ("TcbInfo", QuoteCheck::Collateral),
        ("TCBInfo", QuoteCheck::Collateral),
        ("TCB Info", QuoteCheck::Collateral),
        ("tcb_info", QuoteCheck::Collateral),
        ("QeIdentity", QuoteCheck::Collateral),
        ("QE Identity", QuoteCheck::Collateral),
        ("qe_identity", QuoteCheck::Collateral),
        ("Fmspc", QuoteCheck::Collateral),
        ("Invalid key length", QuoteCheck::Collateral),
        ("certificate", QuoteCheck::Certificates),
        ("Cert", QuoteCheck::Certificates),
    ];
    WORDS.iter().find(|(words, _)| detail.contains(words)).map_or(QuoteCheck::Signature, |&(_, check)| check)
}

fn short(error: &anyhow::Error) -> String {
    format!("{error:#}").chars().take(MAX_DETAIL_CHARS).collect()
}
