//! Where an answer stands in its grammar.

use std::fmt;

use llguidance::Matcher;
use llguidance::api::StopReason;

use super::compile::{Thoughts, brief, compile};
use super::{Grammar, GrammarError, Vocabulary};
use crate::reasoning::ReasoningMarks;

/// Why an answer cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// A token that does not follow; the caller picked it against the mask.
    #[error("token {0} does not fit the grammar here")]
    Disallowed(u32),
    /// The vocabulary cannot spell what the grammar asks for next.
    #[error("no token of the model fits the grammar here; allow more, or ask another model")]
    NoToken,
    /// One token's mask takes too much work.
    #[error("the grammar is too ambiguous or complex to follow: {0}; simplify it")]
    TooComplex(String),
    /// Not as many logits as tokens.
    #[error("{logits} logits for a vocabulary of {tokens} tokens")]
    Size {
        /// Logits.
        logits: usize,
        /// Tokens.
        tokens: usize,
    },
}

/// The grammar of one answer, and how far the answer has come.
pub struct Constraint {
    vocabulary: Vocabulary,
    matcher: Matcher,
    /// A token that ends the answer was accepted.
    ended: bool,
}

impl Constraint {
    /// Compiles a grammar. Takes a millisecond for most, a few hundred for the worst that the bounds allow.
    pub fn new(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self, GrammarError> {
        Self::compiled(vocabulary, grammar, None)
    }

    /// The same for a model that may think first, in any words; `opened` says whether the prompt ends within
    /// its thoughts. The grammar is about what comes after them.
    pub fn after_reasoning(
        vocabulary: &Vocabulary,
        grammar: &Grammar,
        marks: ReasoningMarks,
        opened: bool,
    ) -> Result<Self, GrammarError> {
        Self::compiled(vocabulary, grammar, Some(Thoughts { marks, opened }))
    }

    fn compiled(
        vocabulary: &Vocabulary,
        grammar: &Grammar,
        thoughts: Option<Thoughts>,
    ) -> Result<Self, GrammarError> {
        let matcher = compile(vocabulary.factory(), grammar, thoughts)?;
        let mut constraint = Self { vocabulary: vocabulary.clone(), matcher, ended: false };
        // What cannot even begin is the grammar's fault, and better said before the prompt is computed.
        match constraint.allowed() {
            Ok(_) => Ok(constraint),
            Err(ConstraintError::NoToken) => {
                Err(GrammarError::Refused("no answer of this model can fit it".into()))
            }
            Err(e) => Err(GrammarError::Refused(e.to_string())),
        }
    }

    /// Sets the logits of the tokens that may not come next to minus infinity. At least one is left.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let tokens = self.vocabulary.tokens();
        if logits.len() != tokens {
            return Err(ConstraintError::Size { logits: logits.len(), tokens });
        }
        let allowed = self.allowed()?;
        for (logit, allowed) in logits.iter_mut().zip(allowed) {
            if !allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// By id, whether a token may come next.
    pub fn allowed(&mut self) -> Result<Vec<bool>, ConstraintError> {
        let mut allowed = vec![false; self.vocabulary.tokens()];
        let mut any = false;
        let stopped = self.must_stop();
        if !stopped {
            let mask = match self.matcher.compute_mask() {
                Ok(mask) => mask,
                Err(e) => {
                    // The matcher forgets its reason, but its message is the reason's name.
                    let why = brief(&e.to_string());
                    let none = why == StopReason::NoExtensionBias.to_string();
                    return Err(if none {
                        ConstraintError::NoToken
                    } else {
                        ConstraintError::TooComplex(why)
                    });
                }
            };
            let bits = mask.as_slice().iter().flat_map(|word| (0..32).map(move |bit| word >> bit & 1 == 1));
            for ((allowed, bit), spells) in allowed.iter_mut().zip(bits).zip(self.vocabulary.spells()) {
                *allowed = bit && *spells;
                any |= *allowed;
            }
        }
        if stopped || self.is_complete()? {
            for &end in self.vocabulary.ends() {
                if let Some(allowed) = allowed.get_mut(end as usize) {
                    *allowed = true;
                    any = true;
                }
            }
        }
        if any { Ok(allowed) } else { Err(ConstraintError::NoToken) }
    }

    /// Takes note of the answer's next token.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.vocabulary.is_end(token) {
            if !self.is_complete()? {
                return Err(ConstraintError::Disallowed(token));
            }
            self.ended = true;
            return Ok(());
        }
        let spells = self.vocabulary.spells().get(token as usize).is_some_and(|spells| *spells);
        if self.must_stop() || !spells {
            return Err(ConstraintError::Disallowed(token));
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(ConstraintError::Disallowed(token)),
            Err(e) => Err(ConstraintError::TooComplex(brief(&e.to_string()))),
        }
    }

    /// Whether the answer so far is one of the grammar.
    pub fn is_complete(&mut self) -> Result<bool, ConstraintError> {
        if self.must_stop() {
            return Ok(true);
        }
        self.matcher.is_accepting().map_err(|e| ConstraintError::TooComplex(brief(&e.to_string())))
    }

    /// Whether the answer is complete and nothing but its end may follow.
    pub fn must_stop(&self) -> bool {
        let reason = self.matcher.stop_reason();
        self.ended || matches!(reason, StopReason::NoExtension | StopReason::EndOfSentence)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Constraint({:?}, must_stop: {})", self.vocabulary, self.must_stop())
    }
}
