//! An engine that costs nothing: it repeats the question, piece by piece.

use super::{Engine, EngineError, Generation, Step};
use crate::limits::MAX_PIECE_BYTES;
use crate::text::TextStream;
use crate::{Alternative, ChatRole, FinishReason, GenerateRequest, Logprobs, ModelInfo, RequestError, Token};

/// The id of every token: the vocabulary has no other, so that each is certain and nothing is left to sample.
const TOKEN_ID: u32 = 0;
/// Tokens of the vocabulary.
const VOCAB: usize = 1;

/// Answers with a fixed number of tokens of a fixed size: the last message, over and over.
#[derive(Debug, Clone)]
pub struct EchoEngine {
    tokens: u32,
    bytes: usize,
    info: ModelInfo,
}

impl EchoEngine {
    /// An engine whose answers have `tokens` tokens of `bytes` bytes.
    pub fn new(tokens: u32, bytes: usize) -> Self {
        use sha2::{Digest, Sha256};
        let info = ModelInfo {
            name: "echo".into(),
            digest: Sha256::digest(format!("cocoon echo engine {tokens} {bytes}")).into(),
            context: u32::MAX,
            parameters: 0,
            family: "echo".into(),
            quantisation: "none".into(),
        };
        Self { tokens, bytes, info }
    }

    /// The same engine in another model's place.
    pub fn with_info(self, info: ModelInfo) -> Self {
        Self { info, ..self }
    }
}

impl Engine for EchoEngine {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn start(&self, request: &GenerateRequest) -> Result<Box<dyn Generation>, RequestError> {
        request.validate()?;
        if request.model != self.info.digest {
            return Err(RequestError::UnknownModel);
        }
        request.sampling.validate_ids(VOCAB)?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let prompt: usize = request.messages.iter().map(|m| m.content.len()).sum();
        let limit = self.tokens.min(request.sampling.max_tokens.unwrap_or(u32::MAX));
        let (prefix, prompt) = (count(request.prefix.len()), count(prompt));
        let ended = request.sampling.stop_token_ids.contains(&TOKEN_ID);
        if prefix > 0 && ended {
            let why = format!("token {TOKEN_ID} ends an answer and cannot be continued");
            return Err(RequestError::invalid("prefix", why));
        }
        if prefix > limit {
            return Err(RequestError::invalid("prefix", format!("{prefix} tokens, the answer has {limit}")));
        }
        let asked = request.messages.iter().rfind(|m| m.role == ChatRole::User);
        let question = asked.or(request.messages.last()).map_or("", |m| m.content.as_str());
        let text = TextStream::new(&request.sampling.stop);
        let question = if question.is_empty() { "." } else { question };
        let mut generation = EchoGeneration {
            question: question.to_owned(),
            next: 0,
            bytes: self.bytes,
            prompt_tokens: prompt.saturating_add(prefix),
            position: 0,
            limit,
            cut: limit < self.tokens,
            ended,
            logprobs: request.sampling.logprobs,
            text,
        };
        while generation.position < prefix {
            generation.token();
        }
        Ok(Box::new(generation))
    }
}

struct EchoGeneration {
    question: String,
    /// Where in the question the next token begins.
    next: usize,
    bytes: usize,
    prompt_tokens: u32,
    position: u32,
    limit: u32,
    /// Whether `limit` is the asker's.
    cut: bool,
    /// Whether the only token there is ends the answer.
    ended: bool,
    /// How many alternatives to report beside each token.
    logprobs: Option<u8>,
    text: TextStream,
}

impl EchoGeneration {
    /// The next `bytes` bytes of the endlessly repeated question, a little less where a character would
    /// be cut.
    fn token(&mut self) -> Token {
        let mut piece = String::with_capacity(self.bytes);
        loop {
            let rest = self.question.get(self.next..).unwrap_or_default();
            let room = self.bytes - piece.len();
            let fits = (0..=room.min(rest.len())).rfind(|&i| rest.is_char_boundary(i)).unwrap_or(0);
            piece.push_str(&rest[..fits]);
            self.next += fits;
            if fits < rest.len() {
                break;
            }
            self.next = 0;
        }
        self.position += 1;
        let text = self.text.push(piece.as_bytes());
        let logprobs = self.logprobs.map(|top| {
            let mut bytes = piece.into_bytes();
            bytes.truncate(MAX_PIECE_BYTES);
            let certain = Alternative { id: TOKEN_ID, logprob: 0.0, bytes: bytes.clone() };
            let top = (top > 0).then_some(certain).into_iter().collect();
            Box::new(Logprobs { logprob: 0.0, bytes, top })
        });
        Token { id: TOKEN_ID, text, logprobs }
    }
}

impl Generation for EchoGeneration {
    fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    fn step(&mut self) -> Result<Step, EngineError> {
        if self.at_end() {
            let cut = self.cut && !self.ended && !self.text.stopped();
            let reason = if cut { FinishReason::Length } else { FinishReason::Stop };
            return Ok(Step::Finished { reason, text: self.text.finish() });
        }
        Ok(Step::Token(self.token()))
    }

    fn at_end(&self) -> bool {
        self.ended || self.text.stopped() || self.position >= self.limit
    }
}
