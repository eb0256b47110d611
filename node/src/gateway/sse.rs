//! A request's answers as server-sent events.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Bytes;
use cocoon_client::AnswerEvent;
use cocoon_inference::{
    AnswerForm, AnswerPart, AnswerReader, Token,
    tools::{ToolDefinition, ToolEvent},
};
use futures::Stream;
use serde_json::{Value, json};

use super::{
    billed::Billed,
    openai::{
        error::ApiError,
        response::{self, Chunks, Used},
        tools,
    },
};

/// Turns answers into events, each under its choice's index. Dropping it (the client hung up) drops the
/// answers, which cancels generation and payment and counts what was paid.
pub(super) struct SseBody {
    answers: Billed,
    chunks: Chunks,
    include_usage: bool,
    choices: Vec<Choice>,
    /// Functions on offer.
    tools: Vec<ToolDefinition>,
    /// By the answers that have ended.
    used: Used,
    /// Rendered before the body was first polled.
    first: Vec<u8>,
    done: bool,
}

#[derive(Debug, Clone)]
struct Choice {
    /// What ids of calls are made of.
    id: String,
    reader: AnswerReader,
    /// Who answers.
    who: Value,
    /// Whether its role event is out.
    announced: bool,
    ended: bool,
}

impl SseBody {
    /// Waits for the first part of any of the answers, which have these ids, so that a request refused by a worker (too long
    /// for its context, say) still gets its own status.
    pub(super) async fn begin(
        answers: Billed,
        chunks: Chunks,
        ids: Vec<String>,
        tools: Vec<ToolDefinition>,
        include_usage: bool,
    ) -> Result<Self, ApiError> {
        let choice = |id| Choice {
            id,
            reader: AnswerReader::new(AnswerForm::default(), &[]),
            who: Value::Null,
            announced: false,
            ended: false,
        };
        let mut body = Self {
            answers,
            chunks,
            include_usage,
            choices: ids.into_iter().map(choice).collect(),
            tools,
            used: Used::default(),
            first: Vec::with_capacity(1024),
            done: false,
        };
        let mut first = std::mem::take(&mut body.first);
        while first.is_empty() {
            let (choice, event) = body.answers.next().await?;
            body.render(choice, event, &mut first);
        }
        body.first = first;
        Ok(body)
    }

    fn render(&mut self, index: usize, event: AnswerEvent, out: &mut Vec<u8>) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        if let AnswerEvent::Tokens(_) | AnswerEvent::Finished { .. } = event
            && !choice.announced
        {
            choice.announced = true;
            self.chunks.role(index, &choice.who, out);
        }
        match event {
            AnswerEvent::Started { leg } => {
                choice.who = json!({"worker": leg.worker, "assurance": leg.assurance});
            }
            AnswerEvent::Prepared { form, .. } => {
                // After a failover the answer goes on where it was.
                if !choice.announced {
                    choice.reader = AnswerReader::new(form, &self.tools);
                }
            }
            // A token that only completes part of a character has no text yet, but it is a token that was
            // paid for: its event goes out so that a client may count.
            AnswerEvent::Tokens(tokens) if choice.reader.is_plain() => {
                tokens.iter().for_each(|token| self.chunks.token(index, token, out));
            }
            AnswerEvent::Tokens(tokens) => {
                for token in &tokens {
                    let deltas = deltas(choice.reader.push(&token.text), &choice.id, token);
                    self.chunks.deltas(index, &deltas, Some(token), out);
                }
            }
            AnswerEvent::Finished { reason, text, usage, receipt } => {
                choice.ended = true;
                let rest = choice.reader.finish(&text);
                let rest: Vec<Value> = rest.iter().filter_map(|part| delta(part, &choice.id)).collect();
                self.chunks.deltas(index, &rest, None, out);
                let reason = response::finish_reason(reason, choice.reader.has_calls());
                self.chunks.finish(index, reason, &response::receipt(&receipt), out);
                self.used.add(usage, choice.reader.reasoning_tokens());
                if self.choices.iter().all(|choice| choice.ended) {
                    if self.include_usage {
                        self.chunks.usage(&self.used.object(), out);
                    }
                    out.extend_from_slice(response::DONE);
                    self.done = true;
                }
            }
            AnswerEvent::Failover { .. } => {}
        }
    }
}

/// What a token released, as deltas. Log-probabilities need one, even if it is empty.
fn deltas(parts: Vec<AnswerPart>, id: &str, token: &Token) -> Vec<Value> {
    let mut deltas: Vec<Value> = parts.iter().filter_map(|part| delta(part, id)).collect();
    if deltas.is_empty() && token.logprobs.is_some() {
        deltas.push(json!({"content": ""}));
    }
    deltas
}

fn delta(part: &AnswerPart, id: &str) -> Option<Value> {
    match part {
        AnswerPart::Reasoning(text) => Some(json!({"reasoning_content": text})),
        AnswerPart::Text(text) => tools::delta(&ToolEvent::Text(text.clone()), id),
        AnswerPart::Call(event) => tools::delta(event, id),
    }
}

impl Stream for SseBody {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut out = std::mem::take(&mut this.first);
        if !out.is_empty() {
            return Poll::Ready(Some(Ok(out.into())));
        }
        // Whatever is ready leaves in one write.
        while !this.done && out.len() < 64 * 1024 {
            match this.answers.poll_event(context) {
                Poll::Ready(Ok((choice, event))) => this.render(choice, event, &mut out),
                Poll::Ready(Err(error)) => {
                    response::error_event(&error.body(), &mut out);
                    this.done = true;
                }
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if out.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(out.into()))) }
    }
}
