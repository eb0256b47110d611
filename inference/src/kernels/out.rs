//! One row-major result of which every thread writes other columns.
#![allow(unsafe_code, reason = "no safe slice holds some columns of all rows")]

use std::marker::PhantomData;

/// Access to all of a result, for threads that divide its columns among them.
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    to: *mut f32,
    rows: usize,
    width: usize,
    result: PhantomData<&'a mut [f32]>,
}

// SAFETY: what `columns` gives out is as good as a `&mut [f32]`, and its callers do not let two overlap.
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    /// A result in rows of `width`.
    pub(super) fn new(to: &'a mut [f32], width: usize) -> Self {
        Out { to: to.as_mut_ptr(), rows: to.len() / width, width, result: PhantomData }
    }

    /// Values in a row.
    #[inline(always)]
    pub(super) fn width(self) -> usize {
        self.width
    }

    /// Some columns of a row, which must exist.
    ///
    /// # Safety
    ///
    /// While the slice is in use, nobody else uses one that overlaps it.
    #[inline(always)]
    pub(super) unsafe fn columns(self, row: usize, first: usize, len: usize) -> &'a mut [f32] {
        assert!(row < self.rows && first + len <= self.width, "columns within the result");
        // SAFETY: within the result, which is borrowed for as long; the caller sees to it that there is no other.
        unsafe { std::slice::from_raw_parts_mut(self.to.add(row * self.width + first), len) }
    }
}
