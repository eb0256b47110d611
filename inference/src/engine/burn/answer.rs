//! Tokens out of a decoder's logits.

use crate::engine::frontend::Writer;
use crate::engine::logprobs::logprobs;
use crate::engine::{Answer, EngineError, Next, Sampler};

/// One answer.
pub(super) struct BurnAnswer {
    pub(super) writer: Writer,
    pub(super) sampler: Sampler,
    /// How many alternatives to report beside each token.
    pub(super) logprobs: Option<u8>,
}

impl Answer for BurnAnswer {
    fn next(&mut self, logits: &mut [f32]) -> Result<Next, EngineError> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(EngineError::NotFinite { position: self.writer.position() });
        }
        let allowed = self.writer.allowed()?;
        let id = self.sampler.pick_among(logits, allowed.as_deref(), self.writer.made());
        let id = id.ok_or(EngineError::Banned)?;
        if self.writer.ends(id) {
            return Ok(Next::End);
        }
        self.sampler.observe(id);
        let tokenizer = self.writer.frontend().tokenizer();
        let logprobs =
            self.logprobs.map(|top| Box::new(logprobs(logits, id, top.into(), |id| tokenizer.bytes(id))));
        self.writer.push(id, logprobs)
    }

    fn finish(&mut self) -> String {
        self.writer.finish()
    }
}
