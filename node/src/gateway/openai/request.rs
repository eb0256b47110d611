//! Parses `POST /v1/chat/completions`.
//!
//! A field that this gateway does not act on is refused by name: silently ignoring, say, `tools` or
//! `logit_bias` would return an answer to a question that nobody asked. `null` counts as absent, since
//! several clients send every optional field that way.

use cocoon_inference::{ChatRole, Message, Sampling};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Most messages that one request may carry; far above what a 256-token or 128k-token context holds.
pub const MAX_MESSAGES: usize = 2048;
/// OpenAI's own limit on stop sequences.
pub const MAX_STOPS: usize = 4;
const KNOWN: &[&str] =
    &["model", "messages", "temperature", "top_p", "seed", "stop", "max_tokens", "stream", "stream_options"];

/// A chat completion request, checked field by field.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatCompletion {
    /// `name` or `name@digest`.
    pub model: String,
    /// The conversation so far, oldest first.
    pub messages: Vec<Message>,
    /// How to pick tokens. `seed` is `None` when the client left it to us.
    pub sampling: SamplingFields,
    /// Answer as server-sent events.
    pub stream: bool,
    /// Send a last event with the usage (`stream_options.include_usage`).
    pub include_usage: bool,
}

/// The sampling fields as OpenAI names them, with OpenAI's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingFields {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus mass; 0 is greedy too.
    pub top_p: f32,
    /// Absent: the gateway draws one, so that a failover continues the same random sequence.
    pub seed: Option<u64>,
    /// Up to four strings that end the answer.
    pub stop: Vec<String>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
}

impl SamplingFields {
    /// The engine's sampling options, with `fallback_seed` where the client gave none.
    pub fn into_sampling(self, fallback_seed: u64) -> Sampling {
        // OpenAI accepts a nucleus of 0, where only the likeliest token is left; engines call that greedy.
        // Asked of the `f32`: a positive number too small for it has become 0 as well.
        let (temperature, top_p) = if self.top_p > 0.0 { (self.temperature, self.top_p) } else { (0.0, 1.0) };
        Sampling {
            temperature,
            top_p,
            seed: self.seed.unwrap_or(fallback_seed),
            stop: self.stop,
            max_tokens: self.max_tokens,
        }
    }
}

/// Parses a request body.
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
        sampling: SamplingFields {
            temperature: ranged(&fields, "temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: ranged(&fields, "top_p", 0.0, 1.0)?.unwrap_or(1.0),
            seed: seed(&fields)?,
            stop: stop(&fields)?,
            max_tokens: max_tokens(&fields)?,
        },
        stream,
        include_usage: include_usage(&fields, stream)?,
    };
    if let Some((name, _)) =
        fields.iter().find(|(name, value)| !value.is_null() && !KNOWN.contains(&name.as_str()))
    {
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
        _ => {
            let why =
                format!("`{}` must be \"system\", \"developer\", \"user\" or \"assistant\"", here(".role"));
            return Err(ApiError::invalid(Some(&here(".role")), why));
        }
    };
    if let Some((name, _)) =
        fields.iter().find(|(name, value)| !value.is_null() && !["role", "content"].contains(&name.as_str()))
    {
        let path = here(&format!(".{name}"));
        return Err(ApiError::unsupported(&path, format!("`{path}` is not supported by this gateway")));
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_parts(parts, &here(".content"))?,
        _ => {
            let why = format!("`{}` must be a string or a list of text parts", here(".content"));
            return Err(ApiError::invalid(Some(&here(".content")), why));
        }
    };
    Ok(Message { role, content })
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

fn seed(fields: &Map<String, Value>) -> Result<Option<u64>, ApiError> {
    // OpenAI's seeds are signed; the bits are what matters.
    match present(fields, "seed") {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .map(Some)
            .ok_or_else(|| ApiError::invalid(Some("seed"), "`seed` must be a 64-bit integer")),
    }
}

fn stop(fields: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let bad = || {
        ApiError::invalid(
            Some("stop"),
            format!("`stop` must be a string or up to {MAX_STOPS} non-empty strings"),
        )
    };
    let stops = match present(fields, "stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .map(|one| one.as_str().map(str::to_owned).ok_or_else(bad))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(bad()),
    };
    if stops.len() > MAX_STOPS || stops.iter().any(|one| one.is_empty() || one.len() > 256) {
        return Err(bad());
    }
    Ok(stops)
}

fn max_tokens(fields: &Map<String, Value>) -> Result<Option<u32>, ApiError> {
    match present(fields, "max_tokens") {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|count| u32::try_from(count).ok()) {
            Some(count) if count > 0 => Ok(Some(count)),
            _ => Err(ApiError::invalid(Some("max_tokens"), "`max_tokens` must be a positive integer")),
        },
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

fn ranged(fields: &Map<String, Value>, name: &str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
    match optional(fields, name, Value::as_f64, "a number")? {
        Some(value) if !(low..=high).contains(&value) => Err(ApiError::invalid(
            Some(name),
            format!("`{name}` must be between {low} and {high}, not {value}"),
        )),
        Some(value) => Ok(Some(value as f32)),
        None => Ok(None),
    }
}

fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn optional<'a, T>(
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
    fn a_full_request_is_read_field_by_field() {
        let body = r#"{"model":"m@ab","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "temperature":0.5,"top_p":0.25,"seed":-1,"stop":["x"],"max_tokens":7,"stream":true,"stream_options":{"include_usage":true},"tools":null}"#;
        let request = parse(body.as_bytes()).unwrap();
        assert_eq!(request.model, "m@ab");
        assert_eq!(request.messages[1], Message { role: ChatRole::User, content: "ab".into() });
        assert_eq!(request.sampling.seed, Some(u64::MAX));
        assert_eq!(request.sampling.stop, ["x"]);
        assert!(request.stream && request.include_usage);
    }

    #[test]
    fn a_field_nobody_acts_on_is_refused_by_name() {
        for field in ["tools", "n", "logit_bias", "response_format", "user", "made_up"] {
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
            (r#""temperature":"hot""#, "temperature"),
            (r#""top_p":-1"#, "top_p"),
            (r#""seed":1.5"#, "seed"),
            (r#""stop":["a","b","c","d","e"]"#, "stop"),
            (r#""stop":"""#, "stop"),
            (r#""max_tokens":0"#, "max_tokens"),
            (r#""stream":"yes""#, "stream"),
            (r#""stream_options":{"include_usage":true}"#, "stream_options"),
        ] {
            assert_eq!(refused(&with(extra)).param.as_deref(), Some(param));
        }
        assert_eq!(refused(r#"{"messages":[]}"#).param.as_deref(), Some("model"));
        assert_eq!(refused(r#"{"model":"m","messages":[]}"#).param.as_deref(), Some("messages"));
        assert_eq!(
            refused(r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#).param.as_deref(),
            Some("messages[0].role")
        );
        assert_eq!(refused("[1]").param, None);
        assert_eq!(refused("{").param, None);
    }

    #[test]
    fn an_empty_nucleus_is_greedy() {
        let sampling = |top_p: &str| {
            let body = format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"temperature":0.7,"top_p":{top_p}}}"#
            );
            parse(body.as_bytes()).unwrap().sampling.into_sampling(1)
        };
        for zero in ["0", "0.0", "1e-60"] {
            let sampling = sampling(zero);
            assert_eq!((sampling.temperature, sampling.top_p), (0.0, 1.0), "{zero}");
            sampling.validate().unwrap();
        }
        assert_eq!((sampling("0.1").temperature, sampling("0.1").top_p), (0.7, 0.1));
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            let _ = parse(&body);
        }
    }
}
