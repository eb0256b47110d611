//! Rows as the model reads them: rendered by the very template that is served, and cut into tokens.
//!
//! What a row trains are the answers: the last one, and each earlier one that the template repeats as the
//! model wrote it. Answers that were worked out are not among those, since thoughts are dropped from
//! earlier turns. Within an answer, parts that a grammar would have written are read but not trained.

use super::corpus::Row;
use super::tokenizer::{Tokens, TokensError};
use crate::checkpoint::{ChatTemplate, Prompt, TemplateError};
use crate::tools::ToolDefinition;
use crate::{ChatRole, Message};

/// The chat template: ChatML and Hermes calls as in Qwen 3, with functions described in the form of a call.
/// Descriptions of parameters are left out: the model never learned to use them.
pub const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

/// Closes an answer.
const END: &str = "<|im_end|>";

/// Why a row cannot be written down.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template fails.
    #[error("the chat template: {0}")]
    Template(#[from] TemplateError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

/// A row in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// All of them.
    pub ids: Vec<u32>,
    /// Which of them are to be predicted.
    pub trained: Vec<bool>,
    /// Where the last answer begins.
    pub answer: usize,
}

impl Example {
    fn push(&mut self, ids: &[u32], trained: bool) {
        self.ids.extend(ids);
        self.trained.extend(std::iter::repeat_n(trained, ids.len()));
    }

    /// Ends after so many tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
        self.trained.truncate(tokens);
    }
}

/// Template and tokenizer.
#[derive(Debug)]
pub struct Chat {
    tokens: Tokens,
    template: ChatTemplate,
}

impl Chat {
    /// With this tokenizer.
    pub fn new(tokens: Tokens) -> Result<Self, ChatError> {
        let config = serde_json::json!({"chat_template": CHAT_TEMPLATE}).to_string();
        Ok(Self { tokens, template: ChatTemplate::parse(Some(config.as_bytes()), None)? })
    }

    /// The tokenizer.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn render(&self, messages: &[Message], tools: &[ToolDefinition]) -> Result<String, ChatError> {
        Ok(self.template.render(&Prompt { tools, ..Prompt::new(messages) })?)
    }

    /// Prompt and answer.
    pub fn text(&self, row: &Row) -> Result<String, ChatError> {
        let prompt = self.render(&row.messages, &row.tools)?;
        Ok(prompt + &row.answer_text() + END)
    }

    /// A row in tokens.
    pub fn example(&self, row: &Row) -> Result<Example, ChatError> {
        let whole = self.render(&row.messages, &row.tools)?;
        let mut example = Example::default();
        let mut rest = whole.as_str();
        let mut done = 0;
        for (at, message) in row.messages.iter().enumerate() {
            // What was worked out is not repeated as it was written.
            if message.role != ChatRole::Assistant || message.reasoning.is_some() {
                continue;
            }
            let before = self.render(&row.messages[..at], &row.tools)?;
            let Some(head) = before.get(done..) else { continue };
            let Some(after) = rest.strip_prefix(head) else { continue };
            let length = after.find(END).map_or(after.len(), |end| end + END.len());
            let (answer, after) = after.split_at(length);
            example.push(&self.tokens.encode(head)?, false);
            example.push(&self.tokens.encode(answer)?, true);
            done = before.len() + length;
            rest = after;
        }
        example.push(&self.tokens.encode(rest)?, false);
        example.answer = example.ids.len();
        // Tokens may reach over the ends of spans: their first byte decides.
        let mut spans = row.answer.iter().flat_map(|span| std::iter::repeat_n(span.trained, span.text.len()));
        for id in self.tokens.encode(&row.answer_text())? {
            let trained = spans.next().unwrap_or(true);
            spans.by_ref().take(self.tokens.length(id).saturating_sub(1)).for_each(drop);
            example.push(&[id], trained);
        }
        example.push(&self.tokens.encode(END)?, true);
        Ok(example)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::{ToolCall, ToolFormat};
    use crate::train::corpus::{Corpus, Kind, Mix, Span, Split};

    fn chat() -> Chat {
        Chat::new(Tokens::learn().unwrap()).unwrap()
    }

    fn said(role: ChatRole, content: &str) -> Message {
        Message::new(role, content)
    }

    fn add() -> ToolDefinition {
        let parameters = json!({"type": "object", "properties": {"a": {"type": "number"}, "sign": {"enum": ["+"]},
            "any": true}, "required": ["a"]});
        ToolDefinition {
            name: "add".into(),
            description: Some("Adds.".into()),
            parameters: Some(parameters.to_string()),
        }
    }

    fn called() -> Message {
        let mut message = said(ChatRole::Assistant, "");
        let arguments = "{\"a\":1}".to_owned();
        message.tool_calls = vec![ToolCall { id: "1".into(), name: "add".into(), arguments }];
        message
    }

    #[test]
    fn functions_calls_and_results_are_rendered_as_hermes_models_read_them() {
        assert_eq!(ToolFormat::of_template(CHAT_TEMPLATE), Some(ToolFormat::Hermes));
        let chat = chat();
        let messages = [
            said(ChatRole::System, "Be brief."),
            said(ChatRole::User, "1?"),
            called(),
            said(ChatRole::Tool, "2"),
            said(ChatRole::Tool, "3"),
        ];
        let text = chat.render(&messages, &[add()]).unwrap();
        let expected = "<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n\
            {\"name\": \"add\", \"description\": \"Adds.\", \"arguments\": {\"a\": \"number\", \"sign\": [\"+\"], \"any\": \"any\"}}\n\
            </tools><|im_end|>\n<|im_start|>user\n1?<|im_end|>\n\
            <|im_start|>assistant\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>\n\
            <|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n\
            <|im_start|>assistant\n";
        assert_eq!(text, expected);
        let bare = ToolDefinition { name: "now".into(), description: None, parameters: None };
        let text = chat.render(&messages[1..2], &[bare]).unwrap();
        assert!(
            text.starts_with(
                "<|im_start|>system\n# Tools\n<tools>\n{\"name\": \"now\", \"arguments\": {}}\n"
            )
        );
    }

    #[test]
    fn thoughts_and_all_but_one_earlier_question_are_dropped() {
        let chat = chat();
        let messages = [
            said(ChatRole::System, "s"),
            said(ChatRole::User, "one"),
            said(ChatRole::Assistant, "1"),
            said(ChatRole::User, "two"),
            said(ChatRole::Assistant, "<think>1+1=2</think>\n2"),
            said(ChatRole::User, "three"),
        ];
        let expected = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n\
                        <|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(chat.render(&messages, &[]).unwrap(), expected);
    }

    #[test]
    fn a_row_is_the_text_that_is_served_and_trains_its_answers_only() {
        let chat = chat();
        let row = Row {
            kind: Kind::Function,
            messages: vec![said(ChatRole::User, "1?"), called(), said(ChatRole::Tool, "2")],
            tools: vec![add()],
            answer: vec![Span { text: "It".into(), trained: false }, Span::trained(" is 2.")],
        };
        let example = chat.example(&row).unwrap();
        assert_eq!(example.ids, chat.tokens.encode(&chat.text(&row).unwrap()).unwrap());
        let trained: Vec<u32> = example
            .ids
            .iter()
            .zip(&example.trained)
            .filter(|(_, trained)| **trained)
            .map(|(id, _)| *id)
            .collect();
        let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>";
        let expected = format!("{call} is 2.<|im_end|>");
        assert_eq!(trained, chat.tokens.encode(&expected).unwrap());
    }

    #[test]
    fn parts_of_a_row_are_cut_into_the_tokens_of_the_whole() {
        let chat = chat();
        let mut corpus = Corpus::new(3, Mix::default(), Split::Trained);
        for _ in 0..2_000 {
            let row = corpus.row();
            let text = chat.text(&row).unwrap();
            assert_eq!(chat.example(&row).unwrap().ids, chat.tokens.encode(&text).unwrap(), "{text}");
        }
    }
}
