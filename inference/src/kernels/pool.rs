//! Keys and values of one layer, in blocks that sequences hold by number.
//!
//! A sequence owns a table of blocks; position `p` is in block `table[p / 16]`, place `p % 16`. For each
//! block and each key head there is one run of memory: the keys as `[head_dim][16]`, so that a vector
//! holds sixteen tokens, then the values as `[16][head_dim]`, so that one holds sixteen dimensions.

#![allow(unsafe_code, reason = "memory that is zero without being touched")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

use half::f16;

use super::simd::{LANES, Simd};

/// Tokens in a block: one vector of scores.
pub const BLOCK: usize = LANES;

/// How keys and values are kept. Scores and sums are `f32` in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvPrecision {
    /// Single precision.
    F32,
    /// IEEE half precision: half the memory. Values beyond 65504 become infinite.
    F16,
}

/// Sixteen values, kept in some precision.
pub(super) trait Cell: Copy + Sync {
    fn lanes<S: Simd>(&self, simd: S) -> S::F;
    fn set(&mut self, lane: usize, value: f32);
}

/// Sixteen values in single precision.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Cell32([f32; LANES]);

/// Sixteen values in half precision.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
pub(super) struct Cell16([u16; LANES]);

impl Cell for Cell32 {
    #[inline(always)]
    fn lanes<S: Simd>(&self, simd: S) -> S::F {
        simd.load(&self.0)
    }
    fn set(&mut self, lane: usize, value: f32) {
        self.0[lane] = value;
    }
}

impl Cell for Cell16 {
    #[inline(always)]
    fn lanes<S: Simd>(&self, simd: S) -> S::F {
        simd.widen(&self.0)
    }
    fn set(&mut self, lane: usize, value: f32) {
        self.0[lane] = f16::from_f32(value).to_bits();
    }
}

/// The cells of a pool.
pub(super) enum Cells {
    F32(Vec<Cell32>),
    F16(Vec<Cell16>),
}

/// The keys and values of one layer.
pub struct KvPool {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) cells: Cells,
}

impl KvPool {
    /// A pool of zeros.
    ///
    /// # Panics
    ///
    /// If the shape is empty, or `head_dim` is not a multiple of 16.
    pub fn new(blocks: usize, kv_heads: usize, head_dim: usize, precision: KvPrecision) -> Self {
        assert!(
            kv_heads > 0 && head_dim > 0 && head_dim.is_multiple_of(LANES),
            "{kv_heads} heads of {head_dim} values, which must be a multiple of {LANES}"
        );
        let cells = blocks * kv_heads * 2 * head_dim;
        let cells = match precision {
            KvPrecision::F32 => Cells::F32(zeroed(cells)),
            KvPrecision::F16 => Cells::F16(zeroed(cells)),
        };
        KvPool { kv_heads, head_dim, cells }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        let cells = match &self.cells {
            Cells::F32(cells) => cells.len(),
            Cells::F16(cells) => cells.len(),
        };
        cells / self.block_cells()
    }

    /// The memory taken.
    pub fn bytes(&self) -> usize {
        match &self.cells {
            Cells::F32(cells) => size_of_val(cells.as_slice()),
            Cells::F16(cells) => size_of_val(cells.as_slice()),
        }
    }

    /// Writes the key and the value of a token, each `kv_heads` heads of `head_dim`.
    ///
    /// # Panics
    ///
    /// If the rows have another length, or the table no block of this pool at `position`.
    pub fn append(&mut self, table: &[u32], position: usize, keys: &[f32], values: &[f32]) {
        let (dim, heads) = (self.head_dim, self.kv_heads);
        assert_eq!((keys.len(), values.len()), (heads * dim, heads * dim), "{heads} heads of {dim} values");
        assert!(position / BLOCK < table.len(), "position {position} in a table of {} blocks", table.len());
        let block = table[position / BLOCK] as usize;
        assert!(block < self.blocks(), "block {block} of {}", self.blocks());
        let cells = block * self.block_cells()..(block + 1) * self.block_cells();
        match &mut self.cells {
            Cells::F32(all) => append(&mut all[cells], dim, position % BLOCK, keys, values),
            Cells::F16(all) => append(&mut all[cells], dim, position % BLOCK, keys, values),
        }
    }

    /// Overwrites a block with zeros, so that the next sequence to hold it can learn nothing.
    ///
    /// # Panics
    ///
    /// If there is no such block.
    pub fn wipe(&mut self, block: u32) {
        assert!((block as usize) < self.blocks(), "block {block} of {}", self.blocks());
        let cells = block as usize * self.block_cells()..(block as usize + 1) * self.block_cells();
        match &mut self.cells {
            Cells::F32(all) => all[cells].fill(Cell32::default()),
            Cells::F16(all) => all[cells].fill(Cell16::default()),
        }
    }

    fn block_cells(&self) -> usize {
        self.kv_heads * 2 * self.head_dim
    }
}

/// Zeros, as the system hands them out: memory that no token was written to costs nothing.
fn zeroed<C: Cell>(cells: usize) -> Vec<C> {
    let Ok(layout) = Layout::array::<C>(cells) else { return Vec::new() };
    if layout.size() == 0 {
        return Vec::new();
    }
    // SAFETY: the layout is not empty, and is that of `cells` cells, for which zero bytes are valid: both
    // kinds are arrays of numbers. The allocator is the one that `Vec` frees with.
    unsafe {
        let memory = alloc_zeroed(layout);
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        Vec::from_raw_parts(memory.cast::<C>(), cells, cells)
    }
}

fn append<C: Cell>(block: &mut [C], dim: usize, place: usize, keys: &[f32], values: &[f32]) {
    let heads = block.chunks_exact_mut(2 * dim).zip(keys.chunks_exact(dim).zip(values.chunks_exact(dim)));
    for (block, (key, value)) in heads {
        let (key_cells, value_cells) = block.split_at_mut(dim);
        for (cell, &x) in key_cells.iter_mut().zip(key) {
            cell.set(place, x);
        }
        let cells = &mut value_cells[place * dim / LANES..];
        for (cell, x) in cells.iter_mut().zip(value.chunks_exact(LANES)) {
            for (lane, &x) in x.iter().enumerate() {
                cell.set(lane, x);
            }
        }
    }
}

impl std::fmt::Debug for KvPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvPool")
            .field("blocks", &self.blocks())
            .field("kv_heads", &self.kv_heads)
            .field("head_dim", &self.head_dim)
            .finish_non_exhaustive()
    }
}
