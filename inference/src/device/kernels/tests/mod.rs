//! Each kernel of a device against the one of a processor, on the same cases.
//!
//! The cases and what a processor makes of them are in [`cases`]; they are tested everywhere. A device is taken where
//! one is found: CUDA in a build with `cuda`, any Vulkan in one with `wgpu` (a software Vulkan will do). Where
//! there is none, the tests that need one say so and pass.

mod attending;
mod cases;
mod products;
mod rowwise;

use super::Gpu;
use crate::device::testing;

/// Runs on the device that this build and this machine have, if any.
pub(in crate::device) fn on_device(test: impl FnOnce(Gpu)) {
    let _alone = testing::alone();
    match testing::client().and_then(Gpu::new) {
        Some(gpu) => test(gpu),
        None => println!("skipped: no device that this build could use"),
    }
}

/// Asserts that values are within `bound` of those expected, relative to the largest of them.
fn assert_close(what: &str, found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= bound * largest, "{what}, value {i}: {found} for {expected}");
    }
}
