//! A weight times a few rows: the product of decoding.
//!
//! Its time is that of reading the weight, so every word is read once for up to [`TILE`] rows, by a plane that
//! reads one output's weights side by side. A row's sum is in the same order however many rows there are: each lane
//! adds what it read, then the lanes are added in the runtime's fixed tree. More rows than a tile are further tiles,
//! which is how a device without matrix units computes prompts.

use cubecl::prelude::*;

use super::format::{Format, Four, Words, unpack};
use super::{Buffer, Gating, Gpu, Weight};

/// Rows that share a read of the weight.
pub const TILE: usize = 8;

/// Planes in a cube: each has outputs of its own, so this only keeps cubes from being too many.
const PLANES: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    inputs: usize,
    outputs: usize,
    format: Format,
    /// Rows computed at once.
    rows: usize,
    /// Outputs that a plane computes at once: more rows are then read from the cache for each word of weights.
    outputs_at_once: usize,
    gating: Gating,
    plane: usize,
}

impl Shape {
    /// Rows of the weight that make one output.
    fn parts(self) -> usize {
        if self.gating == Gating::None { 1 } else { 2 }
    }

    fn words(self) -> usize {
        self.inputs / self.format.per_word()
    }
}

#[cube(launch_unchecked)]
fn matvec_kernel(
    x: &[Four],
    weights: &[Words],
    scales: &[f32],
    out: &mut [f32],
    rows: u32,
    #[comptime] shape: Shape,
) {
    let at_once = comptime!(shape.outputs_at_once);
    let parts = comptime!(shape.parts());
    let tile = comptime!(shape.rows);
    let words = comptime!(shape.words());
    let per_word = comptime!(shape.format.per_word());
    let first = (CUBE_POS_X * CUBE_DIM_Y + UNIT_POS_Y) as usize * at_once;
    let first_row = CUBE_POS_Y as usize * tile;
    let lane = UNIT_POS_X as usize;

    let mut sums = Array::<f32>::new(comptime!(at_once * parts * tile));
    #[unroll]
    for i in 0..comptime!(at_once * parts * tile) {
        sums[i] = 0.0f32;
    }
    for step in 0..comptime!(words.div_ceil(shape.plane)) {
        let word = step * comptime!(shape.plane) + lane;
        if comptime!(words % shape.plane == 0) || word < words {
            #[unroll]
            for o in 0..comptime!(at_once * parts) {
                let part = comptime!(o % parts);
                // Planes beyond the last output repeat it, so that all of a cube stay together.
                let output = min(first + comptime!(o / parts), comptime!(shape.outputs - 1));
                let at = (output + comptime!(part * shape.outputs)) * words + word;
                let w = unpack(weights[at], shape.format);
                let mut scale = 1.0f32;
                if comptime!(shape.format == Format::Int8) {
                    scale = scales[at / 2];
                }
                #[unroll]
                for r in 0..tile {
                    let row = min(first_row + r, rows as usize - 1);
                    let from = (row * words + word) * comptime!(per_word / 4);
                    let index = comptime!(o * tile + r);
                    let mut sum = sums[index];
                    if comptime!(shape.format == Format::Int8) {
                        sum = 0.0f32;
                    }
                    #[unroll]
                    for q in 0..comptime!(per_word / 4) {
                        let values = x[from + q];
                        #[unroll]
                        for i in 0..4usize {
                            sum = fma(w[4 * q + i], values.extract(i), sum);
                        }
                    }
                    if comptime!(shape.format == Format::Int8) {
                        sum = fma(sum, scale, sums[index]);
                    }
                    sums[index] = sum;
                }
            }
        }
    }
    #[unroll]
    for o in 0..at_once {
        #[unroll]
        for r in 0..tile {
            let mut value = plane_sum(sums[comptime!(o * parts * tile + r)]);
            if comptime!(parts == 2) {
                let up = plane_sum(sums[comptime!((o * parts + 1) * tile + r)]);
                value = gate(value, up, shape.gating);
            }
            let output = first + o;
            let row = first_row + r;
            if lane == 0 && output < comptime!(shape.outputs) && row < rows as usize {
                out[row * comptime!(shape.outputs) + output] = value;
            }
        }
    }
}

/// `f(gate) · up`. Both functions are `x / (1 + e^-z)`, as on a processor.
#[cube]
pub(super) fn gate(x: f32, up: f32, #[comptime] gating: Gating) -> f32 {
    let mut z = x;
    if comptime!(gating == Gating::GeluTanh) {
        // 2 sqrt(2 / π)
        z = 1.595_769f32 * fma(0.044_715f32 * x, x * x, x);
    }
    x / (1.0f32 + f32::exp(-z)) * up
}

impl Gpu {
    /// `x · weightᵀ` for `rows` rows, or with a gate `f(x · gateᵀ) · (x · upᵀ)`, where the weight is both stacked.
    pub(in crate::device) fn matvec(
        &self,
        x: &Buffer,
        weight: &Weight,
        rows: usize,
        gating: Gating,
        out: &Buffer,
    ) {
        let parts = if gating == Gating::None { 1 } else { 2 };
        // Tiles of a few sizes, so that there are few kernels to compile.
        let tile = rows.next_power_of_two().min(TILE);
        let shape = Shape {
            inputs: weight.columns,
            outputs: weight.rows / parts,
            format: weight.format,
            rows: tile,
            outputs_at_once: if tile >= 4 && parts == 1 { 2 } else { 1 },
            gating,
            plane: self.plane,
        };
        let cubes = shape.outputs.div_ceil(PLANES as usize * shape.outputs_at_once);
        // SAFETY: outputs and rows are clamped to those that exist; weight and activations are as large as their
        // shapes say, which `Weight` and `Workspace` see to.
        unsafe {
            matvec_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(cubes as u32, rows.div_ceil(tile) as u32, 1),
                CubeDim::new_2d(self.plane as u32, PLANES),
                x.arg(),
                weight.data.arg(),
                weight.scales.arg(),
                out.arg(),
                rows as u32,
                shape,
            );
        }
    }
}
