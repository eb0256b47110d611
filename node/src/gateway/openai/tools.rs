//! Functions, forms of answers and what else a chat completion says about structure, from JSON and back.
//!
//! Types are checked here, bounds by the engine's own types, so that gateway and engine cannot disagree.
//!
//! | field | becomes |
//! |---|---|
//! | `tools`, `tool_choice`, `parallel_tool_calls` | [`ToolDefinition`], [`ToolChoice`], a flag |
//! | `response_format` | [`Grammar::JsonObject`], [`Grammar::JsonSchema`] or none |
//! | `structured_outputs` (vLLM's) | any [`Grammar`] |
//! | `chat_template_kwargs` (vLLM's) | variables of the chat template, such as `enable_thinking` |

use cocoon_inference::{
    RequestError, Structure,
    constraint::Grammar,
    tools::{ToolCall, ToolChoice, ToolDefinition, ToolEvent, call_id, validate_tools},
};
use serde_json::{Map, Value, json};

use super::{
    error::ApiError,
    request::{optional, present},
};

/// The names of the fields that [`parse`] reads.
pub(super) const KNOWN: &[&str] = &[
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "structured_outputs",
    "chat_template_kwargs",
];
/// Most calls of one message that a client sends back.
const MAX_CALLS: usize = 128;

/// Checked fields about structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StructureFields {
    /// Functions on offer.
    pub tools: Vec<ToolDefinition>,
    /// Whether they are to be called.
    pub choice: ToolChoice,
    /// Whether several may be called at once.
    pub parallel: bool,
    /// What the answer must be, if it is no call.
    pub grammar: Option<Grammar>,
    /// Variables of the chat template.
    pub variables: Map<String, Value>,
}

impl StructureFields {
    /// As part of a request that was made at this time, in seconds since 1970.
    #[must_use]
    pub fn at(&self, now: u64) -> Structure {
        let Self { tools, choice, parallel, grammar, variables } = self;
        Structure {
            tools: tools.clone(),
            choice: choice.clone(),
            parallel: *parallel,
            grammar: grammar.clone(),
            variables: if variables.is_empty() { String::new() } else { json!(variables).to_string() },
            now: Some(now),
        }
    }
}

/// Reads the fields.
///
/// # Errors
/// [`ApiError`] of type `invalid_request_error` that names the field and says what it should be.
pub(super) fn parse(fields: &Map<String, Value>) -> Result<StructureFields, ApiError> {
    let tools = tools(fields)?;
    let choice = choice(fields, &tools)?;
    let parallel = optional(fields, "parallel_tool_calls", Value::as_bool, "true or false")?;
    if parallel.is_some() && tools.is_empty() {
        return Err(invalid("parallel_tool_calls", "needs `tools`"));
    }
    let demanded = matches!(choice, ToolChoice::Required | ToolChoice::Named(_));
    if let Some(at) = strict(fields).filter(|_| !demanded) {
        let why = "`strict` is kept where a call is demanded only; set `tool_choice` to \"required\" or to a \
                   function, or leave it out";
        return Err(ApiError::unsupported(&format!("tools[{at}].function.strict"), why));
    }
    let grammar = match (response_format(fields)?, structured_outputs(fields)?) {
        (Some(_), Some(_)) => {
            return Err(invalid("structured_outputs", "cannot be combined with `response_format`"));
        }
        (format, outputs) => format.or(outputs),
    };
    if grammar.is_some() && demanded {
        let why = "demands a call, so that `response_format` and `structured_outputs` cannot be followed";
        return Err(invalid("tool_choice", why));
    }
    let variables = optional(fields, "chat_template_kwargs", Value::as_object, "an object")?;
    Ok(StructureFields {
        tools,
        choice,
        parallel: parallel.unwrap_or(true),
        grammar,
        variables: variables.cloned().unwrap_or_default(),
    })
}

/// The calls of an assistant's message at `path`, such as `messages[2]`.
pub(super) fn tool_calls(message: &Map<String, Value>, path: &str) -> Result<Vec<ToolCall>, ApiError> {
    let Some(value) = present(message, "tool_calls") else { return Ok(Vec::new()) };
    let here = format!("{path}.tool_calls");
    let calls = value.as_array().filter(|calls| !calls.is_empty() && calls.len() <= MAX_CALLS);
    let calls = calls.ok_or_else(|| invalid(&here, &format!("must be a list of 1 to {MAX_CALLS} calls")))?;
    let read = |(i, value): (usize, &Value)| {
        let here = format!("{here}[{i}]");
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let parts = (text("/id"), text("/function/name"), text("/function/arguments"));
        let (Some(id), Some(name), Some(arguments)) = parts else {
            let why =
                "must be {\"id\": …, \"type\": \"function\", \"function\": {\"name\": …, \"arguments\": …}}";
            return Err(invalid(&here, why));
        };
        let call = ToolCall { id, name, arguments };
        call.validate(&here).map_err(refusal)?;
        Ok(call)
    };
    calls.iter().enumerate().map(read).collect()
}

/// The delta of a stream's chunk for an event, if it has one: text is a delta of its own kind, and the end
/// of a call is none. `answer` is what ids are made of: the completion's id and the choice's index.
#[must_use]
pub fn delta(event: &ToolEvent, answer: &str) -> Option<Value> {
    let of = |call: Value| Some(json!({"tool_calls": [call]}));
    match event {
        ToolEvent::Text(text) => Some(json!({"content": text})),
        ToolEvent::CallStarted { index, name } => of(json!({
            "index": index,
            "id": call_id(answer, *index),
            "type": "function",
            "function": {"name": name, "arguments": ""},
        })),
        ToolEvent::ArgumentsDelta { index, text } => {
            of(json!({"index": index, "function": {"arguments": text}}))
        }
        ToolEvent::CallEnded { .. } => None,
    }
}

/// A call as part of a whole message.
#[must_use]
pub fn call_object(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    json!({"id": call.id, "type": "function", "function": function})
}

fn tools(fields: &Map<String, Value>) -> Result<Vec<ToolDefinition>, ApiError> {
    let Some(list) = optional(fields, "tools", Value::as_array, "a list")? else { return Ok(Vec::new()) };
    let tools: Vec<ToolDefinition> =
        list.iter().enumerate().map(|(i, value)| tool(i, value)).collect::<Result<_, _>>()?;
    validate_tools(&tools).map_err(refusal)?;
    Ok(tools)
}

fn tool(at: usize, value: &Value) -> Result<ToolDefinition, ApiError> {
    let path = format!("tools[{at}]");
    let function = value.get("function").and_then(Value::as_object);
    let (Some("function"), Some(function)) = (value.get("type").and_then(Value::as_str), function) else {
        return Err(invalid(&path, "must be {\"type\": \"function\", \"function\": {\"name\": …}}"));
    };
    let path = format!("{path}.function");
    only(function, &["name", "description", "parameters", "strict"], &path)?;
    let name = function.get("name").and_then(Value::as_str);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let schema = |value: &Value| value.is_object().then(|| value.to_string());
    Ok(ToolDefinition {
        name: name.ok_or_else(|| invalid(&format!("{path}.name"), "must be a string"))?.to_owned(),
        description: field(function, "description", &path, text, "a string")?,
        parameters: field(function, "parameters", &path, schema, "a JSON Schema")?,
    })
}

/// The first function that asks for its schema to be kept.
fn strict(fields: &Map<String, Value>) -> Option<usize> {
    let strict = |tool: &Value| tool.pointer("/function/strict").and_then(Value::as_bool) == Some(true);
    fields.get("tools")?.as_array()?.iter().position(strict)
}

fn choice(fields: &Map<String, Value>, tools: &[ToolDefinition]) -> Result<ToolChoice, ApiError> {
    let choice = match present(fields, "tool_choice") {
        None if tools.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(Value::String(choice)) if choice == "none" => ToolChoice::None,
        Some(_) if tools.is_empty() => return Err(invalid("tool_choice", "needs `tools`")),
        Some(Value::String(choice)) if choice == "auto" => ToolChoice::Auto,
        Some(Value::String(choice)) if choice == "required" => ToolChoice::Required,
        Some(value) => match value.pointer("/function/name").and_then(Value::as_str) {
            Some(name) if value.get("type").and_then(Value::as_str) == Some("function") => {
                ToolChoice::Named(name.to_owned())
            }
            _ => {
                let why = "must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": \
                           {\"name\": …}}";
                return Err(invalid("tool_choice", why));
            }
        },
    };
    choice.validate(tools).map_err(refusal)?;
    Ok(choice)
}

/// A schema is always kept, whatever `strict` says.
fn response_format(fields: &Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    let name = "response_format";
    let Some(format) = optional(fields, name, Value::as_object, "an object")? else { return Ok(None) };
    let kind = format.get("type").and_then(Value::as_str);
    let grammar = match kind {
        Some("text" | "json_object") => {
            only(format, &["type"], name)?;
            (kind == Some("json_object")).then_some(Grammar::JsonObject)
        }
        Some("json_schema") => {
            only(format, &["type", "json_schema"], name)?;
            let path = "response_format.json_schema";
            let inner = format.get("json_schema").and_then(Value::as_object);
            let inner = inner.ok_or_else(|| invalid(path, "must be {\"name\": …, \"schema\": {…}}"))?;
            only(inner, &["name", "description", "schema", "strict"], path)?;
            let schema = |value: &Value| value.is_object().then(|| value.to_string());
            Some(match field(inner, "schema", path, schema, "a JSON Schema")? {
                Some(schema) => Grammar::JsonSchema(schema),
                None => Grammar::JsonObject,
            })
        }
        _ => {
            let why = "must be \"text\", \"json_object\" or \"json_schema\"";
            return Err(invalid("response_format.type", why));
        }
    };
    checked(grammar, name)
}

fn structured_outputs(fields: &Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    let name = "structured_outputs";
    let Some(outputs) = optional(fields, name, Value::as_object, "an object")? else { return Ok(None) };
    let mut given = outputs.iter().filter(|(_, value)| !value.is_null());
    let (Some((kind, value)), None) = (given.next(), given.next()) else {
        return Err(invalid(name, "must have one of `json`, `json_object`, `regex`, `choice` and `grammar`"));
    };
    let text = || value.as_str().map(str::to_owned);
    let grammar = match kind.as_str() {
        "json" if value.is_object() => Some(Grammar::JsonSchema(value.to_string())),
        "json" => text().map(Grammar::JsonSchema),
        "json_object" => (value == &Value::Bool(true)).then_some(Grammar::JsonObject),
        "regex" => text().map(Grammar::Regex),
        "grammar" => text().map(Grammar::Lark),
        "choice" => {
            let texts =
                value.as_array().map(|all| all.iter().map(|v| v.as_str().map(str::to_owned)).collect());
            texts.flatten().map(Grammar::Choice)
        }
        _ => {
            let path = format!("{name}.{kind}");
            return Err(ApiError::unsupported(&path, format!("`{path}` is not supported by this gateway")));
        }
    };
    let wrong = || invalid(&format!("{name}.{kind}"), "is of the wrong type");
    checked(Some(grammar.ok_or_else(wrong)?), name)
}

fn checked(grammar: Option<Grammar>, field: &str) -> Result<Option<Grammar>, ApiError> {
    if let Some(grammar) = &grammar {
        grammar.validate().map_err(|error| invalid(field, &error.to_string()))?;
    }
    Ok(grammar)
}

/// An optional member of an inner object.
fn field<T>(
    fields: &Map<String, Value>,
    name: &str,
    path: &str,
    read: impl Fn(&Value) -> Option<T>,
    what: &str,
) -> Result<Option<T>, ApiError> {
    match present(fields, name) {
        None => Ok(None),
        Some(value) => read(value)
            .map(Some)
            .ok_or_else(|| invalid(&format!("{path}.{name}"), &format!("must be {what}"))),
    }
}

/// Refuses members that nobody acts on.
fn only(fields: &Map<String, Value>, known: &[&str], path: &str) -> Result<(), ApiError> {
    match fields.iter().find(|(name, value)| !value.is_null() && !known.contains(&name.as_str())) {
        None => Ok(()),
        Some((name, _)) => {
            let path = format!("{path}.{name}");
            Err(ApiError::unsupported(
                &path,
                format!("`{path}` is not supported by this gateway; leave it out"),
            ))
        }
    }
}

fn invalid(path: &str, why: &str) -> ApiError {
    ApiError::invalid(Some(path), format!("`{path}`: {why}"))
}

fn refusal(error: RequestError) -> ApiError {
    match &error {
        RequestError::Invalid { field, why } => invalid(field, why),
        _ => ApiError::invalid(None, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}},
        {"type":"function","function":{"name":"g"}}]"#;

    fn read(json: &str) -> Result<StructureFields, ApiError> {
        parse(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
    }

    #[test]
    fn every_field_arrives() {
        let fields = read(&format!(
            r#"{{{TOOLS},"tool_choice":"auto","parallel_tool_calls":false,
            "response_format":{{"type":"json_object"}},"chat_template_kwargs":{{"enable_thinking":false}}}}"#
        ))
        .unwrap();
        assert_eq!(fields.tools[0].name, "f");
        assert_eq!(fields.tools[0].parameters.as_deref(), Some(r#"{"type":"object"}"#));
        assert_eq!((fields.tools[1].description.as_ref(), fields.tools.len()), (None, 2));
        assert_eq!((fields.choice, fields.parallel), (ToolChoice::Auto, false));
        assert_eq!(fields.grammar, Some(Grammar::JsonObject));
        assert_eq!(fields.variables["enable_thinking"], false);
    }

    #[test]
    fn without_fields_an_answer_is_free() {
        for json in [r#"{}"#, r#"{"tools":[],"tool_choice":"none","response_format":{"type":"text"}}"#] {
            let fields = read(json).unwrap();
            assert!(fields.tools.is_empty() && fields.grammar.is_none() && fields.variables.is_empty());
            assert_eq!(fields.choice, ToolChoice::None);
        }
        assert_eq!(read(&format!("{{{TOOLS}}}")).unwrap().choice, ToolChoice::Auto);
    }

    #[test]
    fn choices_and_formats_have_openai_s_forms() {
        let choice = |json: &str| read(&format!(r#"{{{TOOLS},"tool_choice":{json}}}"#)).unwrap().choice;
        assert_eq!(choice("\"required\""), ToolChoice::Required);
        assert_eq!(choice(r#"{"type":"function","function":{"name":"g"}}"#), ToolChoice::Named("g".into()));
        let grammar = |json: &str| read(&format!("{{{json}}}")).unwrap().grammar.unwrap();
        let schema = r#""response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"array"}}}"#;
        assert_eq!(grammar(schema), Grammar::JsonSchema(r#"{"type":"array"}"#.into()));
        let outputs = |json: &str| grammar(&format!(r#""structured_outputs":{json}"#));
        assert_eq!(outputs(r#"{"regex":"a+","json":null}"#), Grammar::Regex("a+".into()));
        assert_eq!(outputs(r#"{"choice":["a","b"]}"#), Grammar::Choice(vec!["a".into(), "b".into()]));
        assert_eq!(outputs(r#"{"json":{"type":"null"}}"#), Grammar::JsonSchema(r#"{"type":"null"}"#.into()));
        assert_eq!(outputs(r#"{"grammar":"start: \"a\""}"#), Grammar::Lark("start: \"a\"".into()));
    }

    #[test]
    fn whatever_cannot_be_done_names_its_field() {
        let tools = |json: &str| format!(r#"{{{TOOLS},{json}}}"#);
        for (json, param) in [
            (r#"{"tools":1}"#.to_owned(), "tools"),
            (r#"{"tools":[{"type":"web_search"}]}"#.into(), "tools[0]"),
            (r#"{"tools":[{"type":"function","function":{"name":"a b"}}]}"#.into(), "tools[0].function.name"),
            (
                r#"{"tools":[{"type":"function","function":{"name":"a","x":1}}]}"#.into(),
                "tools[0].function.x",
            ),
            (
                r#"{"tools":[{"type":"function","function":{"name":"a","parameters":[]}}]}"#.into(),
                "tools[0].function.parameters",
            ),
            (
                r#"{"tools":[{"type":"function","function":{"name":"a","strict":true}}]}"#.into(),
                "tools[0].function.strict",
            ),
            (r#"{"tool_choice":"auto"}"#.into(), "tool_choice"),
            (tools(r#""tool_choice":"any""#), "tool_choice"),
            (tools(r#""tool_choice":{"type":"function","function":{"name":"h"}}"#), "tool_choice"),
            (tools(r#""tool_choice":"required","response_format":{"type":"json_object"}"#), "tool_choice"),
            (r#"{"parallel_tool_calls":true}"#.into(), "parallel_tool_calls"),
            (r#"{"response_format":{"type":"xml"}}"#.into(), "response_format.type"),
            (r#"{"response_format":{"type":"text","strict":true}}"#.into(), "response_format.strict"),
            (r#"{"response_format":{"type":"json_schema"}}"#.into(), "response_format.json_schema"),
            (r#"{"structured_outputs":{"regex":"a","choice":["b"]}}"#.into(), "structured_outputs"),
            (r#"{"structured_outputs":{"regex":1}}"#.into(), "structured_outputs.regex"),
            (r#"{"structured_outputs":{"regex":""}}"#.into(), "structured_outputs"),
            (r#"{"structured_outputs":{"structural_tag":1}}"#.into(), "structured_outputs.structural_tag"),
            (r#"{"chat_template_kwargs":1}"#.into(), "chat_template_kwargs"),
        ] {
            assert_eq!(read(&json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }

    #[test]
    fn calls_go_to_the_client_and_come_back() {
        let started = ToolEvent::CallStarted { index: 1, name: "f".into() };
        let delta_of = |event| delta(&event, "chatcmpl-1/0");
        let first = delta_of(started).unwrap();
        assert_eq!(first["tool_calls"][0]["function"], json!({"name": "f", "arguments": ""}));
        let more = delta_of(ToolEvent::ArgumentsDelta { index: 1, text: "{".into() }).unwrap();
        assert_eq!(more, json!({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}));
        assert_eq!(delta_of(ToolEvent::CallEnded { index: 1, whole: true }), None);
        let id = first["tool_calls"][0]["id"].as_str().unwrap().to_owned();
        let call = ToolCall { id, name: "f".into(), arguments: "{\"a\": 1}".into() };
        let message = json!({"role": "assistant", "content": null, "tool_calls": [call_object(&call)]});
        let read = |message: &Value| tool_calls(message.as_object().unwrap(), "messages[0]");
        assert_eq!(read(&message).unwrap(), [call]);
        for (calls, param) in [
            (json!([]), "messages[0].tool_calls"),
            (json!([{"id": "1"}]), "messages[0].tool_calls[0]"),
            (
                json!([{"id": "1", "function": {"name": "f", "arguments": "["}}]),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            assert_eq!(read(&json!({"tool_calls": calls})).unwrap_err().param.as_deref(), Some(param));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_value_makes_the_parser_panic(text in r#"\{"(tools|tool_choice|response_format)": [\[{"a-z:,}\]]{0,20}\}"#) {
            if let Ok(Value::Object(fields)) = serde_json::from_str(&text) {
                let _ = parse(&fields);
            }
        }
    }
}
