//! Buffers kept per thread, so that a kernel in steady state allocates nothing.
//!
//! A buffer is taken out of its slot while in use. A thread that waits for its pool may be given another
//! kernel meanwhile; that one finds the slot empty and gets a buffer of its own, instead of the first one's.

use std::cell::Cell;
use std::thread::LocalKey;

use half::f16;

use super::matrix::Line32;
use super::quant::Activations;

/// Where a thread keeps a buffer between uses.
pub(super) type Slot<T> = LocalKey<Cell<Vec<T>>>;

thread_local! {
    /// The rows of a matrix product, in the order in which tiles read them.
    pub(super) static ROWS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// The same, quantised.
    pub(super) static QUANTISED: Cell<Vec<Activations>> = const { Cell::new(Vec::new()) };
    /// A panel of half-precision weights, widened.
    pub(super) static PANEL: Cell<Vec<Line32>> = const { Cell::new(Vec::new()) };
    /// Rows of a weight in half precision, before they are laid out.
    pub(super) static HALVES: Cell<Vec<f16>> = const { Cell::new(Vec::new()) };
    /// What rounding made of them.
    pub(super) static KEPT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// Attention scores.
    pub(super) static SCORES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `body` with `len` elements of arbitrary content.
pub(super) fn with<T: Copy + Default, R>(
    slot: &'static Slot<T>,
    len: usize,
    body: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut buffer = slot.take();
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    let result = body(&mut buffer[..len]);
    slot.set(buffer);
    result
}
