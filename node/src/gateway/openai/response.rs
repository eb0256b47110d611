//! Response bodies: the model list, the whole completion, and the chunks of a stream.
//!
//! Chunks are the gateway's hot path (50 or more per answer), so everything that is the same in each of
//! them is rendered once per answer and a chunk costs one JSON string escape and one copy.

use cocoon_client::Receipt;
use cocoon_inference::{FinishReason, Usage};
use serde_json::{Value, json};

/// Renders the parts of one streamed answer.
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

    /// The first event: the role, before any text, and as the extension `cocoon` who answers.
    pub fn role(&self, who: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
        let tail = format!(
            ",\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\
             \"finish_reason\":null}}],\"cocoon\":{who}}}\n\n"
        );
        out.extend_from_slice(tail.as_bytes());
    }

    /// One piece of text.
    pub fn text(&self, text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
        out.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":{\"content\":");
        // Writing a string into a `Vec` cannot fail.
        let _ = serde_json::to_writer(&mut *out, text);
        out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    }

    /// The event that says why the answer ended; carries the receipt as the extension `cocoon`.
    pub fn finish(&self, reason: FinishReason, receipt: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
        let tail = format!(
            ",\"choices\":[{{\"index\":0,\"delta\":{{}},\"logprobs\":null,\"finish_reason\":\"{}\"}}],\"cocoon\":{receipt}}}\n\n",
            finish_reason(reason)
        );
        out.extend_from_slice(tail.as_bytes());
    }

    /// The usage event of `stream_options.include_usage`.
    pub fn usage(&self, usage: Usage, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
        out.extend_from_slice(format!(",\"choices\":[],\"usage\":{}}}\n\n", usage_object(usage)).as_bytes());
    }
}

/// The last line of every stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// An error in the middle of a stream, after the status line has gone out.
pub fn error_event(error: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("data: {error}\n\n").as_bytes());
}

/// A whole completion.
pub fn completion(
    id: &str,
    model: &str,
    created: u64,
    text: &str,
    reason: FinishReason,
    usage: Usage,
    receipt: &Value,
) -> Value {
    json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": null,
            "finish_reason": finish_reason(reason),
        }],
        "usage": usage_object(usage),
        "cocoon": receipt,
    })
}

/// OpenAI's usage object.
pub fn usage_object(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
    })
}

/// What an answer cost and who ran it, as the extension field `cocoon`.
pub fn receipt(receipt: &Receipt) -> Value {
    serde_json::to_value(receipt).unwrap_or(Value::Null)
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::Cancelled => "stop",
        FinishReason::Length => "length",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: &[u8]) -> Value {
        let text = std::str::from_utf8(bytes).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap().trim_end()).unwrap()
    }

    #[test]
    fn every_chunk_is_one_event_of_valid_json() {
        let chunks = Chunks::new("chatcmpl-1", "tiny\"", 5);
        let mut out = Vec::new();
        chunks.text("a\"\n\u{1F600}", &mut out);
        assert!(out.ends_with(b"\n\n"));
        let value = event(&out);
        assert_eq!(value["choices"][0]["delta"]["content"], "a\"\n\u{1F600}");
        assert_eq!(value["model"], "tiny\"");
        out.clear();
        chunks.usage(Usage { prompt_tokens: 3, completion_tokens: 4 }, &mut out);
        assert_eq!(event(&out)["usage"]["total_tokens"], 7);
        out.clear();
        chunks.finish(FinishReason::Length, &json!({"total": 1}), &mut out);
        assert_eq!(event(&out)["choices"][0]["finish_reason"], "length");
        out.clear();
        chunks.role(&json!({"worker": "w"}), &mut out);
        assert_eq!(event(&out)["choices"][0]["delta"]["role"], "assistant");
    }
}
