//! The one place where this crate's values become bytes and bytes become values.
//!
//! Every encoding is a version byte followed by bincode 2 (`standard()`: little endian, varint).
//! Sizes are checked before anything is decoded, and what is signed or compared has **one** encoding:
//! bincode would read a padded varint, so [`decode`] accepts only the string that [`encode`] writes.

use bincode::{Decode, Encode, config, error::DecodeError};
use thiserror::Error;

/// Bounds what a length prefix inside a value may make bincode allocate.
const MAX_ALLOCATION: usize = 64 * 1024;

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
    #[error("its format version is {found}, this build reads {expected}; update the older side")]
    Version {
        /// Version byte found.
        found: u8,
        /// Version byte this build reads.
        expected: u8,
    },
    /// The bytes end early or hold an impossible value.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// Bytes follow the value, or a number is not in its shortest form.
    #[error("it is not in canonical form: re-encoding it gives other bytes")]
    NotCanonical,
}

/// Encodes `value` behind its version byte.
pub fn encode<T: Encode>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    // Writing this crate's types into a vector cannot fail. If it ever did, what is left is refused
    // by `decode` and matches no signature.
    if bincode::encode_into_std_write(value, &mut bytes, config::standard()).is_err() {
        bytes.clear();
    }
    bytes
}

/// Decodes what [`encode`] wrote with the same `version`, and nothing else.
pub fn decode<T: Decode<()> + Encode>(version: u8, bytes: &[u8], max: usize) -> Result<T, WireError> {
    let Some((found, body)) = bytes.split_first() else {
        return Err(WireError::Empty);
    };
    if bytes.len() > max {
        return Err(WireError::TooLarge { len: bytes.len(), max });
    }
    if *found != version {
        return Err(WireError::Version { found: *found, expected: version });
    }
    let limits = config::standard().with_limit::<MAX_ALLOCATION>();
    let (value, _) = bincode::decode_from_slice::<T, _>(body, limits).map_err(|error| {
        WireError::Malformed(match error {
            DecodeError::UnexpectedEnd { .. } => "it ends early".into(),
            error => error.to_string(),
        })
    })?;
    if encode(version, &value) != bytes {
        return Err(WireError::NotCanonical);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_encoding_is_read() {
        let bytes = encode(1, &(7u64, vec![1u8, 2]));
        assert_eq!(decode(1, &bytes, 64), Ok((7u64, vec![1u8, 2])));
        let padded = [1, 251, 7, 0, 2, 1, 2];
        assert_eq!(decode::<(u64, Vec<u8>)>(1, &padded, 64), Err(WireError::NotCanonical));
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(decode::<(u64, Vec<u8>)>(1, &longer, 64), Err(WireError::NotCanonical));
    }

    #[test]
    fn size_and_version_are_checked_first() {
        assert_eq!(decode::<u8>(1, &[], 64), Err(WireError::Empty));
        assert!(matches!(decode::<u8>(1, &[1; 65], 64), Err(WireError::TooLarge { len: 65, max: 64 })));
        assert!(matches!(decode::<u8>(1, &[2, 0], 64), Err(WireError::Version { found: 2, .. })));
        // A length prefix of 2^60 allocates nothing.
        let huge = [1, 253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(matches!(decode::<Vec<u8>>(1, &huge, 64), Err(WireError::Malformed(_))));
    }
}
