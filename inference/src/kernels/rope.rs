//! Rotary positions: each head is turned by angles that grow with its position.
//!
//! Value `i` and value `i + n` of a head are a point in the plane, turned by `position · frequency[i]`; `n` is
//! the number of frequencies, half the head as a rule. Values beyond `2 n` stay as they are. How a model scales its
//! frequencies for long contexts is decided by who computes them; sines and cosines are computed in double
//! precision, for angles reach many thousands of turns.

use rayon::prelude::*;

use super::heads::{Heads, rows_per_task};
use super::simd::{Isa, Kernel, LANES, Simd};

/// Cosines and sines of the angles of some rows.
///
/// They are computed for the rows of each step instead of kept for every position: a decode step needs a few
/// dozen, and a table would be as large as a model's longest context allows.
pub struct Rope {
    half: usize,
    rows: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// The angles of rows at these positions. Each is the single precision product of position and frequency, as
    /// in `transformers`, whose checkpoints were trained with it.
    pub fn new(frequencies: &[f32], positions: &[usize]) -> Self {
        let angles = || {
            let of = |p: usize| frequencies.iter().map(move |f| f64::from(p as f32 * f));
            positions.iter().flat_map(move |&p| of(p))
        };
        Rope {
            half: frequencies.len(),
            rows: positions.len(),
            cos: angles().map(|angle| angle.cos() as f32).collect(),
            sin: angles().map(|angle| angle.sin() as f32).collect(),
        }
    }

    /// Turns the heads of each row to the row's position.
    ///
    /// # Panics
    ///
    /// If `x` does not hold as many rows, or the heads are smaller than twice the number of frequencies.
    pub fn apply(&self, x: &mut [f32], heads: Heads) {
        self.apply_on(Isa::best(), x, heads);
    }

    pub(super) fn apply_on(&self, isa: Isa, x: &mut [f32], heads: Heads) {
        assert_eq!(heads.rows(x), self.rows, "a row for each position");
        assert!(2 * self.half <= heads.dim, "heads of {} for {} angles", heads.dim, self.half);
        if self.half == 0 {
            return;
        }
        let task = rows_per_task(heads.stride);
        let turn = |(x, (cos, sin))| isa.run(Turn { half: self.half, cos, sin, x, heads });
        if self.rows <= task {
            return turn((x, (&self.cos[..], &self.sin[..])));
        }
        let angles = self.cos.par_chunks(task * self.half).zip(self.sin.par_chunks(task * self.half));
        x.par_chunks_mut(task * heads.stride).zip(angles).for_each(turn);
    }
}

impl std::fmt::Debug for Rope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rope")
            .field("frequencies", &self.half)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

struct Turn<'a> {
    half: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
    heads: Heads,
}

impl Kernel for Turn<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let half = self.half;
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        for (row, (cos, sin)) in self.x.chunks_exact_mut(self.heads.stride).zip(angles) {
            let (cos, cos_rest) = cos.as_chunks::<LANES>();
            let (sin, sin_rest) = sin.as_chunks::<LANES>();
            for head in self.heads.of_mut(row).chunks_exact_mut(self.heads.dim) {
                let (a, b) = head.split_at_mut(half);
                let (a, a_rest) = a.as_chunks_mut::<LANES>();
                let (b, b_rest) = b[..half].as_chunks_mut::<LANES>();
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let (x, y) = turn(simd, simd.load(a), simd.load(b), simd.load(cos), simd.load(sin));
                    simd.store(x, a);
                    simd.store(y, b);
                }
                if !a_rest.is_empty() {
                    let [a, b, cos, sin] =
                        [&*a_rest, &*b_rest, cos_rest, sin_rest].map(|rest| simd.load_part(rest, 0.0));
                    let (x, y) = turn(simd, a, b, cos, sin);
                    simd.store_part(x, a_rest);
                    simd.store_part(y, b_rest);
                }
            }
        }
    }
}

#[inline(always)]
fn turn<S: Simd>(simd: S, a: S::F, b: S::F, cos: S::F, sin: S::F) -> (S::F, S::F) {
    let minus = simd.sub(simd.splat(-0.0), simd.mul(b, sin));
    (simd.fma(a, cos, minus), simd.fma(a, sin, simd.mul(b, cos)))
}
