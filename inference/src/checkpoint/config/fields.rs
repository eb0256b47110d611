//! Reading fields of a JSON object, with errors that name the field and the fix.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ConfigError;
use crate::checkpoint::MAX_CONFIG_BYTES;

/// A JSON object, and where it stands in the file.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Prefix of the fields' names in errors, such as `rope_scaling.`.
    path: String,
}

impl Fields {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { found: bytes.len() });
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self { map, path: String::new() }),
            Ok(other) => Err(ConfigError::Json(format!("found {}", show(&other)))),
            Err(error) => Err(ConfigError::Json(error.to_string())),
        }
    }

    /// An object inside this one, if it is there.
    pub(crate) fn inside(&self, field: &str) -> Result<Option<Self>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let path = format!("{}{field}.", self.path);
                Ok(Some(Self { map: map.clone(), path }))
            }
            Some(other) => Err(self.wrong(field, show(other), "an object")),
        }
    }

    /// `null` counts as absent, as it does for `transformers`.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// Whether the field is there, if only as `null`.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(crate) fn wrong(&self, field: &str, found: String, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value { field: self.named(field), found, expected: expected.into() }
    }

    pub(crate) fn missing(&self, field: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Missing { field: self.named(field), expected: expected.into() }
    }

    fn named(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Checks a field that may be absent: it must not ask for what is not computed.
    pub(crate) fn supported(
        &self,
        field: &str,
        supported: &str,
        accept: impl Fn(&Value) -> bool,
    ) -> Result<(), ConfigError> {
        match self.get(field) {
            Some(value) if !accept(value) => Err(ConfigError::Unsupported {
                field: self.named(field),
                found: show(value),
                supported: supported.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn integer(
        &self,
        field: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<usize, ConfigError> {
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let fits = |n: &usize| range.contains(n);
        match (self.get(field), default) {
            (Some(value), _) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(fits)
                .ok_or_else(|| self.wrong(field, show(value), expected())),
            (None, Some(n)) if fits(&n) => Ok(n),
            (None, _) => Err(self.missing(field, expected())),
        }
    }

    pub(crate) fn number(
        &self,
        field: &str,
        above: f64,
        at_most: f64,
        default: Option<f64>,
    ) -> Result<f64, ConfigError> {
        let expected = || format!("a number above {above} and at most {at_most}");
        match (self.get(field), default) {
            (Some(value), _) => value
                .as_f64()
                .filter(|n| *n > above && *n <= at_most)
                .ok_or_else(|| self.wrong(field, show(value), expected())),
            (None, Some(n)) => Ok(n),
            (None, None) => Err(self.missing(field, expected())),
        }
    }

    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        self.get(field).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| self.wrong(field, show(value), "`true` or `false`"))
        })
    }

    /// `eos_token_id`: one id or several; none where the field is absent.
    pub(crate) fn end_tokens(&self, vocab: usize) -> Result<BTreeSet<u32>, ConfigError> {
        const FIELD: &str = "eos_token_id";
        let Some(value) = self.get(FIELD) else { return Ok(BTreeSet::new()) };
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            Value::Array(all) if all.len() <= 64 => all.iter().map(id).collect(),
            one => id(one).map(|n| BTreeSet::from([n])),
        };
        ids.filter(|ids: &BTreeSet<u32>| ids.iter().all(|&n| (n as usize) < vocab)).ok_or_else(|| {
            let expected = format!("a token id below `vocab_size`, {vocab}, or a list of at most 64");
            self.wrong(FIELD, show(value), expected)
        })
    }
}

/// A value for an error text, shortened.
pub(super) fn show(value: &Value) -> String {
    let mut text = match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    };
    if text.len() > 80 {
        text = text.chars().take(60).chain("…".chars()).collect();
    }
    format!("`{text}`")
}
