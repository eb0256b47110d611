//! Integers in groups of 32: eight bits for what weights are multiplied with, eight or four for the weights.
//!
//! A group holds `q = round(x / scale)` with `scale = max |x| / levels`, so `q` is in -127..=127 or in -7..=7;
//! -128 and -8 are never used. A group whose values are all tiny is zero. A group with a value that is not finite
//! gets a scale that is not a number, which makes every result it enters not a number as well.
//!
//! The dot product instruction of AVX-512 multiplies unsigned by signed bytes. Weights are therefore kept
//! as `q + 128` or `q + 8`, and every group of activations knows `-128 · Σ q`, with which that is undone. (The
//! outputs that fill up the last panel are zero bytes; nobody reads their results.)
#![allow(unsafe_code, reason = "which types any bytes are valid for")]
#![allow(clippy::needless_range_loop, reason = "loops over registers, all by the same constants")]

use super::memory::Plain;
use super::simd::{Isa, Kernel, LANES, Simd};

/// Inputs that share a scale.
pub(super) const GROUP: usize = 32;

/// Four inputs at a time are multiplied and added by one instruction.
pub(super) const STEPS: usize = GROUP / 4;

/// A small integer added to this is in the low bits of the sum. (A cast would check for values beyond its range, which
/// cannot be here, one at a time.)
const INTEGER: f32 = 12_582_912.0;

/// Below this a group counts as zero, for the inverse of its scale would not be finite.
const TINY: f32 = 1e-30;

/// Thirty-two inputs of one row, or of one output of a weight.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Activations {
    pub(super) quants: [[i8; 4]; STEPS],
    pub(super) scale: f32,
    /// `-128 · Σ quants`
    pub(super) offset: i32,
}

/// Thirty-two inputs of the 32 outputs of a panel, in integers.
pub(super) trait Group: Plain {
    /// The largest integer a weight becomes.
    const LEVELS: f32;

    /// Sets the inputs of output `o` of the panel.
    fn set(&mut self, o: usize, values: &Activations);
    /// Reads the first inputs of output `o` of the panel, at most a group.
    fn get(&self, o: usize, values: &mut [f32]);
    /// The scales of sixteen outputs.
    fn scales(&self, half: usize) -> &[f32; LANES];
    /// The products of `M` rows with `W` vectors of outputs from vector `half` on, summed.
    fn dots<S: Simd, const M: usize, const W: usize>(
        &self,
        simd: S,
        rows: &[Activations; M],
        half: usize,
    ) -> [[S::I; W]; M];
}

/// Weights of eight bits: by step, by half of the panel, by output, by input.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bytes {
    quants: [[[u8; 4 * LANES]; 2]; STEPS],
    scales: [[f32; LANES]; 2],
}

// SAFETY: arrays of numbers without padding, aligned to a cache line.
unsafe impl Plain for Bytes {}

impl Group for Bytes {
    const LEVELS: f32 = 127.0;

    #[inline(always)]
    fn set(&mut self, o: usize, values: &Activations) {
        let (half, lane) = (o / LANES, o % LANES);
        self.scales[half][lane] = values.scale;
        for (to, from) in self.quants.iter_mut().zip(values.quants) {
            let quants = u32::from_ne_bytes(from.map(|q| q as u8)) ^ 0x8080_8080;
            to[half][4 * lane..][..4].copy_from_slice(&quants.to_ne_bytes());
        }
    }

    fn get(&self, o: usize, values: &mut [f32]) {
        let (half, lane) = (o / LANES, o % LANES);
        let scale = self.scales[half][lane];
        for (values, from) in values.chunks_mut(4).zip(&self.quants) {
            for (value, q) in values.iter_mut().zip(&from[half][4 * lane..][..4]) {
                *value = (f32::from(*q) - 128.0) * scale;
            }
        }
    }

    #[inline(always)]
    fn scales(&self, half: usize) -> &[f32; LANES] {
        &self.scales[half]
    }

    #[inline(always)]
    fn dots<S: Simd, const M: usize, const W: usize>(
        &self,
        simd: S,
        rows: &[Activations; M],
        half: usize,
    ) -> [[S::I; W]; M] {
        let mut dots = [[simd.int(0); W]; M];
        for m in 0..M {
            dots[m] = [simd.dot_start(rows[m].offset); W];
        }
        for step in 0..STEPS {
            for m in 0..M {
                for w in 0..W {
                    dots[m][w] = simd.dot(dots[m][w], &self.quants[step][half + w], rows[m].quants[step]);
                }
            }
        }
        dots
    }
}

/// Weights of four bits: by two steps, the first in the low halves of the bytes; by half of the panel, by output, by
/// input.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Nibbles {
    quants: [[[u8; 4 * LANES]; 2]; STEPS / 2],
    scales: [[f32; LANES]; 2],
}

// SAFETY: arrays of numbers without padding, aligned to a cache line.
unsafe impl Plain for Nibbles {}

impl Group for Nibbles {
    const LEVELS: f32 = 7.0;

    #[inline(always)]
    fn set(&mut self, o: usize, values: &Activations) {
        let (half, lane) = (o / LANES, o % LANES);
        self.scales[half][lane] = values.scale;
        let (steps, _) = values.quants.as_chunks::<2>();
        for (to, [low, high]) in self.quants.iter_mut().zip(steps) {
            // In four bits, a number plus 8 is the number with its upper bit turned.
            let low = u32::from_ne_bytes(low.map(|q| q as u8)) & 0x0f0f_0f0f ^ 0x0808_0808;
            let high = u32::from_ne_bytes(high.map(|q| q as u8)) & 0x0f0f_0f0f ^ 0x0808_0808;
            to[half][4 * lane..][..4].copy_from_slice(&(low | high << 4).to_ne_bytes());
        }
    }

    fn get(&self, o: usize, values: &mut [f32]) {
        let (half, lane) = (o / LANES, o % LANES);
        let scale = self.scales[half][lane];
        for (values, from) in values.chunks_mut(8).zip(&self.quants) {
            let from = &from[half][4 * lane..][..4];
            let nibbles = from.iter().map(|q| q & 15).chain(from.iter().map(|q| q >> 4));
            for (value, q) in values.iter_mut().zip(nibbles) {
                *value = (f32::from(q) - 8.0) * scale;
            }
        }
    }

    #[inline(always)]
    fn scales(&self, half: usize) -> &[f32; LANES] {
        &self.scales[half]
    }

    #[inline(always)]
    fn dots<S: Simd, const M: usize, const W: usize>(
        &self,
        simd: S,
        rows: &[Activations; M],
        half: usize,
    ) -> [[S::I; W]; M] {
        let mut dots = [[simd.int(0); W]; M];
        for m in 0..M {
            // -8 for each of the weights, from -128.
            dots[m] = [simd.int(rows[m].offset >> 4); W];
        }
        for step in 0..STEPS / 2 {
            for m in 0..M {
                let (x, y) = (rows[m].quants[2 * step], rows[m].quants[2 * step + 1]);
                for w in 0..W {
                    dots[m][w] = simd.dot_nibbles(dots[m][w], &self.quants[step][half + w], x, y);
                }
            }
        }
        dots
    }
}

/// `(1 / scale, scale)` for a group with this largest magnitude, which becomes `levels`.
#[inline(always)]
fn scales(largest: f32, levels: f32) -> (f32, f32) {
    if largest < TINY {
        (0.0, 0.0)
    } else if largest <= f32::MAX {
        (levels / largest, largest / levels)
    } else {
        (0.0, f32::NAN)
    }
}

impl Activations {
    /// Quantises at most a group of values; zeros follow. The largest becomes `levels`, at most 127.
    #[inline(always)]
    fn new<S: Simd>(simd: S, values: &[f32], levels: f32) -> Self {
        // A whole group is loaded at once.
        let mut padded = values.as_array().copied().unwrap_or_else(|| {
            let mut padded = [0.0_f32; GROUP];
            padded[..values.len()].copy_from_slice(values);
            padded
        });
        // Bits of non-negative floats are ordered as the floats are, and put NaN above infinity.
        let mut largest = 0_u32;
        for value in padded {
            largest = largest.max(value.to_bits() & 0x7fff_ffff);
        }
        let (inverse, scale) = scales(f32::from_bits(largest), levels);
        let mut out = Activations { quants: [[0; 4]; STEPS], scale, offset: 0 };
        if inverse == 0.0 {
            return out;
        }
        let (halves, _) = padded.as_chunks_mut::<LANES>();
        for half in halves {
            let scaled = simd.mul(simd.load(half), simd.splat(inverse));
            simd.store(simd.float(simd.round(scaled)), half);
        }
        let mut sum = 0_i32;
        for (to, from) in out.quants.as_flattened_mut().iter_mut().zip(padded) {
            *to = (from + INTEGER).to_bits() as i8;
            sum = sum.wrapping_add(i32::from(*to));
        }
        out.offset = sum.wrapping_mul(-128);
        out
    }

    /// The first of the values, as rounded.
    #[inline(always)]
    fn values(&self, values: &mut [f32]) {
        for (value, q) in values.iter_mut().zip(self.quants.as_flattened()) {
            *value = f32::from(*q) * self.scale;
        }
    }
}

/// Quantises the rows of a tile into groups, those of the same inputs side by side.
pub(super) struct Quantise<'a> {
    /// At least the rows that `to` has room for.
    pub(super) x: &'a [f32],
    /// Values in a row.
    pub(super) row: usize,
    pub(super) to: &'a mut [Activations],
}

impl Quantise<'_> {
    pub(super) fn on(self, isa: Isa) {
        isa.run(self);
    }
}

impl Kernel for Quantise<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.to.len() / self.row.div_ceil(GROUP);
        for (m, row) in self.x.chunks_exact(self.row).take(rows).enumerate() {
            for (g, values) in row.chunks(GROUP).enumerate() {
                self.to[g * rows + m] = Activations::new(simd, values, 127.0);
            }
        }
    }
}

/// Quantises rows of a weight into outputs of a panel.
pub(super) struct Pack<'a, G> {
    pub(super) lines: &'a mut [G],
    /// The output that the first row becomes.
    pub(super) first: usize,
    pub(super) rows: &'a [f32],
    pub(super) width: usize,
    /// What became of the rows.
    pub(super) kept: &'a mut [f32],
}

impl<G: Group> Kernel for Pack<'_, G> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Pack { lines, first, rows, width, kept } = self;
        for (o, (row, kept)) in (first..).zip(rows.chunks_exact(width).zip(kept.chunks_exact_mut(width))) {
            for (line, (values, kept)) in lines.iter_mut().zip(row.chunks(GROUP).zip(kept.chunks_mut(GROUP)))
            {
                let group = Activations::new(simd, values, G::LEVELS);
                line.set(o, &group);
                group.values(kept);
            }
        }
    }
}
