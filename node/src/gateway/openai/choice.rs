//! One answer of a whole completion, as it grows.

use std::collections::BTreeMap;

use cocoon_inference::{
    AnswerForm, AnswerPart, AnswerReader, FinishReason, Token,
    tools::{ToolCall, ToolDefinition, ToolEvent, call_id},
};
use serde_json::{Value, json};

use super::{
    response::{finish_reason, logprob},
    tools::call_object,
};

/// One answer.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What ids of calls are made of.
    id: String,
    tools: Vec<ToolDefinition>,
    reader: AnswerReader,
    /// It has tokens.
    begun: bool,
    text: String,
    reasoning: String,
    calls: BTreeMap<u32, ToolCall>,
    /// One entry per token, if they were asked for.
    logprobs: Option<Vec<Value>>,
    reason: FinishReason,
}

impl Choice {
    /// An answer without any text yet, of a model that was offered these functions.
    #[must_use]
    pub fn new(id: String, logprobs: bool, tools: &[ToolDefinition]) -> Self {
        Self {
            id,
            tools: tools.to_vec(),
            reader: AnswerReader::new(AnswerForm::default(), &[]),
            begun: false,
            text: String::new(),
            reasoning: String::new(),
            calls: BTreeMap::new(),
            logprobs: logprobs.then(Vec::new),
            reason: FinishReason::Stop,
        }
    }

    /// Says how it is to be read. Once it has tokens, another worker may go on with it, but not read it anew.
    pub fn begin(&mut self, form: AnswerForm) {
        if !self.begun {
            self.reader = AnswerReader::new(form, &self.tools);
        }
    }

    /// Appends tokens.
    pub fn push(&mut self, tokens: &[Token]) {
        self.begun |= !tokens.is_empty();
        for token in tokens {
            if self.reader.is_plain() {
                self.text.push_str(&token.text);
            } else {
                let parts = self.reader.push(&token.text);
                self.take(parts);
            }
        }
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.extend(tokens.iter().filter_map(logprob));
        }
    }

    /// Ends it with the text that was held back.
    pub fn finish(&mut self, tail: &str, reason: FinishReason) {
        let parts = self.reader.finish(tail);
        self.take(parts);
        self.reason = reason;
    }

    /// Tokens of thoughts.
    #[must_use]
    pub fn reasoning_tokens(&self) -> u32 {
        self.reader.reasoning_tokens()
    }

    fn take(&mut self, parts: Vec<AnswerPart>) {
        for part in parts {
            match part {
                AnswerPart::Text(text) => self.text.push_str(&text),
                AnswerPart::Reasoning(text) => self.reasoning.push_str(&text),
                AnswerPart::Call(ToolEvent::CallStarted { index, name }) => {
                    let call = ToolCall { id: call_id(&self.id, index), name, arguments: String::new() };
                    self.calls.insert(index, call);
                }
                AnswerPart::Call(ToolEvent::ArgumentsDelta { index, text }) => {
                    if let Some(call) = self.calls.get_mut(&index) {
                        call.arguments.push_str(&text);
                    }
                }
                AnswerPart::Call(ToolEvent::CallEnded { .. } | ToolEvent::Text(_)) => {}
            }
        }
    }

    /// As an entry of `choices`.
    pub(super) fn into_value(self, index: usize) -> Value {
        let has_calls = !self.calls.is_empty();
        // What stands between calls is space, and a client that sees a call expects no text.
        let content = (!has_calls || !self.text.trim().is_empty()).then_some(self.text);
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.into();
        }
        if has_calls {
            message["tool_calls"] = self.calls.values().map(call_object).collect();
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": self.logprobs.map(|content| json!({"content": content, "refusal": null})),
            "finish_reason": finish_reason(self.reason, self.reader.has_calls()),
        })
    }
}

#[cfg(test)]
mod tests {
    use cocoon_inference::{Thinking, tools::ToolFormat};

    use super::*;

    #[test]
    fn a_call_is_an_object_and_not_text() {
        let tools = [ToolDefinition { name: "add".into(), description: None, parameters: None }];
        let mut choice = Choice::new("chatcmpl-1-0".into(), false, &tools);
        choice.begin(AnswerForm { tools: Some(ToolFormat::Hermes), reasoning: Thinking::Opened });
        let pieces =
            ["So", " add.</think>\n\n<tool_call>\n{\"name\": \"add\", ", "\"arguments\": {\"a\": 1}}\n"];
        for piece in pieces.iter().chain(&["</tool_call>"]) {
            choice.push(&[Token::new(1, *piece)]);
        }
        choice.finish("", FinishReason::Stop);
        assert!(choice.reasoning_tokens() >= 2);
        let value = choice.into_value(0);
        assert_eq!(value["finish_reason"], "tool_calls");
        let message = &value["message"];
        assert_eq!((&message["content"], &message["reasoning_content"]), (&Value::Null, &json!("So add.")));
        assert_eq!(message["tool_calls"][0]["function"], json!({"name": "add", "arguments": "{\"a\": 1}"}));
        assert_eq!(message["tool_calls"][0]["id"], call_id("chatcmpl-1-0", 0));
    }
}
