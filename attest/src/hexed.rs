//! Serde helpers that show byte fields as lower-case hex, as every report and command prints them.

use serde::Serializer;

pub(crate) fn bytes<S: Serializer>(value: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(value))
}

pub(crate) fn optional<S: Serializer, T: AsRef<[u8]>>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_some(&hex::encode(value)),
        None => serializer.serialize_none(),
    }
}
