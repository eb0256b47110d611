//! The one place that knows how this crate's structures become bytes.
//!
//! Every structure that leaves the process is `version byte ‖ bincode 2 (varint, little endian)`.
//! A reader checks the size before it decodes, refuses other versions and refuses trailing bytes, so
//! that two encodings of one value never both count as valid by accident of a lenient parser.
//! Everything else in the crate goes through [`encode`] and [`decode`]; replacing bincode by another
//! implementation of the same format is a change of this file alone.

use bincode::{Decode, Encode, config};
use thiserror::Error;

/// Version byte in front of every structure of this crate.
pub(crate) const VERSION: u8 = 1;

/// Why bytes are not a structure of this crate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes are longer than the structure may be; nothing was decoded.
    #[error("{found} bytes, but at most {limit} are allowed here")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// There is not even a version byte.
    #[error("no bytes at all; a version byte was expected")]
    Empty,
    /// The sender speaks another version.
    #[error("encoding version {found}, but this peer reads version {VERSION}; upgrade the older of the two")]
    Version {
        /// Version byte found.
        found: u8,
    },
    /// The bytes do not decode.
    #[error("malformed encoding: {0}")]
    Malformed(String),
    /// The value ended before the bytes did.
    #[error("{0} bytes follow the end of the value")]
    Trailing(usize),
}

/// Encodes `value` behind the version byte.
pub(crate) fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(value, &mut bytes, config::standard())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    Ok(bytes)
}

/// Decodes a value of at most `LIMIT` bytes. Never allocates more than `LIMIT` for what the bytes claim.
pub(crate) fn decode<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { found: bytes.len(), limit: LIMIT });
    }
    let (&found, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if found != VERSION {
        return Err(CodecError::Version { found });
    }
    let (value, read) = bincode::decode_from_slice(body, config::standard().with_limit::<LIMIT>())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match body.len() - read {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_prefix_that_lies_allocates_nothing() {
        // A vector that claims 2^62 bytes in a 10-byte message.
        let bytes = [VERSION, 253, 0, 0, 0, 0, 0, 0, 0, 0x40];
        assert!(matches!(decode::<Vec<u8>, 64>(&bytes), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn other_versions_trailing_bytes_and_oversize_are_told_apart() {
        let good = encode(&7u32).unwrap();
        assert_eq!(decode::<u32, 16>(&good), Ok(7));
        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(decode::<u32, 16>(&trailing), Err(CodecError::Trailing(1)));
        let mut other = good.clone();
        other[0] = 9;
        assert_eq!(decode::<u32, 16>(&other), Err(CodecError::Version { found: 9 }));
        assert_eq!(decode::<u32, 1>(&good), Err(CodecError::TooLong { found: 2, limit: 1 }));
        assert_eq!(decode::<u32, 16>(&[]), Err(CodecError::Empty));
    }
}
