//! A weight, laid out for streaming.
//!
//! A weight of shape `[out, in]` is cut into panels of 32 outputs. Within a panel the inputs come one after
//! the other, each with its 32 weights side by side: a product reads a panel front to back, once, and every
//! vector it loads holds weights of sixteen different outputs. The last panel is filled up with zeros.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::quant::{Activations, GROUP, Quantise, Weights};
use super::simd::{Isa, LANES, Simd};

/// Outputs side by side: two vectors, a cache line of half-precision weights.
pub(super) const PANEL: usize = 2 * LANES;

/// How the weights of a [`Matrix`] are kept. What they are multiplied with, and the sums, are `f32`; only
/// `Int8` rounds the other factor too.
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
}

impl Precision {
    /// All of them, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// Its name in configurations, lists and ads.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
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
        found.ok_or_else(|| format!("`{name}` is no precision; choose f32, f16 or int8"))
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

/// Panel after panel.
pub(super) enum Panels {
    F32(Vec<Line32>),
    F16(Vec<Line16>),
    Int8(Vec<Weights>),
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
        assert!(out_features > 0 && in_features > 0, "a weight of shape [{out_features}, {in_features}]");
        let panels = out_features.div_ceil(PANEL);
        let pack = Pack { out_features, in_features, exact: precision == Precision::F32, fill };
        let (panels, error) = match precision {
            Precision::F32 => {
                let mut lines = vec![Line32::default(); panels * in_features];
                let error = pack.panels(&mut lines, |lines, rows, _| {
                    transpose(rows, in_features, |o, k, v| *at_mut(&mut lines[k].0, o) = v);
                });
                (Panels::F32(lines), error)
            }
            Precision::F16 => {
                let mut lines = vec![Line16::default(); panels * in_features];
                let error = pack.panels(&mut lines, |lines, rows, kept| {
                    let mut halves = vec![f16::ZERO; rows.len()];
                    halves.convert_from_f32_slice(rows);
                    transpose(&halves, in_features, |o, k, v| *at_mut(&mut lines[k].0, o) = v.to_bits());
                    halves.convert_to_f32_slice(kept);
                });
                (Panels::F16(lines), error)
            }
            Precision::Int8 => {
                let groups = in_features.div_ceil(GROUP);
                let mut lines = vec![Weights::ZERO; panels * groups];
                let error = pack.panels(&mut lines, |lines, rows, kept| {
                    let outputs = rows.len() / in_features;
                    let mut quantised = vec![Activations::default(); outputs * groups];
                    Quantise { x: rows, row: in_features, to: &mut quantised }.on(Isa::best());
                    for (g, (line, group)) in
                        lines.iter_mut().zip(quantised.chunks_exact(outputs)).enumerate()
                    {
                        for (o, (group, kept)) in
                            group.iter().zip(kept.chunks_exact_mut(in_features)).enumerate()
                        {
                            line.set(o, group);
                            line.get(o, &mut kept[g * GROUP..in_features.min((g + 1) * GROUP)]);
                        }
                    }
                });
                (Panels::Int8(lines), error)
            }
        };
        Matrix { out_features, in_features, error, panels }
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
        }
    }

    /// The memory the weights take, which is what a product of one row reads.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(lines) => size_of_val(lines.as_slice()),
            Panels::F16(lines) => size_of_val(lines.as_slice()),
            Panels::Int8(groups) => size_of_val(groups.as_slice()),
        }
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
        let (panel, o) = (o / PANEL, o % PANEL);
        match &self.panels {
            Panels::F32(lines) => {
                let lines = &lines[panel * self.in_features..];
                row.iter_mut().zip(lines).for_each(|(v, line)| *v = at(&line.0, o));
            }
            Panels::F16(lines) => {
                let lines = &lines[panel * self.in_features..];
                row.iter_mut().zip(lines).for_each(|(v, line)| *v = f16::from_bits(at(&line.0, o)).to_f32());
            }
            Panels::Int8(groups) => {
                let groups = &groups[panel * self.in_features.div_ceil(GROUP)..];
                row.chunks_mut(GROUP).zip(groups).for_each(|(values, group)| group.get(o, values));
            }
        }
    }
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

fn at<T: Copy>(line: &[[T; LANES]; 2], o: usize) -> T {
    line[o / LANES][o % LANES]
}

fn at_mut<T>(line: &mut [[T; LANES]; 2], o: usize) -> &mut T {
    &mut line[o / LANES][o % LANES]
}

/// Calls `put(o, k, value)` for every value, a cache line of each row at a time: rows a power of two apart would
/// otherwise evict each other.
#[inline(always)]
fn transpose<T: Copy>(rows: &[T], width: usize, mut put: impl FnMut(usize, usize, T)) {
    for from in (0..width).step_by(LANES) {
        let till = width.min(from + LANES);
        for (o, row) in rows.chunks_exact(width).enumerate() {
            for (k, &value) in (from..till).zip(&row[from..till]) {
                put(o, k, value);
            }
        }
    }
}

/// The part of packing that is the same for every precision.
struct Pack<F> {
    out_features: usize,
    in_features: usize,
    /// Whether nothing is rounded, so that no difference need be looked for.
    exact: bool,
    fill: F,
}

impl<F: Fn(usize, &mut [f32]) + Sync> Pack<F> {
    /// Fills panel after panel. `set(panel, rows, kept)` writes the rows of a panel into it, and what became of
    /// them into `kept`.
    fn panels<T: Send>(
        &self,
        lines: &mut [T],
        set: impl Fn(&mut [T], &[f32], &mut [f32]) + Sync,
    ) -> RoundingError {
        let panels = self.out_features.div_ceil(PANEL);
        let mut sums = vec![Differences::default(); panels];
        lines.par_chunks_mut(lines.len() / panels).zip(&mut sums).enumerate().for_each_init(
            || vec![0.0; 2 * PANEL * self.in_features],
            |buffer, (panel, (lines, sums))| {
                let outputs = PANEL.min(self.out_features - panel * PANEL);
                let (rows, kept) =
                    buffer[..2 * outputs * self.in_features].split_at_mut(outputs * self.in_features);
                for (o, row) in rows.chunks_exact_mut(self.in_features).enumerate() {
                    (self.fill)(panel * PANEL + o, row);
                }
                set(lines, rows, kept);
                if !self.exact {
                    sums.add(rows, kept);
                }
            },
        );
        // In order, so that the report is always the same.
        let mut all = Differences::default();
        sums.iter().for_each(|panel| all.merge(panel));
        all.summary()
    }
}

/// Sums over weights, in lanes that are added up at the end.
#[derive(Clone, Copy, Default)]
struct Differences {
    largest: [f64; 8],
    largest_weight: [f64; 8],
    squares: [f64; 8],
    weight_squares: [f64; 8],
}

impl Differences {
    fn add(&mut self, rows: &[f32], kept: &[f32]) {
        let (whole, rest) = rows.as_chunks::<8>();
        let (kept_whole, kept_rest) = kept.as_chunks::<8>();
        whole.iter().zip(kept_whole).for_each(|(rows, kept)| self.add_lanes(rows, kept));
        let (mut last, mut kept_last) = ([0.0; 8], [0.0; 8]);
        last[..rest.len()].copy_from_slice(rest);
        kept_last[..rest.len()].copy_from_slice(kept_rest);
        self.add_lanes(&last, &kept_last);
    }

    #[inline(always)]
    fn add_lanes(&mut self, row: &[f32; 8], kept: &[f32; 8]) {
        for l in 0..8 {
            // A weight that is not finite has no relative error.
            let finite = row[l].abs() <= f32::MAX;
            let weight = if finite { f64::from(row[l]) } else { 0.0 };
            let difference = if finite { f64::from(kept[l]) - weight } else { 0.0 };
            let larger = |a: f64, b: f64| if a > b { a } else { b };
            self.largest[l] = larger(difference.abs(), self.largest[l]);
            self.largest_weight[l] = larger(weight.abs(), self.largest_weight[l]);
            self.squares[l] += difference * difference;
            self.weight_squares[l] += weight * weight;
        }
    }

    fn merge(&mut self, other: &Self) {
        for l in 0..8 {
            self.largest[l] = self.largest[l].max(other.largest[l]);
            self.largest_weight[l] = self.largest_weight[l].max(other.largest_weight[l]);
            self.squares[l] += other.squares[l];
            self.weight_squares[l] += other.weight_squares[l];
        }
    }

    fn summary(&self) -> RoundingError {
        let largest = |lanes: &[f64; 8]| lanes.iter().fold(0.0, |a: f64, b| a.max(*b));
        let sum = |lanes: &[f64; 8]| lanes.iter().sum::<f64>();
        let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        RoundingError {
            max: ratio(largest(&self.largest), largest(&self.largest_weight)),
            rms: ratio(sum(&self.squares), sum(&self.weight_squares)).sqrt(),
        }
    }
}
