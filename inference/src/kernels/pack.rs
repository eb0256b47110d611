//! Filling a weight, a few rows at a time.
//!
//! Rows come as a file holds them: those of stacked weights from different tensors, perhaps from different files
//! that are read at the same time. So rows are taken in any order and from any thread; each panel has a lock, for two
//! tensors may meet in one.

use std::sync::{Mutex, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::matrix::{Line16, Line32, PANEL, RoundingError};
use super::memory::Plain;
use super::quant::{GROUP, Group, Pack};
use super::scratch;
use super::simd::{Isa, Kernel, LANES, Simd};

/// What panels consist of.
pub(super) trait Lines: Plain {
    /// Whether nothing is rounded, so that no difference need be looked for.
    const EXACT: bool = false;

    /// How many hold `width` inputs of a panel.
    fn count(width: usize) -> usize;
    /// Writes rows of `width` as the outputs of the panel from `first` on, and what became of them into `kept`.
    fn set(lines: &mut [Self], first: usize, rows: &[f32], width: usize, kept: &mut [f32]);
    /// Reads output `o` of the panel.
    fn get(lines: &[Self], o: usize, row: &mut [f32]);
}

impl Lines for Line32 {
    const EXACT: bool = true;

    fn count(width: usize) -> usize {
        width
    }
    fn set(lines: &mut [Self], first: usize, rows: &[f32], width: usize, _kept: &mut [f32]) {
        transpose(rows, width, lines, |line, o, v| *at_mut(&mut line.0, first + o) = v);
    }
    fn get(lines: &[Self], o: usize, row: &mut [f32]) {
        row.iter_mut().zip(lines).for_each(|(v, line)| *v = at(&line.0, o));
    }
}

impl Lines for Line16 {
    fn count(width: usize) -> usize {
        width
    }
    fn set(lines: &mut [Self], first: usize, rows: &[f32], width: usize, kept: &mut [f32]) {
        scratch::with(&scratch::HALVES, rows.len(), |halves| {
            halves.convert_from_f32_slice(rows);
            transpose(halves, width, lines, |line, o, v| *at_mut(&mut line.0, first + o) = v.to_bits());
            halves.convert_to_f32_slice(kept);
        });
    }
    fn get(lines: &[Self], o: usize, row: &mut [f32]) {
        row.iter_mut().zip(lines).for_each(|(v, line)| *v = f16::from_bits(at(&line.0, o)).to_f32());
    }
}

impl<G: Group> Lines for G {
    fn count(width: usize) -> usize {
        width.div_ceil(GROUP)
    }
    fn set(lines: &mut [Self], first: usize, rows: &[f32], width: usize, kept: &mut [f32]) {
        Isa::best().run(Pack { lines, first, rows, width, kept });
    }
    fn get(lines: &[Self], o: usize, row: &mut [f32]) {
        row.chunks_mut(GROUP).zip(lines).for_each(|(values, group)| group.get(o, values));
    }
}

fn at<T: Copy>(line: &[[T; LANES]; 2], o: usize) -> T {
    line[o / LANES][o % LANES]
}

fn at_mut<T>(line: &mut [[T; LANES]; 2], o: usize) -> &mut T {
    &mut line[o / LANES][o % LANES]
}

/// Calls `put(line, o, value)` for every value, a cache line of each row at a time: rows a power of two apart would
/// otherwise evict each other.
#[inline(always)]
fn transpose<T: Copy, L>(rows: &[T], width: usize, lines: &mut [L], mut put: impl FnMut(&mut L, usize, T)) {
    for (from, lines) in (0..width).step_by(LANES).zip(lines.chunks_mut(LANES)) {
        for (o, row) in rows.chunks_exact(width).enumerate() {
            for (line, &value) in lines.iter_mut().zip(&row[from..]) {
                put(line, o, value);
            }
        }
    }
}

/// A weight that is being filled: [`Matrix::filling`](super::Matrix::filling).
#[must_use = "`finish` sums up what rounding changed"]
pub struct Filling<'a> {
    panels: Box<dyn Fill + 'a>,
    error: &'a mut RoundingError,
}

impl<'a> Filling<'a> {
    pub(super) fn new<L: Lines>(
        lines: &'a mut [L],
        out_features: usize,
        width: usize,
        error: &'a mut RoundingError,
    ) -> Self {
        let panels = lines.chunks_mut(L::count(width)).map(|lines| Mutex::new(Panel::new(lines))).collect();
        Filling { panels: Box::new(Panels { panels, out_features, width }), error }
    }

    /// Writes whole rows, the first of them as output `first`.
    ///
    /// # Panics
    ///
    /// If they are not whole rows, or the weight has not so many.
    pub fn rows(&self, first: usize, rows: &[f32]) {
        self.panels.rows(first, rows);
    }

    /// Notes what rounding changed. The report does not depend on the order in which rows came.
    pub fn finish(self) {
        *self.error = self.panels.error();
    }
}

impl std::fmt::Debug for Filling<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling").finish_non_exhaustive()
    }
}

/// A [`Filling`] in some precision.
trait Fill: Send + Sync {
    fn rows(&self, first: usize, rows: &[f32]);
    fn error(&self) -> RoundingError;
}

struct Panels<'a, L> {
    panels: Vec<Mutex<Panel<'a, L>>>,
    out_features: usize,
    width: usize,
}

/// One panel, and what rounding changed in it.
struct Panel<'a, L> {
    lines: &'a mut [L],
    largest: f64,
    largest_weight: f64,
    /// The squares of differences and of weights, row by row: their sum must not depend on which row came first.
    squares: [(f64, f64); PANEL],
}

impl<'a, L: Lines> Panel<'a, L> {
    fn new(lines: &'a mut [L]) -> Self {
        Panel { lines, largest: 0.0, largest_weight: 0.0, squares: [(0.0, 0.0); PANEL] }
    }

    fn set(&mut self, first: usize, rows: &[f32], width: usize) {
        if L::EXACT {
            return L::set(self.lines, first, rows, width, &mut []);
        }
        scratch::with(&scratch::KEPT, rows.len(), |kept| {
            L::set(self.lines, first, rows, width, kept);
            Isa::best().run(Compare { panel: self, first, rows, width, kept });
        });
    }
}

/// Notes what rounding made of rows of a panel.
struct Compare<'a, 'p, L> {
    panel: &'a mut Panel<'p, L>,
    first: usize,
    rows: &'a [f32],
    width: usize,
    kept: &'a [f32],
}

impl<L> Kernel for Compare<'_, '_, L> {
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Compare { panel, first, rows, width, kept } = self;
        let rows = rows.chunks_exact(width).zip(kept.chunks_exact(width));
        for (to, (row, kept)) in panel.squares[first..].iter_mut().zip(rows) {
            let found = Differences::of(row, kept);
            panel.largest = panel.largest.max(largest(&found.largest));
            panel.largest_weight = panel.largest_weight.max(largest(&found.largest_weight));
            *to = (found.squares.iter().sum(), found.weight_squares.iter().sum());
        }
    }
}

impl<L: Lines> Fill for Panels<'_, L> {
    fn rows(&self, mut first: usize, mut rows: &[f32]) {
        let count = rows.len() / self.width;
        assert!(
            rows.len().is_multiple_of(self.width) && first + count <= self.out_features,
            "whole rows of {} within {}",
            self.width,
            self.out_features
        );
        while !rows.is_empty() {
            let (panel, o) = (first / PANEL, first % PANEL);
            let here = rows.len().min((PANEL - o) * self.width);
            let (now, rest) = rows.split_at(here);
            // Whoever panicked in there left numbers, if perhaps wrong ones, and his panic is on its way.
            let mut panel = self.panels[panel].lock().unwrap_or_else(PoisonError::into_inner);
            panel.set(o, now, self.width);
            (first, rows) = (first + here / self.width, rest);
        }
    }

    fn error(&self) -> RoundingError {
        let (mut most, mut most_weight, mut squares, mut weight_squares) = (0.0_f64, 0.0_f64, 0.0, 0.0);
        for panel in &self.panels {
            let panel = panel.lock().unwrap_or_else(PoisonError::into_inner);
            (most, most_weight) = (most.max(panel.largest), most_weight.max(panel.largest_weight));
            for (of_differences, of_weights) in &panel.squares {
                squares += of_differences;
                weight_squares += of_weights;
            }
        }
        let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        RoundingError { max: ratio(most, most_weight), rms: ratio(squares, weight_squares).sqrt() }
    }
}

#[inline(always)]
fn largest(lanes: &[f64; 8]) -> f64 {
    lanes.iter().fold(0.0, |a: f64, b| a.max(*b))
}

/// Sums over a row, in lanes that are added up at the end.
#[derive(Default)]
struct Differences {
    largest: [f64; 8],
    largest_weight: [f64; 8],
    squares: [f64; 8],
    weight_squares: [f64; 8],
}

impl Differences {
    #[inline(always)]
    fn of(row: &[f32], kept: &[f32]) -> Self {
        let mut sums = Self::default();
        let (whole, rest) = row.as_chunks::<8>();
        let (kept_whole, kept_rest) = kept.as_chunks::<8>();
        whole.iter().zip(kept_whole).for_each(|(row, kept)| sums.add(row, kept));
        let (mut last, mut kept_last) = ([0.0; 8], [0.0; 8]);
        last[..rest.len()].copy_from_slice(rest);
        kept_last[..rest.len()].copy_from_slice(kept_rest);
        sums.add(&last, &kept_last);
        sums
    }

    #[inline(always)]
    fn add(&mut self, row: &[f32; 8], kept: &[f32; 8]) {
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
}
