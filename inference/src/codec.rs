//! Wire form of a [`GenerateRequest`]: one version byte, then bincode (varint, little endian).
//!
//! The size is checked before anything is decoded, the decoder allocates no more than it, and bytes
//! after the request are refused, so that one request has one encoding. This module is the only one
//! that names bincode's functions.

use bincode::config::{self, Config};

use crate::GenerateRequest;

/// Version of the encoding. 2 brought the sampling options beyond temperature and `top_p`, 3 functions, grammars and
/// what else is in [`Structure`](crate::Structure), 4 the key of shared prompts.
pub const VERSION: u8 = 4;
/// Largest encoded request: all text, a long prefix and some room.
pub const MAX_REQUEST_BYTES: usize = 512 * 1024;

/// Why bytes are not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than a request may have.
    #[error("request of {found} bytes, at most {MAX_REQUEST_BYTES} are allowed")]
    TooLarge {
        /// Bytes found.
        found: usize,
    },
    /// No bytes at all.
    #[error("request is empty")]
    Empty,
    /// Another version.
    #[error("request of version {found}, this peer speaks {VERSION}; update the older side")]
    Version {
        /// The version found.
        found: u8,
    },
    /// Not a request.
    #[error("request is malformed: {0}")]
    Malformed(String),
    /// Bytes left over.
    #[error("request has {0} bytes too many")]
    Trailing(usize),
}

fn wire() -> impl Config {
    config::standard().with_limit::<MAX_REQUEST_BYTES>()
}

/// Encodes a request.
pub fn encode_request(request: &GenerateRequest) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(request, &mut bytes, wire())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    match bytes.len() {
        found if found > MAX_REQUEST_BYTES => Err(CodecError::TooLarge { found }),
        _ => Ok(bytes),
    }
}

/// Decodes a request. Its fields are not yet validated: see [`GenerateRequest::validate`].
pub fn decode_request(bytes: &[u8]) -> Result<GenerateRequest, CodecError> {
    if bytes.len() > MAX_REQUEST_BYTES {
        return Err(CodecError::TooLarge { found: bytes.len() });
    }
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != VERSION {
        return Err(CodecError::Version { found: version });
    }
    let (request, used) =
        bincode::decode_from_slice(body, wire()).map_err(|e| CodecError::Malformed(e.to_string()))?;
    match body.len() - used {
        0 => Ok(request),
        extra => Err(CodecError::Trailing(extra)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatRole, Message, Sampling};

    fn request() -> GenerateRequest {
        let sampling = Sampling { stop: vec!["\n".into()], max_tokens: Some(9), ..Sampling::default() };
        let messages = vec![Message::new(ChatRole::User, "2+2?")];
        GenerateRequest { prefix: vec![1, 70_000], ..GenerateRequest::new([7; 32], messages, sampling) }
    }

    #[test]
    fn a_request_survives_the_wire() {
        let bytes = encode_request(&request()).unwrap();
        assert_eq!(decode_request(&bytes).unwrap(), request());
    }

    #[test]
    fn every_defect_has_its_own_error() {
        let good = encode_request(&request()).unwrap();
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(decode_request(&longer), Err(CodecError::Trailing(1)));
        assert_eq!(decode_request(&[]), Err(CodecError::Empty));
        assert_eq!(decode_request(&[9]), Err(CodecError::Version { found: 9 }));
        assert!(matches!(decode_request(&good[..20]), Err(CodecError::Malformed(_))));
        let found = MAX_REQUEST_BYTES + 1;
        assert_eq!(decode_request(&vec![VERSION; found]), Err(CodecError::TooLarge { found }));
    }
}
