//! Reading memory and doing nothing else, to know how fast that is.

use cubecl::prelude::*;

use super::format::Words;
use super::{Buffer, Gpu};

const UNITS: usize = 256;

/// Words that a unit reads.
const READS: usize = 32;

#[cube(launch_unchecked)]
fn sum_kernel(from: &[Words], out: &mut [u32], words: u32) {
    let mut sum = Words::new(0u32);
    #[unroll]
    for i in 0..comptime!(READS) {
        let at = (CUBE_POS_X as usize * comptime!(READS) + i) * comptime!(UNITS) + UNIT_POS_X as usize;
        sum = sum ^ from[min(at, words as usize - 1)];
    }
    // Never so for what is summed here, but a compiler cannot know, and must read.
    if (sum.extract(0usize) & sum.extract(1usize) & sum.extract(2usize) & sum.extract(3usize))
        == u32::new(0x7fff_fff1)
    {
        out[0] = 1u32;
    }
}

impl Gpu {
    /// Reads a buffer.
    pub(in crate::device) fn sum(&self, from: &Buffer, out: &Buffer) {
        let words = from.bytes / 16;
        // SAFETY: words are clamped to those that there are.
        unsafe {
            sum_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(words.div_ceil(UNITS * READS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                from.arg(),
                out.arg(),
                words as u32,
            );
        }
    }
}
