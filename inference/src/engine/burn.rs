//! Serving a checkpoint with burn.
//!
//! A prompt is computed in chunks of [`PREFILL_CHUNK`] tokens, output tokens one by one. What a row gives does not
//! depend on the chunk it is in, so a resumed request's `prefix` is read like a prompt, and the continuation is
//! bit for bit what the first worker would have computed.

use std::path::Path;
use std::sync::Arc;

use super::model::{Cache, Model};
use super::{Engine, EngineError, Generation, LoadError, Sampler, Step, logprobs::logprobs};
use crate::checkpoint::{ChatTemplate, Checkpoint, ModelConfig, TextTokenizer, TokenizerError};
use crate::device::{DeviceError, DeviceLimits, Processor};
use crate::kernels::{Precision, RoundingError};
use crate::manifest::Manifest;
use crate::text::TextStream;
use crate::{FinishReason, GenerateRequest, ModelDigest, ModelInfo, RequestError, Token};

/// Prompt tokens per step. Large enough for matrix products to run at full speed, small enough that
/// a long prompt does not keep other generations waiting.
const PREFILL_CHUNK: usize = 64;

/// A decoder, ready to serve.
#[derive(Debug, Clone)]
pub struct BurnEngine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    info: ModelInfo,
    config: ModelConfig,
    model: Model,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    manifest: Manifest,
}

impl BurnEngine {
    /// Loads a checkpoint directory on the CPU, its weights in single precision. With `expected`, the files must
    /// be those of that digest. `progress` gets bytes read and bytes in all.
    pub fn load(
        dir: &Path,
        expected: Option<ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        Self::load_as(dir, Precision::F32, expected, progress)
    }

    /// The same, with the weights in another precision. [`rounding_error`](Self::rounding_error) says what that
    /// changed.
    pub fn load_as(
        dir: &Path,
        precision: Precision,
        expected: Option<ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        Self::load_on(dir, Processor::Cpu, precision, expected, progress)
    }

    /// The same, on a device that was [found](crate::device::DeviceChoice::resolve).
    pub fn load_on(
        dir: &Path,
        processor: Processor,
        precision: Precision,
        expected: Option<ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        Self::from_checkpoint(Checkpoint::open(dir, expected.as_ref(), progress)?, processor, precision)
    }

    /// Loads the model that is built into the program.
    pub fn embedded() -> Result<Self, LoadError> {
        Self::embedded_on(Processor::Cpu)
    }

    /// The same, on a device that was [found](crate::device::DeviceChoice::resolve).
    pub fn embedded_on(processor: Processor) -> Result<Self, LoadError> {
        let files = crate::embedded::files();
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let checkpoint = Checkpoint::from_files(crate::embedded::NAME.to_owned(), files, None)?;
        Self::from_checkpoint(checkpoint, processor, Precision::F32)
    }

    fn from_checkpoint(
        checkpoint: Checkpoint,
        processor: Processor,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let Checkpoint { name, config, tensors, tokenizer, template, manifest } = checkpoint;
        let dimensions = config.dimensions.clone();
        let model =
            Model::load(processor, dimensions, precision, |name, shape| Ok(tensors.get(name, shape)?))?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let info = ModelInfo {
            name,
            digest: manifest.digest(),
            context: count(config.dimensions.max_position_embeddings),
            parameters: config.dimensions.parameters(),
            family: config.dimensions.family.name().into(),
            quantisation: model.quantisation(precision).into(),
        };
        let shared = Shared { info, config, model, tokenizer, template, manifest };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The files that were loaded.
    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    /// The tokenizer of the model.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.shared.tokenizer
    }

    /// The rendered prompt of a conversation.
    pub fn render(&self, request: &GenerateRequest) -> Result<String, RequestError> {
        self.shared.render(request)
    }

    /// What the precision of the weights changed: the worst of all matrices.
    pub fn rounding_error(&self) -> RoundingError {
        self.shared.model.rounding_error()
    }

    /// Bytes of the packed weights that every token is multiplied with.
    pub fn weight_bytes(&self) -> usize {
        self.shared.model.bytes()
    }

    /// Weights that every token of a prompt is multiplied with.
    pub fn layer_weights(&self) -> u64 {
        self.shared.model.layer_weights()
    }

    /// What the GPU that serves can do at most, measured now; `None` on a processor.
    pub fn device_limits(&self) -> Option<Result<DeviceLimits, DeviceError>> {
        self.shared.model.limits()
    }

    /// An empty sequence with room for `capacity` tokens.
    pub fn sequence(&self, capacity: usize) -> TokenSequence {
        TokenSequence { shared: Arc::clone(&self.shared), cache: self.shared.model.cache(capacity) }
    }

    /// Logits after each token of a sequence, computed `chunk` tokens at a time. The chunks do not change a bit of
    /// them; they only bound the memory of a step.
    pub fn logits(&self, ids: &[u32], chunk: usize) -> Result<Vec<Vec<f32>>, RequestError> {
        self.shared.check_ids("ids", ids)?;
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

/// A sequence of token ids that a model reads, without a conversation around it: what comparisons and measurements
/// need.
#[derive(Debug)]
pub struct TokenSequence {
    shared: Arc<Shared>,
    cache: Cache,
}

impl TokenSequence {
    /// Appends tokens; the logits after the last one. Empty if there are none.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>, RequestError> {
        self.shared.check_ids("ids", ids)?;
        let free = self.cache.capacity() - self.cache.len();
        if ids.len() > free {
            let why = format!("{} tokens, the sequence has room for {free}", ids.len());
            return Err(RequestError::invalid("ids", why));
        }
        let mut last = Vec::new();
        for chunk in ids.chunks(PREFILL_CHUNK) {
            let logits = self.shared.model.last(chunk, &mut self.cache);
            last = logits.map_err(|e| RequestError::invalid("ids", e))?;
        }
        Ok(last)
    }
}

impl Engine for BurnEngine {
    fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    fn start(&self, request: &GenerateRequest) -> Result<Box<dyn Generation>, RequestError> {
        let shared = &self.shared;
        request.validate()?;
        if request.model != shared.info.digest {
            return Err(RequestError::UnknownModel);
        }
        let text = shared.render(request)?;
        let mut ids = shared
            .tokenizer
            .encode(&text)
            .map_err(|e: TokenizerError| RequestError::Template { why: e.to_string() })?;
        let context = shared.config.dimensions.max_position_embeddings;
        let prompt = ids.len();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let prefix = request.prefix.as_slice();
        if prompt == 0 {
            return Err(RequestError::invalid("messages", "the chat template renders them to nothing"));
        }
        if prompt >= context {
            let prompt = count(prompt + prefix.len());
            return Err(RequestError::ContextExceeded { prompt, limit: count(context) });
        }
        let limit = request.sampling.max_tokens.map_or(context, |n| n as usize).min(context - prompt);
        if prefix.len() > limit {
            let why = format!("{} tokens, but the whole answer may have {limit}", prefix.len());
            return Err(RequestError::invalid("prefix", why));
        }
        shared.check_ids("prefix", prefix)?;
        let sampling = &request.sampling;
        sampling.validate_ids(shared.config.dimensions.vocab_size)?;
        let ends = |id: &u32| shared.config.end_tokens.contains(id) || sampling.stop_token_ids.contains(id);
        if let Some(id) = prefix.iter().copied().find(ends) {
            let why = format!("token {id} ends an answer and cannot be continued");
            return Err(RequestError::invalid("prefix", why));
        }
        let mut stream = TextStream::new(&sampling.stop);
        for &id in prefix {
            stream.push(shared.tokenizer.bytes(id));
        }
        let sampler = Sampler::new(sampling, &ids, prefix);
        ids.extend_from_slice(prefix);
        Ok(Box::new(BurnGeneration {
            shared: Arc::clone(shared),
            prompt,
            prompt_tokens: count(ids.len()),
            ids,
            cache: None,
            sampler,
            stop_token_ids: sampling.stop_token_ids.clone(),
            logprobs: sampling.logprobs,
            text: stream,
            limit,
            ended: false,
        }))
    }
}

impl Shared {
    fn render(&self, request: &GenerateRequest) -> Result<String, RequestError> {
        for (i, message) in request.messages.iter().enumerate() {
            if let Some(token) = self.tokenizer.control_token_in(&message.content) {
                let why = format!("contains {token:?}, which structures the conversation; remove it");
                return Err(RequestError::invalid(format!("messages[{i}].content"), why));
            }
        }
        self.template
            .render(&request.messages)
            .map_err(|e| RequestError::Template { why: e.to_string().chars().take(200).collect() })
    }

    fn check_ids(&self, field: &str, ids: &[u32]) -> Result<(), RequestError> {
        let dimensions = &self.config.dimensions;
        if ids.len() > dimensions.max_position_embeddings {
            let limit = dimensions.max_position_embeddings;
            let why = format!("{} tokens, the model's context holds {limit}", ids.len());
            return Err(RequestError::invalid(field, why));
        }
        match ids.iter().find(|&&id| id as usize >= dimensions.vocab_size) {
            Some(id) => {
                let why = format!("token {id} is not below `vocab_size`, {}", dimensions.vocab_size);
                Err(RequestError::invalid(field, why))
            }
            None => Ok(()),
        }
    }
}

struct BurnGeneration {
    shared: Arc<Shared>,
    /// Prompt, prefix and output so far.
    ids: Vec<u32>,
    /// Length of the rendered prompt; output positions count from here.
    prompt: usize,
    /// Prompt and prefix.
    prompt_tokens: u32,
    /// Allocated by the first step, so that an answer that nobody pays for costs no memory.
    cache: Option<Cache>,
    sampler: Sampler,
    /// The request's, beside the model's own.
    stop_token_ids: Vec<u32>,
    /// How many alternatives to report beside each token.
    logprobs: Option<u8>,
    text: TextStream,
    /// Output positions allowed.
    limit: usize,
    /// The model ended its turn, or made a token at which the request ends.
    ended: bool,
}

impl BurnGeneration {
    /// Feeds the next tokens to the model. The last one's logits, once nothing is left to feed.
    fn advance(&mut self) -> Result<Option<Vec<f32>>, String> {
        let Self { shared, ids, cache, prompt, .. } = self;
        let cache = cache.get_or_insert_with(|| shared.model.cache(*prompt + self.limit));
        let from = cache.len();
        let to = (from + PREFILL_CHUNK).min(ids.len());
        let logits = shared.model.last(&ids[from..to], cache)?;
        Ok((to == ids.len()).then_some(logits))
    }
}

impl Generation for BurnGeneration {
    fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    fn step(&mut self) -> Result<Step, EngineError> {
        if self.at_end() {
            self.cache = None;
            let stop = self.ended || self.text.stopped();
            let reason = if stop { FinishReason::Stop } else { FinishReason::Length };
            return Ok(Step::Finished { reason, text: self.text.finish() });
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let Some(mut logits) = self.advance().map_err(EngineError::Backend)? else {
            let done = count(self.cache.as_ref().map_or(0, Cache::len));
            return Ok(Step::Prefilling { done, total: self.prompt_tokens });
        };
        let position = self.ids.len() - self.prompt;
        let id = self
            .sampler
            .pick(&mut logits, count(position))
            .ok_or(EngineError::NotFinite { position: count(self.ids.len()) })?;
        if self.shared.config.end_tokens.contains(&id) || self.stop_token_ids.contains(&id) {
            self.ended = true;
            return self.step();
        }
        self.ids.push(id);
        self.sampler.observe(id);
        let tokenizer = &self.shared.tokenizer;
        let text = self.text.push(tokenizer.bytes(id));
        let logprobs =
            self.logprobs.map(|top| Box::new(logprobs(&logits, id, top.into(), |id| tokenizer.bytes(id))));
        Ok(Step::Token(Token { id, text, logprobs }))
    }

    fn at_end(&self) -> bool {
        self.ended || self.text.stopped() || self.ids.len() - self.prompt >= self.limit
    }
}
