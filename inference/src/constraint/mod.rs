//! Structured output: answers that cannot leave a grammar.
//!
//! A [`Grammar`] says what the whole answer must look like: JSON, JSON of a schema, a regular expression,
//! one of a few texts, or a context-free grammar. It is plain data and travels in a request; its
//! [`validate`](Grammar::validate) bounds what a stranger may ask to be compiled.
//!
//! The rest needs the feature `engine`. A [`Vocabulary`] is made once per model: a trie of what each token
//! spells. A [`Constraint`] is made per answer: an Earley parser over a lexer of derivatives
//! (the crate `llguidance`), which tells before each token [which tokens](Constraint::mask) may follow
//! and is told [which one did](Constraint::accept).
//!
//! Three rules:
//!
//! * A token that ends the model's turn is allowed where the grammar may end, and nowhere else. Where
//!   nothing else may follow, [`must_stop`](Constraint::must_stop) says so before the model is asked.
//! * Control tokens spell nothing and are never allowed, whatever the grammar says.
//! * The state is a function of the grammar and the ids accepted so far, so that another worker resumes an
//!   answer by accepting its prefix.
//!
//! Nothing here makes an answer end: a model may fill a string of JSON up to `max_tokens`.

#[cfg(feature = "engine")]
mod compile;
mod grammar;
#[cfg(feature = "engine")]
mod state;
#[cfg(feature = "engine")]
mod vocabulary;

pub use grammar::{
    Grammar, GrammarError, MAX_CHOICES, MAX_GRAMMAR_BYTES, MAX_REGEX_BYTES, MAX_SCHEMA_DEPTH,
    with_bounded_space,
};
#[cfg(feature = "engine")]
pub use state::{Constraint, ConstraintError};
#[cfg(feature = "engine")]
pub use vocabulary::{Vocabulary, VocabularyError};

#[cfg(all(test, feature = "engine"))]
mod tests;
