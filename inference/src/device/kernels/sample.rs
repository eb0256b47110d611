//! The next token, where the request asks for nothing but a temperature: only its id leaves the device.
//!
//! The best token is the first with the largest logit. A drawn one is found by walking the weights `e^((l - max) /
//! temperature)` by id until they exceed their share, as the engine's sampler does in double precision; the
//! random share comes from there, a function of seed and position. In single precision a share that falls within
//! rounding of a border may find the neighbour.

use cubecl::prelude::*;

use super::{Buffer, Gpu};

/// Instead of an id: a logit was not finite.
pub(in crate::device) const NO_TOKEN: u32 = u32::MAX;

#[cube(launch_unchecked)]
fn sample_kernel(
    logits: &[f32],
    temperatures: &[f32],
    shares: &[f32],
    out: &mut [u32],
    #[comptime] vocabulary: usize,
    #[comptime] stride: usize,
    #[comptime] units: usize,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let from = row * stride;
    // A run of ids for each unit, so that the units' results are in the order of ids.
    let run = comptime!(vocabulary.div_ceil(units));
    let start = unit * run;
    let end = min(start + run, vocabulary);

    let mut bests = Shared::<[f32]>::new_slice(units);
    let mut ids = Shared::<[u32]>::new_slice(units);
    let mut best = f32::new(-3.4e38);
    let mut id = 0u32;
    let mut finite = true;
    let mut i = start;
    while i < end {
        let logit = logits[from + i];
        if (u32::reinterpret(logit) & 0x7f80_0000u32) == 0x7f80_0000u32 {
            finite = false;
        }
        if logit > best {
            best = logit;
            id = i as u32;
        }
        i += 1;
    }
    bests[unit] = best;
    ids[unit] = select(finite, id, u32::new(NO_TOKEN as i64));
    sync_cube();

    let mut all_finite = true;
    best = bests[0];
    id = ids[0];
    for u in 0..units {
        if ids[u] == u32::new(NO_TOKEN as i64) {
            all_finite = false;
        }
        if bests[u] > best {
            best = bests[u];
            id = ids[u];
        }
    }
    sync_cube();

    let temperature = temperatures[row];
    let mut sum = 0.0f32;
    if temperature > 0.0f32 {
        let mut i = start;
        while i < end {
            sum += f32::exp((logits[from + i] - best) / temperature);
            i += 1;
        }
    }
    bests[unit] = sum;
    sync_cube();

    if unit == 0 {
        if temperature > 0.0f32 {
            let mut total = 0.0f32;
            for u in 0..units {
                total += bests[u];
            }
            let mut left = shares[row] * total;
            let mut u = 0usize;
            while u + 1 < units && left >= bests[u] {
                left -= bests[u];
                u += 1;
            }
            let mut i = u * run;
            let end = min(i + run, vocabulary);
            let mut found = false;
            while i < end && !found {
                let weight = f32::exp((logits[from + i] - best) / temperature);
                // Rounding may leave a little after the last one; the last that has a weight then gets it.
                if weight > 0.0f32 {
                    id = i as u32;
                }
                left -= weight;
                found = left < 0.0f32;
                i += 1;
            }
        }
        out[row] = select(all_finite, id, u32::new(NO_TOKEN as i64));
    }
}

impl Gpu {
    /// A token for each of `rows` rows of logits. A temperature of 0 asks for the best.
    pub(in crate::device) fn sample(
        &self,
        logits: &Buffer,
        (vocabulary, stride): (usize, usize),
        temperatures: &Buffer,
        shares: &Buffer,
        rows: usize,
        out: &Buffer,
    ) {
        let units = (self.client.properties().hardware.max_units_per_cube as usize).min(1024);
        // SAFETY: ids are within the vocabulary, which is within a row.
        unsafe {
            sample_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(units as u32),
                logits.arg(),
                temperatures.arg(),
                shares.arg(),
                out.arg(),
                vocabulary,
                stride,
                units,
            );
        }
    }
}
