//! From the stacked projections to queries, and keys and values in their pool.
//!
//! A plane takes a head of a row: adds its bias, norms it, turns it to the row's position, and puts it where it
//! belongs; queries stay where they are. A pool holds a layer's blocks of [`BLOCK`] tokens:
//! `[block][key head][key or value][token][head width]`.

use cubecl::prelude::*;

use super::format::{Format, pack_bf16};
use super::{Buffer, Gpu, HeadShape};
use crate::kernels::BLOCK;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    heads: HeadShape,
    /// Values in a row of projections.
    stride: usize,
    bias: bool,
    norm: bool,
    plane: usize,
}

#[cube(launch_unchecked)]
fn heads_kernel(
    qkv: &mut [f32],
    bias: &[f32],
    query_norm: &[f32],
    key_norm: &[f32],
    angles: &[f32],
    spots: &[u32],
    tables: &[u32],
    pool: &mut [u32],
    eps: f32,
    #[comptime] shape: Shape,
) {
    let wide = comptime!(shape.heads.wide);
    let half = comptime!(shape.heads.dim / 2);
    let queries = comptime!(shape.heads.heads);
    let kv = comptime!(shape.heads.kv_heads);
    let head = CUBE_POS_X as usize;
    let row = CUBE_POS_Y as usize;
    let lane = UNIT_POS_X as usize;
    let from = row * comptime!(shape.stride) + head * wide;
    let turned = head < comptime!(shape.heads.heads + shape.heads.kv_heads);

    // The kernel's runs over a head take two neighbours of either half at a time, so that a lane holds what a word
    // of a pool does.
    let mut factor = 1.0f32;
    if comptime!(shape.norm) {
        let mut squares = 0.0f32;
        let mut i = lane;
        while i < comptime!(shape.heads.dim) {
            let mut value = qkv[from + i];
            if comptime!(shape.bias) {
                value += bias[head * wide + i];
            }
            squares = fma(value, value, squares);
            i += comptime!(shape.plane);
        }
        factor = 1.0f32 / f32::sqrt(plane_sum(squares) / comptime!(shape.heads.dim as f32) + eps);
        if !turned {
            factor = 1.0f32;
        }
    }

    let position = spots[2 * row] as usize;
    let table = spots[2 * row + 1] as usize;
    let mut to = 0usize;
    if head >= queries {
        let kind = (head - queries) / kv;
        let block = tables[table + position / comptime!(BLOCK)] as usize;
        to = (((block * kv + (head - queries) % kv) * 2 + kind) * comptime!(BLOCK)
            + position % comptime!(BLOCK))
            * wide;
    }
    let mut pair = lane;
    while pair < comptime!(shape.heads.dim / 4) {
        let mut low = Array::<f32>::new(2usize);
        let mut high = Array::<f32>::new(2usize);
        #[unroll]
        for i in 0..2usize {
            let at = 2 * pair + i;
            let mut a = qkv[from + at];
            let mut b = qkv[from + at + half];
            if comptime!(shape.bias) {
                a += bias[head * wide + at];
                b += bias[head * wide + at + half];
            }
            if comptime!(shape.norm) {
                if head < queries {
                    a = a * factor * query_norm[at];
                    b = b * factor * query_norm[at + half];
                } else if turned {
                    a = a * factor * key_norm[at];
                    b = b * factor * key_norm[at + half];
                }
            }
            if turned {
                let cos = angles[2 * row * half + at];
                let sin = angles[(2 * row + 1) * half + at];
                let turned_a = fma(a, cos, -(b * sin));
                b = fma(a, sin, b * cos);
                a = turned_a;
            }
            low[i] = a;
            high[i] = b;
        }
        if head < queries {
            #[unroll]
            for i in 0..2usize {
                qkv[from + 2 * pair + i] = low[i];
                qkv[from + 2 * pair + i + half] = high[i];
            }
        } else if comptime!(shape.heads.format == Format::F32) {
            #[unroll]
            for i in 0..2usize {
                pool[to + 2 * pair + i] = u32::reinterpret(low[i]);
                pool[to + 2 * pair + i + half] = u32::reinterpret(high[i]);
            }
        } else {
            pool[to / 2 + pair] = pack_bf16(low[0], low[1]);
            pool[to / 2 + pair + half / 2] = pack_bf16(high[0], high[1]);
        }
        pair += comptime!(shape.plane);
    }
}

/// Zeros over the blocks of a list.
#[cube(launch_unchecked)]
fn wipe_kernel(pool: &mut [u32], blocks: &[u32], #[comptime] block_words: usize) {
    let block = blocks[CUBE_POS_X as usize] as usize;
    let mut i = UNIT_POS_X as usize;
    while i < block_words {
        pool[block * block_words + i] = 0u32;
        i += CUBE_DIM_X as usize;
    }
}

/// What turns the stacked projections of a layer into heads.
#[derive(Debug, Clone, Copy)]
pub(in crate::device) struct Projections<'a> {
    pub(in crate::device) qkv: &'a Buffer,
    pub(in crate::device) stride: usize,
    pub(in crate::device) bias: Option<&'a Buffer>,
    /// Norm weights of query heads and of key heads.
    pub(in crate::device) norms: Option<(&'a Buffer, &'a Buffer)>,
    pub(in crate::device) eps: f32,
    /// Of each row, the cosines and then the sines of its position.
    pub(in crate::device) angles: &'a Buffer,
    /// Of each row, its position and where its table begins in `tables`.
    pub(in crate::device) spots: &'a Buffer,
    pub(in crate::device) tables: &'a Buffer,
}

impl Gpu {
    /// Makes heads of `rows` rows of projections, and keeps their keys and values in the pool.
    pub(in crate::device) fn heads(
        &self,
        heads: HeadShape,
        from: Projections<'_>,
        rows: usize,
        pool: &Buffer,
    ) {
        let Projections { qkv, stride, bias, norms, eps, angles, spots, tables } = from;
        let shape = Shape { heads, stride, bias: bias.is_some(), norm: norms.is_some(), plane: self.plane };
        let part = |part: Option<&Buffer>| part.unwrap_or(&self.nothing).arg();
        // SAFETY: every row's table has its position's block, and every block is one of the pool's, which `Step`
        // checks. No two heads are the same cube's, nor two rows the same place of a block.
        unsafe {
            heads_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static((heads.heads + 2 * heads.kv_heads) as u32, rows as u32, 1),
                CubeDim::new_1d(self.plane as u32),
                qkv.arg(),
                part(bias),
                part(norms.map(|norms| norms.0)),
                part(norms.map(|norms| norms.1)),
                angles.arg(),
                spots.arg(),
                tables.arg(),
                pool.arg(),
                eps,
                shape,
            );
        }
    }

    /// Overwrites the first `count` blocks of a list.
    pub(in crate::device) fn wipe(&self, heads: HeadShape, pool: &Buffer, blocks: &Buffer, count: usize) {
        // SAFETY: blocks are of the pool, which the callers check.
        unsafe {
            wipe_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(count as u32, 1, 1),
                CubeDim::new_1d(256),
                pool.arg(),
                blocks.arg(),
                heads.block_bytes() / 4,
            );
        }
    }
}
