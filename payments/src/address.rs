//! Addresses of TON accounts.
//!
//! An address is a workchain and the 256-bit hash of the contract's initial state. Written *raw*
//! (`0:` and hex) or *friendly* (base64 with flags and a checksum, TEP-2); both are read, raw is
//! printed because it has one spelling.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use tonlib_core::{TonAddress, TonHash};

/// A standard address (`addr_std`) without anycast.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Address {
    /// 0 for the base chain, where every contract of ours lives; −1 for the masterchain.
    pub workchain: i8,
    /// Hash of the initial state.
    pub hash: [u8; 32],
}

impl Address {
    /// An address on the base chain.
    pub const fn base(hash: [u8; 32]) -> Self {
        Self { workchain: 0, hash }
    }

    /// Workchain byte, then the hash.
    pub fn to_bytes(&self) -> [u8; 33] {
        let mut bytes = [0; 33];
        bytes[0] = self.workchain.to_le_bytes()[0];
        bytes[1..].copy_from_slice(&self.hash);
        bytes
    }

    /// Inverse of [`Address::to_bytes`]; every 33 bytes are an address.
    pub fn from_bytes(bytes: &[u8; 33]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[1..]);
        Self { workchain: i8::from_le_bytes([bytes[0]]), hash }
    }

    /// The friendly form people paste into wallets: URL-safe base64.
    pub fn friendly(&self, bounceable: bool, test_only: bool) -> String {
        TonAddress::from(*self).to_base64_url_flags(!bounceable, test_only)
    }
}

impl From<Address> for TonAddress {
    fn from(address: Address) -> Self {
        Self::new(i32::from(address.workchain), TonHash::from(address.hash))
    }
}

impl TryFrom<&TonAddress> for Address {
    type Error = AddressError;

    fn try_from(address: &TonAddress) -> Result<Self, AddressError> {
        Ok(Self {
            workchain: i8::try_from(address.workchain)
                .map_err(|_| AddressError::Workchain { found: address.workchain })?,
            hash: address.hash_part.clone().into(),
        })
    }
}

/// Raw: `0:` and 64 hex digits.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.workchain, hex::encode(self.hash))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Neither form of an address.
    #[error(
        "`{text}` is not a TON address: {detail}; expected `0:` and 64 hex digits, or 48 characters of base64"
    )]
    Malformed {
        /// The text, shortened.
        text: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// A workchain that does not fit a standard address.
    #[error("workchain {found} does not fit a standard address; use 0")]
    Workchain {
        /// What was found.
        found: i32,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = |detail| AddressError::Malformed { text: text.chars().take(80).collect(), detail };
        if let Some((workchain, hash)) = text.split_once(':') {
            let mut address = Self {
                workchain: workchain
                    .parse()
                    .map_err(|_| malformed("the workchain before `:` is not a small number"))?,
                hash: [0; 32],
            };
            hex::decode_to_slice(hash, &mut address.hash)
                .map_err(|_| malformed("64 hex digits must follow `:`"))?;
            return Ok(address);
        }
        if text.len() != 48 {
            return Err(malformed("it is neither raw nor 48 characters long"));
        }
        let address = TonAddress::from_base64_url(text)
            .or_else(|_| TonAddress::from_base64_std(text))
            .map_err(|_| malformed("its base64 or checksum is wrong, was it copied whole?"))?;
        Self::try_from(&address)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "0:9d1e1843624c4d175a695a8c2de8a5a61f03b93336e8caa4e164bf6cbbab205e";

    #[test]
    fn both_spellings_name_the_same_account() {
        let address: Address = RAW.parse().unwrap();
        assert_eq!(address.to_string(), RAW);
        for (bounceable, test_only) in [(true, false), (false, false), (true, true), (false, true)] {
            assert_eq!(
                address.friendly(bounceable, test_only).parse(),
                Ok(address),
                "bounceable {bounceable}, test only {test_only}"
            );
        }
        assert_eq!(Address::from_bytes(&address.to_bytes()), address);
    }

    #[test]
    fn a_mistyped_friendly_address_is_refused() {
        let good = RAW.parse::<Address>().unwrap().friendly(true, false);
        let mut bad = good.into_bytes();
        bad[20] = if bad[20] == b'A' { b'B' } else { b'A' };
        let bad = String::from_utf8(bad).unwrap();
        assert!(matches!(bad.parse::<Address>(), Err(AddressError::Malformed { .. })));
        for text in ["", ":", "0:", "0:00", "999:00", &RAW[..60], "ÄÖÜ"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
