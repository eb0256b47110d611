//! Tokens and text out of a decoder's logits.

use std::sync::Arc;

use super::{Shared, count};
use crate::Token;
use crate::constraint::Constraint;
use crate::engine::logprobs::logprobs;
use crate::engine::{Answer, EngineError, Next, Sampler};
use crate::text::TextStream;

/// One answer.
pub(super) struct BurnAnswer {
    pub(super) shared: Arc<Shared>,
    /// Tokens of the rendered conversation: output positions count from here.
    pub(super) prompt: usize,
    /// Output tokens so far, those of a resumed request's prefix included.
    pub(super) made: usize,
    pub(super) sampler: Sampler,
    /// What the answer must be.
    pub(super) constraint: Option<Constraint>,
    /// The request's, beside the model's own.
    pub(super) stop_token_ids: Vec<u32>,
    /// How many alternatives to report beside each token.
    pub(super) logprobs: Option<u8>,
    pub(super) text: TextStream,
}

impl BurnAnswer {
    /// Whether nothing may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.text.stopped() || self.constraint.as_ref().is_some_and(Constraint::must_stop)
    }
}

impl Answer for BurnAnswer {
    fn next(&mut self, logits: &mut [f32]) -> Result<Next, EngineError> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(EngineError::NotFinite { position: count(self.prompt + self.made) });
        }
        let allowed = self.constraint.as_mut().map(Constraint::allowed).transpose()?;
        let id = self.sampler.pick_among(logits, allowed.as_deref(), count(self.made));
        let id = id.ok_or(EngineError::Banned)?;
        if self.shared.config.end_tokens.contains(&id) || self.stop_token_ids.contains(&id) {
            return Ok(Next::End);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        self.made += 1;
        self.sampler.observe(id);
        let tokenizer = &self.shared.tokenizer;
        let text = self.text.push(tokenizer.bytes(id));
        let logprobs =
            self.logprobs.map(|top| Box::new(logprobs(logits, id, top.into(), |id| tokenizer.bytes(id))));
        let token = Token { id, text, logprobs };
        Ok(if self.is_complete() { Next::Last(token) } else { Next::Token(token) })
    }

    fn finish(&mut self) -> String {
        self.text.finish()
    }
}
