//! The gate of the feed-forward part, where the product before it was by matrix units.

use cubecl::prelude::*;

use super::format::{Format, Four, Words, store_eight};
use super::matvec::gate;
use super::{Buffer, Gating, Gpu};

#[cube(launch_unchecked)]
fn gate_kernel(
    x: &[Four],
    out: &mut [Words],
    #[comptime] width: usize,
    #[comptime] gating: Gating,
    #[comptime] format: Format,
) {
    let eights = comptime!(width / 8);
    let row = CUBE_POS_Y as usize;
    let eight = ABSOLUTE_POS_X as usize;
    if eight < eights {
        let mut values = Array::<f32>::new(8usize);
        #[unroll]
        for half in 0..2usize {
            let at = row * comptime!(width / 2) + 2 * eight + half;
            let gates = x[at];
            let ups = x[at + comptime!(width / 4)];
            #[unroll]
            for i in 0..4usize {
                values[4 * half + i] = gate(gates.extract(i), ups.extract(i), gating);
            }
        }
        store_eight(out, row * eights + eight, &values, format);
    }
}

impl Gpu {
    /// `f(gate) · up` of rows of `2 · width` values.
    pub(in crate::device) fn gate(
        &self,
        x: &Buffer,
        rows: usize,
        width: usize,
        gating: Gating,
        format: Format,
        out: &Buffer,
    ) {
        const UNITS: usize = 128;
        // SAFETY: units beyond a row do nothing; rows are as wide as they are said to be.
        unsafe {
            gate_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static((width / 8).div_ceil(UNITS) as u32, rows as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                out.arg(),
                width,
                gating,
                format,
            );
        }
    }
}
