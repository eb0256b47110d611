//! Serving a checkpoint with burn.
//!
//! What a row gives does not depend on the step it is in, so a resumed request's `prefix` is read like a prompt, and
//! the continuation is bit for bit what the first worker would have computed.

mod answer;
mod executor;
mod model;
mod sequence;

use std::path::Path;
use std::sync::Arc;

use answer::BurnAnswer;
use executor::BurnExecutor;
use model::Model;
pub use sequence::TokenSequence;

use super::frontend::{Begun, Frontend, Parts, count};
use super::{Engine, EngineError, Executor, LoadError, Resources, Sampler, Shape, Started};
use crate::checkpoint::{self, Checkpoint, Description, TextTokenizer, Unread};
use crate::device::{DeviceError, DeviceLimits, Processor};
use crate::kernels::{BLOCK, Precision, RoundingError};
use crate::manifest::Manifest;
use crate::{GenerateRequest, ModelDigest, ModelInfo, RequestError};

/// A decoder, ready to serve.
#[derive(Debug, Clone)]
pub struct BurnEngine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    frontend: Arc<Frontend>,
    model: Model,
}

impl BurnEngine {
    /// Loads a checkpoint directory on the CPU, its weights in single precision. With `expected`, the files must
    /// be those of that digest. `progress` gets bytes read and bytes in all.
    pub fn load(
        dir: &Path,
        expected: Option<ModelDigest>,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, LoadError> {
        Self::load_as(dir, Precision::F32, expected, progress)
    }

    /// The same, with the weights in another precision. [`rounding_error`](Self::rounding_error) says what that
    /// changed.
    pub fn load_as(
        dir: &Path,
        precision: Precision,
        expected: Option<ModelDigest>,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, LoadError> {
        Self::load_on(dir, Processor::Cpu, precision, expected, progress)
    }

    /// The same, on a device that was [found](crate::device::DeviceChoice::resolve).
    pub fn load_on(
        dir: &Path,
        processor: Processor,
        precision: Precision,
        expected: Option<ModelDigest>,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, LoadError> {
        if processor == Processor::Cpu {
            let engine =
                Unread::open(dir, expected).and_then(|unread| Self::pack(unread, precision, progress));
            return engine.map_err(|error| checkpoint::blame(dir, expected.as_ref(), error));
        }
        Self::upload(Checkpoint::open(dir, expected.as_ref(), progress)?, processor, precision)
    }

    /// Loads the model that is built into the program.
    pub fn embedded() -> Result<Self, LoadError> {
        Self::embedded_on(Processor::Cpu)
    }

    /// The same, on a device that was [found](crate::device::DeviceChoice::resolve).
    pub fn embedded_on(processor: Processor) -> Result<Self, LoadError> {
        let name = crate::embedded::NAME.to_owned();
        let files = crate::embedded::files();
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        if processor == Processor::Cpu {
            return Self::pack(Unread::in_memory(name, files)?, Precision::F32, &mut |_, _| ());
        }
        Self::upload(Checkpoint::from_files(name, files, None)?, processor, Precision::F32)
    }

    /// Reads weights to where they serve on a processor.
    fn pack(
        unread: Unread,
        precision: Precision,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, LoadError> {
        let (model, description) = Model::pack(unread, precision, progress)?;
        Ok(Self::new(model, precision, description))
    }

    /// Hands weights that are in memory to a GPU.
    fn upload(checkpoint: Checkpoint, processor: Processor, precision: Precision) -> Result<Self, LoadError> {
        let Checkpoint { name, config, tensors, tokenizer, template, manifest } = checkpoint;
        let dimensions = config.dimensions.clone();
        let model = Model::upload(processor, dimensions, precision, &tensors)?;
        Ok(Self::new(model, precision, Description { name, config, tokenizer, template, manifest }))
    }

    fn new(model: Model, precision: Precision, description: Description) -> Self {
        let Description { name, config, tokenizer, template, manifest } = description;
        let info = ModelInfo {
            name,
            digest: manifest.digest(),
            context: count(config.dimensions.max_position_embeddings),
            parameters: config.dimensions.parameters(),
            family: config.dimensions.family.name().into(),
            quantisation: model.quantisation(precision).into(),
        };
        let vocab = config.dimensions.vocab_size;
        let parts = Parts { info, vocab, end_tokens: config.end_tokens, tokenizer, template, manifest };
        Self { shared: Arc::new(Shared { frontend: Arc::new(Frontend::new(parts)), model }) }
    }

    /// What it does with text.
    pub fn frontend(&self) -> &Arc<Frontend> {
        &self.shared.frontend
    }

    /// The files that were loaded.
    pub fn manifest(&self) -> &Manifest {
        self.shared.frontend.manifest()
    }

    /// The tokenizer of the model.
    pub fn tokenizer(&self) -> &TextTokenizer {
        self.shared.frontend.tokenizer()
    }

    /// The rendered prompt of a conversation.
    pub fn render(&self, request: &GenerateRequest) -> Result<String, RequestError> {
        self.shared.frontend.render(request)
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
}

impl Engine for BurnEngine {
    fn info(&self) -> &ModelInfo {
        self.shared.frontend.info()
    }

    fn start(&self, request: &GenerateRequest) -> Result<Started, RequestError> {
        let Begun { sequence, form, writer, .. } = self.shared.frontend.start(request)?;
        let sampling = &request.sampling;
        let sampler = Sampler::new(sampling, &sequence.prompt, &sequence.prefix);
        let answer = BurnAnswer { writer, sampler, logprobs: sampling.logprobs };
        Ok(Started { sequence, form, answer: Box::new(answer) })
    }

    fn shape(&self) -> Shape {
        let shared = &self.shared;
        Shape {
            block_tokens: count(BLOCK),
            block_bytes: shared.model.block_bytes(),
            prefill: count(shared.model.prefill()),
            context: shared.frontend.info().context,
        }
    }

    fn executor(&self, resources: Resources) -> Result<Box<dyn Executor>, EngineError> {
        Ok(Box::new(BurnExecutor::new(Arc::clone(&self.shared), resources)?))
    }
}
