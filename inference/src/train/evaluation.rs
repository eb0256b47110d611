//! Asks a question through the serving engine: its loader, chat template, grammars and greedy decoding.

use super::questions::{Given, Question};
use crate::engine::{CompleteError, Engine};
use crate::tools::{ToolEvent, ToolFormat};
use crate::{AnswerForm, AnswerPart, AnswerReader, GenerateRequest, Sampling, Thinking, complete};

/// Longest answer: more than any that was trained.
const MAX_TOKENS: u32 = 160;

/// The answer, and how many tokens it took.
pub fn ask(engine: &dyn Engine, question: &Question) -> Result<(Given, u32), CompleteError> {
    let sampling = Sampling { max_tokens: Some(MAX_TOKENS), ..Sampling::default() };
    let mut request = GenerateRequest::new(engine.info().digest, question.row.messages.clone(), sampling);
    request.structure = question.structure.clone();
    let completion = complete(engine, &request, |_| {})?;
    let tools = &request.structure.tools;
    let form = AnswerForm {
        tools: request.structure.offers_calls().then_some(ToolFormat::Hermes),
        reasoning: Thinking::Possible,
    };
    let mut reader = AnswerReader::new(form, tools);
    let mut parts = reader.push(&completion.text);
    parts.extend(reader.finish(""));
    let mut given = Given::default();
    for part in parts {
        match part {
            AnswerPart::Text(text) => given.text.push_str(&text),
            AnswerPart::Call(ToolEvent::CallStarted { name, .. }) => given.calls.push((name, String::new())),
            AnswerPart::Call(ToolEvent::ArgumentsDelta { text, .. }) => {
                if let Some((_, arguments)) = given.calls.last_mut() {
                    arguments.push_str(&text);
                }
            }
            AnswerPart::Call(_) | AnswerPart::Reasoning(_) => {}
        }
    }
    Ok((given, completion.usage.completion_tokens))
}
