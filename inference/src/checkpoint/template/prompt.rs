//! What a template is rendered with, in the shape that `transformers` hands it over.

use minijinja::Value;
use serde_json::{Map, Value as Json, json};

use super::TemplateError;
use crate::Message;
use crate::tools::{ToolCall, ToolDefinition};

/// Names that mean something already.
const RESERVED: [&str; 8] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "strftime_now",
    "raise_exception",
];

/// A conversation to render.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// Oldest first.
    pub messages: &'a [Message],
    /// Functions on offer.
    pub tools: &'a [ToolDefinition],
    /// Further variables, which the OpenAI API of other servers calls `chat_template_kwargs`: for example
    /// `enable_thinking: false`, with which Qwen 3 answers at once.
    pub variables: Option<&'a Map<String, Json>>,
    /// Seconds since 1970, for templates that write the date. Without it `strftime_now` is undefined, and
    /// templates write a fixed date or none. Must be part of the request, not a clock's: whoever resumes
    /// the answer must render the same prompt.
    pub now: Option<u64>,
    /// End where the model's turn begins.
    pub add_generation_prompt: bool,
}

impl<'a> Prompt<'a> {
    /// A conversation alone, to be continued by the model.
    pub fn new(messages: &'a [Message]) -> Self {
        Self { messages, tools: &[], variables: None, now: None, add_generation_prompt: true }
    }

    /// The template's variables, but for those of the model.
    pub(super) fn context(&self) -> Result<Map<String, Json>, TemplateError> {
        let mut context = Map::new();
        if let Some(variables) = self.variables {
            check(variables)?;
            context.extend(variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let messages: Vec<Json> =
            self.messages.iter().enumerate().map(|(i, turn)| message(i, turn)).collect::<Result<_, _>>()?;
        let tools: Vec<Json> = self.tools.iter().map(ToolDefinition::to_json).collect();
        context.insert("messages".into(), messages.into());
        // None rather than absent or empty: templates ask in all three ways, and `transformers` does this.
        context.insert("tools".into(), if tools.is_empty() { Json::Null } else { tools.into() });
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), self.add_generation_prompt.into());
        Ok(context)
    }
}

fn check(variables: &Map<String, Json>) -> Result<(), TemplateError> {
    match variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
        Some(name) => Err(TemplateError::Reserved { name: name.clone() }),
        None => Ok(()),
    }
}

/// Absent keys stay absent, since templates ask whether they are defined. A call without text has an empty
/// one: some templates print it without asking.
fn message(at: usize, turn: &Message) -> Result<Json, TemplateError> {
    let mut fields = Map::new();
    fields.insert("role".into(), turn.role.as_str().into());
    fields.insert("content".into(), turn.content.as_str().into());
    let optional =
        [("reasoning_content", &turn.reasoning), ("tool_call_id", &turn.tool_call_id), ("name", &turn.name)];
    for (key, value) in optional {
        if let Some(value) = value {
            fields.insert(key.into(), value.as_str().into());
        }
    }
    if !turn.tool_calls.is_empty() {
        let call = |(i, call): (usize, &ToolCall)| {
            // Templates want an object, and write it their own way.
            let arguments = call
                .arguments_object(&format!("messages[{at}].tool_calls[{i}]"))
                .map_err(|e| TemplateError::Call(e.to_string()))?;
            let function = json!({"name": call.name, "arguments": arguments});
            Ok(json!({"id": call.id, "type": "function", "function": function}))
        };
        let calls: Vec<Json> = turn.tool_calls.iter().enumerate().map(call).collect::<Result<_, _>>()?;
        fields.insert("tool_calls".into(), calls.into());
    }
    Ok(Json::Object(fields))
}

/// As the template engine's values. Recurses no deeper than `serde_json` does, which refuses 128 levels.
pub(super) fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => value.into(),
        Json::String(value) => value.into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => number.into(),
            (_, Some(number), _) => number.into(),
            (.., number) => number.unwrap_or(f64::NAN).into(),
        },
        Json::Array(items) => items.into_iter().map(value).collect::<Vec<Value>>().into(),
        Json::Object(fields) => Value::from_pairs(fields.into_iter().map(|(key, field)| (key, value(field)))),
    }
}
