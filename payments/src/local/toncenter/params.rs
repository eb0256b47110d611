//! Parameters of a method, from JSON or from a query string.

use base64::Engine as _;
use serde_json::{Map, Value};
use tycho_types::prelude::{Boc, Cell};

use super::ToncenterError;
use crate::Address;

/// base64 as people send it: both alphabets, with and without padding.
const BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// Named parameters.
pub(super) struct Params<'a>(&'a Map<String, Value>);

impl<'a> Params<'a> {
    pub(super) fn new(params: &'a Value) -> Result<Self, ToncenterError> {
        params
            .as_object()
            .map(Self)
            .ok_or_else(|| ToncenterError::new(422, "params is not an object of named values"))
    }

    /// A parameter that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str, ToncenterError> {
        let value = self.get(name).ok_or_else(|| missing(name))?;
        value.as_str().ok_or_else(|| bad(name, "is not a string"))
    }

    pub(super) fn address(&self, name: &str) -> Result<Address, ToncenterError> {
        self.text(name)?.parse().map_err(|error: crate::AddressError| bad(name, &error.to_string()))
    }

    /// A whole number, as JSON number or as decimal string.
    pub(super) fn number<T: TryFrom<i128>>(&self, name: &str) -> Result<Option<T>, ToncenterError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Number(number) => {
                number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
            }
            Value::String(text) if text.is_empty() => return Ok(None),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| bad(name, "is not a whole number in range"))
    }

    pub(super) fn required_number<T: TryFrom<i128>>(&self, name: &str) -> Result<T, ToncenterError> {
        self.number(name)?.ok_or_else(|| missing(name))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, ToncenterError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(bad(name, "is not true or false")),
        }
    }

    /// A hash in hex or base64.
    pub(super) fn hash(&self, name: &str) -> Result<Option<[u8; 32]>, ToncenterError> {
        if self.get(name).is_none() {
            return Ok(None);
        }
        let text = self.text(name)?;
        let bytes = if text.len() == 64 { hex::decode(text).ok() } else { decode_base64(text) };
        let hash = bytes.and_then(|bytes| bytes.try_into().ok());
        hash.map(Some).ok_or_else(|| bad(name, "is not 32 bytes in hex or base64"))
    }

    /// Bytes in base64.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>, ToncenterError> {
        decode_base64(self.text(name)?).ok_or_else(|| bad(name, "is not base64"))
    }

    /// A cell in base64, or nothing if absent or empty.
    pub(super) fn cell(&self, name: &str) -> Result<Option<Cell>, ToncenterError> {
        if self.get(name).is_none() || self.text(name)?.is_empty() {
            return Ok(None);
        }
        decode_cell(self.text(name)?).map(Some).ok_or_else(|| bad(name, "is not a bag of cells in base64"))
    }
}

/// A bag of cells with one root, in base64.
pub(super) fn decode_cell(text: &str) -> Option<Cell> {
    Boc::decode(decode_base64(text)?).ok()
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.replace('-', "+").replace('_', "/")).ok()
}

pub(super) fn bad(name: &str, what: &str) -> ToncenterError {
    ToncenterError::new(422, format!("parameter {name} {what}"))
}

fn missing(name: &str) -> ToncenterError {
    bad(name, "is missing")
}
