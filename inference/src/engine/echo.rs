//! An engine that costs nothing: it repeats the question, piece by piece.

use super::{Answer, Engine, EngineError, Executor, Logits, Next, Resources, Shape, Started};
use crate::limits::MAX_PIECE_BYTES;
use crate::scheduler::{BlockId, Plan, Run, Sequence};
use crate::text::TextStream;
use crate::tools::ToolChoice;
use crate::{Alternative, AnswerForm, ChatRole, GenerateRequest, Logprobs, ModelInfo, RequestError, Token};

/// The id of every token: the vocabulary has no other, so that each is certain and nothing is left to sample.
const TOKEN_ID: u32 = 0;
/// Tokens of the vocabulary.
const VOCAB: usize = 1;
/// Positions of a block. There is nothing to keep, so that one block holds any request that can be sent.
const BLOCK_TOKENS: u32 = 1 << 24;

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
            context: BLOCK_TOKENS,
            parameters: 0,
            family: "echo".into(),
            quantisation: "none".into(),
        };
        Self { tokens: tokens.min(BLOCK_TOKENS / 2), bytes, info }
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

    fn start(&self, request: &GenerateRequest) -> Result<Started, RequestError> {
        request.validate()?;
        if request.model != self.info.digest {
            return Err(RequestError::UnknownModel);
        }
        request.sampling.validate_ids(VOCAB)?;
        let structure = &request.structure;
        if structure.grammar.is_some()
            || matches!(structure.choice, ToolChoice::Required | ToolChoice::Named(_))
        {
            let why = "an echo follows no form; ask a model, or leave it out";
            return Err(RequestError::invalid("response_format", why));
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let prompt: usize = request.messages.iter().map(|m| m.content.len()).sum();
        let limit = self.tokens.min(request.sampling.max_tokens.unwrap_or(u32::MAX));
        let prefix = count(request.prefix.len());
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
        let question = if question.is_empty() { "." } else { question };
        let mut answer = EchoAnswer {
            question: question.to_owned(),
            next: 0,
            bytes: self.bytes,
            left: self.tokens,
            logprobs: request.sampling.logprobs,
            text: TextStream::new(&request.sampling.stop),
        };
        for _ in 0..prefix {
            answer.token();
        }
        let sequence = Sequence {
            // A token for each byte, and one for an empty question.
            prompt: vec![TOKEN_ID; prompt.max(1)],
            prefix: request.prefix.clone(),
            limit,
            at_end: ended || answer.is_complete(),
        };
        Ok(Started { sequence, form: AnswerForm::default(), answer: Box::new(answer) })
    }

    fn shape(&self) -> Shape {
        // A prompt takes no time, so it is never cut.
        Shape { block_tokens: BLOCK_TOKENS, block_bytes: 1, prefill: BLOCK_TOKENS, context: BLOCK_TOKENS }
    }

    fn executor(&self, _: Resources) -> Result<Box<dyn Executor>, EngineError> {
        Ok(Box::new(Nothing))
    }
}

/// Computes nothing.
struct Nothing;

impl Executor for Nothing {
    fn wipe(&mut self, _: &[BlockId]) {}

    fn run(&mut self, _: &Plan, _: &[Run]) -> Result<Logits, EngineError> {
        Ok(Logits::default())
    }
}

struct EchoAnswer {
    question: String,
    /// Where in the question the next token begins.
    next: usize,
    bytes: usize,
    /// Tokens to come, if nothing ends the answer before.
    left: u32,
    /// How many alternatives to report beside each token.
    logprobs: Option<u8>,
    text: TextStream,
}

impl EchoAnswer {
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
        self.left = self.left.saturating_sub(1);
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

    fn is_complete(&self) -> bool {
        self.left == 0 || self.text.stopped()
    }
}

impl Answer for EchoAnswer {
    fn next(&mut self, _: &mut [f32]) -> Result<Next, EngineError> {
        if self.is_complete() {
            return Ok(Next::End);
        }
        let token = self.token();
        Ok(if self.is_complete() { Next::Last(token) } else { Next::Token(token) })
    }

    fn finish(&mut self) -> String {
        self.text.finish()
    }
}
