//! The platform vendor's statements that a quote is judged by.
//!
//! Collateral is revocation lists, the TCB info of a processor family and the identity of the
//! quoting enclave, each signed under the vendor's root. It is public and anybody may deliver it;
//! here it always travels inside evidence, so verification needs no network. Its form is the JSON
//! of dcap-qvl's `QuoteCollateralV3`, in exactly one spelling (see [`canonical_collateral`]): the
//! parts are signed, the JSON around them is not, and evidence is named by its hash.

use dcap_qvl::QuoteCollateralV3;
use thiserror::Error;

/// Intel's TDX collateral has 16 to 24 KB; the rest of [`crate::MAX_EVIDENCE_BYTES`] is for the quote.
const MAX_COLLATERAL_BYTES: usize = 48 * 1024;

/// Why bytes are not collateral.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CollateralError {
    /// Checked before parsing.
    #[error("collateral has {len} bytes, at most {MAX_COLLATERAL_BYTES} are allowed")]
    TooLarge {
        /// Bytes found.
        len: usize,
    },
    /// Not the expected JSON object.
    #[error("collateral is not a JSON object of QuoteCollateralV3: {detail}")]
    Json {
        /// What the parser met.
        detail: String,
    },
    /// A different spelling of the same collateral.
    #[error("collateral is not in canonical form; rewrite it with canonical_collateral")]
    NotCanonical,
    /// The chain belongs into the quote, where the platform put it.
    #[error("collateral.pck_certificate_chain must be absent: the quote carries that chain")]
    PckChain,
}

/// Rewrites collateral, as a PCCS client saves it, in the one form that [`crate::Evidence`] carries.
///
/// The optional PCK certificate chain is dropped: the quote has it.
///
/// # Errors
/// If the input is no collateral or too large.
pub fn canonical_collateral(json: &[u8]) -> Result<Vec<u8>, CollateralError> {
    let mut collateral = read(json)?;
    collateral.pck_certificate_chain = None;
    write(&collateral)
}

/// Reads canonical collateral.
pub(crate) fn parse(json: &[u8]) -> Result<QuoteCollateralV3, CollateralError> {
    let collateral = read(json)?;
    if collateral.pck_certificate_chain.is_some() {
        return Err(CollateralError::PckChain);
    }
    if write(&collateral)? != json {
        return Err(CollateralError::NotCanonical);
    }
    Ok(collateral)
}

/// Writes collateral canonically.
pub(crate) fn write(collateral: &QuoteCollateralV3) -> Result<Vec<u8>, CollateralError> {
    serde_json::to_vec(collateral).map_err(|error| CollateralError::Json { detail: error.to_string() })
}

fn read(json: &[u8]) -> Result<QuoteCollateralV3, CollateralError> {
    if json.len() > MAX_COLLATERAL_BYTES {
        return Err(CollateralError::TooLarge { len: json.len() });
    }
    serde_json::from_slice(json).map_err(|error| CollateralError::Json { detail: error.to_string() })
}
