//! Memory for weights: zeros as the system hands them out, in large pages where it has them.
//!
//! A weight is written once and read for every token. In pages of 4 KiB, the first touch of each page costs more
//! than packing into it does, and a product that reads gigabytes misses the processor's table of pages all the time.
//! A `Vec` of aligned zeros would moreover write each of them first, from one thread.

#![allow(unsafe_code, reason = "a mapping of bytes, seen as numbers")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Numbers and arrays of numbers.
///
/// # Safety
///
/// Any bytes are a valid value, and the alignment is at most that of a page.
pub(super) unsafe trait Plain: Copy + Send + Sync {}

/// A slice in memory of its own.
pub(super) struct Memory<T> {
    map: MmapMut,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Memory<T> {
    /// Zeros. Nothing is written until somebody does.
    pub(super) fn zeros(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapMut::map_anon(bytes)?;
        // A hint: a kernel that does not take it gives small pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Memory { map, len, of: PhantomData })
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is private, holds `len` values, begins at a page, and lives as long as `self`;
        // `Plain` says that any bytes are valid and that a page is aligned enough.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}
