//! Functions, calls, and the bounds on both.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::RequestError;
use crate::constraint::Grammar;

/// Most functions, as in the OpenAI API.
pub const MAX_TOOLS: usize = 128;
/// Longest name, as in the OpenAI API.
pub const MAX_TOOL_NAME_BYTES: usize = 64;
/// Longest description of a function.
pub const MAX_DESCRIPTION_BYTES: usize = 8 * 1024;
/// All descriptions and schemas together. They are written into the prompt, so that this is far above
/// what a context holds.
pub const MAX_TOOLS_BYTES: usize = 128 * 1024;
/// Longest arguments of a call that an asker sends back.
pub const MAX_ARGUMENTS_BYTES: usize = 64 * 1024;
/// Longest id of a call.
pub const MAX_CALL_ID_BYTES: usize = 64;

/// A function that the model may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ToolDefinition {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON Schema of its arguments, as text; none for a function without arguments.
    pub parameters: Option<String>,
}

impl ToolDefinition {
    /// Checks every bound; the error names the field under `path`, such as `tools[1].function`.
    pub fn validate(&self, path: &str) -> Result<(), RequestError> {
        name(&self.name, &format!("{path}.name"))?;
        let description = self.description.as_deref().unwrap_or_default();
        at_most(&format!("{path}.description"), description.len(), MAX_DESCRIPTION_BYTES)?;
        match &self.parameters {
            Some(schema) => {
                Grammar::JsonSchema(schema.clone()).validate().map_err(|e| e.at(format!("{path}.parameters")))
            }
            None => Ok(()),
        }
    }

    /// As chat templates and the OpenAI API write it: `{"type": "function", "function": {…}}`.
    pub fn to_json(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.as_str().into());
        }
        if self.parameters.is_some() {
            function.insert("parameters".into(), self.schema());
        }
        let mut tool = Map::new();
        tool.insert("type".into(), "function".into());
        tool.insert("function".into(), Value::Object(function));
        Value::Object(tool)
    }

    /// The schema of its arguments; any object if it has none, or one that [`validate`](Self::validate)
    /// would refuse.
    pub(super) fn schema(&self) -> Value {
        let parsed = self.parameters.as_deref().and_then(|text| serde_json::from_str(text).ok());
        parsed.unwrap_or_else(|| serde_json::json!({"type": "object"}))
    }
}

/// Checks the functions of a request.
pub fn validate_tools(tools: &[ToolDefinition]) -> Result<(), RequestError> {
    at_most_things("tools", tools.len(), MAX_TOOLS, "functions")?;
    let size = |tool: &ToolDefinition| {
        [Some(&tool.name), tool.description.as_ref(), tool.parameters.as_ref()]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>()
    };
    at_most("tools", tools.iter().map(size).sum(), MAX_TOOLS_BYTES)?;
    for (i, tool) in tools.iter().enumerate() {
        tool.validate(&format!("tools[{i}].function"))?;
        if tools.iter().take(i).any(|other| other.name == tool.name) {
            let why = format!("{:?} is defined twice; give each function its own name", tool.name);
            return Err(RequestError::invalid(format!("tools[{i}].function.name"), why));
        }
    }
    Ok(())
}

/// Whether the model is to call functions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

impl ToolChoice {
    /// Checks that what is demanded can be had.
    pub fn validate(&self, tools: &[ToolDefinition]) -> Result<(), RequestError> {
        match self {
            Self::Auto | Self::None => Ok(()),
            Self::Required if tools.is_empty() => {
                Err(RequestError::invalid("tool_choice", "a call is required, but `tools` is empty"))
            }
            Self::Required => Ok(()),
            Self::Named(name) if tools.iter().any(|tool| tool.name == *name) => Ok(()),
            Self::Named(_) => {
                Err(RequestError::invalid("tool_choice", "names a function that is not in `tools`"))
            }
        }
    }
}

/// A call that the model asked for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ToolCall {
    /// By which its result is sent back.
    pub id: String,
    /// The function.
    pub name: String,
    /// JSON, as the model wrote it: an object if the model made no mistake.
    pub arguments: String,
}

impl ToolCall {
    /// Checks a call that an asker sends back as part of a conversation; the error names the field under
    /// `path`, such as `messages[3].tool_calls[0]`.
    pub fn validate(&self, path: &str) -> Result<(), RequestError> {
        let id = format!("{path}.id");
        at_most(&id, self.id.len(), MAX_CALL_ID_BYTES)?;
        name(&self.name, &format!("{path}.function.name"))?;
        self.arguments_object(path).map(|_| ())
    }

    /// The arguments, which templates want as an object.
    pub fn arguments_object(&self, path: &str) -> Result<Map<String, Value>, RequestError> {
        let field = format!("{path}.function.arguments");
        at_most(&field, self.arguments.len(), MAX_ARGUMENTS_BYTES)?;
        // A model calls a function without arguments with an empty text now and then.
        if self.arguments.trim().is_empty() {
            return Ok(Map::new());
        }
        match serde_json::from_str(&self.arguments) {
            Ok(Value::Object(arguments)) => Ok(arguments),
            _ => Err(RequestError::invalid(field, "not the text of a JSON object; write {} for none")),
        }
    }
}

/// The id of an answer's call: nine letters and digits, since Mistral's templates refuse any other form.
/// The same answer has the same ids, whoever parses it.
pub fn call_id(answer: &str, index: u32) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digest = Sha256::new().chain_update(answer).chain_update(index.to_be_bytes()).finalize();
    let letter = |byte: &u8| ALPHABET.get(usize::from(*byte) % ALPHABET.len()).map(|&b| char::from(b));
    digest.iter().take(9).filter_map(letter).collect()
}

fn name(name: &str, field: &str) -> Result<(), RequestError> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_TOOL_NAME_BYTES || !name.chars().all(known) {
        let why = format!("must be 1 to {MAX_TOOL_NAME_BYTES} letters, digits, `_` and `-`");
        return Err(RequestError::invalid(field, why));
    }
    Ok(())
}

fn at_most(field: &str, found: usize, limit: usize) -> Result<(), RequestError> {
    at_most_things(field, found, limit, "bytes")
}

fn at_most_things(field: &str, found: usize, limit: usize, what: &str) -> Result<(), RequestError> {
    match found <= limit {
        true => Ok(()),
        false => {
            let why = format!("{found} {what}, at most {limit} are allowed; send fewer");
            Err(RequestError::invalid(field, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> ToolDefinition {
        ToolDefinition { name: name.into(), description: None, parameters: None }
    }

    fn field(result: Result<(), RequestError>) -> String {
        match result.unwrap_err() {
            RequestError::Invalid { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_bound_names_its_field() {
        let long = ToolDefinition { description: Some("x".repeat(MAX_DESCRIPTION_BYTES + 1)), ..tool("a") };
        let no_schema = ToolDefinition { parameters: Some("[]".into()), ..tool("a") };
        let deep = format!("{}1{}", "{\"a\":".repeat(70), "}".repeat(70));
        let deep = ToolDefinition { parameters: Some(deep), ..tool("a") };
        for (tools, expected) in [
            (vec![tool("")], "tools[0].function.name"),
            (vec![tool("a"), tool("a b")], "tools[1].function.name"),
            (vec![tool("a"), tool("a")], "tools[1].function.name"),
            (vec![tool(&"a".repeat(65))], "tools[0].function.name"),
            (vec![long], "tools[0].function.description"),
            (vec![no_schema], "tools[0].function.parameters"),
            (vec![deep], "tools[0].function.parameters"),
            ((0..=MAX_TOOLS).map(|i| tool(&format!("t{i}"))).collect(), "tools"),
        ] {
            assert_eq!(field(validate_tools(&tools)), expected);
        }
        assert!(validate_tools(&[tool("get_weather-2")]).is_ok());
        assert_eq!(field(ToolChoice::Required.validate(&[])), "tool_choice");
        assert_eq!(field(ToolChoice::Named("b".into()).validate(&[tool("a")])), "tool_choice");
        let call =
            |arguments: &str| ToolCall { id: "1".into(), name: "a".into(), arguments: arguments.into() };
        assert_eq!(field(call("[]").validate("c")), "c.function.arguments");
        assert!(call("").validate("c").is_ok() && call("{\"x\": 1}").validate("c").is_ok());
    }

    #[test]
    fn a_function_is_written_as_templates_expect_it() {
        let tool = ToolDefinition {
            description: Some("Adds".into()),
            parameters: Some(r#"{"type": "object", "properties": {"b": {}, "a": {}}}"#.into()),
            ..tool("add")
        };
        assert_eq!(
            tool.to_json().to_string(),
            r#"{"type":"function","function":{"name":"add","description":"Adds","parameters":{"type":"object","properties":{"b":{},"a":{}}}}}"#
        );
    }

    #[test]
    fn ids_are_stable_and_of_mistral_s_form() {
        let id = call_id("chatcmpl-1", 0);
        assert_eq!(id, call_id("chatcmpl-1", 0));
        assert_ne!(id, call_id("chatcmpl-1", 1));
        assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
    }
}
