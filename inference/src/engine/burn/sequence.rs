//! A model without a conversation around it: what comparisons and measurements need.

use std::sync::Arc;

use super::model::Cache;
use super::{BurnEngine, Shared};
use crate::RequestError;

impl BurnEngine {
    /// An empty sequence with room for `capacity` tokens.
    pub fn sequence(&self, capacity: usize) -> TokenSequence {
        TokenSequence { shared: Arc::clone(&self.shared), cache: self.shared.model.cache(capacity) }
    }

    /// Logits after each token of a sequence, computed `chunk` tokens at a time. On a processor the chunks do not
    /// change a bit of them; they only bound the memory of a step.
    pub fn logits(&self, ids: &[u32], chunk: usize) -> Result<Vec<Vec<f32>>, RequestError> {
        self.shared.frontend.check_ids("ids", ids)?;
        let model = &self.shared.model;
        let mut cache = model.cache(ids.len());
        let mut all = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(chunk.max(1)) {
            let logits = model.each(chunk, &mut cache).map_err(|e| RequestError::invalid("ids", e))?;
            all.extend(logits.chunks(logits.len() / chunk.len()).map(<[f32]>::to_vec));
        }
        Ok(all)
    }
}

/// A sequence of token ids that a model reads.
#[derive(Debug)]
pub struct TokenSequence {
    shared: Arc<Shared>,
    cache: Cache,
}

impl TokenSequence {
    /// Appends tokens; the logits after the last one. Empty if there are none.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>, RequestError> {
        self.shared.frontend.check_ids("ids", ids)?;
        let free = self.cache.capacity() - self.cache.len();
        if ids.len() > free {
            let why = format!("{} tokens, the sequence has room for {free}", ids.len());
            return Err(RequestError::invalid("ids", why));
        }
        let mut last = Vec::new();
        for chunk in ids.chunks(self.shared.model.prefill()) {
            let logits = self.shared.model.last(chunk, &mut self.cache);
            last = logits.map_err(|e| RequestError::invalid("ids", e))?;
        }
        Ok(last)
    }
}
