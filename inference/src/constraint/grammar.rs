//! What an answer must look like, as data from a stranger, and the bounds on it.
//!
//! The bounds here are on the source alone and cheap to check. What a small source can still blow up to
//! is bounded by the compiler's own fuel.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::RequestError;

/// Longest source of a schema or grammar. The longest schemas that people write by hand have a few
/// kilobytes, those of generated API clients some tens of them.
pub const MAX_GRAMMAR_BYTES: usize = 64 * 1024;
/// Longest regular expression.
pub const MAX_REGEX_BYTES: usize = 4 * 1024;
/// Deepest nesting of a schema, in levels of JSON; a level of the answer takes two or three.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// Space between the parts of JSON: as people and printers write it, on one line or indented. A weak model that may
/// write any space at all goes on with it to the end of its answer.
const JSON_SPACE: &str = r"\x20|\x0A(\x20{0,16}|\x09{0,4})";
/// A schema for a compiler: its options are read from the schema, which is a stranger's, so ours replace them.
pub fn with_bounded_space(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_SPACE}));
    }
    schema
}

/// Most texts to choose from.
pub const MAX_CHOICES: usize = 256;
/// Most `$ref`s. Each may be resolved inside another, and every level takes a little stack.
const MAX_REFS: usize = 512;
/// Most values in a schema, of any type.
const MAX_VALUES: usize = 8 * 1024;
/// Largest length or count that a schema may demand: beyond what any answer holds.
const MAX_REPEAT: u64 = 1_000_000;
/// Keywords whose numbers are lengths and counts.
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// What a whole answer must look like.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a JSON Schema (its text) allows. `$ref` reaches within the schema only.
    JsonSchema(String),
    /// A text that this regular expression (syntax of the crate `regex`) matches from start to end.
    Regex(String),
    /// A text of this grammar, in `llguidance`'s dialect of Lark, beginning at the rule `start`.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Why a grammar is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// Nothing to follow.
    #[error("{what} is empty; leave it out to get an answer of any form")]
    Empty {
        /// What.
        what: &'static str,
    },
    /// Too much of something.
    #[error("{what}: {found}, at most {limit} are allowed; simplify the grammar")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much there may be.
        limit: u64,
    },
    /// The text of a schema is no schema.
    #[error("the schema is not a JSON object: {0}")]
    NotASchema(String),
    /// The compiler refused it: a mistake, something it does not support, or too complex.
    #[error("the grammar cannot be used: {0}")]
    Refused(String),
}

impl GrammarError {
    /// As a refusal of a request whose field is at fault.
    pub fn at(&self, field: impl Into<String>) -> RequestError {
        RequestError::invalid(field, self.to_string())
    }
}

impl Grammar {
    /// Checks every bound that does not need the compiler.
    pub fn validate(&self) -> Result<(), GrammarError> {
        match self {
            Self::JsonObject => Ok(()),
            Self::JsonSchema(text) => schema(text).map(|_| ()),
            Self::Regex(text) => length("bytes of the regular expression", text, MAX_REGEX_BYTES),
            Self::Lark(text) => length("bytes of the grammar", text, MAX_GRAMMAR_BYTES),
            Self::Choice(texts) => {
                if texts.is_empty() {
                    return Err(GrammarError::Empty { what: "the list of choices" });
                }
                at_most("choices", texts.len() as u64, MAX_CHOICES as u64)?;
                let bytes: usize = texts.iter().map(String::len).sum();
                at_most("bytes of all choices", bytes as u64, MAX_GRAMMAR_BYTES as u64)?;
                texts.iter().try_for_each(|text| length("bytes of a choice", text, MAX_GRAMMAR_BYTES))
            }
        }
    }
}

/// The parsed text of a schema within bounds.
pub(super) fn schema(text: &str) -> Result<Value, GrammarError> {
    length("bytes of the schema", text, MAX_GRAMMAR_BYTES)?;
    let schema: Value = serde_json::from_str(text).map_err(|e| GrammarError::NotASchema(e.to_string()))?;
    if !schema.is_object() {
        return Err(GrammarError::NotASchema("found another type; write {\"type\": …}".into()));
    }
    let mut count = Count::default();
    count.walk(&schema, 1)?;
    Ok(schema)
}

#[derive(Debug, Default)]
struct Count {
    values: u64,
    refs: u64,
}

impl Count {
    /// Recurses no deeper than `serde_json` does, which refuses 128 levels.
    fn walk(&mut self, value: &Value, depth: usize) -> Result<(), GrammarError> {
        at_most("levels of nesting in the schema", depth as u64, MAX_SCHEMA_DEPTH as u64)?;
        self.values += 1;
        at_most("values in the schema", self.values, MAX_VALUES as u64)?;
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.walk(item, depth + 1)),
            Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
                if name == "$ref" {
                    self.refs += 1;
                    at_most("references in the schema", self.refs, MAX_REFS as u64)?;
                }
                if COUNTS.contains(&name.as_str())
                    && let Some(number) = field.as_f64()
                    && number > MAX_REPEAT as f64
                {
                    return Err(GrammarError::TooLarge {
                        what: "a length or count that the schema demands",
                        found: number as u64,
                        limit: MAX_REPEAT,
                    });
                }
                self.walk(field, depth + 1)
            }),
            _ => Ok(()),
        }
    }
}

fn length(what: &'static str, text: &str, limit: usize) -> Result<(), GrammarError> {
    if text.trim().is_empty() && text.len() <= limit {
        return Err(GrammarError::Empty { what });
    }
    at_most(what, text.len() as u64, limit as u64)
}

fn at_most(what: &'static str, found: u64, limit: u64) -> Result<(), GrammarError> {
    match found <= limit {
        true => Ok(()),
        false => Err(GrammarError::TooLarge { what, found, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_on_the_source_is_named() {
        let deep = format!("{}{}", r#"{"not":"#.repeat(65), "{}".to_owned() + &"}".repeat(65));
        let wide = format!(r#"{{"enum":[{}0]}}"#, "0,".repeat(MAX_VALUES));
        let refs = format!(r##"{{"allOf":[{}{{}}]}}"##, r##"{"$ref":"#"},"##.repeat(MAX_REFS + 1));
        for (grammar, what) in [
            (Grammar::JsonSchema(" ".repeat(MAX_GRAMMAR_BYTES + 1)), "bytes of the schema"),
            (Grammar::JsonSchema(deep), "levels of nesting"),
            (Grammar::JsonSchema(wide), "values in the schema"),
            (Grammar::JsonSchema(refs), "references"),
            (Grammar::JsonSchema(r#"{"maxItems": 1e9}"#.into()), "length or count"),
            (Grammar::JsonSchema("[]".into()), "not a JSON object"),
            (Grammar::JsonSchema("{".into()), "not a JSON object"),
            (Grammar::Regex("a".repeat(MAX_REGEX_BYTES + 1)), "regular expression"),
            (Grammar::Regex(String::new()), "empty"),
            (Grammar::Lark("\n".into()), "empty"),
            (Grammar::Choice(Vec::new()), "empty"),
            (Grammar::Choice(vec![String::new()]), "empty"),
            (Grammar::Choice(vec!["a".into(); MAX_CHOICES + 1]), "choices"),
        ] {
            let error = grammar.validate().unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        let error = Grammar::Regex(String::new()).validate().unwrap_err().at("response_format");
        assert!(error.to_string().starts_with("field `response_format`"), "{error}");
    }
}
