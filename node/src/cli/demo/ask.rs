//! One question: the stream on the screen, and what it took.

use std::time::Instant;

use anyhow::bail;
use cocoon_client::{AnswerEvent, ChatRequest, LegStart, LightPeer, Receipt};
use cocoon_inference::{ChatRole, Message, Usage, embedded};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::Say;

/// A question and all that came of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) question: String,
    pub(super) text: String,
    pub(super) usage: Usage,
    pub(super) receipt: Receipt,
    pub(super) starts: Vec<LegStart>,
    pub(super) first_token_ms: f64,
    pub(super) total_ms: f64,
}

impl Asked {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "question": self.question,
            "answer": self.text,
            "usage": {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens},
            "cost_nanoton": self.receipt.total.0,
            "receipt": self.receipt,
            "first_token_ms": self.first_token_ms,
            "total_ms": self.total_ms,
        })
    }
}

pub(super) async fn ask(peer: &LightPeer, question: &str, say: Say) -> anyhow::Result<Asked> {
    let request = ChatRequest::new(embedded::NAME, vec![Message::new(ChatRole::User, question)]);
    say.line(format!("\n? {question}"));
    let started = Instant::now();
    let mut answer = peer.chat(request).await?;
    let (mut text, mut starts, mut first_token_ms) = (String::new(), Vec::new(), 0.0);
    while let Some(event) = answer.next().await {
        match event? {
            AnswerEvent::Started { leg } => starts.push(leg),
            AnswerEvent::Prepared { .. } => {}
            AnswerEvent::Tokens(tokens) => {
                if first_token_ms == 0.0 {
                    first_token_ms = started.elapsed().as_secs_f64() * 1e3;
                }
                for token in tokens {
                    say.piece(&token.text);
                    text.push_str(&token.text);
                }
            }
            AnswerEvent::Failover { from, why } => {
                say.line(format!("[{from} failed ({why}); going on with another worker]"))
            }
            AnswerEvent::Finished { text: tail, usage, receipt, .. } => {
                say.piece(&tail);
                say.line("");
                text.push_str(&tail);
                let total_ms = started.elapsed().as_secs_f64() * 1e3;
                return Ok(Asked {
                    question: question.to_owned(),
                    text,
                    usage,
                    receipt,
                    starts,
                    first_token_ms,
                    total_ms,
                });
            }
        }
    }
    bail!("the answer ended without a receipt")
}
