//! What a TEE measured: the identity of the code inside.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A 48-byte measurement of an enclave image, from the registers of a TDX quote. Shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Measurement(pub [u8; 48]);

/// The text is not 96 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a measurement is 96 hexadecimal digits, found {found:?}")]
pub struct MeasurementError {
    found: String,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measurement({self})")
    }
}

impl FromStr for Measurement {
    type Err = MeasurementError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 48];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            // Whole files have been pasted here: show the start only.
            Err(_) => Err(MeasurementError { found: text.chars().take(100).collect() }),
        }
    }
}

impl Serialize for Measurement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Measurement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_round_trip() {
        let measurement = Measurement(std::array::from_fn(|i| i as u8));
        assert_eq!(measurement.to_string().parse(), Ok(measurement));
        let json = serde_json::to_string(&measurement).unwrap();
        assert_eq!(json.len(), 98);
        assert_eq!(serde_json::from_str::<Measurement>(&json).unwrap(), measurement);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "00", &"0".repeat(95), &"g".repeat(96), &"0".repeat(98)] {
            assert!(text.parse::<Measurement>().is_err(), "{text}");
        }
    }
}
