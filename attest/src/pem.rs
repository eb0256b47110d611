//! Certificate chains as PEM text (RFC 7468), read strictly.
//!
//! PEM has many spellings of one certificate: line lengths, line ends, comments between blocks. The
//! chains in quotes and collateral are not covered by a signature as *text*, so a lax reader would
//! accept evidence that differs from what was hashed and advertised. Intel writes one spelling
//! (64 columns, `\n`), which is the only one read here.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const END: &str = "-----END CERTIFICATE-----\n";
const COLUMNS: usize = 64;

/// Intel's chains have three; verification walks no longer ones.
const MAX_CERTIFICATES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum PemError {
    #[error("certificate {index} is not PEM with 64 columns and \\n line ends")]
    Spelling { index: usize },
    #[error("the chain has more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// The DER certificates of a PEM chain, in order.
pub(crate) fn certificates(text: &str) -> Result<Vec<Vec<u8>>, PemError> {
    let mut certificates = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let index = certificates.len();
        if index == MAX_CERTIFICATES {
            return Err(PemError::TooMany);
        }
        let spelling = PemError::Spelling { index };
        let body = rest.strip_prefix(BEGIN).ok_or(spelling)?;
        let (body, after) = body.split_once(END).ok_or(spelling)?;
        let digits: String = body.split('\n').collect();
        let der = STANDARD.decode(&digits).map_err(|_| spelling)?;
        // Whatever else could be spelled differently shows when it is written again.
        if rest.get(..rest.len() - after.len()) != Some(certificate(&der).as_str()) {
            return Err(spelling);
        }
        certificates.push(der);
        rest = after;
    }
    Ok(certificates)
}

/// Writes one certificate the way Intel does.
pub(crate) fn certificate(der: &[u8]) -> String {
    let digits = STANDARD.encode(der);
    let mut text = String::with_capacity(BEGIN.len() + digits.len() + digits.len() / COLUMNS + 1 + END.len());
    text.push_str(BEGIN);
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: any index is a character boundary.
        let (line, after) = rest.split_at(rest.len().min(COLUMNS));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(END);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_chain_has_one_spelling(ders in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..=MAX_CERTIFICATES), at: prop::sample::Index, byte in 0u8..128) {
            let text: String = ders.iter().map(|der| certificate(der)).collect();
            prop_assert_eq!(certificates(&text), Ok(ders.clone()));
            let mut other = text.clone().into_bytes();
            let at = at.index(other.len());
            other[at] = byte;
            let other = String::from_utf8(other).unwrap();
            if other != text {
                prop_assert_ne!(certificates(&other), Ok(ders));
            }
        }
    }

    #[test]
    fn a_long_chain_is_refused() {
        let text = certificate(&[1]).repeat(MAX_CERTIFICATES + 1);
        assert_eq!(certificates(&text), Err(PemError::TooMany));
    }
}
