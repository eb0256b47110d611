//! The innermost loops of a matrix product: a few rows by one panel, all sums in registers.
//!
//! A tile takes `M` rows and `W` vectors of outputs, and walks the panel front to back. Each weight is
//! loaded once for `M` rows, each input once for `W` vectors. The rows come interleaved, the `M` values of
//! one input side by side, so that a tile reads two streams whatever its size.
#![allow(clippy::needless_range_loop, reason = "loops over registers, all by the same constants")]

use super::matrix::Line;
use super::quant::{Activations, Group};
use super::simd::Simd;

/// `M` rows by `W` vectors from vector `half` of the panel, in the order of `matmul`.
#[inline(always)]
pub(super) fn dense<S: Simd, L: Line, const M: usize, const W: usize>(
    simd: S,
    rows: &[[f32; M]],
    panel: &[L],
    half: usize,
) -> [[S::F; W]; M] {
    let mut sums = [[simd.splat(0.0); W]; M];
    for (x, line) in rows.iter().zip(panel) {
        prefetch(simd, line, panel.len());
        let mut weights = [simd.splat(0.0); W];
        for w in 0..W {
            weights[w] = line.lanes(simd, half + w);
        }
        for m in 0..M {
            let x = simd.splat(x[m]);
            for w in 0..W {
                sums[m][w] = simd.fma(x, weights[w], sums[m][w]);
            }
        }
    }
    sums
}

/// The same for groups of integers. These are so small that asking for the next panel shows, so only the `first`
/// tile does.
#[inline(always)]
pub(super) fn quantised<S: Simd, G: Group, const M: usize, const W: usize>(
    simd: S,
    rows: &[[Activations; M]],
    panel: &[G],
    half: usize,
    first: bool,
) -> [[S::F; W]; M] {
    let mut sums = [[simd.splat(0.0); W]; M];
    for (x, group) in rows.iter().zip(panel) {
        if first {
            prefetch(simd, group, panel.len());
        }
        let dots = group.dots::<S, M, W>(simd, x, half);
        for w in 0..W {
            let scales = simd.load(group.scales(half + w));
            for m in 0..M {
                let scale = simd.mul(simd.splat(x[m].scale), scales);
                sums[m][w] = simd.fma(simd.float(dots[m][w]), scale, sums[m][w]);
            }
        }
    }
    sums
}

/// Asks for what the next panel has in this place. The processor's own prefetching stops at every page.
#[inline(always)]
fn prefetch<S: Simd, T>(simd: S, here: &T, panel: usize) {
    let next = std::ptr::from_ref(here).wrapping_add(panel).cast::<u8>();
    for line in 0..size_of::<T>() / 64 {
        simd.prefetch(next.wrapping_add(64 * line));
    }
}
