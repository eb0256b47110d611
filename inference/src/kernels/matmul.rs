//! Rows times a weight.
//!
//! A product of one row is as fast as the weights can be read; one of many rows as fast as the processor can
//! multiply. Both take the same way: the rows are copied into tiles of a few rows each ([`tile`]), then
//! threads take runs of panels, and for each panel go through the tiles. The tiles are taken in blocks that
//! stay in the second-level cache, so that memory is read about once.
#![allow(unsafe_code, reason = "threads write different columns of the result")]
#![allow(clippy::needless_range_loop, reason = "loops over registers, all by the same constants")]

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Line, Line32, Matrix, PANEL, Panels};
use super::out::Out;
use super::quant::{Activations, GROUP, Group, Quantise};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::{scratch, tile};

/// Bytes of tiles gone through before the next panel: half the second-level cache of a server.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of weights, or an equivalent in arithmetic, below which a second thread costs more than it gives.
const PARALLEL_BYTES: usize = 192 << 10;

/// Rows from which on half-precision panels are widened once, instead of once for every tile.
const WIDEN_ROWS: usize = 24;

/// `out = x · wᵀ`: `x` holds `rows` rows of `w.in_features()`, `out` as many of `w.out_features()`.
///
/// # Panics
///
/// If the lengths of `x` and `out` are others.
pub fn matmul(x: &[f32], rows: usize, w: &Matrix, out: &mut [f32]) {
    matmul_on(Isa::best(), x, rows, w, out);
}

pub(super) fn matmul_on(isa: Isa, x: &[f32], rows: usize, w: &Matrix, out: &mut [f32]) {
    assert_eq!(x.len(), rows * w.in_features(), "{rows} rows of {}", w.in_features());
    assert_eq!(out.len(), rows * w.out_features(), "{rows} rows of {}", w.out_features());
    if rows == 0 {
        return;
    }
    let out = Out::new(out, w.out_features());
    match &w.panels {
        Panels::F32(lines) => dense(isa, x, rows, w, lines, out),
        Panels::F16(lines) => dense(isa, x, rows, w, lines, out),
        Panels::Int8(groups) => quantised(isa, x, rows, w, groups, out),
        Panels::Int4(groups) => quantised(isa, x, rows, w, groups, out),
    }
}

/// Multiplies the rows with a weight in floating point.
fn dense<L: Line>(isa: Isa, x: &[f32], rows: usize, w: &Matrix, lines: &[L], out: Out<'_>) {
    let tiling = Tiling::new(rows, if isa == Isa::Avx512 { 12 } else { 6 });
    let width = w.in_features();
    interleaved(x, width, tiling, |x| {
        over_panels(w, rows, |panels| isa.run(Dense { x, lines, width, tiling, panels, out }));
    });
}

/// Quantises the rows, and multiplies them with a weight in integers.
fn quantised<G: Group>(isa: Isa, x: &[f32], rows: usize, w: &Matrix, groups: &[G], out: Out<'_>) {
    let tiling = Tiling::new(rows, if isa == Isa::Avx512 { 6 } else { 3 });
    let width = w.in_features().div_ceil(GROUP);
    scratch::with(&scratch::QUANTISED, rows * width, |to| {
        tiling.fill(to, width, |first, to| {
            Quantise { x: &x[first * w.in_features()..], row: w.in_features(), to }.on(isa);
        });
        let x = &*to;
        over_panels(w, rows, |panels| isa.run(Quantised { x, groups, width, tiling, panels, out }));
    });
}

/// Splits the panels over threads, if there is enough to do.
fn over_panels(w: &Matrix, rows: usize, body: impl Fn(Range<usize>) + Sync) {
    let panels = w.out_features().div_ceil(PANEL);
    let work = w.bytes() + w.bytes() / 8 * (rows - 1);
    let threads = rayon::current_num_threads();
    if threads == 1 || work < PARALLEL_BYTES {
        return body(0..panels);
    }
    // Several runs for each thread, for one may be held up; but none so short that starting it shows.
    let runs = (threads * 4).min(work / (PARALLEL_BYTES / 4)).clamp(1, panels);
    (0..runs)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|run| body(panels * run / runs..panels * (run + 1) / runs));
}

/// How rows are divided into tiles: as few as possible, and of equal size but for one row.
#[derive(Clone, Copy)]
struct Tiling {
    rows: usize,
    /// Rows of a small tile; the first `large` tiles have one more.
    size: usize,
    large: usize,
}

impl Tiling {
    fn new(rows: usize, most: usize) -> Self {
        let tiles = rows.div_ceil(most);
        Tiling { rows, size: rows / tiles, large: rows % tiles }
    }

    fn tiles(self) -> usize {
        (self.rows - self.large) / self.size
    }

    /// The first row of a tile and the number of its rows.
    #[inline(always)]
    fn tile(self, index: usize) -> (usize, usize) {
        (index * self.size + index.min(self.large), self.size + usize::from(index < self.large))
    }

    /// Calls `body` with the first row and the memory of each tile, on several threads where that pays.
    fn fill<T: Send>(self, to: &mut [T], width: usize, body: impl Fn(usize, &mut [T]) + Sync) {
        let large = self.size + 1;
        let (first, rest) = to.split_at_mut(self.large * large * width);
        let tiles = |index: usize, to: &mut [T]| body(self.tile(index).0, to);
        if size_of::<T>() * self.rows * width < PARALLEL_BYTES {
            first.chunks_mut(large * width).enumerate().for_each(|(i, to)| tiles(i, to));
            rest.chunks_mut(self.size * width).enumerate().for_each(|(i, to)| tiles(self.large + i, to));
        } else {
            first.par_chunks_mut(large * width).enumerate().for_each(|(i, to)| tiles(i, to));
            rest.par_chunks_mut(self.size * width).enumerate().for_each(|(i, to)| tiles(self.large + i, to));
        }
    }
}

/// Calls `body` with the rows interleaved within tiles. One row is so already.
fn interleaved(x: &[f32], width: usize, tiling: Tiling, body: impl FnOnce(&[f32])) {
    if tiling.rows == 1 {
        return body(x);
    }
    scratch::with(&scratch::ROWS, x.len(), |to| {
        tiling.fill(to, width, |first, to| interleave(&x[first * width..], width, to));
        body(to);
    });
}

fn interleave(x: &[f32], width: usize, to: &mut [f32]) {
    let rows = to.len() / width;
    // A cache line of every row at a time: rows a power of two apart would otherwise evict each other.
    for from in (0..width).step_by(LANES) {
        let till = width.min(from + LANES);
        for m in 0..rows {
            let row = &x[m * width..][from..till];
            for (to, x) in to[from * rows + m..].iter_mut().step_by(rows).zip(row) {
                *to = *x;
            }
        }
    }
}

/// Writes the sums of a tile: its first row, and the first of its vectors within the panel.
#[inline(always)]
fn put<S: Simd, const M: usize, const W: usize>(
    simd: S,
    out: Out<'_>,
    row: usize,
    panel: usize,
    half: usize,
    sums: [[S::F; W]; M],
) {
    for m in 0..M {
        for w in 0..W {
            let column = panel * PANEL + (half + w) * LANES;
            if column < out.width() {
                let len = LANES.min(out.width() - column);
                // SAFETY: `over_panels` gives each panel to one thread, which writes a tile at a time.
                let to = unsafe { out.columns(row + m, column, len) };
                match to.as_mut_array::<LANES>() {
                    Some(to) => simd.store(sums[m][w], to),
                    None => simd.store_part(sums[m][w], to),
                }
            }
        }
    }
}

/// Evaluates an expression with the number of rows as a constant.
macro_rules! with_rows {
    ($rows:expr, [$($m:literal)*], |$M:ident| $body:expr) => {
        match $rows {
            $($m => {
                const $M: usize = $m;
                $body
            })*
            rows => debug_assert!(false, "a tile of {rows} rows"),
        }
    };
}

/// A run of panels of a weight in floating point.
struct Dense<'a, L> {
    x: &'a [f32],
    lines: &'a [L],
    width: usize,
    tiling: Tiling,
    panels: Range<usize>,
    out: Out<'a>,
}

impl<L: Line> Kernel for Dense<'_, L> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Dense { x, lines, width, tiling, panels, out } = self;
        let wide = size_of::<L>() != size_of::<Line32>() && tiling.rows >= WIDEN_ROWS;
        let block = (BLOCK_BYTES / (4 * width * tiling.size)).max(1);
        for from in (0..tiling.tiles()).step_by(block) {
            let tiles = from..tiling.tiles().min(from + block);
            for panel in panels.clone() {
                let lines = &lines[panel * width..][..width];
                if wide {
                    let mut buffer = scratch::PANEL.take();
                    buffer.resize(width, Line32::default());
                    for (to, from) in buffer.iter_mut().zip(lines) {
                        for half in 0..2 {
                            simd.store(from.lanes(simd, half), &mut to.0[half]);
                        }
                    }
                    dense_tiles(simd, x, &buffer, tiling, tiles.clone(), panel, out);
                    scratch::PANEL.set(buffer);
                } else {
                    dense_tiles(simd, x, lines, tiling, tiles.clone(), panel, out);
                }
            }
        }
    }
}

#[inline(always)]
fn dense_tiles<S: Simd, L: Line>(
    simd: S,
    x: &[f32],
    lines: &[L],
    tiling: Tiling,
    tiles: Range<usize>,
    panel: usize,
    out: Out<'_>,
) {
    for index in tiles {
        let (row, rows) = tiling.tile(index);
        let x = &x[row * lines.len()..][..rows * lines.len()];
        with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12], |M| {
            dense_tile::<S, L, M>(simd, x, lines, row, panel, out);
        });
    }
}

#[inline(always)]
fn dense_tile<S: Simd, L: Line, const M: usize>(
    simd: S,
    x: &[f32],
    lines: &[L],
    row: usize,
    panel: usize,
    out: Out<'_>,
) {
    let (x, _) = x.as_chunks::<M>();
    if S::WIDE {
        put(simd, out, row, panel, 0, tile::dense::<S, L, M, 2>(simd, x, lines, 0));
    } else if M <= 6 {
        put(simd, out, row, panel, 0, tile::dense::<S, L, M, 1>(simd, x, lines, 0));
        put(simd, out, row, panel, 1, tile::dense::<S, L, M, 1>(simd, x, lines, 1));
    }
}

/// A run of panels of a weight in integers.
struct Quantised<'a, G> {
    x: &'a [Activations],
    groups: &'a [G],
    width: usize,
    tiling: Tiling,
    panels: Range<usize>,
    out: Out<'a>,
}

impl<G: Group> Kernel for Quantised<'_, G> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Quantised { x, groups, width, tiling, panels, out } = self;
        let block = (BLOCK_BYTES / (size_of::<Activations>() * width * tiling.size)).max(1);
        for from in (0..tiling.tiles()).step_by(block) {
            for panel in panels.clone() {
                let groups = &groups[panel * width..][..width];
                for index in from..tiling.tiles().min(from + block) {
                    let (row, rows) = tiling.tile(index);
                    let x = &x[row * width..][..rows * width];
                    with_rows!(rows, [1 2 3 4 5 6], |M| {
                        quantised_tile::<S, G, M>(simd, x, groups, row, panel, index == from, out);
                    });
                }
            }
        }
    }
}

#[inline(always)]
fn quantised_tile<S: Simd, G: Group, const M: usize>(
    simd: S,
    x: &[Activations],
    groups: &[G],
    row: usize,
    panel: usize,
    first: bool,
    out: Out<'_>,
) {
    let (x, _) = x.as_chunks::<M>();
    if S::WIDE {
        put(simd, out, row, panel, 0, tile::quantised::<S, G, M, 2>(simd, x, groups, 0, first));
    } else if M <= 3 {
        put(simd, out, row, panel, 0, tile::quantised::<S, G, M, 1>(simd, x, groups, 0, first));
        put(simd, out, row, panel, 1, tile::quantised::<S, G, M, 1>(simd, x, groups, 1, first));
    }
}
