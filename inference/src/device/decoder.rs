//! The decoder on a device.
//!
//! [`DeviceDecoder`] computes what [`ServingDecoder`](crate::decoder::ServingDecoder) computes, for rows of any
//! sequences side by side. What stays on the device: weights ([`DeviceOptions::weights`]), keys and values
//! ([`DevicePools`]), activations. What goes there with a step: ids, positions, block tables and angles; what comes
//! back: logits, or the ids of chosen tokens.
//!
//! # Which bits
//!
//! Sums are in another order than on a processor, and `e^x` is the device's: logits agree to rounding and not to the
//! bit. Up to [`TILE`](super::kernels::matvec::TILE) rows, and for weights in single precision up to any number, a
//! row's result does not depend on what else is in the step. Larger steps of the other formats round what products
//! read to [`Format::Bf16`], for the matrix units: a prompt read in chunks of other sizes, or by another worker, may
//! then continue with another token where two are almost equally likely.

use std::sync::{Mutex, PoisonError};

use super::graph::{Graphs, Key};
use super::kernels::attention::Attend;
use super::kernels::format::{Format, WIDE, pack};
use super::kernels::heads::Projections;
use super::kernels::matmul::Matmul;
use super::kernels::norm::{Delta, Norm};
use super::kernels::sample::NO_TOKEN;
use super::kernels::{Buffer, Gating, Gpu, HeadShape, Weight};
use super::layout::Layout;
use super::plan::{Launch, Plan};
use super::step::{Bounds, Choose, Inputs, Spot};
use super::workspace::Workspace;
use super::{DeviceError, DevicePools};
use crate::decoder::{DecoderConfig, Gate, LayerParts, Make, Parts, Role, Whole, frequencies, read};
use crate::kernels::{Precision, RoundingError};

/// How a decoder uses a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// How weights are kept. [`Precision::F16`] asks for two bytes a weight, which on a device is
    /// [`Format::Bf16`]: what most checkpoints have, and with the range that activations need.
    pub weights: Precision,
    /// Whether steps that repeat are recorded and replayed. Off unless asked for: it was not yet measured on a GPU.
    pub graphs: bool,
}

impl DeviceOptions {
    /// Weights in a precision, and nothing that was not measured.
    pub fn new(weights: Precision) -> Self {
        Self { weights, graphs: false }
    }

    fn format(self) -> Result<Format, DeviceError> {
        match self.weights {
            Precision::F32 => Ok(Format::F32),
            Precision::F16 => Ok(Format::Bf16),
            Precision::Int8 => Ok(Format::Int8),
            Precision::Int4 => Err(DeviceError::Precision { precision: self.weights }),
        }
    }
}

/// A decoder in the memory of a GPU.
#[derive(Debug)]
pub struct DeviceDecoder {
    gpu: Gpu,
    matmul: Option<Matmul>,
    config: DecoderConfig,
    layout: Layout,
    format: Format,
    parts: Parts<Weight, Buffer>,
    /// The head norms of each layer.
    head_norms: Vec<Option<(Buffer, Buffer)>>,
    /// The frequencies of each kind of attention, and which kind a layer is.
    frequencies: Vec<Vec<f32>>,
    kinds: Vec<usize>,
    bytes: usize,
    rounding: RoundingError,
    work: Mutex<Work>,
}

#[derive(Debug)]
struct Work {
    space: Workspace,
    graphs: Graphs,
}

/// Puts tensors into a device's memory.
struct Upload<'a> {
    gpu: &'a Gpu,
    layout: &'a Layout,
    format: Format,
    rounding: Mutex<RoundingError>,
}

impl Make for Upload<'_> {
    type Matrix = Weight;
    type Vector = Buffer;

    fn matrix(&self, role: Role, values: Vec<f32>, shape: [usize; 2]) -> Weight {
        let (values, [rows, columns]) = self.layout.matrix(role, values, shape);
        let packed = pack(&values, self.format);
        let error = packed.rounding_error();
        let mut worst = self.rounding.lock().unwrap_or_else(PoisonError::into_inner);
        *worst = RoundingError { max: worst.max.max(error.max), rms: worst.rms.max(error.rms) };
        let [data, scales] =
            self.gpu.lasting(|| [self.gpu.upload(&packed.bytes), self.gpu.upload(&packed.scales)]);
        Weight { data, scales, format: self.format, rows, columns }
    }

    fn vector(&self, role: Role, values: Vec<f32>) -> Buffer {
        self.gpu.lasting(|| self.gpu.upload(&self.layout.vector(role, values)))
    }
}

impl DeviceDecoder {
    /// Puts the tensors that `fetch` hands out by name and shape, in the order of
    /// [`layout`](crate::decoder::weights::layout), into the memory of an NVIDIA GPU that
    /// [`DeviceChoice`](super::DeviceChoice) found.
    ///
    /// # Errors
    /// If the model's shape is none that kernels compute, if it does not fit, or if `fetch` fails.
    #[cfg(feature = "cuda")]
    pub fn cuda<E: From<DeviceError>>(
        index: usize,
        config: DecoderConfig,
        options: DeviceOptions,
        fetch: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let device =
            cubecl::Device::cuda(index).map_err(|why| DeviceError::Unsuited { why: why.to_string() })?;
        Self::on(device.client(), config, options, fetch)
    }

    pub(super) fn on<E: From<DeviceError>>(
        client: cubecl::client::Client,
        config: DecoderConfig,
        options: DeviceOptions,
        fetch: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let gpu = Gpu::new(client).ok_or_else(|| DeviceError::Unsuited {
            why: "its planes (warps) are not of one size, of at least four lanes".into(),
        })?;
        let format = options.format()?;
        let kept = if format == Format::F32 { Format::F32 } else { Format::Bf16 };
        let layout = Layout::new(&config, kept)?;
        gpu.fits(
            0,
            usize::try_from(config.parameters()).unwrap_or(usize::MAX / 4) / WIDE * format.bytes(WIDE),
        )?;
        let upload = Upload { gpu: &gpu, layout: &layout, format, rounding: Mutex::default() };
        let parts = read(&config, &mut Whole { make: &upload, fetch })?;
        let rounding = *upload.rounding.lock().unwrap_or_else(PoisonError::into_inner);
        let matrices = parts.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        let head = parts.lm_head.as_ref().unwrap_or(&parts.embed);
        let bytes = matrices.chain([head]).map(Weight::bytes).sum();
        let fill = |norm: &[f32]| gpu.upload(&[norm, &vec![0.0; layout.heads.wide - norm.len()]].concat());
        let head_norms =
            parts.layers.iter().map(|l| l.head_norms.as_ref().map(|(q, k)| (fill(q), fill(k)))).collect();
        // Layers of equal attention share their angles; a model has one or two kinds.
        let (mut known, mut kinds) = (Vec::new(), Vec::with_capacity(config.layers.len()));
        for attention in &config.layers {
            kinds.push(known.iter().position(|rotary| *rotary == attention.rotary).unwrap_or(known.len()));
            if kinds.last() == Some(&known.len()) {
                known.push(attention.rotary);
            }
        }
        let frequencies = known.into_iter().map(|rotary| frequencies(config.head_dim, rotary)).collect();
        let matmul = if format == Format::F32 { None } else { Matmul::probe(&gpu) };
        gpu.wait()?;
        match &matmul {
            Some(matmul) => {
                tracing::info!(kernel = matmul.name(), "products of many rows are by matrix units")
            }
            None => tracing::info!("products of many rows are by tiles"),
        }
        let work = Work { space: Workspace::new(&gpu), graphs: Graphs::new(options.graphs) };
        Ok(Self {
            gpu,
            matmul,
            config,
            layout,
            format,
            parts,
            head_norms,
            frequencies,
            kinds,
            bytes,
            rounding,
            work: Mutex::new(work),
        })
    }

    /// The dimensions.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Memory of a block of keys and values in all layers.
    pub fn block_bytes(&self) -> usize {
        self.heads().block_bytes() * self.config.layers.len()
    }

    /// How the weights are kept.
    pub fn format(&self) -> &'static str {
        self.format.name()
    }

    /// Bytes of the weights that every token is multiplied with. An embedding table of its own is not among them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Weights that every token of a prompt is multiplied with: those of the layers.
    pub fn layer_weights(&self) -> u64 {
        let matrices = self.parts.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        matrices.map(|m| m.rows as u64 * m.columns as u64).sum()
    }

    /// What packing changed: the worst of all matrices.
    pub fn rounding_error(&self) -> RoundingError {
        self.rounding
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn matmul(&self) -> Option<&Matmul> {
        self.matmul.as_ref()
    }

    pub(super) fn heads(&self) -> HeadShape {
        self.layout.heads
    }

    /// Computes rows of any sequences, keeps their keys and values, and returns the logits after the `wanted` ones,
    /// `vocab_size` for each in that order.
    ///
    /// # Errors
    /// If the rows cannot be computed together, or the device fails.
    pub fn logits(
        &self,
        ids: &[u32],
        spots: &[Spot<'_>],
        wanted: &[usize],
        pools: &mut DevicePools,
    ) -> Result<Vec<f32>, DeviceError> {
        let (vocab, stride) = (self.layout.vocab, self.layout.wide_vocab);
        let read = |space: &Workspace| -> Result<Vec<f32>, DeviceError> {
            if wanted.is_empty() {
                self.gpu.wait()?;
                return Ok(Vec::new());
            }
            let all = self.gpu.read_some::<f32>(&space.logits, wanted.len() * stride)?;
            // Bits, so that a recording is compared with what it must repeat even where that is not a number.
            Ok(all.chunks_exact(stride).flat_map(|row| &row[..vocab]).copied().collect())
        };
        self.step(ids, spots, wanted, pools, None, read)
    }

    /// The same, but a token is chosen on the device after each `wanted` row, and only its id comes back; `None` where
    /// a logit was not finite.
    ///
    /// # Errors
    /// As [`logits`](Self::logits), or if there is not one choice for each wanted row.
    pub fn tokens(
        &self,
        ids: &[u32],
        spots: &[Spot<'_>],
        wanted: &[usize],
        choices: &[Choose],
        pools: &mut DevicePools,
    ) -> Result<Vec<Option<u32>>, DeviceError> {
        if choices.len() != wanted.len() {
            let why = format!("{} choices for {} rows", choices.len(), wanted.len());
            return Err(DeviceError::Step { why });
        }
        let read = |space: &Workspace| self.gpu.read_some::<u32>(&space.tokens, wanted.len());
        let found = self.step(ids, spots, wanted, pools, Some(choices), read)?;
        Ok(found.into_iter().map(|id| (id != NO_TOKEN).then_some(id)).collect())
    }

    fn step<T: Bits>(
        &self,
        ids: &[u32],
        spots: &[Spot<'_>],
        wanted: &[usize],
        pools: &mut DevicePools,
        choices: Option<&[Choose]>,
        read: impl Fn(&Workspace) -> Result<Vec<T>, DeviceError>,
    ) -> Result<Vec<T>, DeviceError> {
        let bounds = Bounds::new(&self.layout, pools.blocks());
        let inputs = Inputs::new(bounds, &self.frequencies, ids, spots, wanted)?;
        let plan = Plan::new(ids.len(), wanted.len(), inputs.parts, self.matmul.is_some(), self.format);
        // Whoever panicked with it left inputs that the next step writes anew.
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Work { space, graphs } = &mut *work;
        if space.grow(&self.gpu, &self.layout, &plan, &inputs, self.format)? {
            graphs.clear();
        }
        space.write(&self.gpu, &inputs, choices);
        let key = Key { plan, choose: choices.is_some(), pools: pools.id };
        let space = &*space;
        let launch = || self.launch_all(&plan, space, pools, choices.is_some());
        let found = graphs.run(&self.gpu.client, key, launch, || read(space).map(Same))?;
        Ok(found.0)
    }

    fn launch_all(
        &self,
        plan: &Plan,
        space: &Workspace,
        pools: &DevicePools,
        choose: bool,
    ) -> Result<(), DeviceError> {
        let Self { gpu, parts, layout, config, .. } = self;
        gpu.embed(&space.ids, &parts.embed, plan.rows, config.embed_scale, &space.stream);
        let launches = plan.layer(self.format);
        for i in 0..parts.layers.len() {
            for launch in &launches {
                self.launch(*launch, i, plan, space, &pools.layers[i])?;
            }
        }
        if plan.wanted == 0 {
            return Ok(());
        }
        let norm = self.norm(&parts.norm, plan.logit_activations());
        gpu.add_norm(
            &space.stream,
            self.added(parts.layers.last(), space),
            norm,
            plan.wanted,
            Some(&space.picks),
            &space.normed,
        );
        let head = parts.lm_head.as_ref().unwrap_or(&parts.embed);
        if plan.units_for_logits && self.format == Format::Int8 {
            gpu.widen(head, &space.widened);
        }
        self.product(
            head,
            &space.normed,
            plan.wanted,
            plan.units_for_logits,
            Gating::None,
            space,
            &space.logits,
        )?;
        if choose {
            let width = (layout.vocab, layout.wide_vocab);
            gpu.sample(&space.logits, width, &space.temperatures, &space.shares, plan.wanted, &space.tokens);
        }
        Ok(())
    }

    fn launch(
        &self,
        launch: Launch,
        i: usize,
        plan: &Plan,
        space: &Workspace,
        pool: &Buffer,
    ) -> Result<(), DeviceError> {
        let Self { gpu, layout, config, .. } = self;
        let (layer, attention, rows) = (&self.parts.layers[i], config.layers[i], plan.rows);
        let activations = plan.activations();
        let attend = Attend {
            qkv: &space.projections,
            stride: layout.qkv(),
            spots: &space.spots,
            tables: &space.tables,
            window: attention.window,
            scale: config.query_scale as f32,
            parts: plan.parts,
            partial: &space.partial,
            format: activations,
        };
        match launch {
            Launch::AttentionNorm => {
                let before = i.checked_sub(1).and_then(|i| self.parts.layers.get(i));
                let norm = self.norm(&layer.attention_norm, activations);
                gpu.add_norm(&space.stream, self.added(before, space), norm, rows, None, &space.normed);
            }
            Launch::MlpNorm => {
                let delta = Delta {
                    values: &space.added,
                    bias: layer.o_bias.as_ref(),
                    norm: layer.attention_out_norm.as_ref(),
                };
                let norm = self.norm(&layer.mlp_norm, activations);
                gpu.add_norm(&space.stream, Some(delta), norm, rows, None, &space.normed);
            }
            Launch::Heads => {
                let from = Projections {
                    qkv: &space.projections,
                    stride: layout.qkv(),
                    bias: layer.qkv_bias.as_ref(),
                    norms: self.head_norms[i].as_ref().map(|(q, k)| (q, k)),
                    eps: config.rms_norm_eps as f32,
                    angles: &space.angles[self.kinds[i]],
                    spots: &space.spots,
                    tables: &space.tables,
                };
                gpu.heads(layout.heads, from, rows, pool);
            }
            Launch::Attend => gpu.attend(layout.heads, attend, rows, pool, &space.seen),
            Launch::Merge => gpu.merge(layout.heads, attend, rows, &space.seen),
            Launch::Gate => {
                gpu.gate(&space.gates, rows, layout.wide_ffn, self.gating(), activations, &space.gated);
            }
            Launch::Widen(role) => gpu.widen(weight(layer, role), &space.widened),
            Launch::Product(role) => {
                let (x, out) = match role {
                    Role::Projections => (&space.normed, &space.projections),
                    Role::AttentionOutput => (&space.seen, &space.added),
                    Role::GateUp if plan.units => (&space.normed, &space.gates),
                    Role::GateUp => (&space.normed, &space.gated),
                    _ => (&space.gated, &space.added),
                };
                let gating = if role == Role::GateUp && !plan.units { self.gating() } else { Gating::None };
                self.product(weight(layer, role), x, rows, plan.units, gating, space, out)?;
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "those of a product, and by what")]
    fn product(
        &self,
        weight: &Weight,
        x: &Buffer,
        rows: usize,
        units: bool,
        gating: Gating,
        space: &Workspace,
        out: &Buffer,
    ) -> Result<(), DeviceError> {
        match &self.matmul {
            Some(matmul) if units => {
                let data = if weight.format == Format::Int8 { &space.widened } else { &weight.data };
                if self.gpu.matmul(matmul, x, data, [rows, weight.columns, weight.rows], out) {
                    return Ok(());
                }
                let why = format!(
                    "its matrix units refused a product of {rows} rows with a weight of {} times {}",
                    weight.rows, weight.columns
                );
                Err(DeviceError::Failed { why })
            }
            _ => {
                self.gpu.matvec(x, weight, rows, gating, out);
                Ok(())
            }
        }
    }

    fn norm<'a>(&self, weight: &'a Buffer, format: Format) -> Norm<'a> {
        let Layout { hidden, wide_hidden, .. } = self.layout;
        Norm { weight, eps: self.config.rms_norm_eps as f32, width: wide_hidden, real: hidden, format }
    }

    /// What a layer's feed-forward part adds to the residual stream.
    fn added<'a>(
        &self,
        layer: Option<&'a LayerParts<Weight, Buffer>>,
        space: &'a Workspace,
    ) -> Option<Delta<'a>> {
        layer.map(|layer| Delta { values: &space.added, bias: None, norm: layer.mlp_out_norm.as_ref() })
    }

    fn gating(&self) -> Gating {
        match self.config.family.gate() {
            Gate::Silu => Gating::Silu,
            Gate::GeluTanh => Gating::GeluTanh,
        }
    }

    /// Steps that would be replayed.
    #[cfg(test)]
    pub(super) fn recorded(&self) -> usize {
        self.work.lock().unwrap().graphs.recorded()
    }
}

/// The weight of a layer that has a role.
fn weight(layer: &LayerParts<Weight, Buffer>, role: Role) -> &Weight {
    match role {
        Role::Projections => &layer.qkv,
        Role::AttentionOutput => &layer.o,
        Role::GateUp => &layer.gate_up,
        Role::Down | Role::Vocabulary | Role::Stream => &layer.down,
    }
}

/// Results that are compared by their bits, so that what is not a number equals itself.
struct Same<T>(Vec<T>);

trait Bits: Copy {
    fn bits(self) -> u32;
}

impl Bits for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Bits for u32 {
    fn bits(self) -> u32 {
        self
    }
}

impl<T: Bits> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.bits() == b.bits())
    }
}
