//! What an engine does with text: everything but the model.
//!
//! A [`Frontend`] checks a request, renders its conversation, makes ids of it and compiles the form that its answer
//! must have ([`Frontend::start`]). A [`Writer`] turns the ids of the answer back into text, within that form. Both
//! are the same whoever computes between them: this crate's decoder, or another server.

mod start;
mod writer;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use writer::Writer;

use crate::checkpoint::{ChatTemplate, LoadError, Outline, TextTokenizer};
use crate::constraint::{Grammar, Vocabulary, VocabularyError};
use crate::manifest::Manifest;
use crate::reasoning::ReasoningMarks;
use crate::scheduler::Sequence;
use crate::tools::ToolFormat;
use crate::{AnswerForm, GenerateRequest, ModelDigest, ModelInfo, RequestError};

/// Vocabulary, chat template and limits of a model.
#[derive(Debug)]
pub struct Frontend {
    info: ModelInfo,
    /// Rows of the embedding table: ids are below.
    vocab: usize,
    /// Tokens that end an answer.
    end_tokens: BTreeSet<u32>,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    manifest: Manifest,
    /// The form in which the model writes calls, if it knows how.
    tools: Option<ToolFormat>,
    /// The marks around its thoughts, if it has any.
    reasoning: Option<ReasoningMarks>,
    /// For grammars: made when the first one is asked for, since it takes a while.
    vocabulary: OnceLock<Result<Vocabulary, VocabularyError>>,
}

/// What a frontend is made of.
pub(super) struct Parts {
    pub(super) info: ModelInfo,
    pub(super) vocab: usize,
    pub(super) end_tokens: BTreeSet<u32>,
    pub(super) tokenizer: TextTokenizer,
    pub(super) template: ChatTemplate,
    pub(super) manifest: Manifest,
}

/// A request that was found good.
#[derive(Debug)]
pub struct Begun {
    /// What to compute.
    pub sequence: Sequence,
    /// How the answer's text is to be read.
    pub form: AnswerForm,
    /// What the answer must be, if it may not be anything. The writer sees to it.
    pub grammar: Option<Grammar>,
    /// Turns its ids into text.
    pub writer: Writer,
}

impl Frontend {
    /// Reads the vocabulary, the template and the limits of a model of any architecture, and hashes its weights, which
    /// must be those of `expected`: somebody else computes with them. `progress` gets bytes read and bytes in all.
    ///
    /// # Errors
    /// As for every checkpoint; the weights are not looked into.
    pub fn open(
        dir: &Path,
        expected: Option<&ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let outline = Outline::open(dir, expected, progress)?;
        let info = ModelInfo {
            name: outline.name,
            digest: outline.manifest.digest(),
            context: count(outline.context),
            parameters: outline.parameters,
            family: outline.family,
            quantisation: outline.format,
        };
        Ok(Self::new(Parts {
            info,
            vocab: outline.vocab_size,
            end_tokens: outline.end_tokens,
            tokenizer: outline.tokenizer,
            template: outline.template,
            manifest: outline.manifest,
        }))
    }

    pub(super) fn new(parts: Parts) -> Self {
        let Parts { info, vocab, end_tokens, tokenizer, template, manifest } = parts;
        let tools = ToolFormat::of_template(template.source());
        let reasoning = ReasoningMarks::of_template(template.source());
        let vocabulary = OnceLock::new();
        Self { info, vocab, end_tokens, tokenizer, template, manifest, tools, reasoning, vocabulary }
    }

    /// The same with a shorter context, where whoever computes has room for less.
    #[must_use]
    pub fn within(mut self, context: u32) -> Self {
        self.info.context = self.info.context.min(context);
        self
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Its files.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its vocabulary.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Rows of the embedding table: ids are below.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &BTreeSet<u32> {
        &self.end_tokens
    }

    /// The text of a conversation, up to where the model's turn begins.
    ///
    /// # Errors
    /// If the request asks for what the model's template does not know.
    pub fn render(&self, request: &GenerateRequest) -> Result<String, RequestError> {
        start::render(self, request)
    }

    /// Checks and tokenises a request.
    ///
    /// # Errors
    /// If it asks for what the model has not; the error names the field.
    pub fn start(self: &Arc<Self>, request: &GenerateRequest) -> Result<Begun, RequestError> {
        start::start(self, request)
    }

    /// Whether ids are the model's, and no more than it can take.
    pub(super) fn check_ids(&self, field: &str, ids: &[u32]) -> Result<(), RequestError> {
        let context = self.info.context as usize;
        if ids.len() > context {
            let why = format!("{} tokens, the model's context holds {context}", ids.len());
            return Err(RequestError::invalid(field, why));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            Some(id) => {
                let why = format!("token {id} is not below `vocab_size`, {}", self.vocab);
                Err(RequestError::invalid(field, why))
            }
            None => Ok(()),
        }
    }
}

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
