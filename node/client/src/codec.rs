//! The one place that turns typed messages into bytes and back.
//!
//! Every encoding is a version byte followed by bincode 2 (varint, little endian). The size is
//! checked before anything is decoded, bincode's own limit stops a length field from reserving
//! more memory than the message may have, and bytes after the value are refused. To replace
//! bincode by a compatible codec, only this file changes.

use bincode::{Decode, Encode};

/// Why bytes are not the expected message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than this kind of message may have.
    #[error("{what} has {size} bytes, at most {limit} are accepted; send less or split it")]
    TooLarge {
        /// Which message.
        what: &'static str,
        /// Its size.
        size: usize,
        /// Its limit.
        limit: usize,
    },
    /// No bytes at all.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A version this build does not speak.
    #[error("{what} has version {found}, this build speaks {expected}; update the older side")]
    Version {
        /// Which message.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The version spoken here.
        expected: u8,
    },
    /// The body is not the message its header claims.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// The decoder's words.
        why: String,
    },
    /// A well-formed message with something after it.
    #[error("{what} is followed by {extra} unexpected bytes")]
    Trailing {
        /// Which message.
        what: &'static str,
        /// How many bytes too many.
        extra: usize,
    },
}

/// Appends `version ‖ bincode(value)` to `out`.
pub(crate) fn encode_into<T: Encode>(
    out: &mut Vec<u8>,
    version: u8,
    what: &'static str,
    value: &T,
) -> Result<(), CodecError> {
    out.push(version);
    encode_body(out, what, value)
}

/// Appends `bincode(value)` alone: for the further messages of a record.
pub(crate) fn encode_body<T: Encode>(
    out: &mut Vec<u8>,
    what: &'static str,
    value: &T,
) -> Result<(), CodecError> {
    bincode::encode_into_std_write(value, out, bincode::config::standard())
        .map(|_| ())
        .map_err(|error| CodecError::Malformed { what, why: error.to_string() })
}

/// Decodes exactly one message of at most `LIMIT` bytes.
pub(crate) fn decode<T: Decode<()>, const LIMIT: usize>(
    bytes: &[u8],
    version: u8,
    what: &'static str,
) -> Result<T, CodecError> {
    let body = body::<LIMIT>(bytes, version, what)?;
    let (value, used) = decode_some::<T, LIMIT>(body, what)?;
    match body.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}

/// Checks size and version and returns what follows them.
pub(crate) fn body<'a, const LIMIT: usize>(
    bytes: &'a [u8],
    version: u8,
    what: &'static str,
) -> Result<&'a [u8], CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge { what, size: bytes.len(), limit: LIMIT });
    }
    match bytes.split_first() {
        None => Err(CodecError::Empty(what)),
        Some((&found, _)) if found != version => Err(CodecError::Version { what, found, expected: version }),
        Some((_, body)) => Ok(body),
    }
}

/// Decodes one value from the front of `bytes`; also says how many bytes it took.
pub(crate) fn decode_some<T: Decode<()>, const LIMIT: usize>(
    bytes: &[u8],
    what: &'static str,
) -> Result<(T, usize), CodecError> {
    // The limit also bounds what a length prefix can reserve before its elements are read.
    bincode::decode_from_slice(bytes, bincode::config::standard().with_limit::<LIMIT>())
        .map_err(|error| CodecError::Malformed { what, why: error.to_string() })
}
