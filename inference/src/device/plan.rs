//! Which kernels a layer launches.
//!
//! A launch costs microseconds, and a layer of a large model little more than a hundred: so kernels are fused until
//! what is left are the products and what must wait for all of one. This is the list; the decoder walks through it.

use super::kernels::format::Format;
use super::kernels::matmul::FEWEST_ROWS;
use crate::decoder::Role;

/// One launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launch {
    /// What the layer before added joins the residual stream, which is normed for attention.
    AttentionNorm,
    /// A weight of eight-bit integers becomes one that matrix units read.
    Widen(Role),
    /// A product.
    Product(Role),
    /// Biases, norms and positions of heads; keys and values into their pool.
    Heads,
    /// What the queries see.
    Attend,
    /// What they saw in several parts.
    Merge,
    /// What attention added joins the residual stream, which is normed for the feed-forward part.
    MlpNorm,
    /// The gate of the feed-forward part, where the product does not have it within.
    Gate,
}

/// How a step is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// Rows.
    pub(super) rows: usize,
    /// Parts of attention; a power of two, so that few kinds of steps differ by it.
    pub(super) parts: usize,
    /// Rows of logits.
    pub(super) wanted: usize,
    /// Whether products of all rows are by matrix units.
    pub(super) units: bool,
    /// Whether that of the rows of logits is.
    pub(super) units_for_logits: bool,
}

impl Plan {
    /// A plan for a device with matrix units or without, and weights in a format.
    pub(super) fn new(rows: usize, wanted: usize, parts: usize, units: bool, weights: Format) -> Self {
        // Weights in single precision are for comparing: matrix units would round them.
        let units = units && weights != Format::F32;
        Self {
            rows,
            parts: parts.next_power_of_two(),
            wanted,
            units: units && rows >= FEWEST_ROWS,
            units_for_logits: units && wanted >= FEWEST_ROWS,
        }
    }

    /// What products of all rows read.
    pub(super) fn activations(&self) -> Format {
        if self.units { Format::Bf16 } else { Format::F32 }
    }

    /// What the product of logits reads.
    pub(super) fn logit_activations(&self) -> Format {
        if self.units_for_logits { Format::Bf16 } else { Format::F32 }
    }

    /// The launches of a layer, in order.
    pub(super) fn layer(&self, weights: Format) -> Vec<Launch> {
        let widen = self.units && weights == Format::Int8;
        let mut launches = Vec::with_capacity(14);
        let product = |launches: &mut Vec<Launch>, role| {
            launches.extend(widen.then_some(Launch::Widen(role)));
            launches.push(Launch::Product(role));
        };
        launches.push(Launch::AttentionNorm);
        product(&mut launches, Role::Projections);
        launches.extend([Launch::Heads, Launch::Attend]);
        launches.extend((self.parts > 1).then_some(Launch::Merge));
        product(&mut launches, Role::AttentionOutput);
        launches.push(Launch::MlpNorm);
        product(&mut launches, Role::GateUp);
        launches.extend(self.units.then_some(Launch::Gate));
        product(&mut launches, Role::Down);
        launches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::kernels::matvec::TILE;

    #[test]
    fn decoding_launches_eight_kernels_for_each_layer() {
        for (rows, format) in [(1, Format::Bf16), (TILE, Format::Int8), (500, Format::F32)] {
            let plan = Plan::new(rows, rows, 1, true, format);
            assert_eq!(plan.layer(format).len(), 8, "{rows} {format:?}");
            assert_eq!(plan.activations(), Format::F32);
        }
    }

    #[test]
    fn long_sequences_and_matrix_units_add_one_launch_each() {
        let long = Plan::new(1, 1, 3, true, Format::Bf16);
        assert_eq!((long.parts, long.layer(Format::Bf16).len()), (4, 9));
        let many = Plan::new(TILE + 1, 1, 1, true, Format::Bf16);
        assert_eq!(many.layer(Format::Bf16).len(), 9);
        assert_eq!(many.activations(), Format::Bf16);
        assert_eq!(many.logit_activations(), Format::F32);
        // Four products, each widened before.
        assert_eq!(many.layer(Format::Int8).len(), 13);
        let without = Plan::new(TILE + 1, TILE + 1, 1, false, Format::Bf16);
        assert_eq!((without.activations(), without.logit_activations()), (Format::F32, Format::F32));
    }
}
