//! The text of an answer, id by id.

use std::sync::Arc;

use super::{Frontend, count};
use crate::constraint::Constraint;
use crate::engine::{EngineError, Next};
use crate::text::TextStream;
use crate::{Logprobs, Token};

/// One answer's text, and the form that it must have.
#[derive(Debug)]
pub struct Writer {
    pub(super) frontend: Arc<Frontend>,
    /// Tokens of the rendered conversation: output positions count from here.
    pub(super) prompt: usize,
    /// Output tokens so far, those of a resumed request's prefix included.
    pub(super) made: usize,
    /// What the answer must be.
    pub(super) constraint: Option<Constraint>,
    /// The request's, beside the model's own.
    pub(super) stop_token_ids: Vec<u32>,
    pub(super) text: TextStream,
}

impl Writer {
    /// The model that writes.
    pub fn frontend(&self) -> &Arc<Frontend> {
        &self.frontend
    }

    /// Output tokens so far, those of a resumed request's prefix included.
    pub fn made(&self) -> u32 {
        count(self.made)
    }

    /// Where in the sequence the next token will be.
    pub fn position(&self) -> u32 {
        count(self.prompt + self.made)
    }

    /// The tokens that may follow; `None` if any may.
    ///
    /// # Errors
    /// If the answer cannot go on within its form.
    pub fn allowed(&mut self) -> Result<Option<Vec<bool>>, EngineError> {
        Ok(self.constraint.as_mut().map(Constraint::allowed).transpose()?)
    }

    /// Whether the answer may end here: what must have a form has all of it.
    ///
    /// # Errors
    /// If that takes too long to find out.
    pub fn may_end(&mut self) -> Result<bool, EngineError> {
        Ok(self.constraint.as_mut().map(Constraint::is_complete).transpose()?.unwrap_or(true))
    }

    /// Whether a token ends the answer, as no part of it.
    pub fn ends(&self, id: u32) -> bool {
        self.frontend.end_tokens.contains(&id) || self.stop_token_ids.contains(&id)
    }

    /// Takes the next token of the answer, and hands it on with the text that it releases.
    ///
    /// # Errors
    /// If it leaves the form that the answer must have.
    pub fn push(&mut self, id: u32, logprobs: Option<Box<Logprobs>>) -> Result<Next, EngineError> {
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        self.made += 1;
        let text = self.text.push(self.frontend.tokenizer.bytes(id));
        let token = Token { id, text, logprobs };
        Ok(if self.is_complete() { Next::Last(token) } else { Next::Token(token) })
    }

    /// Whether nothing may follow: a stop string is there, or the form is complete.
    pub fn is_complete(&self) -> bool {
        self.text.stopped() || self.constraint.as_ref().is_some_and(Constraint::must_stop)
    }

    /// Text that was held back until now.
    pub fn finish(&mut self) -> String {
        self.text.finish()
    }
}
