//! Eight-bit integers in groups of 32, for weights and for what they are multiplied with.
//!
//! A group holds `q = round(x / scale)` with `scale = max |x| / 127`, so `q` is in -127..=127 and -128 is
//! never used. A group whose values are all tiny is zero. A group with a value that is not finite gets a
//! scale that is not a number, which makes every result it enters not a number as well.
//!
//! The dot product instruction of AVX-512 multiplies unsigned by signed bytes. Weights are therefore kept
//! as `q + 128`, and every group of activations knows `-128 · Σ q`, with which that is undone.
#![allow(unsafe_code, reason = "which types any bytes are valid for")]

use super::memory::Plain;
use super::simd::{Isa, Kernel, LANES, Simd};

/// Inputs that share a scale.
pub(super) const GROUP: usize = 32;

/// Four inputs at a time are multiplied and added by one instruction.
pub(super) const STEPS: usize = GROUP / 4;

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

/// Thirty-two inputs of the 32 outputs of a panel: by step, by half of the panel, by output, by input.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Weights {
    pub(super) quants: [[[u8; 4 * LANES]; 2]; STEPS],
    pub(super) scales: [[f32; LANES]; 2],
}

// SAFETY: arrays of numbers without padding, aligned to a cache line.
unsafe impl Plain for Weights {}

impl Weights {
    /// Sets the inputs of output `o` of the panel.
    #[inline(always)]
    fn set(&mut self, o: usize, values: &Activations) {
        let (half, lane) = (o / LANES, o % LANES);
        self.scales[half][lane] = values.scale;
        for (to, from) in self.quants.iter_mut().zip(values.quants) {
            let quants = u32::from_ne_bytes(from.map(|q| q as u8)) ^ 0x8080_8080;
            to[half][4 * lane..][..4].copy_from_slice(&quants.to_ne_bytes());
        }
    }

    /// Reads the first inputs of output `o` of the panel, at most a group.
    pub(super) fn get(&self, o: usize, values: &mut [f32]) {
        let (half, lane) = (o / LANES, o % LANES);
        let scale = self.scales[half][lane];
        for (values, from) in values.chunks_mut(4).zip(&self.quants) {
            for (value, q) in values.iter_mut().zip(&from[half][4 * lane..][..4]) {
                *value = (f32::from(*q) - 128.0) * scale;
            }
        }
    }
}

/// `(1 / scale, scale)` for a group with this largest magnitude.
#[inline(always)]
fn scales(largest: f32) -> (f32, f32) {
    if largest < TINY {
        (0.0, 0.0)
    } else if largest <= f32::MAX {
        (127.0 / largest, largest / 127.0)
    } else {
        (0.0, f32::NAN)
    }
}

impl Activations {
    /// Quantises at most a group of values; zeros follow.
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, values: &[f32]) -> Self {
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
        let (inverse, scale) = scales(f32::from_bits(largest));
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
            let quant = from as i32;
            *to = quant as i8;
            sum = sum.wrapping_add(quant);
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
                self.to[g * rows + m] = Activations::new(simd, values);
            }
        }
    }
}

/// Quantises rows of a weight into outputs of a panel.
pub(super) struct Pack<'a> {
    pub(super) lines: &'a mut [Weights],
    /// The output that the first row becomes.
    pub(super) first: usize,
    pub(super) rows: &'a [f32],
    pub(super) width: usize,
    /// What became of the rows.
    pub(super) kept: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Pack { lines, first, rows, width, kept } = self;
        for (o, (row, kept)) in (first..).zip(rows.chunks_exact(width).zip(kept.chunks_exact_mut(width))) {
            for (line, (values, kept)) in lines.iter_mut().zip(row.chunks(GROUP).zip(kept.chunks_mut(GROUP)))
            {
                let group = Activations::new(simd, values);
                line.set(o, &group);
                group.values(kept);
            }
        }
    }
}
