//! Response bodies: the model list, the whole completion, and the chunks of a stream.
//!
//! Chunks are the gateway's hot path (50 or more per answer), so everything that is the same in each of
//! them is rendered once per answer and a chunk costs one JSON string escape and one copy.

use std::io::Write as _;

use cocoon_client::Receipt;
use cocoon_inference::{FinishReason, Token, Usage};
use serde_json::{Value, json};

use super::choice::Choice;

/// Renders the parts of one streamed answer. Writing into a `Vec` cannot fail, so that its results are
/// dropped throughout.
#[derive(Debug, Clone)]
pub struct Chunks {
    head: String,
}

impl Chunks {
    /// `id` and `model` as the client will see them, `created` in unix seconds.
    pub fn new(id: &str, model: &str, created: u64) -> Self {
        let (id, model) = (Value::from(id), Value::from(model));
        Self {
            head: format!(
                "data: {{\"id\":{id},\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":{model}"
            ),
        }
    }

    /// The first event of an answer: the role, before any text, and as the extension `cocoon` who answers.
    pub fn role(&self, choice: usize, who: &Value, out: &mut Vec<u8>) {
        self.choice(choice, out);
        let _ = write!(
            out,
            "{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}],\
             \"cocoon\":{who}}}\n\n"
        );
    }

    /// One token: the text that it releases, and its log-probabilities if they were asked for.
    pub fn token(&self, choice: usize, token: &Token, out: &mut Vec<u8>) {
        self.content(choice, &token.text, out);
        logprobs(token, out);
    }

    /// What a token released of an answer that is not text alone, as deltas. Its log-probabilities go with the first.
    pub fn deltas(&self, choice: usize, deltas: &[Value], token: Option<&Token>, out: &mut Vec<u8>) {
        for (i, delta) in deltas.iter().enumerate() {
            self.choice(choice, out);
            let _ = write!(out, "{delta},\"logprobs\":");
            match token.filter(|_| i == 0) {
                Some(token) => logprobs(token, out),
                None => out.extend_from_slice(b"null,\"finish_reason\":null}]}\n\n"),
            }
        }
    }

    /// The event that says why the answer ended; carries the receipt as the extension `cocoon`.
    pub fn finish(&self, choice: usize, reason: &str, receipt: &Value, out: &mut Vec<u8>) {
        self.choice(choice, out);
        let _ = write!(
            out,
            "{{}},\"logprobs\":null,\"finish_reason\":\"{reason}\"}}],\"cocoon\":{receipt}}}\n\n"
        );
    }

    /// The usage event of `stream_options.include_usage`.
    pub fn usage(&self, usage: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
        let _ = write!(out, ",\"choices\":[],\"usage\":{usage}}}\n\n");
    }

    /// Up to where the delta of an answer's only choice begins.
    fn choice(&self, choice: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
        let _ = write!(out, ",\"choices\":[{{\"index\":{choice},\"delta\":");
    }

    /// Up to where the log-probabilities of a piece of text begin.
    fn content(&self, choice: usize, text: &str, out: &mut Vec<u8>) {
        self.choice(choice, out);
        out.extend_from_slice(b"{\"content\":");
        let _ = serde_json::to_writer(&mut *out, text);
        out.extend_from_slice(b"},\"logprobs\":");
    }
}

/// The last line of every stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// An error in the middle of a stream, after the status line has gone out.
pub fn error_event(error: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("data: {error}\n\n").as_bytes());
}

/// A whole completion, its answers in order.
pub fn completion(
    id: &str,
    model: &str,
    created: u64,
    choices: Vec<Choice>,
    usage: &Value,
    receipt: &Value,
) -> Value {
    let choices: Vec<Value> =
        choices.into_iter().enumerate().map(|(index, choice)| choice.into_value(index)).collect();
    json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage,
        "cocoon": receipt,
    })
}

/// What all answers of a request used. Each read the prompt and paid for it, so each counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    prompt: u64,
    cached: u64,
    completion: u64,
    reasoning: u64,
}

impl Used {
    /// Adds an answer, of which some tokens were thoughts.
    pub fn add(&mut self, usage: Usage, reasoning_tokens: u32) {
        self.prompt += u64::from(usage.prompt_tokens);
        self.cached += u64::from(usage.cached_tokens);
        self.completion += u64::from(usage.completion_tokens);
        self.reasoning += u64::from(reasoning_tokens.min(usage.completion_tokens));
    }

    /// OpenAI's usage object.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

/// What one answer cost and who ran it, as the extension field `cocoon`.
pub fn receipt(receipt: &Receipt) -> Value {
    serde_json::to_value(receipt).unwrap_or(Value::Null)
}

/// The same for a request's answers together: the legs of the first, then those of the second, and so on.
pub fn receipts(receipts: impl IntoIterator<Item = Receipt>) -> Value {
    let together = receipts.into_iter().reduce(|mut all, one| {
        all.legs.extend(one.legs);
        all.total = all.total.saturating_add(one.total);
        all
    });
    together.map_or(Value::Null, |all| receipt(&all))
}

/// Why an answer ended, in OpenAI's words.
#[must_use]
pub fn finish_reason(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_calls => "tool_calls",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
        FinishReason::Length => "length",
    }
}

/// From the value of `logprobs` to the end of an event.
fn logprobs(token: &Token, out: &mut Vec<u8>) {
    match logprob(token) {
        None => out.extend_from_slice(b"null"),
        Some(logprob) => {
            let _ = write!(out, "{{\"content\":[{logprob}],\"refusal\":null}}");
        }
    }
    out.extend_from_slice(b",\"finish_reason\":null}]}\n\n");
}

/// OpenAI's entry of `logprobs.content` for a token, if its log-probabilities came with it.
pub(super) fn logprob(token: &Token) -> Option<Value> {
    let logprobs = token.logprobs.as_deref()?;
    let top: Vec<Value> = logprobs.top.iter().map(|a| candidate(a.id, a.logprob, &a.bytes)).collect();
    let mut entry = candidate(token.id, logprobs.logprob, &logprobs.bytes);
    entry["top_logprobs"] = top.into();
    Some(entry)
}

/// `token` is text, which part of a character is not; `bytes` are exact. A control token has none, and is
/// called by its id as vLLM does.
fn candidate(id: u32, logprob: f32, bytes: &[u8]) -> Value {
    match bytes {
        [] => json!({"token": format!("token_id:{id}"), "logprob": logprob, "bytes": null}),
        bytes => json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes}),
    }
}

#[cfg(test)]
mod tests {
    use cocoon_inference::{Alternative, Logprobs};
    use cocoon_payments::NanoTon;

    use super::*;

    fn event(bytes: &[u8]) -> Value {
        let text = std::str::from_utf8(bytes).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap().trim_end()).unwrap()
    }

    fn plain(logprobs: bool) -> Choice {
        Choice::new("i-0".into(), logprobs, &[])
    }

    /// The first byte of "é", with a control token as its rival.
    fn half() -> Token {
        let alternative = |id, logprob, bytes: &[u8]| Alternative { id, logprob, bytes: bytes.to_vec() };
        let top = vec![alternative(5, -0.25, &[0xc3]), alternative(257, -1.5, &[])];
        let logprobs = Logprobs { logprob: -0.25, bytes: vec![0xc3], top };
        Token { logprobs: Some(Box::new(logprobs)), ..Token::new(5, "") }
    }

    fn expected() -> Value {
        json!({
            "token": "\u{FFFD}", "logprob": -0.25, "bytes": [195],
            "top_logprobs": [
                {"token": "\u{FFFD}", "logprob": -0.25, "bytes": [195]},
                {"token": "token_id:257", "logprob": -1.5, "bytes": null},
            ],
        })
    }

    #[test]
    fn every_chunk_is_one_event_of_valid_json() {
        let chunks = Chunks::new("chatcmpl-1", "tiny\"", 5);
        let mut out = Vec::new();
        chunks.token(3, &Token::new(1, "a\"\n\u{1F600}"), &mut out);
        assert!(out.ends_with(b"\n\n"));
        let value = event(&out);
        let choice = &value["choices"][0];
        assert_eq!(choice["delta"]["content"], "a\"\n\u{1F600}");
        assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(3), &Value::Null));
        assert_eq!(value["model"], "tiny\"");
        out.clear();
        chunks.deltas(0, &[json!({"content": "tail"})], None, &mut out);
        assert_eq!(event(&out)["choices"][0]["delta"]["content"], "tail");
        out.clear();
        let mut used = Used::default();
        used.add(Usage { prompt_tokens: 3, cached_tokens: 2, completion_tokens: 4 }, 1);
        chunks.usage(&used.object(), &mut out);
        assert_eq!(event(&out)["usage"]["total_tokens"], 7);
        assert_eq!(event(&out)["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
        out.clear();
        chunks.finish(0, "length", &json!({"total": 1}), &mut out);
        assert_eq!(event(&out)["choices"][0]["finish_reason"], "length");
        out.clear();
        chunks.role(1, &json!({"worker": "w"}), &mut out);
        assert_eq!(event(&out)["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(event(&out)["choices"][0]["index"], 1);
    }

    #[test]
    fn log_probabilities_have_openai_s_shape_streamed_and_whole() {
        let mut out = Vec::new();
        Chunks::new("i", "m", 5).token(0, &half(), &mut out);
        let streamed = event(&out)["choices"][0]["logprobs"].clone();
        let mut choice = plain(true);
        choice.push(&[half()]);
        let whole = completion("i", "m", 5, vec![choice], &Value::Null, &Value::Null);
        for found in [&streamed, &whole["choices"][0]["logprobs"]] {
            assert_eq!(found, &json!({"content": [expected()], "refusal": null}));
        }
        let plain = completion("i", "m", 5, vec![plain(false)], &Value::Null, &Value::Null);
        assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
    }

    #[test]
    fn several_answers_are_numbered_and_their_receipts_added_up() {
        let choice = |text: &str, reason| {
            let mut choice = plain(false);
            choice.push(&[Token::new(1, text)]);
            choice.finish("!", reason);
            choice
        };
        let choices = vec![choice("a", FinishReason::Stop), choice("b", FinishReason::Length)];
        let one = |total| Receipt { legs: Vec::new(), model: "m".into(), total: NanoTon(total) };
        let value = completion("i", "m", 5, choices, &Value::Null, &receipts([one(3), one(4)]));
        let of = |at: usize| value["choices"][at].clone();
        assert_eq!(
            (of(0)["message"]["content"].clone(), of(0)["finish_reason"].clone()),
            (json!("a!"), json!("stop"))
        );
        assert_eq!((of(1)["index"].clone(), of(1)["finish_reason"].clone()), (json!(1), json!("length")));
        assert_eq!(value["cocoon"]["total"], 7);
    }
}
