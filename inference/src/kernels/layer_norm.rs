//! Norms by mean and variance: of rows, and of rows after adding to them.
//!
//! `y = (x - mean) / sqrt(mean((x - mean)²) + eps) · w + b`. The variance is that of centred values, so that rows far
//! from zero lose nothing.

use rayon::prelude::*;

use super::heads::rows_per_task;
use super::simd::{Isa, Kernel, LANES, Simd};

/// Norms each row of `weight.len()` values in place.
///
/// # Panics
///
/// If `x` is not a number of whole rows, or `bias` not as long as `weight`.
pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    layer_norm_on(Isa::best(), x, weight, bias, eps);
}

pub(super) fn layer_norm_on(isa: Isa, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let task = task(x, weight, bias);
    if x.len() <= task {
        return isa.run(Rows { x, weight, bias, eps });
    }
    x.par_chunks_mut(task).for_each(|x| isa.run(Rows { x, weight, bias, eps }));
}

/// Adds `delta` to `x`, and norms the sum in place: the end of each half of a layer that norms last.
///
/// # Panics
///
/// If `x` is not a number of whole rows, `delta` not as long, or `bias` not as long as `weight`.
pub fn add_layer_norm(x: &mut [f32], delta: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    add_layer_norm_on(Isa::best(), x, delta, weight, bias, eps);
}

pub(super) fn add_layer_norm_on(
    isa: Isa,
    x: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    assert_eq!(x.len(), delta.len(), "as much to add as there is");
    let task = task(x, weight, bias);
    if x.len() <= task {
        return isa.run(AddRows { x, delta, weight, bias, eps });
    }
    x.par_chunks_mut(task)
        .zip(delta.par_chunks(task))
        .for_each(|(x, delta)| isa.run(AddRows { x, delta, weight, bias, eps }));
}

/// Checks the lengths; the values that one thread takes together.
fn task(x: &[f32], weight: &[f32], bias: &[f32]) -> usize {
    assert!(!weight.is_empty() && x.len().is_multiple_of(weight.len()), "rows of {} values", weight.len());
    assert_eq!(weight.len(), bias.len(), "a bias for each weight");
    rows_per_task(weight.len()) * weight.len()
}

struct Rows<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (w, w_rest) = self.weight.as_chunks::<LANES>();
        let (b, b_rest) = self.bias.as_chunks::<LANES>();
        for row in self.x.chunks_exact_mut(self.weight.len()) {
            let mean = mean(simd, row);
            let r = inverse_deviation(simd, row, mean, self.eps);
            let mean = simd.splat(mean);
            let (x, x_rest) = row.as_chunks_mut::<LANES>();
            for ((x, w), b) in x.iter_mut().zip(w).zip(b) {
                let centred = simd.sub(simd.load(x), mean);
                simd.store(simd.fma(simd.mul(centred, r), simd.load(w), simd.load(b)), x);
            }
            let centred = simd.sub(simd.load_part(x_rest, 0.0), mean);
            let (w, b) = (simd.load_part(w_rest, 0.0), simd.load_part(b_rest, 0.0));
            simd.store_part(simd.fma(simd.mul(centred, r), w, b), x_rest);
        }
    }
}

struct AddRows<'a> {
    x: &'a mut [f32],
    delta: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for AddRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (x, rest) = self.x.as_chunks_mut::<LANES>();
        let (delta, delta_rest) = self.delta.as_chunks::<LANES>();
        for (x, delta) in x.iter_mut().zip(delta) {
            simd.store(simd.add(simd.load(x), simd.load(delta)), x);
        }
        for (x, delta) in rest.iter_mut().zip(delta_rest) {
            *x += delta;
        }
        Rows { x: self.x, weight: self.weight, bias: self.bias, eps: self.eps }.run(simd);
    }
}

#[inline(always)]
fn mean<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sums = simd.splat(0.0);
    let (lanes, rest) = x.as_chunks::<LANES>();
    for x in lanes {
        sums = simd.add(sums, simd.load(x));
    }
    simd.sum(simd.add(sums, simd.load_part(rest, 0.0))) / x.len() as f32
}

/// `1 / sqrt(mean((x - mean)²) + eps)` in every lane.
#[inline(always)]
fn inverse_deviation<S: Simd>(simd: S, x: &[f32], mean: f32, eps: f32) -> S::F {
    let centre = simd.splat(mean);
    let mut sums = simd.splat(0.0);
    let (lanes, rest) = x.as_chunks::<LANES>();
    for x in lanes {
        let centred = simd.sub(simd.load(x), centre);
        sums = simd.fma(centred, centred, sums);
    }
    // Lanes beyond the row hold the mean, and so add nothing.
    let centred = simd.sub(simd.load_part(rest, mean), centre);
    let sum = simd.sum(simd.fma(centred, centred, sums));
    simd.splat(1.0 / (sum / x.len() as f32 + eps).sqrt())
}
