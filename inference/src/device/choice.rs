//! What device was asked for, and whether it is there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::kernels::Precision;

/// The device that a configuration or a command line asks for: `cpu`, `cuda`, `cuda:1` or `auto`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The processor, with all its threads.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, as the driver counts them.
    Cuda(usize),
    /// The first NVIDIA GPU if this build can use it and everything it needs is there, and otherwise the processor.
    Auto,
}

/// The device that a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU that was looked at: its driver, and what compiles kernels for it, are there.
    Cuda(usize),
}

/// What a GPU can do at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceLimits {
    /// Bytes that it reads from its memory in a second.
    pub read_bytes: f64,
    /// Multiplications and additions of a large product in a second.
    pub product_operations: f64,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The program has no code for it.
    #[error(
        "this program was built without CUDA; build it with `--features cuda`, or choose the device `cpu`"
    )]
    NotBuilt,
    /// `libcuda` is not there.
    #[error(
        "no NVIDIA driver was found: libcuda.so.1 cannot be loaded; install the driver, or choose the device `cpu`"
    )]
    NoDriver,
    /// The driver is there and does not work, or is too old.
    #[error(
        "the NVIDIA driver does not answer ({why}); update it to version 570 or newer, or choose the device `cpu`"
    )]
    Driver {
        /// What it said.
        why: String,
    },
    /// The driver knows fewer GPUs.
    #[error(
        "there is no GPU cuda:{index}: the driver has {available}; choose a lower number, or the device `cpu`"
    )]
    NoSuchGpu {
        /// The one asked for.
        index: usize,
        /// How many there are.
        available: usize,
    },
    /// `libnvrtc` is not there.
    #[error(
        "CUDA's run-time compiler was not found: libnvrtc cannot be loaded; install the CUDA toolkit 12.8 or newer \
         (its `cuda-nvrtc` and `cuda-cudart-dev` packages are enough) and name its library folder in LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// The headers that kernels include are not there.
    #[error(
        "CUDA's headers were not found in {place}; set CUDA_PATH to the toolkit's folder, the one with \
         `include/cuda_fp16.h`"
    )]
    NoHeaders {
        /// Where they were looked for.
        place: String,
    },
    /// No kernels multiply with weights of this precision there.
    #[error(
        "a GPU does not compute with weights in {precision} yet; choose int8, f16 or f32, or the device `cpu`"
    )]
    Precision {
        /// What was asked for.
        precision: Precision,
    },
    /// The device has no units that the kernels need.
    #[error("the GPU cannot run this program's kernels: {why}; choose the device `cpu`")]
    Unsuited {
        /// What it lacks.
        why: String,
    },
    /// The model's shape is none that the kernels can compute.
    #[error("a GPU cannot serve this model: {why}; choose the device `cpu`")]
    Shape {
        /// What is wrong with it.
        why: String,
    },
    /// The model, or what a step needs beside it, does not fit.
    #[error(
        "the GPU has {available} MiB of memory, and the model with its cache needs {needed}; choose a lower \
         precision, fewer tokens of cache, or the device `cpu`"
    )]
    Memory {
        /// What there is.
        available: u64,
        /// What would be needed.
        needed: u64,
    },
    /// A step that its caller put together wrongly.
    #[error("a step of the decoder cannot be run: {why}")]
    Step {
        /// What is wrong with it.
        why: String,
    },
    /// The device failed while it computed.
    #[error("the GPU failed: {why}")]
    Failed {
        /// What it reported.
        why: String,
    },
}

impl DeviceChoice {
    /// Looks whether the device is there.
    ///
    /// # Errors
    /// See [`DeviceError`]. [`DeviceChoice::Auto`] never fails.
    pub fn resolve(self) -> Result<Processor, DeviceError> {
        match self {
            Self::Cpu => Ok(Processor::Cpu),
            Self::Cuda(index) => cuda(index),
            Self::Auto => Ok(cuda(0).unwrap_or_else(|why| {
                tracing::debug!(%why, "no GPU; the processor serves");
                Processor::Cpu
            })),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Processor, DeviceError> {
    super::probe::cuda(index).map(|()| Processor::Cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Processor, DeviceError> {
    Err(DeviceError::NotBuilt)
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || format!("`{name}` is no device; choose cpu, cuda, cuda:N or auto");
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "auto" => Ok(Self::Auto),
            other => match other.strip_prefix("cuda:") {
                // The driver counts in 32 bits, and no sign is part of a number.
                Some(index) if index.bytes().all(|b| b.is_ascii_digit()) => {
                    index.parse::<u16>().map(|index| Self::Cuda(index.into())).map_err(|_| unknown())
                }
                _ => Err(unknown()),
            },
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_it_is_read() {
        for (name, choice) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("auto", DeviceChoice::Auto),
        ] {
            assert_eq!(name.parse(), Ok(choice));
            assert_eq!(choice.to_string(), name);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<DeviceChoice>(&json).unwrap(), choice);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:70000", "cuda: 1"] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err();
            assert!(error.contains("choose cpu, cuda, cuda:N or auto"), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_sentence_with_a_way_out() {
        assert_eq!(DeviceChoice::Cpu.resolve(), Ok(Processor::Cpu));
        // No machine has this many; which part is missing depends on the machine.
        let error = DeviceChoice::Cuda(60_000).resolve().unwrap_err().to_string();
        assert!(
            ["build it with", "install", "update", "choose"].iter().any(|way| error.contains(way)),
            "{error}"
        );
    }

    #[test]
    fn auto_never_fails() {
        assert!(DeviceChoice::Auto.resolve().is_ok());
    }
}
