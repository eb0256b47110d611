//! Root-mean-square norms: of rows, of rows after adding to them, of heads.
//!
//! `y = x · w / sqrt(mean(x²) + eps)`. A model whose norms multiply by `1 + w` adds the one when it loads them.

use rayon::prelude::*;

use super::heads::{Heads, rows_per_task};
use super::simd::{Isa, Kernel, LANES, Simd};

/// Norms each row of `weight.len()` values.
///
/// # Panics
///
/// If `x` is not a number of whole rows, or `out` not as long.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_on(Isa::best(), x, weight, eps, out);
}

pub(super) fn rms_norm_on(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(!weight.is_empty() && x.len().is_multiple_of(weight.len()), "rows of {} values", weight.len());
    assert_eq!(x.len(), out.len(), "as many results as values");
    let task = rows_per_task(weight.len()) * weight.len();
    if x.len() <= task {
        return isa.run(Rows { x, weight, eps, out });
    }
    out.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(out, x)| isa.run(Rows { x, weight, eps, out }));
}

/// Adds `delta` to `hidden`, and writes the norm of the sum: the end of one layer and the begin of the next.
///
/// # Panics
///
/// If `hidden` is not a number of whole rows of `weight.len()`, or `delta` or `out` not as long.
pub fn add_rms_norm(hidden: &mut [f32], delta: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    add_rms_norm_on(Isa::best(), hidden, delta, weight, eps, out);
}

pub(super) fn add_rms_norm_on(
    isa: Isa,
    hidden: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    assert!(
        !weight.is_empty() && hidden.len().is_multiple_of(weight.len()),
        "rows of {} values",
        weight.len()
    );
    assert_eq!(hidden.len(), delta.len(), "as much to add as there is");
    assert_eq!(hidden.len(), out.len(), "as many results as values");
    let task = rows_per_task(weight.len()) * weight.len();
    if hidden.len() <= task {
        return isa.run(AddRows { hidden, delta, weight, eps, out });
    }
    out.par_chunks_mut(task)
        .zip(hidden.par_chunks_mut(task))
        .zip(delta.par_chunks(task))
        .for_each(|((out, hidden), delta)| isa.run(AddRows { hidden, delta, weight, eps, out }));
}

/// Norms each head in place, all by the same weight of `heads.dim` values.
///
/// # Panics
///
/// If `x` is not a number of whole rows, or the weight is for heads of another size.
pub fn head_norm(x: &mut [f32], heads: Heads, weight: &[f32], eps: f32) {
    head_norm_on(Isa::best(), x, heads, weight, eps);
}

pub(super) fn head_norm_on(isa: Isa, x: &mut [f32], heads: Heads, weight: &[f32], eps: f32) {
    heads.rows(x);
    assert_eq!(weight.len(), heads.dim, "a weight for heads of {}", heads.dim);
    let task = rows_per_task(heads.stride) * heads.stride;
    if x.len() <= task {
        return isa.run(EachHead { x, heads, weight, eps });
    }
    x.par_chunks_mut(task).for_each(|x| isa.run(EachHead { x, heads, weight, eps }));
}

struct Rows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let r = inverse_root(simd, x, self.eps);
            let (x, x_rest) = x.as_chunks::<LANES>();
            let (w, w_rest) = self.weight.as_chunks::<LANES>();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for ((x, w), out) in x.iter().zip(w).zip(out) {
                simd.store(simd.mul(simd.mul(simd.load(x), r), simd.load(w)), out);
            }
            let (x, w) = (simd.load_part(x_rest, 0.0), simd.load_part(w_rest, 0.0));
            simd.store_part(simd.mul(simd.mul(x, r), w), out_rest);
        }
    }
}

struct AddRows<'a> {
    hidden: &'a mut [f32],
    delta: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for AddRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (hidden, rest) = self.hidden.as_chunks_mut::<LANES>();
        let (delta, delta_rest) = self.delta.as_chunks::<LANES>();
        for (hidden, delta) in hidden.iter_mut().zip(delta) {
            simd.store(simd.add(simd.load(hidden), simd.load(delta)), hidden);
        }
        for (hidden, delta) in rest.iter_mut().zip(delta_rest) {
            *hidden += delta;
        }
        Rows { x: self.hidden, weight: self.weight, eps: self.eps, out: self.out }.run(simd);
    }
}

struct EachHead<'a> {
    x: &'a mut [f32],
    heads: Heads,
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for EachHead<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.x.chunks_exact_mut(self.heads.stride) {
            for head in self.heads.of_mut(row).chunks_exact_mut(self.heads.dim) {
                let r = inverse_root(simd, head, self.eps);
                let (x, x_rest) = head.as_chunks_mut::<LANES>();
                let (w, w_rest) = self.weight.as_chunks::<LANES>();
                for (x, w) in x.iter_mut().zip(w) {
                    simd.store(simd.mul(simd.mul(simd.load(x), r), simd.load(w)), x);
                }
                let (x, w) = (simd.load_part(x_rest, 0.0), simd.load_part(w_rest, 0.0));
                simd.store_part(simd.mul(simd.mul(x, r), w), x_rest);
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)` in every lane.
#[inline(always)]
fn inverse_root<S: Simd>(simd: S, x: &[f32], eps: f32) -> S::F {
    let mut sums = simd.splat(0.0);
    let (lanes, rest) = x.as_chunks::<LANES>();
    for x in lanes {
        let x = simd.load(x);
        sums = simd.fma(x, x, sums);
    }
    let rest = simd.load_part(rest, 0.0);
    let sum = simd.sum(simd.fma(rest, rest, sums));
    simd.splat(1.0 / (sum / x.len() as f32 + eps).sqrt())
}
