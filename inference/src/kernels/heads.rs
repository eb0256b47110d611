//! Where the heads are in the rows of an activation.

/// Some heads within each row of `stride` values: `count` of them, side by side from `offset` on, each of
/// `dim` values. So the queries, keys and values of one stacked product need not be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Values in a row.
    pub stride: usize,
    /// Where in the row the first head begins.
    pub offset: usize,
    /// How many heads.
    pub count: usize,
    /// Values in a head.
    pub dim: usize,
}

impl Heads {
    /// Rows that hold nothing else.
    pub fn alone(count: usize, dim: usize) -> Self {
        Heads { stride: count * dim, offset: 0, count, dim }
    }

    /// How many rows there are.
    ///
    /// # Panics
    ///
    /// If `values` is not a number of whole rows, or the heads do not fit in one.
    pub(super) fn rows(self, values: &[f32]) -> usize {
        assert!(
            self.dim > 0 && self.count > 0 && self.offset + self.count * self.dim <= self.stride,
            "{self:?}"
        );
        assert_eq!(values.len() % self.stride, 0, "rows of {}", self.stride);
        values.len() / self.stride
    }

    /// The heads of a row.
    #[inline(always)]
    pub(super) fn of(self, row: &[f32]) -> &[f32] {
        &row[self.offset..][..self.count * self.dim]
    }

    /// The heads of a row.
    #[inline(always)]
    pub(super) fn of_mut(self, row: &mut [f32]) -> &mut [f32] {
        &mut row[self.offset..][..self.count * self.dim]
    }
}

/// Rows that one thread takes together, so that a task has enough to do.
pub(super) fn rows_per_task(stride: usize) -> usize {
    const VALUES: usize = 16 << 10;
    (VALUES / stride.max(1)).max(1)
}
