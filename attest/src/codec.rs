//! The one place where this crate's values become bytes and bytes become values.
//!
//! Every encoding is a version byte followed by bincode 2 (`standard()`: little endian, varint).
//! bincode reads some values from more than one byte string (a varint may be padded), but what this
//! crate encodes is hashed and signed, so [`decode`] accepts only the string that [`encode`] writes:
//! **one value, one encoding**. Lengths are checked against a limit before anything is allocated.

use bincode::{Decode, Encode, config, error::DecodeError};
use thiserror::Error;

/// Why bytes are not an encoding.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// There is nothing to decode.
    #[error("it is empty; a version byte was expected")]
    Empty,
    /// Checked before decoding, so that size costs nothing.
    #[error("it has {len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Another version of the format.
    #[error("its format version is {found}, this build reads version {expected}; update the older side")]
    Version {
        /// Version byte found.
        found: u8,
        /// Version byte this build reads.
        expected: u8,
    },
    /// The bytes end early or hold an impossible value.
    #[error("it is malformed: {detail}")]
    Malformed {
        /// What the decoder met.
        detail: String,
    },
    /// Bytes follow the value.
    #[error("{extra} bytes follow the value; none may")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A different spelling of a value that has exactly one encoding.
    #[error("it is not the canonical encoding of its value; encode it again")]
    NotCanonical,
}

/// Encodes `value` behind `version`.
///
/// Writing a plain value into memory cannot fail. Were that ever to change, the result is empty,
/// which no decoder accepts and nothing signs into evidence that verifies: it fails closed.
pub(crate) fn encode<T: Encode>(version: u8, value: &T) -> Vec<u8> {
    bincode::encode_to_vec((version, value), config::standard()).unwrap_or_default()
}

/// Decodes what [`encode`] wrote, at most `MAX` bytes of it.
pub(crate) fn decode<T: Encode + Decode<()>, const MAX: usize>(
    version: u8,
    bytes: &[u8],
) -> Result<T, WireError> {
    if bytes.len() > MAX {
        return Err(WireError::TooLarge { len: bytes.len(), max: MAX });
    }
    let (&found, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if found != version {
        return Err(WireError::Version { found, expected: version });
    }
    let (value, read): (T, usize) = bincode::decode_from_slice(body, config::standard().with_limit::<MAX>())
        .map_err(|error| WireError::Malformed { detail: describe(&error) })?;
    if read < body.len() {
        return Err(WireError::Trailing { extra: body.len() - read });
    }
    if encode(version, &value) != bytes {
        return Err(WireError::NotCanonical);
    }
    Ok(value)
}

/// bincode's own text prints internal types; these are the cases a reader can act on.
fn describe(error: &DecodeError) -> String {
    match error {
        DecodeError::UnexpectedEnd { .. } => "it ends too early".into(),
        DecodeError::LimitExceeded => "a length inside exceeds the size limit".into(),
        DecodeError::UnexpectedVariant { type_name, found, .. } => {
            format!("unknown {type_name} variant {found}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (u32, Vec<u8>);

    fn decode_pair(bytes: &[u8]) -> Result<Pair, WireError> {
        decode::<Pair, 64>(7, bytes)
    }

    #[test]
    fn a_value_survives_the_round_trip() {
        let value: Pair = (300, vec![1, 2, 3]);
        assert_eq!(decode_pair(&encode(7, &value)), Ok(value));
    }

    #[test]
    fn each_defect_has_its_own_error() {
        let good = encode(7, &(5u32, vec![9u8]));
        assert_eq!(decode_pair(&[]), Err(WireError::Empty));
        assert_eq!(decode_pair(&[0; 65]), Err(WireError::TooLarge { len: 65, max: 64 }));
        assert_eq!(decode_pair(&[8, 5, 0]), Err(WireError::Version { found: 8, expected: 7 }));
        assert!(matches!(decode_pair(&good[..good.len() - 1]), Err(WireError::Malformed { .. })));
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(decode_pair(&longer), Err(WireError::Trailing { extra: 1 }));
    }

    #[test]
    fn a_padded_varint_is_refused() {
        // 5 spelled as a three-byte varint (marker 251, then u16).
        assert_eq!(decode_pair(&[7, 251, 5, 0, 0]), Err(WireError::NotCanonical));
    }

    #[test]
    fn a_huge_inner_length_allocates_nothing() {
        let mut bytes = vec![7, 5, 253];
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(matches!(decode_pair(&bytes), Err(WireError::Malformed { .. })));
    }
}
