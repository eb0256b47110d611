//! Reads an answer as it comes: what is thought, what is said, what is to be called.

use crate::reasoning::{ReasoningEvent, ReasoningMarks, ReasoningSplit};
use crate::tools::{ToolDefinition, ToolEvent, ToolParser};
use crate::{AnswerForm, Thinking};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// More of what the model thinks.
    Reasoning(String),
    /// More of what it says.
    Text(String),
    /// More of a call. Never [`ToolEvent::Text`].
    Call(ToolEvent),
}

/// Reads one answer. What it says depends on the text alone, not on the pieces it came in.
#[derive(Debug, Clone)]
pub struct AnswerReader {
    thoughts: Option<ReasoningSplit>,
    calls: Option<ToolParser>,
}

impl AnswerReader {
    /// For an answer of this form, of a model that was offered these functions.
    pub fn new(form: AnswerForm, tools: &[ToolDefinition]) -> Self {
        let thoughts = match form.reasoning {
            Thinking::Never => None,
            reasoning => Some(ReasoningSplit::new(ReasoningMarks::THINK, reasoning == Thinking::Opened)),
        };
        let names = tools.iter().map(|tool| tool.name.as_str());
        Self { thoughts, calls: form.tools.map(|format| ToolParser::new(format, names)) }
    }

    /// Whether the answer is text and nothing else, so that it need not be read.
    pub fn is_plain(&self) -> bool {
        self.thoughts.is_none() && self.calls.is_none()
    }

    /// Takes the text that a token released, even if that is nothing.
    pub fn push(&mut self, piece: &str) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        match &mut self.thoughts {
            None => said(&mut self.calls, piece.to_owned(), &mut parts),
            Some(split) => {
                for event in split.push(piece) {
                    self.split(event, &mut parts);
                }
            }
        }
        parts
    }

    /// Ends the answer with the text that was held back.
    pub fn finish(&mut self, tail: &str) -> Vec<AnswerPart> {
        let mut parts = if tail.is_empty() { Vec::new() } else { self.push(tail) };
        for event in self.thoughts.as_mut().map(ReasoningSplit::finish).unwrap_or_default() {
            self.split(event, &mut parts);
        }
        let calls = self.calls.as_mut().map(ToolParser::finish).unwrap_or_default();
        parts.extend(calls.into_iter().map(part));
        parts
    }

    /// Tokens of thoughts so far.
    pub fn reasoning_tokens(&self) -> u32 {
        self.thoughts.as_ref().map_or(0, ReasoningSplit::reasoning_tokens)
    }

    /// Whether the answer has a whole call so far.
    pub fn has_calls(&self) -> bool {
        self.calls.as_ref().is_some_and(ToolParser::has_calls)
    }

    fn split(&mut self, event: ReasoningEvent, parts: &mut Vec<AnswerPart>) {
        match event {
            ReasoningEvent::Reasoning(text) => parts.push(AnswerPart::Reasoning(text)),
            ReasoningEvent::Content(text) => said(&mut self.calls, text, parts),
        }
    }
}

fn said(calls: &mut Option<ToolParser>, text: String, parts: &mut Vec<AnswerPart>) {
    match calls {
        None if text.is_empty() => {}
        None => parts.push(AnswerPart::Text(text)),
        Some(parser) => parts.extend(parser.push(&text).into_iter().map(part)),
    }
}

fn part(event: ToolEvent) -> AnswerPart {
    match event {
        ToolEvent::Text(text) => AnswerPart::Text(text),
        event => AnswerPart::Call(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::ToolFormat;

    fn tools() -> Vec<ToolDefinition> {
        vec![ToolDefinition { name: "add".into(), description: None, parameters: None }]
    }

    #[test]
    fn thoughts_text_and_calls_are_told_apart_however_they_are_cut() {
        let form = AnswerForm { tools: Some(ToolFormat::Hermes), reasoning: Thinking::Possible };
        let answer = "<think>two numbers</think>I add.\n<tool_call>\n{\"name\": \"add\", \"arguments\": \
                      {\"a\": 1}}\n</tool_call>";
        for size in [1, 3, 7] {
            let mut reader = AnswerReader::new(form, &tools());
            let (mut thought, mut said, mut arguments) = (String::new(), String::new(), String::new());
            let pieces = answer.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap());
            let mut parts: Vec<AnswerPart> = pieces.flat_map(|piece| reader.push(piece)).collect();
            parts.extend(reader.finish(""));
            for part in parts {
                match part {
                    AnswerPart::Reasoning(text) => thought += &text,
                    AnswerPart::Text(text) => said += &text,
                    AnswerPart::Call(ToolEvent::ArgumentsDelta { text, .. }) => arguments += &text,
                    AnswerPart::Call(_) => {}
                }
            }
            assert_eq!(
                (thought.as_str(), said.trim(), arguments.as_str()),
                ("two numbers", "I add.", "{\"a\": 1}")
            );
            assert!(reader.has_calls() && reader.reasoning_tokens() > 0);
        }
    }

    #[test]
    fn a_plain_answer_is_its_text() {
        let mut reader = AnswerReader::new(AnswerForm::default(), &[]);
        assert!(reader.is_plain());
        assert_eq!(reader.push("<think>"), [AnswerPart::Text("<think>".into())]);
        assert_eq!(reader.finish("."), [AnswerPart::Text(".".into())]);
    }
}
