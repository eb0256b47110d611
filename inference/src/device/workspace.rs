//! The memory that a step works in. It is kept from step to step, so that a step allocates nothing and a recorded one
//! finds everything where it was; it grows when a larger step comes.

use super::DeviceError;
use super::kernels::attention::partial_bytes;
use super::kernels::format::Format;
use super::kernels::{Buffer, Gpu};
use super::layout::Layout;
use super::plan::Plan;
use super::step::{Choose, Inputs};

/// Buffers of a step. Activations have four bytes for each value, also where they are kept in two.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) ids: Buffer,
    pub(super) spots: Buffer,
    pub(super) tables: Buffer,
    /// Of each kind of attention.
    pub(super) angles: Vec<Buffer>,
    pub(super) picks: Buffer,
    pub(super) temperatures: Buffer,
    pub(super) shares: Buffer,
    /// The residual stream.
    pub(super) stream: Buffer,
    /// Its norm.
    pub(super) normed: Buffer,
    /// Queries, keys and values.
    pub(super) projections: Buffer,
    /// What attention saw in each part, and in all.
    pub(super) partial: Buffer,
    pub(super) seen: Buffer,
    /// What is added to the stream next.
    pub(super) added: Buffer,
    /// The feed-forward layer and its gates, and what they make.
    pub(super) gates: Buffer,
    pub(super) gated: Buffer,
    /// A weight of eight-bit integers as matrix units read it.
    pub(super) widened: Buffer,
    pub(super) logits: Buffer,
    pub(super) tokens: Buffer,
}

impl Workspace {
    /// A workspace without room.
    pub(super) fn new(gpu: &Gpu) -> Self {
        let none = || gpu.empty(0);
        Self {
            ids: none(),
            spots: none(),
            tables: none(),
            angles: Vec::new(),
            picks: none(),
            temperatures: none(),
            shares: none(),
            stream: none(),
            normed: none(),
            projections: none(),
            partial: none(),
            seen: none(),
            added: none(),
            gates: none(),
            gated: none(),
            widened: none(),
            logits: none(),
            tokens: none(),
        }
    }

    /// Makes room for a step. Whether any buffer is another one than before.
    pub(super) fn grow(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        plan: &Plan,
        inputs: &Inputs,
        weights: Format,
    ) -> Result<bool, DeviceError> {
        let rows = plan.rows.next_power_of_two();
        let wanted = plan.wanted.next_power_of_two();
        let floats = |width: usize| 4 * rows * width;
        let widened = if weights == Format::Int8 && (plan.units || plan.units_for_logits) {
            let vocabulary = if plan.units_for_logits { layout.wide_vocab } else { 0 };
            let height = (2 * layout.wide_ffn).max(layout.qkv()).max(vocabulary);
            let width = layout.wide_hidden * height;
            Format::Bf16.bytes(width.max(layout.wide_hidden * layout.wide_ffn.max(layout.seen())))
        } else {
            0
        };
        let mut grown = self.angles.len() != inputs.angles.len();
        self.angles.resize_with(inputs.angles.len(), || gpu.empty(0));
        let mut sizes = vec![
            (&mut self.ids, 4 * rows),
            (&mut self.spots, 8 * rows),
            (&mut self.tables, 4 * inputs.tables.len().next_power_of_two()),
            (&mut self.picks, 4 * wanted),
            (&mut self.temperatures, 4 * wanted),
            (&mut self.shares, 4 * wanted),
            (&mut self.stream, floats(layout.wide_hidden)),
            (&mut self.normed, floats(layout.wide_hidden).max(4 * wanted * layout.wide_hidden)),
            (&mut self.projections, floats(layout.qkv())),
            (&mut self.partial, partial_bytes(layout.heads, rows, plan.parts)),
            (&mut self.seen, floats(layout.seen())),
            (&mut self.added, floats(layout.wide_hidden)),
            (&mut self.gates, if plan.units { floats(2 * layout.wide_ffn) } else { 0 }),
            (&mut self.gated, floats(layout.wide_ffn)),
            (&mut self.widened, widened),
            (&mut self.logits, 4 * wanted * layout.wide_vocab),
            (&mut self.tokens, 4 * wanted),
        ];
        sizes.extend(self.angles.iter_mut().map(|angles| (angles, floats(layout.heads.dim))));
        let needed: usize = sizes.iter().map(|(buffer, bytes)| bytes.saturating_sub(buffer.bytes())).sum();
        gpu.fits(0, needed)?;
        for (buffer, bytes) in sizes {
            if buffer.bytes() < bytes {
                *buffer = gpu.empty(bytes);
                grown = true;
            }
        }
        Ok(grown)
    }

    /// Writes a step's inputs.
    pub(super) fn write(&self, gpu: &Gpu, inputs: &Inputs, choices: Option<&[Choose]>) {
        gpu.write(&inputs.ids, &self.ids);
        gpu.write(&inputs.spots, &self.spots);
        gpu.write(&inputs.tables, &self.tables);
        for (angles, buffer) in inputs.angles.iter().zip(&self.angles) {
            gpu.write(angles, buffer);
        }
        gpu.write(&inputs.picks, &self.picks);
        if let Some(choices) = choices {
            let of = |part: fn(&Choose) -> f32| choices.iter().map(part).collect::<Vec<_>>();
            gpu.write(&of(|choice| choice.temperature), &self.temperatures);
            gpu.write(&of(|choice| choice.share), &self.shares);
        }
    }
}
