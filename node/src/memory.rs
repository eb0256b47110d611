//! Memory that is overwritten when it is freed.
//!
//! An enclave's heap holds prompts, answers and everything that was computed of them: frames, texts, token ids,
//! activations. Each library frees what it took whenever it likes, so the allocator is the one place where all of it
//! can be overwritten. [`overwrite_what_is_freed`] switches that on for the rest of the process; before, and in
//! processes that never see plain text, this is the system's allocator.
//!
//! Keys and values of a conversation are overwritten earlier, when their blocks change hands, and keys of the channel
//! by `zeroize`. Stacks and registers are not covered.
#![allow(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static MEMORY: Overwriting = Overwriting;

static ON: AtomicBool = AtomicBool::new(false);

/// From now on, whatever this process frees is overwritten with zeros first.
pub(crate) fn overwrite_what_is_freed() {
    ON.store(true, Ordering::Relaxed);
}

/// The system's allocator, overwriting what it frees if asked to.
struct Overwriting;

// SAFETY: every block comes from and goes back to the system's allocator with the layout it was asked for with.
// What is written lies within a block that its owner has just given up.
unsafe impl GlobalAlloc for Overwriting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is that of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if ON.load(Ordering::Relaxed) {
            // SAFETY: the block has this size, and nobody else uses it any more.
            unsafe { overwrite(block, layout.size()) };
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !ON.load(Ordering::Relaxed) {
            // SAFETY: the caller's promise.
            return unsafe { System.realloc(block, layout, size) };
        }
        // The system would move the block and free the old place as it is.
        // SAFETY: the caller promises that `size` is a valid one with this alignment. The copy is as long as the
        // shorter of two blocks that do not overlap, and the old one is given up only if there is a new one.
        unsafe {
            let moved = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Writes zeros, which the compiler must not take for useless.
///
/// # Safety
/// `block` is valid for writes of `size` bytes.
unsafe fn overwrite(block: *mut u8, size: usize) {
    let words = size / size_of::<u64>();
    // SAFETY: all writes lie within the block; those of whole words do not rely on its alignment unless it has it.
    unsafe {
        if block.cast::<u64>().is_aligned() {
            (0..words).for_each(|i| block.cast::<u64>().add(i).write_volatile(0));
            (words * size_of::<u64>()..size).for_each(|i| block.add(i).write_volatile(0));
        } else {
            (0..size).for_each(|i| block.add(i).write_volatile(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_overwritten_and_none_beyond() {
        for offset in 0..9 {
            for size in [0, 1, 7, 8, 9, 63, 64, 100] {
                let mut memory = vec![0xAAu8; 128];
                // SAFETY: 9 + 100 bytes are within the vector.
                unsafe { overwrite(memory.as_mut_ptr().add(offset), size) };
                let expected = |i: usize| if (offset..offset + size).contains(&i) { 0 } else { 0xAA };
                assert!(memory.iter().enumerate().all(|(i, &byte)| byte == expected(i)), "{offset} {size}");
            }
        }
    }

    #[test]
    fn what_grows_and_shrinks_keeps_its_bytes() {
        overwrite_what_is_freed();
        let mut bytes: Vec<u8> = Vec::new();
        for i in 0..10_000u32 {
            bytes.push(i as u8);
        }
        bytes.truncate(3_000);
        bytes.shrink_to_fit();
        assert!(bytes.iter().zip(0u32..).all(|(&byte, i)| byte == i as u8));
        let zeros = vec![0u64; 4096];
        assert!(zeros.iter().all(|&word| word == 0));
    }
}
