//! Reading toncenter's JSON: numbers come as numbers or strings, hashes in base64.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::Value;

use super::{ChainError, StackValue};
use crate::{Address, NanoTon};

/// base64 with or without padding, as different servers write it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One answer, and the method that it answers, for error texts.
#[derive(Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) method: &'static str,
    pub(super) value: &'a Value,
}

impl<'a> Answer<'a> {
    pub(super) fn fail<T>(&self, field: &'static str) -> Result<T, ChainError> {
        Err(ChainError::Answer { method: self.method, field })
    }

    /// A part of the answer that must be there.
    pub(super) fn at(&self, field: &'static str) -> Result<Self, ChainError> {
        match self.value.get(field) {
            Some(value) => Ok(Self { method: self.method, value }),
            None => self.fail(field),
        }
    }

    /// A list that must be there.
    pub(super) fn list(&self, field: &'static str) -> Result<&'a [Value], ChainError> {
        match self.value.get(field) {
            Some(Value::Array(list)) => Ok(list),
            _ => self.fail(field),
        }
    }

    pub(super) fn text(&self, field: &'static str) -> Result<&'a str, ChainError> {
        self.value.get(field).and_then(Value::as_str).map_or_else(|| self.fail(field), Ok)
    }

    pub(super) fn number<T: TryFrom<i128>>(&self, field: &'static str) -> Result<T, ChainError> {
        let value = self.value.get(field).and_then(|value| match value {
            Value::String(text) => text.parse::<i128>().ok(),
            Value::Number(number) => {
                number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
            }
            _ => None,
        });
        value.and_then(|value| T::try_from(value).ok()).map_or_else(|| self.fail(field), Ok)
    }

    /// A balance. Servers write −1 for an account that does not exist.
    pub(super) fn coins(&self, field: &'static str) -> Result<NanoTon, ChainError> {
        let coins: i128 = self.number(field)?;
        u64::try_from(coins.max(0)).map_or_else(|_| self.fail(field), |coins| Ok(NanoTon(coins)))
    }

    pub(super) fn hash(&self, field: &'static str) -> Result<[u8; 32], ChainError> {
        let bytes = BASE64.decode(self.text(field)?).ok();
        bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map_or_else(|| self.fail(field), Ok)
    }

    /// Bytes in base64; an empty string is nothing.
    pub(super) fn bytes(&self, field: &'static str) -> Result<Option<Vec<u8>>, ChainError> {
        match self.text(field)? {
            "" => Ok(None),
            text => BASE64.decode(text).map_or_else(|_| self.fail(field), |bytes| Ok(Some(bytes))),
        }
    }

    /// An address; an empty string is none. Addresses that are not standard are none too: nothing
    /// here can use them.
    pub(super) fn address(&self, field: &'static str) -> Option<Address> {
        self.value.get(field).and_then(Value::as_str).and_then(|text| text.parse().ok())
    }
}

/// A get-method's argument as toncenter takes it.
pub(super) fn write_stack(value: &StackValue) -> Value {
    match value {
        StackValue::Int { negative, magnitude } => {
            let digits = hex::encode(magnitude);
            let digits = digits.trim_start_matches('0');
            let sign = if *negative { "-" } else { "" };
            let digits = if digits.is_empty() { "0" } else { digits };
            serde_json::json!(["num", format!("{sign}0x{digits}")])
        }
        StackValue::Cell(boc) => serde_json::json!(["tvm.Cell", BASE64.encode(boc)]),
        StackValue::Other(text) => serde_json::json!([text]),
    }
}

/// A get-method's result.
pub(super) fn read_stack(entry: &Value) -> StackValue {
    let kind = entry.get(0).and_then(Value::as_str).unwrap_or_default();
    let value = entry.get(1).unwrap_or(&Value::Null);
    let read = match kind {
        "num" => value.as_str().and_then(read_int),
        "cell" | "slice" => value
            .get("bytes")
            .and_then(Value::as_str)
            .and_then(|text| BASE64.decode(text).ok())
            .map(StackValue::Cell),
        _ => None,
    };
    read.unwrap_or_else(|| StackValue::Other(kind.chars().take(32).collect()))
}

fn read_int(text: &str) -> Option<StackValue> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let digits = digits.strip_prefix("0x")?;
    let plain = !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let mut magnitude = [0; 32];
    if !plain {
        return None;
    }
    hex::decode_to_slice(format!("{digits:0>64}"), &mut magnitude).ok()?;
    Some(StackValue::Int { negative, magnitude })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_survive_the_stack() {
        for value in [0u128, 1, 255, u128::MAX] {
            let int = StackValue::uint(value);
            assert_eq!(read_stack(&write_stack(&int)), int);
        }
        assert_eq!(read_stack(&json!(["num", "-0x1"])).as_bool(), Some(true));
        assert_eq!(read_stack(&json!(["num", "-0x1"])).as_u64(), None);
        assert_eq!(read_stack(&json!(["num", "0x2a"])).as_u64(), Some(42));
    }

    #[test]
    fn odd_results_are_kept_apart() {
        for odd in [
            json!(["num", "0x"]),
            json!(["num", "12"]),
            json!(["tuple", {}]),
            json!(7),
            json!(["num", "0xzz"]),
        ] {
            assert!(matches!(read_stack(&odd), StackValue::Other(_)), "{odd}");
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        let value = json!({"balance": "12", "last": {"hash": "AAAA"}});
        let answer = Answer { method: "getAddressInformation", value: &value };
        assert_eq!(answer.coins("balance").unwrap(), NanoTon(12));
        assert!(answer.number::<u8>("state").is_err());
        let error = answer.at("last").unwrap().hash("hash").unwrap_err().to_string();
        assert!(error.contains("getAddressInformation") && error.contains("`hash`"), "{error}");
    }
}
