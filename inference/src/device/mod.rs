//! Where a model runs: on the processor, or on a GPU.
//!
//! * [`DeviceChoice`] is what a configuration or a command line asks for; it becomes a [`Processor`] only after the
//!   machine was looked at, so that a missing driver is a sentence and not a panic. All of it is in every build.
//! * With the feature `cuda`, `DeviceDecoder` runs every family on an NVIDIA GPU: weights, keys and values stay in its
//!   memory, each step uploads ids, positions and block tables, and takes back logits or ids. Its kernels are
//!   written in CubeCL, in which burn's own GPU kernels are written, and compiled at run time.
//!
//! The feature `wgpu` builds the same for wgpu: with a software Vulkan, that runs the kernels' tests on a machine
//! without a GPU. Nothing else uses it.

mod choice;
#[cfg(feature = "gpu")]
mod decoder;
#[cfg(feature = "gpu")]
mod graph;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod layout;
#[cfg(feature = "gpu")]
mod limits;
#[cfg(feature = "gpu")]
mod plan;
#[cfg(feature = "gpu")]
mod pools;
#[cfg(feature = "cuda")]
mod probe;
#[cfg(feature = "gpu")]
mod step;
#[cfg(all(test, feature = "gpu"))]
mod testing;
#[cfg(all(test, feature = "gpu"))]
mod tests;
#[cfg(feature = "gpu")]
mod workspace;

pub use choice::{DeviceChoice, DeviceError, DeviceLimits, Processor};
#[cfg(feature = "gpu")]
pub use decoder::{DeviceDecoder, DeviceOptions};
#[cfg(feature = "gpu")]
pub use pools::DevicePools;
#[cfg(feature = "gpu")]
pub use step::{Choose, Spot};
