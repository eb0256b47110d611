//! Parses `POST /v1/chat/completions`.
//!
//! A field that this gateway does not act on is refused by name: silently ignoring, say, `audio` would return
//! an answer to a question that nobody asked. `null` counts as absent, since several clients send every
//! optional field that way. A few fields are accepted where they ask for what happens anyway: see
//! [`parse`].

use std::ops::RangeInclusive;

use cocoon_inference::limits::MAX_CACHE_KEY_BYTES;
use cocoon_inference::{ChatRole, Message};
use serde_json::{Map, Value};

use super::{
    error::ApiError,
    sampling::{self, SamplingFields},
    tools::{self, StructureFields},
};

/// Most messages that one request may carry; far above what a 256-token or 128k-token context holds.
pub const MAX_MESSAGES: usize = 2048;
/// Most answers to one request. Each is asked and paid for like a request of its own.
pub const MAX_CHOICES: u32 = 8;
/// OpenAI's own limits on metadata: pairs, characters of a key, characters of a value.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);
/// Beside the sampling fields.
const KNOWN: &[&str] = &[
    "model",
    "messages",
    "n",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "prompt_cache_key",
    "shared_cache_key",
];

/// With whom an asker shares cached prompts, and hence how long they take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheKey {
    /// With this gateway's other requests of the same key. Clients set it (`prompt_cache_key`) without meaning
    /// strangers.
    Own(String),
    /// With everybody who names it (`shared_cache_key`).
    Shared(String),
}

/// A chat completion request, checked field by field.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatCompletion {
    /// `name` or `name@digest`.
    pub model: String,
    /// The conversation so far, oldest first.
    pub messages: Vec<Message>,
    /// How to pick tokens.
    pub sampling: SamplingFields,
    /// Functions on offer, and what the answers must look like.
    pub structure: StructureFields,
    /// With whom cached prompts are shared (`prompt_cache_key`, `shared_cache_key`).
    pub cache_key: Option<CacheKey>,
    /// How many answers, 1 to [`MAX_CHOICES`] (`n`).
    pub choices: usize,
    /// Answer as server-sent events.
    pub stream: bool,
    /// Send a last event with the usage (`stream_options.include_usage`).
    pub include_usage: bool,
}

/// Parses a request body.
///
/// `user`, `metadata` and `store: false` are checked and change nothing: the first two are labels for a provider's own
/// records, of which there are none, and the third says what happens without it. They go no further than this
/// function.
///
/// # Errors
/// [`ApiError`] of type `invalid_request_error` that names the field and says what it should be.
pub fn parse(body: &[u8]) -> Result<ChatCompletion, ApiError> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(None, format!("the body is not valid JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(ApiError::invalid(None, "the body must be a JSON object"));
    };
    let stream = optional(&fields, "stream", Value::as_bool, "true or false")?.unwrap_or(false);
    let request = ChatCompletion {
        model: model(&fields)?,
        messages: messages(&fields)?,
        sampling: sampling::parse(&fields)?,
        structure: tools::parse(&fields)?,
        cache_key: cache_key(&fields)?,
        choices: integer(&fields, "n", 1..=MAX_CHOICES)?.unwrap_or(1) as usize,
        stream,
        include_usage: include_usage(&fields, stream)?,
    };
    without_effect(&fields)?;
    let known =
        |name: &str| KNOWN.contains(&name) || sampling::KNOWN.contains(&name) || tools::KNOWN.contains(&name);
    if let Some((name, _)) = fields.iter().find(|(name, value)| !value.is_null() && !known(name)) {
        return Err(ApiError::unsupported(
            name,
            format!("`{name}` is not supported by this gateway; leave it out"),
        ));
    }
    Ok(request)
}

fn model(fields: &Map<String, Value>) -> Result<String, ApiError> {
    let name = optional(fields, "model", Value::as_str, "a string")?.ok_or_else(|| {
        ApiError::invalid(Some("model"), "`model` is missing; GET /v1/models lists what is on offer")
    })?;
    if name.is_empty() || name.len() > 256 {
        return Err(ApiError::invalid(Some("model"), "`model` must have 1 to 256 characters"));
    }
    Ok(name.to_owned())
}

fn messages(fields: &Map<String, Value>) -> Result<Vec<Message>, ApiError> {
    let list = optional(fields, "messages", Value::as_array, "a list")?
        .ok_or_else(|| ApiError::invalid(Some("messages"), "`messages` is missing"))?;
    if list.is_empty() || list.len() > MAX_MESSAGES {
        let why = format!("`messages` must have 1 to {MAX_MESSAGES} entries, not {}", list.len());
        return Err(ApiError::invalid(Some("messages"), why));
    }
    list.iter().enumerate().map(|(at, value)| message(at, value)).collect()
}

fn message(at: usize, value: &Value) -> Result<Message, ApiError> {
    let here = |field: &str| format!("messages[{at}]{field}");
    let Value::Object(fields) = value else {
        return Err(ApiError::invalid(Some(&here("")), format!("`{}` must be an object", here(""))));
    };
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => ChatRole::System,
        Some("user") => ChatRole::User,
        Some("assistant") => ChatRole::Assistant,
        Some("tool") => ChatRole::Tool,
        _ => {
            let why = format!(
                "`{}` must be \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"",
                here(".role")
            );
            return Err(ApiError::invalid(Some(&here(".role")), why));
        }
    };
    let known: &[&str] = match role {
        ChatRole::Assistant => &["role", "content", "reasoning_content", "tool_calls"],
        ChatRole::Tool => &["role", "content", "tool_call_id", "name"],
        ChatRole::System | ChatRole::User => &["role", "content"],
    };
    // OpenAI's client sends an answer back with lists such as `annotations` that have nothing in them.
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if let Some((name, _)) =
        fields.iter().find(|(name, value)| !is_empty(value) && !known.contains(&name.as_str()))
    {
        let path = here(&format!(".{name}"));
        return Err(ApiError::unsupported(&path, format!("`{path}` is not supported by this gateway")));
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_parts(parts, &here(".content"))?,
        // An answer that is a call says nothing.
        None | Some(Value::Null) if present(fields, "tool_calls").is_some() => String::new(),
        _ => {
            let why = format!("`{}` must be a string or a list of text parts", here(".content"));
            return Err(ApiError::invalid(Some(&here(".content")), why));
        }
    };
    let text = |name: &str| match present(fields, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => {
            let path = here(&format!(".{name}"));
            Err(ApiError::invalid(Some(&path), format!("`{path}` must be a string")))
        }
    };
    let tool_call_id = text("tool_call_id")?;
    if role == ChatRole::Tool && tool_call_id.is_none() {
        let path = here(".tool_call_id");
        let why = format!("`{path}` is missing: it says which call this is the result of");
        return Err(ApiError::invalid(Some(&path), why));
    }
    Ok(Message {
        reasoning: text("reasoning_content")?,
        tool_calls: tools::tool_calls(fields, &here(""))?,
        tool_call_id,
        name: text("name")?,
        ..Message::new(role, content)
    })
}

fn text_parts(parts: &[Value], path: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for (at, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(piece)) => text.push_str(piece),
            _ => {
                let why = format!(
                    "`{path}[{at}]` must be {{\"type\": \"text\", \"text\": …}}; this model reads text only"
                );
                return Err(ApiError::invalid(Some(path), why));
            }
        }
    }
    Ok(text)
}

/// Fields that are accepted as far as they change nothing.
fn without_effect(fields: &Map<String, Value>) -> Result<(), ApiError> {
    optional(fields, "user", Value::as_str, "a string")?;
    if let Some(metadata) = optional(fields, "metadata", Value::as_object, "an object")? {
        let (pairs, key, value) = MAX_METADATA;
        let fits = |(name, text): (&String, &Value)| {
            name.chars().count() <= key && text.as_str().is_some_and(|text| text.chars().count() <= value)
        };
        if metadata.len() > pairs || !metadata.iter().all(fits) {
            let why = format!(
                "`metadata` must have at most {pairs} pairs of strings, keys of at most {key} characters and \
                 values of at most {value}"
            );
            return Err(ApiError::invalid(Some("metadata"), why));
        }
    }
    if optional(fields, "store", Value::as_bool, "true or false")? == Some(true) {
        let why = "`store: true` is not supported by this gateway, which keeps no answers; leave it out";
        return Err(ApiError::unsupported("store", why));
    }
    Ok(())
}

fn cache_key(fields: &Map<String, Value>) -> Result<Option<CacheKey>, ApiError> {
    let key = |name: &str| {
        let key = optional(fields, name, Value::as_str, "a string")?;
        if key.is_some_and(|key| !(1..=MAX_CACHE_KEY_BYTES).contains(&key.len())) {
            let why = format!("`{name}` must have 1 to {MAX_CACHE_KEY_BYTES} bytes");
            return Err(ApiError::invalid(Some(name), why));
        }
        Ok(key.map(str::to_owned))
    };
    match (key("prompt_cache_key")?, key("shared_cache_key")?) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid(Some("shared_cache_key"), "cannot be combined with `prompt_cache_key`"))
        }
        (own, shared) => Ok(own.map(CacheKey::Own).or(shared.map(CacheKey::Shared))),
    }
}

fn include_usage(fields: &Map<String, Value>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = optional(fields, "stream_options", Value::as_object, "an object")? else {
        return Ok(false);
    };
    if !stream {
        return Err(ApiError::invalid(Some("stream_options"), "`stream_options` needs `stream: true`"));
    }
    if let Some((name, _)) = options.iter().find(|(name, _)| *name != "include_usage") {
        let path = format!("stream_options.{name}");
        return Err(ApiError::unsupported(&path, format!("`{path}` is not supported by this gateway")));
    }
    Ok(optional(options, "include_usage", Value::as_bool, "true or false")?.unwrap_or(false))
}

/// A whole number within bounds.
pub(super) fn integer(
    fields: &Map<String, Value>,
    name: &str,
    bounds: RangeInclusive<u32>,
) -> Result<Option<u32>, ApiError> {
    let read = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
    match present(fields, name) {
        None => Ok(None),
        Some(value) => match read(value).filter(|value| bounds.contains(value)) {
            Some(value) => Ok(Some(value)),
            None => {
                let why =
                    format!("`{name}` must be an integer between {} and {}", bounds.start(), bounds.end());
                Err(ApiError::invalid(Some(name), why))
            }
        },
    }
}

pub(super) fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

pub(super) fn optional<'a, T>(
    fields: &'a Map<String, Value>,
    name: &str,
    read: impl Fn(&'a Value) -> Option<T>,
    what: &str,
) -> Result<Option<T>, ApiError> {
    match present(fields, name) {
        None => Ok(None),
        Some(value) => read(value)
            .map(Some)
            .ok_or_else(|| ApiError::invalid(Some(name), format!("`{name}` must be {what}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> ApiError {
        parse(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn strangers_share_a_cache_only_where_they_say_so() {
        let key = |extra: &str| {
            let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"a"}}],{extra}}}"#);
            parse(body.as_bytes()).map(|request| request.cache_key)
        };
        assert_eq!(key(r#""n":1"#).unwrap(), None);
        assert_eq!(key(r#""prompt_cache_key":"k""#).unwrap(), Some(CacheKey::Own("k".into())));
        assert_eq!(key(r#""shared_cache_key":"k""#).unwrap(), Some(CacheKey::Shared("k".into())));
        for (extra, param) in [
            (r#""prompt_cache_key":"""#, "prompt_cache_key"),
            (r#""shared_cache_key":7"#, "shared_cache_key"),
            (r#""prompt_cache_key":"k","shared_cache_key":"k""#, "shared_cache_key"),
        ] {
            assert_eq!(key(extra).unwrap_err().param.as_deref(), Some(param), "{extra}");
        }
    }

    #[test]
    fn a_full_request_is_read_field_by_field() {
        let body = r#"{"model":"m@ab","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "temperature":0.5,"top_p":0.25,"seed":-1,"stop":["x"],"max_tokens":7,"stream":true,"stream_options":{"include_usage":true},"tools":null}"#;
        let request = parse(body.as_bytes()).unwrap();
        assert_eq!(request.model, "m@ab");
        assert_eq!(request.messages[1], Message::new(ChatRole::User, "ab"));
        assert_eq!(request.sampling.seed, Some(u64::MAX));
        assert_eq!(request.sampling.options.stop, ["x"]);
        assert!(request.stream && request.include_usage);
        assert_eq!(request.choices, 1);
    }

    #[test]
    fn a_field_nobody_acts_on_is_refused_by_name() {
        for field in ["functions", "prediction", "audio", "reasoning_effort", "best_of", "made_up"] {
            let error = refused(&format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"{field}":1}}"#
            ));
            assert_eq!(error.param.as_deref(), Some(field));
            assert!(error.message.contains(field), "{}", error.message);
        }
    }

    #[test]
    fn wrong_types_and_ranges_name_their_field() {
        let with =
            |extra: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],{extra}}}"#);
        for (extra, param) in [
            (r#""temperature":3"#, "temperature"),
            (r#""n":0"#, "n"),
            (r#""n":9"#, "n"),
            (r#""n":1.5"#, "n"),
            (r#""stream":"yes""#, "stream"),
            (r#""stream_options":{"include_usage":true}"#, "stream_options"),
            (r#""user":7"#, "user"),
            (r#""metadata":{"a":1}"#, "metadata"),
            (r#""metadata":"a""#, "metadata"),
            (r#""store":true"#, "store"),
            (r#""store":"no""#, "store"),
            (r#""response_format":{"type":"xml"}"#, "response_format.type"),
            (r#""response_format":{"type":"text","strict":true}"#, "response_format.strict"),
            (r#""tools":1"#, "tools"),
        ] {
            assert_eq!(refused(&with(extra)).param.as_deref(), Some(param));
        }
        assert_eq!(refused(r#"{"messages":[]}"#).param.as_deref(), Some("model"));
        assert_eq!(refused(r#"{"model":"m","messages":[]}"#).param.as_deref(), Some("messages"));
        assert_eq!(
            refused(r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#).param.as_deref(),
            Some("messages[0].tool_call_id")
        );
        assert_eq!(refused("[1]").param, None);
        assert_eq!(refused("{").param, None);
    }

    #[test]
    fn fields_that_ask_for_what_happens_anyway_are_accepted() {
        let body =
            |extra: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{extra}}}"#);
        let plain = parse(body("").as_bytes()).unwrap();
        let extra =
            r#","user":"u","metadata":{"a":"b"},"store":false,"response_format":{"type":"text"},"n":1"#;
        assert_eq!(parse(body(extra).as_bytes()).unwrap(), plain);
        assert_eq!(parse(body(r#","n":8"#).as_bytes()).unwrap().choices, 8);
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            let _ = parse(&body);
        }
    }
}
