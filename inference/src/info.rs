//! How models are named.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Digest of a model's manifest: its identity on the network.
pub type ModelDigest = [u8; 32];

/// What an engine serves.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Name shown to people; the digest is what counts.
    pub name: String,
    /// Digest of the manifest.
    pub digest: ModelDigest,
    /// Longest prompt and answer together, in tokens.
    pub context: u32,
    /// Number of parameters.
    pub parameters: u64,
    /// Architecture, such as `qwen3`.
    pub family: String,
    /// Number format of the weights as served, such as `f32`.
    pub quantisation: String,
}

/// Longest model name. Ads, paths and log lines must hold it.
pub const MAX_NAME_BYTES: usize = 96;

/// A model as people write it: `name` or `name@digest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelRef {
    /// The name.
    pub name: String,
    /// The digest, where one was given.
    pub digest: Option<ModelDigest>,
}

/// Why a text is not a [`ModelRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelRefError {
    /// The part before `@`.
    #[error("model name: {0:?} must be 1 to {MAX_NAME_BYTES} letters, digits, `.`, `_`, `-`, `/` or `:`")]
    Name(String),
    /// The part after `@`.
    #[error("model digest: {0:?} must be 64 hexadecimal digits (`name@digest`)")]
    Digest(String),
}

impl FromStr for ModelRef {
    type Err = ModelRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(allowed) {
            return Err(ModelRefError::Name(shorten(name)));
        }
        let digest = match digest {
            None => None,
            Some(hex_digest) => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(hex_digest, &mut bytes)
                    .map_err(|_| ModelRefError::Digest(shorten(hex_digest)))?;
                Some(bytes)
            }
        };
        Ok(Self { name: name.to_owned(), digest })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.digest {
            Some(digest) => write!(f, "@{}", hex::encode(digest)),
            None => Ok(()),
        }
    }
}

/// Error texts quote at most this much of what a stranger sent.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_survives_printing_and_parsing() {
        let digest = "ab".repeat(32);
        for text in ["cocoon-tiny".to_owned(), format!("qwen/qwen3:0.6b@{digest}")] {
            assert_eq!(text.parse::<ModelRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_name_and_a_bad_digest_are_told_apart() {
        assert!(matches!("".parse::<ModelRef>(), Err(ModelRefError::Name(_))));
        assert!(matches!("a b".parse::<ModelRef>(), Err(ModelRefError::Name(_))));
        assert!(matches!("a@12".parse::<ModelRef>(), Err(ModelRefError::Digest(_))));
        assert!(matches!("a@b@c".parse::<ModelRef>(), Err(ModelRefError::Digest(_))));
    }
}
