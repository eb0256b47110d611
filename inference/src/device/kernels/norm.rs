//! The residual stream: embeddings into it, what a layer adds to it, and its norm.

use cubecl::prelude::*;

use super::format::{Format, Four, Words, store_eight, unpack};
use super::{Buffer, Gpu, Weight};

/// Units that share a row.
const UNITS: usize = 256;

#[cube(launch_unchecked)]
fn embed_kernel(
    ids: &[u32],
    table: &[Words],
    scales: &[f32],
    out: &mut [f32],
    factor: f32,
    #[comptime] width: usize,
    #[comptime] format: Format,
) {
    let per_word = comptime!(format.per_word());
    let words = comptime!(width / per_word);
    let row = CUBE_POS_X as usize;
    let id = ids[row] as usize;
    let mut word = UNIT_POS_X as usize;
    while word < words {
        let at = id * words + word;
        let values = unpack(table[at], format);
        let mut scale = factor;
        if comptime!(format == Format::Int8) {
            scale *= scales[at / 2];
        }
        #[unroll]
        for i in 0..per_word {
            out[row * width + word * per_word + i] = values[i] * scale;
        }
        word += CUBE_DIM_X as usize;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    /// Values in a row, and those of them that are no filling.
    width: usize,
    real: usize,
    delta: bool,
    delta_bias: bool,
    delta_norm: bool,
    /// Rows are named by a list instead of being all.
    picked: bool,
    format: Format,
    plane: usize,
}

/// `x += norm(delta + bias)`, where each part may be absent; `out = norm(x)`.
#[cube(launch_unchecked)]
fn add_norm_kernel(
    x: &mut [Four],
    delta: &[Four],
    delta_bias: &[Four],
    delta_weight: &[Four],
    weight: &[Four],
    picks: &[u32],
    out: &mut [Words],
    eps: f32,
    #[comptime] shape: Shape,
) {
    let fours = comptime!(shape.width / 4);
    let row = CUBE_POS_X as usize;
    let mut from = row;
    if comptime!(shape.picked) {
        from = picks[row] as usize;
    }
    let start = from * fours;
    let unit = UNIT_POS_X as usize;

    let mut factor = 1.0f32;
    if comptime!(shape.delta_norm) {
        let mut squares = 0.0f32;
        let mut i = unit;
        while i < fours {
            let mut four = delta[start + i];
            if comptime!(shape.delta_bias) {
                four += delta_bias[i];
            }
            squares = add_squares(four, squares);
            i += comptime!(UNITS);
        }
        factor = inverse_root(squares, eps, shape);
    }
    let mut squares = 0.0f32;
    let mut i = unit;
    while i < fours {
        let mut four = x[start + i];
        if comptime!(shape.delta) {
            let mut add = delta[start + i];
            if comptime!(shape.delta_bias) {
                add += delta_bias[i];
            }
            if comptime!(shape.delta_norm) {
                add = add * Four::new(factor) * delta_weight[i];
            }
            four += add;
            x[start + i] = four;
        }
        squares = add_squares(four, squares);
        i += comptime!(UNITS);
    }
    let factor = inverse_root(squares, eps, shape);
    // Eights are written, and what the second pass reads another unit wrote.
    sync_cube();
    let mut eight = unit;
    while eight < comptime!(shape.width / 8) {
        let mut values = Array::<f32>::new(8usize);
        #[unroll]
        for half in 0..2usize {
            let at = 2 * eight + half;
            let four = x[start + at] * Four::new(factor) * weight[at];
            #[unroll]
            for i in 0..4usize {
                values[4 * half + i] = four.extract(i);
            }
        }
        store_eight(out, row * comptime!(shape.width / 8) + eight, &values, shape.format);
        eight += comptime!(UNITS);
    }
}

#[cube]
fn add_squares(four: Four, squares: f32) -> f32 {
    let mut sum = squares;
    #[unroll]
    for i in 0..4usize {
        let value = four.extract(i);
        sum = fma(value, value, sum);
    }
    sum
}

/// `1 / sqrt(mean + eps)` of the squares that all units of the cube have.
#[cube]
fn inverse_root(squares: f32, eps: f32, #[comptime] shape: Shape) -> f32 {
    let planes = comptime!(UNITS / shape.plane);
    let mut sums = Shared::<[f32]>::new_slice(planes);
    let sum = plane_sum(squares);
    if UNIT_POS_X as usize % comptime!(shape.plane) == 0 {
        sums[UNIT_POS_X as usize / comptime!(shape.plane)] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..planes {
        total += sums[i];
    }
    1.0f32 / f32::sqrt(total / comptime!(shape.real as f32) + eps)
}

/// What joins the residual stream before a norm.
#[derive(Debug, Clone, Copy)]
pub(in crate::device) struct Delta<'a> {
    pub(in crate::device) values: &'a Buffer,
    pub(in crate::device) bias: Option<&'a Buffer>,
    /// The weight of a norm of its own.
    pub(in crate::device) norm: Option<&'a Buffer>,
}

/// The norm of a residual stream.
#[derive(Debug, Clone, Copy)]
pub(in crate::device) struct Norm<'a> {
    pub(in crate::device) weight: &'a Buffer,
    pub(in crate::device) eps: f32,
    /// Values in a row with filling and without.
    pub(in crate::device) width: usize,
    pub(in crate::device) real: usize,
    /// What the next product reads.
    pub(in crate::device) format: Format,
}

impl Gpu {
    /// Rows of the embedding table, times a factor.
    pub(in crate::device) fn embed(
        &self,
        ids: &Buffer,
        table: &Weight,
        rows: usize,
        factor: f32,
        out: &Buffer,
    ) {
        // SAFETY: ids are below the table's height, which `Step` checks; rows are as wide as the table.
        unsafe {
            embed_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(64),
                ids.arg(),
                table.data.arg(),
                table.scales.arg(),
                out.arg(),
                factor,
                table.columns,
                table.format,
            );
        }
    }

    /// Adds to the residual stream `x` what a layer made, and norms it; of all its first `rows` rows, or of the
    /// `rows` that `picks` names, each once.
    pub(in crate::device) fn add_norm(
        &self,
        x: &Buffer,
        delta: Option<Delta<'_>>,
        norm: Norm<'_>,
        rows: usize,
        picks: Option<&Buffer>,
        out: &Buffer,
    ) {
        let shape = Shape {
            width: norm.width,
            real: norm.real,
            delta: delta.is_some(),
            delta_bias: delta.is_some_and(|delta| delta.bias.is_some()),
            delta_norm: delta.is_some_and(|delta| delta.norm.is_some()),
            picked: picks.is_some(),
            format: norm.format,
            plane: self.plane,
        };
        let absent = &self.nothing;
        let part = |part: Option<&Buffer>| part.unwrap_or(absent).arg();
        // SAFETY: each row is one cube's; parts that the shape says are absent are not read.
        unsafe {
            add_norm_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                part(delta.map(|delta| delta.values)),
                part(delta.and_then(|delta| delta.bias)),
                part(delta.and_then(|delta| delta.norm)),
                norm.weight.arg(),
                part(picks),
                out.arg(),
                norm.eps,
                shape,
            );
        }
    }
}
