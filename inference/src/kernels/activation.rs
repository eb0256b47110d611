//! Gated activations: `f(gate) · up`, where each row holds the gates and then as many factors.
//!
//! Both functions are `x / (1 + exp(-z))`: with `z = x` for SiLU, and, since `(1 + tanh y) / 2 = 1 / (1 +
//! exp(-2 y))`, with `z = 2 sqrt(2 / π) (x + 0.044715 x³)` for the GELU by hyperbolic tangent.

use rayon::prelude::*;

use super::exp::exp;
use super::heads::rows_per_task;
use super::simd::{Isa, Kernel, LANES, Simd};

/// `silu(gate) · up` of rows of `2 · width` values, into rows of `width`.
///
/// # Panics
///
/// If `x` is not a number of whole rows, or `out` does not hold half as much.
pub fn silu_gate(x: &[f32], width: usize, out: &mut [f32]) {
    gate_on(Isa::best(), Gate::Silu, x, width, out);
}

/// `gelu(gate) · up`, by hyperbolic tangent, of rows of `2 · width` values, into rows of `width`.
///
/// # Panics
///
/// If `x` is not a number of whole rows, or `out` does not hold half as much.
pub fn gelu_tanh_gate(x: &[f32], width: usize, out: &mut [f32]) {
    gate_on(Isa::best(), Gate::GeluTanh, x, width, out);
}

/// What is done to the gate.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate {
    Silu,
    GeluTanh,
}

pub(super) fn gate_on(isa: Isa, gate: Gate, x: &[f32], width: usize, out: &mut [f32]) {
    assert!(width > 0 && x.len().is_multiple_of(2 * width), "rows of {width} gates and as many factors");
    assert_eq!(x.len(), 2 * out.len(), "half as many results as values");
    let rows = rows_per_task(2 * width);
    if x.len() <= rows * 2 * width {
        return isa.run(Gated { gate, x, width, out });
    }
    out.par_chunks_mut(rows * width)
        .zip(x.par_chunks(rows * 2 * width))
        .for_each(|(out, x)| isa.run(Gated { gate, x, width, out }));
}

struct Gated<'a> {
    gate: Gate,
    x: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (x, out) in self.x.chunks_exact(2 * self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let (gates, ups) = x.split_at(self.width);
            let (gates, gates_rest) = gates.as_chunks::<LANES>();
            let (ups, ups_rest) = ups.as_chunks::<LANES>();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gates.iter().zip(ups).zip(out) {
                let gated = simd.mul(self.gate.apply(simd, simd.load(gate)), simd.load(up));
                simd.store(gated, out);
            }
            if !out_rest.is_empty() {
                let gate = self.gate.apply(simd, simd.load_part(gates_rest, 0.0));
                simd.store_part(simd.mul(gate, simd.load_part(ups_rest, 0.0)), out_rest);
            }
        }
    }
}

impl Gate {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        let minus_z = match self {
            Gate::Silu => simd.sub(simd.splat(0.0), x),
            Gate::GeluTanh => {
                // -2 sqrt(2 / π), and 0.044715 times that.
                let (linear, cubic) = (simd.splat(-1.595_769), simd.splat(-0.071_354_814));
                simd.mul(x, simd.fma(simd.mul(x, x), cubic, linear))
            }
        };
        simd.div(x, simd.add(simd.splat(1.0), exp(simd, minus_z)))
    }
}
