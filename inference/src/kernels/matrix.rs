//! A weight, laid out for streaming.
//!
//! A weight of shape `[out, in]` is cut into panels of 32 outputs. Within a panel the inputs come one after
//! the other, each with its 32 weights side by side: a product reads a panel front to back, once, and every
//! vector it loads holds weights of sixteen different outputs. The last panel is filled up with zeros.
#![allow(unsafe_code, reason = "which types any bytes are valid for")]

use std::alloc::{Layout, handle_alloc_error};
use std::io;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::memory::{Memory, Plain};
use super::pack::{Filling, Lines};
use super::quant::{Bytes, Nibbles};
use super::scratch;
use super::simd::{LANES, Simd};

/// Outputs side by side: two vectors, a cache line of half-precision weights.
pub(super) const PANEL: usize = 2 * LANES;

/// How the weights of a [`Matrix`] are kept. What they are multiplied with, and the sums, are `f32`; only
/// the integers round the other factor too, to eight bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision: 4 bytes a weight.
    #[default]
    F32,
    /// IEEE half precision: 2 bytes a weight.
    F16,
    /// Signed bytes with one `f32` scale for 32 inputs: 1.125 bytes a weight.
    Int8,
    /// Four bits, from -7 to 7, with one `f32` scale for 32 inputs: 0.625 bytes a weight.
    Int4,
}

impl Precision {
    /// All of them, the most exact first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Int4];

    /// Its name in configurations, lists and ads.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| format!("`{name}` is no precision; choose f32, f16, int8 or int4"))
    }
}

/// What the rounding to a [`Precision`] changed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RoundingError {
    /// The largest difference to any weight, by the largest weight.
    pub max: f64,
    /// The root of the sum of squared differences, by that of the squared weights.
    pub rms: f64,
}

/// One input of a panel in single precision.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Line32(pub(super) [[f32; LANES]; 2]);

/// One input of a panel in half precision.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Line16(pub(super) [[u16; LANES]; 2]);

/// One input of a panel, in a precision that needs no groups.
pub(super) trait Line: Copy + Sync {
    /// The weights of sixteen outputs: the first or the second half of the panel.
    fn lanes<S: Simd>(&self, simd: S, half: usize) -> S::F;
}

impl Line for Line32 {
    #[inline(always)]
    fn lanes<S: Simd>(&self, simd: S, half: usize) -> S::F {
        simd.load(&self.0[half])
    }
}

impl Line for Line16 {
    #[inline(always)]
    fn lanes<S: Simd>(&self, simd: S, half: usize) -> S::F {
        simd.widen(&self.0[half])
    }
}

// SAFETY: arrays of numbers without padding, aligned to a cache line.
unsafe impl Plain for Line32 {}
// SAFETY: as above.
unsafe impl Plain for Line16 {}

/// Panel after panel.
pub(super) enum Panels {
    F32(Memory<Line32>),
    F16(Memory<Line16>),
    Int8(Memory<Bytes>),
    Int4(Memory<Nibbles>),
}

/// Evaluates an expression with the panels of a weight, whatever they consist of.
macro_rules! with_panels {
    ($panels:expr, |$lines:ident| $body:expr) => {
        match $panels {
            Panels::F32($lines) => $body,
            Panels::F16($lines) => $body,
            Panels::Int8($lines) => $body,
            Panels::Int4($lines) => $body,
        }
    };
}

/// A weight of shape `[out, in]` for [`matmul`](super::matmul()).
///
/// Weights that multiply the same rows are best stacked into one matrix (queries, keys and values; gate and
/// up): their outputs then lie side by side.
pub struct Matrix {
    out_features: usize,
    in_features: usize,
    error: RoundingError,
    pub(super) panels: Panels,
}

impl Matrix {
    /// A weight of zeros, to be filled. Fails where the system has no memory for it.
    ///
    /// # Panics
    ///
    /// If the shape is empty.
    pub fn zeros(out_features: usize, in_features: usize, precision: Precision) -> io::Result<Self> {
        assert!(out_features > 0 && in_features > 0, "a weight of shape [{out_features}, {in_features}]");
        let panels = match precision {
            Precision::F32 => Panels::F32(zeros(out_features, in_features)?),
            Precision::F16 => Panels::F16(zeros(out_features, in_features)?),
            Precision::Int8 => Panels::Int8(zeros(out_features, in_features)?),
            Precision::Int4 => Panels::Int4(zeros(out_features, in_features)?),
        };
        Ok(Matrix { out_features, in_features, error: RoundingError::default(), panels })
    }

    /// Takes rows, in any order and from any thread.
    pub fn filling(&mut self) -> Filling<'_> {
        let Matrix { out_features, in_features, error, panels } = self;
        with_panels!(panels, |lines| Filling::new(lines, *out_features, *in_features, error))
    }

    /// Lays out a weight. `fill(o, row)` writes the `in_features` weights of output `o`; it is called once for
    /// each output, from several threads.
    ///
    /// # Panics
    ///
    /// If the shape is empty.
    pub fn pack(
        out_features: usize,
        in_features: usize,
        precision: Precision,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let mut matrix = Self::zeros(out_features, in_features, precision).unwrap_or_else(|_| {
            let layout = Layout::array::<f32>(out_features.saturating_mul(in_features));
            handle_alloc_error(layout.unwrap_or(Layout::new::<f32>()))
        });
        let filling = matrix.filling();
        (0..out_features.div_ceil(PANEL)).into_par_iter().for_each(|panel| {
            let outputs = panel * PANEL..out_features.min((panel + 1) * PANEL);
            scratch::with(&scratch::ROWS, outputs.len() * in_features, |rows| {
                for (o, row) in outputs.clone().zip(rows.chunks_exact_mut(in_features)) {
                    fill(o, row);
                }
                filling.rows(outputs.start, rows);
            });
        });
        filling.finish();
        matrix
    }

    /// Lays out a weight given row after row.
    ///
    /// # Panics
    ///
    /// If the shape is empty, or `weights` does not hold `out_features` rows of `in_features`.
    pub fn from_slice(
        out_features: usize,
        in_features: usize,
        precision: Precision,
        weights: &[f32],
    ) -> Self {
        assert_eq!(
            weights.len(),
            out_features * in_features,
            "weights of shape [{out_features}, {in_features}]"
        );
        Self::pack(out_features, in_features, precision, |o, row| {
            row.copy_from_slice(&weights[o * in_features..][..in_features]);
        })
    }

    /// How many values a product gives for each row.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// How many values a product takes for each row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// How the weights are kept.
    pub fn precision(&self) -> Precision {
        match self.panels {
            Panels::F32(_) => Precision::F32,
            Panels::F16(_) => Precision::F16,
            Panels::Int8(_) => Precision::Int8,
            Panels::Int4(_) => Precision::Int4,
        }
    }

    /// The memory the weights take, which is what a product of one row reads.
    pub fn bytes(&self) -> usize {
        with_panels!(&self.panels, |lines| size_of_val(&lines[..]))
    }

    /// What was lost by rounding; zero for [`Precision::F32`].
    pub fn rounding_error(&self) -> RoundingError {
        self.error
    }

    /// Reads the weights of output `o`, as rounded: an embedding, if this is a table of them.
    ///
    /// # Panics
    ///
    /// If there is no such output, or `row` does not hold `in_features` values.
    pub fn row(&self, o: usize, row: &mut [f32]) {
        assert!(o < self.out_features, "output {o} of {}", self.out_features);
        assert_eq!(row.len(), self.in_features, "a row of {} weights", self.in_features);
        with_panels!(&self.panels, |lines| get(lines, o, row));
    }
}

fn zeros<L: Lines>(out_features: usize, width: usize) -> io::Result<Memory<L>> {
    let lines = out_features.div_ceil(PANEL).checked_mul(L::count(width));
    Memory::zeros(lines.ok_or(io::ErrorKind::OutOfMemory)?)
}

fn get<L: Lines>(lines: &[L], o: usize, row: &mut [f32]) {
    let panel = L::count(row.len());
    L::get(&lines[o / PANEL * panel..][..panel], o % PANEL, row);
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matrix")
            .field("shape", &[self.out_features, self.in_features])
            .field("precision", &self.precision())
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}
