//! What each token spells, arranged for the question which tokens may follow.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{TokRxInfo, TokTrie};

use super::compile::factory;

/// Longer tokens are never allowed: the trie has ten bits for depth, and only runs of spaces are so long.
const MAX_TOKEN_BYTES: usize = 512;
/// The trie addresses tokens with 22 bits.
const MAX_TOKENS: usize = 1 << 21;

/// Why a vocabulary cannot constrain answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// Too many tokens.
    #[error("{0} tokens, at most {MAX_TOKENS} are supported")]
    TooLarge(usize),
    /// No answer could end.
    #[error("no token ends an answer; config.json must name one in `eos_token_id`")]
    NoEnd,
    /// A token that ends an answer does not exist.
    #[error("token {id} should end an answer, but there are {tokens} tokens only")]
    UnknownEnd {
        /// The token.
        id: u32,
        /// How many there are.
        tokens: usize,
    },
    /// Something else.
    #[error("the vocabulary cannot be indexed: {0}")]
    Index(String),
}

/// The vocabulary of a model. Cheap to clone; made once per model, which takes a good part of a second
/// and some tens of megabytes for 150 000 tokens.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    tokens: usize,
    ends: BTreeSet<u32>,
    /// By id: whether it spells something, so that a grammar may allow it.
    spells: Vec<bool>,
}

impl Vocabulary {
    /// From the bytes of each token, by id, and the tokens that end an answer. Control tokens and unused
    /// ids have no bytes. There must be as many tokens as the model has logits.
    pub fn new<'a>(
        tokens: impl IntoIterator<Item = &'a [u8]>,
        ends: impl IntoIterator<Item = u32>,
    ) -> Result<Self, VocabularyError> {
        let ends: BTreeSet<u32> = ends.into_iter().collect();
        let mut words: Vec<Vec<u8>> = tokens.into_iter().map(usable).collect();
        let count = words.len();
        if count > MAX_TOKENS {
            return Err(VocabularyError::TooLarge(count));
        }
        let first = *ends.first().ok_or(VocabularyError::NoEnd)?;
        for &id in &ends {
            // It ends the answer whatever its text would be.
            words.get_mut(id as usize).ok_or(VocabularyError::UnknownEnd { id, tokens: count })?.clear();
        }
        let size = u32::try_from(count).map_err(|_| VocabularyError::TooLarge(count))?;
        let all: Vec<u32> = ends.iter().copied().collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&all);
        let factory = factory(trie).map_err(VocabularyError::Index)?;
        let spells = words.iter().map(|word| !word.is_empty()).collect();
        Ok(Self(Arc::new(Inner { factory, tokens: count, ends, spells })))
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.0.tokens
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.0.ends.contains(&id)
    }

    pub(super) fn ends(&self) -> &BTreeSet<u32> {
        &self.0.ends
    }

    pub(super) fn spells(&self) -> &[bool] {
        &self.0.spells
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.0.tokens)
    }
}

/// A token's bytes, or none where no grammar can want it. The byte 0xFF, which no text has, would mark a
/// control token to the trie.
fn usable(bytes: &[u8]) -> Vec<u8> {
    match bytes.len() <= MAX_TOKEN_BYTES && !bytes.contains(&0xFF) {
        true => bytes.to_vec(),
        false => Vec::new(),
    }
}
