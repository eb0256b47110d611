//! Attention over keys and values in blocks, for one new token or many.
//!
//! Each row asks on its own: it sees the keys from its `first_key` (a sliding window's, or 0) to its `position`,
//! and nothing else enters its result. In a decoder that is its own position; in an encoder, where tokens see what
//! follows them too, it is the last position of the text. All query heads that share a key head are computed together, so
//! that keys and values are loaded once for them. There are two passes, with the scores in between kept in memory:
//! scores by vectors of sixteen tokens, then the maximum, exponentials and their sum; then the values,
//! token after token.
//!
//! Tokens outside the row's range that share a block with it are scored, since a block is one vector, but
//! their scores are replaced before use and their values never read: what a block held before cannot leak.
#![allow(unsafe_code, reason = "threads write different columns of the result")]
#![allow(clippy::needless_range_loop, reason = "loops over registers, all by the same constants")]

use rayon::prelude::*;

use super::exp::exp;
use super::heads::Heads;
use super::out::Out;
use super::pool::{BLOCK, Cell, Cells, KvPool};
use super::scratch;
use super::simd::{Isa, Kernel, LANES, Simd};

/// Multiplications below which all rows stay on one thread.
const PARALLEL_WORK: usize = 128 << 10;

/// What one row of queries sees.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The position of the last key it sees: its own, or in an encoder that of the last token.
    pub position: usize,
    /// The position of the first key it sees.
    pub first_key: usize,
    /// The blocks of its sequence, from position 0 on. Those before `first_key`'s are not looked at.
    pub table: &'a [u32],
}

/// `out[r] = softmax(q[r] · k · scale) · v` for each row and head; `out` holds `heads.count · heads.dim` values
/// for each row.
///
/// # Panics
///
/// If lengths do not fit, the heads are not as large as the pool's or not a multiple of their number, or a
/// row wants a block that its table or the pool does not have.
pub fn attend(pool: &KvPool, queries: &[f32], heads: Heads, rows: &[Row<'_>], scale: f32, out: &mut [f32]) {
    attend_on(Isa::best(), pool, queries, heads, rows, scale, out);
}

pub(super) fn attend_on(
    isa: Isa,
    pool: &KvPool,
    queries: &[f32],
    heads: Heads,
    rows: &[Row<'_>],
    scale: f32,
    out: &mut [f32],
) {
    assert_eq!(heads.rows(queries), rows.len(), "a row of queries for each row");
    assert_eq!(heads.dim, pool.head_dim, "queries as large as keys");
    assert_eq!(heads.count % pool.kv_heads, 0, "{} heads for {} of keys", heads.count, pool.kv_heads);
    assert_eq!(out.len(), rows.len() * heads.count * heads.dim, "a result for each row");
    for row in rows {
        assert!(row.first_key <= row.position, "{row:?} sees no key");
        assert!(row.position / BLOCK < row.table.len(), "{row:?} is beyond its table");
        let table = &row.table[row.first_key / BLOCK..=row.position / BLOCK];
        assert!(table.iter().all(|&b| (b as usize) < pool.blocks()), "{row:?} is beyond the pool");
    }
    match &pool.cells {
        Cells::F32(cells) => each_head(isa, cells, pool.kv_heads, queries, heads, rows, scale, out),
        Cells::F16(cells) => each_head(isa, cells, pool.kv_heads, queries, heads, rows, scale, out),
    }
}

#[allow(clippy::too_many_arguments, reason = "those of `attend`")]
fn each_head<C: Cell>(
    isa: Isa,
    cells: &[C],
    kv_heads: usize,
    queries: &[f32],
    heads: Heads,
    rows: &[Row<'_>],
    scale: f32,
    out: &mut [f32],
) {
    let group = heads.count / kv_heads * heads.dim;
    let out = Out::new(out, heads.count * heads.dim);
    // All rows of one key head before the next: rows of one sequence then find its keys in the cache.
    let one = |index: usize| {
        let (kv_head, row) = (index / rows.len(), index % rows.len());
        let queries = &heads.of(&queries[row * heads.stride..])[kv_head * group..][..group];
        // SAFETY: each index is used once, and has columns of its own.
        let out = unsafe { out.columns(row, kv_head * group, group) };
        isa.run(Group { cells, kv_heads, kv_head, queries, dim: heads.dim, row: rows[row], scale, out });
    };
    let keys: usize = rows.iter().map(|row| row.position - row.first_key + 1).sum();
    let units = rows.len() * kv_heads;
    if keys * heads.count * heads.dim < PARALLEL_WORK {
        (0..units).for_each(one);
    } else {
        let fewest = (PARALLEL_WORK / 4 * rows.len() / (keys * group)).max(1);
        (0..units).into_par_iter().with_min_len(fewest).for_each(one);
    }
}

/// The query heads of one row that share a key head.
struct Group<'a, C> {
    cells: &'a [C],
    kv_heads: usize,
    kv_head: usize,
    queries: &'a [f32],
    dim: usize,
    row: Row<'a>,
    scale: f32,
    out: &'a mut [f32],
}

/// Evaluates an expression with the number of heads as a constant.
macro_rules! with_heads {
    ($heads:expr, |$G:ident| $body:expr) => {
        match $heads {
            1 => {
                const $G: usize = 1;
                $body
            }
            2 => {
                const $G: usize = 2;
                $body
            }
            3 => {
                const $G: usize = 3;
                $body
            }
            _ => {
                const $G: usize = 4;
                $body
            }
        }
    };
}

/// Heads that are computed at once.
const HEADS: usize = 4;

impl<C: Cell> Kernel for Group<'_, C> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let blocks = self.row.position / BLOCK - self.row.first_key / BLOCK + 1;
        let mut buffer = scratch::SCORES.take();
        buffer.resize(buffer.len().max(HEADS * blocks * BLOCK), 0.0);
        let (scores, _) = buffer.as_chunks_mut::<LANES>();
        let groups = self.queries.chunks(HEADS * self.dim);
        let mut to = 0;
        for queries in groups {
            let out = &mut self.out[to..][..queries.len()];
            to += queries.len();
            let heads = queries.len() / self.dim;
            let scores = &mut scores[..heads * blocks];
            let keys = Keys {
                cells: self.cells,
                stride: self.kv_heads * 2 * self.dim,
                offset: self.kv_head * 2 * self.dim,
                dim: self.dim,
                table: &self.row.table[self.row.first_key / BLOCK..][..blocks],
            };
            with_heads!(heads, |G| score::<S, C, G>(simd, keys, queries, self.scale, scores));
            let range = self.row.first_key % BLOCK
                ..self.row.first_key % BLOCK + self.row.position + 1 - self.row.first_key;
            let mut sums = [0.0; HEADS];
            for (head, sum) in scores.chunks_exact_mut(blocks).zip(&mut sums) {
                let tokens = head.as_flattened_mut();
                tokens[..range.start].fill(f32::NEG_INFINITY);
                tokens[range.end..].fill(f32::NEG_INFINITY);
                *sum = softmax(simd, head);
            }
            with_heads!(heads, |G| weigh::<S, C, G>(simd, keys, scores.as_flattened(), range, &sums, out));
        }
        scratch::SCORES.set(buffer);
    }
}

/// The blocks that one row sees, of one key head.
#[derive(Clone, Copy)]
struct Keys<'a, C> {
    cells: &'a [C],
    /// Cells in a block.
    stride: usize,
    /// Cells of the key heads before this one.
    offset: usize,
    dim: usize,
    table: &'a [u32],
}

impl<'a, C> Keys<'a, C> {
    /// The keys of a block, by dimension.
    #[inline(always)]
    fn keys(self, block: usize) -> &'a [C] {
        &self.cells[self.table[block] as usize * self.stride + self.offset..][..self.dim]
    }

    /// The values of a block: `dim / 16` cells for each token.
    #[inline(always)]
    fn values(self, block: usize) -> &'a [C] {
        &self.cells[self.table[block] as usize * self.stride + self.offset + self.dim..][..self.dim]
    }
}

/// Scores of `G` heads by head, then by block.
#[inline(always)]
fn score<S: Simd, C: Cell, const G: usize>(
    simd: S,
    keys: Keys<'_, C>,
    queries: &[f32],
    scale: f32,
    scores: &mut [[f32; LANES]],
) {
    let blocks = keys.table.len();
    let mut block = 0;
    // Sums that wait for nothing but themselves: with few heads, several blocks keep the processor busy.
    if S::WIDE {
        while block + 4 <= blocks {
            score_blocks::<S, C, G, 4>(simd, keys, block, queries, scale, scores);
            block += 4;
        }
    }
    while block < blocks {
        score_blocks::<S, C, G, 1>(simd, keys, block, queries, scale, scores);
        block += 1;
    }
}

#[inline(always)]
fn score_blocks<S: Simd, C: Cell, const G: usize, const B: usize>(
    simd: S,
    keys: Keys<'_, C>,
    first: usize,
    queries: &[f32],
    scale: f32,
    scores: &mut [[f32; LANES]],
) {
    let mut cells = [keys.keys(first); B];
    for b in 1..B {
        cells[b] = keys.keys(first + b);
    }
    let mut query = [&queries[..keys.dim]; G];
    for g in 1..G {
        query[g] = &queries[g * keys.dim..][..keys.dim];
    }
    let mut sums = [[simd.splat(0.0); B]; G];
    for d in 0..keys.dim {
        let mut key = [simd.splat(0.0); B];
        for b in 0..B {
            key[b] = cells[b][d].lanes(simd);
        }
        for g in 0..G {
            let q = simd.splat(query[g][d]);
            for b in 0..B {
                sums[g][b] = simd.fma(q, key[b], sums[g][b]);
            }
        }
    }
    for g in 0..G {
        for b in 0..B {
            let scaled = simd.mul(sums[g][b], simd.splat(scale));
            simd.store(scaled, &mut scores[g * keys.table.len() + first + b]);
        }
    }
}

/// Replaces scores by `exp(score - max)` and returns their sum.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [[f32; LANES]]) -> f32 {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for score in scores.iter() {
        largest = simd.larger(simd.load(score), largest);
    }
    let mut lanes = [0.0; LANES];
    simd.store(largest, &mut lanes);
    let largest = simd.splat(lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b }));
    let mut sums = simd.splat(0.0);
    for score in scores {
        let p = exp(simd, simd.sub(simd.load(score), largest));
        sums = simd.add(sums, p);
        simd.store(p, score);
    }
    simd.sum(sums)
}

/// Sums of the values of `G` heads, by token; divided by the sum of their weights.
#[inline(always)]
fn weigh<S: Simd, C: Cell, const G: usize>(
    simd: S,
    keys: Keys<'_, C>,
    weights: &[f32],
    range: std::ops::Range<usize>,
    sums: &[f32; HEADS],
    out: &mut [f32],
) {
    let vectors = keys.dim / LANES;
    let mut vector = 0;
    if S::WIDE {
        while vector + 4 <= vectors {
            weigh_vectors::<S, C, G, 4>(simd, keys, vector, weights, range.clone(), sums, out);
            vector += 4;
        }
    }
    while vector < vectors {
        weigh_vectors::<S, C, G, 1>(simd, keys, vector, weights, range.clone(), sums, out);
        vector += 1;
    }
}

#[inline(always)]
fn weigh_vectors<S: Simd, C: Cell, const G: usize, const D: usize>(
    simd: S,
    keys: Keys<'_, C>,
    first: usize,
    weights: &[f32],
    range: std::ops::Range<usize>,
    sums: &[f32; HEADS],
    out: &mut [f32],
) {
    let (vectors, tokens) = (keys.dim / LANES, keys.table.len() * BLOCK);
    let mut weight = [&weights[..tokens]; G];
    for g in 1..G {
        weight[g] = &weights[g * tokens..][..tokens];
    }
    let mut totals = [[simd.splat(0.0); D]; G];
    for block in 0..keys.table.len() {
        let values = keys.values(block);
        let places = range.start.max(block * BLOCK)..range.end.min((block + 1) * BLOCK);
        for token in places {
            let cells = &values[token % BLOCK * vectors + first..][..D];
            let mut value = [simd.splat(0.0); D];
            for d in 0..D {
                value[d] = cells[d].lanes(simd);
            }
            for g in 0..G {
                let p = simd.splat(weight[g][token]);
                for d in 0..D {
                    totals[g][d] = simd.fma(p, value[d], totals[g][d]);
                }
            }
        }
    }
    for g in 0..G {
        for d in 0..D {
            let out = &mut out[g * keys.dim + (first + d) * LANES..][..LANES];
            simd.store_part(simd.div(totals[g][d], simd.splat(sums[g])), out);
        }
    }
}
