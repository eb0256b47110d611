//! What a GPU can do at most, to compare with what the decoder makes of it.

// A shell: measuring is what it is for.
#![allow(clippy::disallowed_methods, reason = "a measurement needs the clock")]

use std::time::Instant;

use super::kernels::format::{Format, pack};
use super::kernels::{Gating, Weight};
use super::{DeviceDecoder, DeviceError, DeviceLimits};

/// Repetitions; the best counts.
const ROUNDS: usize = 5;

impl DeviceDecoder {
    /// Measures the device.
    ///
    /// # Errors
    /// If it fails, or has no room.
    pub fn limits(&self) -> Result<DeviceLimits, DeviceError> {
        Ok(DeviceLimits { read_bytes: self.read_speed()?, product_operations: self.product_speed()? })
    }

    /// Bytes per second, read from as much memory as no cache holds.
    fn read_speed(&self) -> Result<f64, DeviceError> {
        const BYTES: usize = 1 << 30;
        const TIMES: usize = 8;
        let gpu = self.gpu();
        // What is read need not be anything, but memory that was never written may not be there yet.
        let bytes = gpu.largest(BYTES);
        let (from, out) = (gpu.zeros(bytes), gpu.empty(16));
        best(|| {
            let started = Instant::now();
            for _ in 0..TIMES {
                gpu.sum(&from, &out);
            }
            gpu.read_some::<u32>(&out, 1)?;
            Ok((TIMES * bytes) as f64 / started.elapsed().as_secs_f64())
        })
    }

    /// Operations per second of the products that prompts are computed with.
    fn product_speed(&self) -> Result<f64, DeviceError> {
        let (gpu, width) = (self.gpu(), if self.matmul().is_some() { 4096 } else { 512 });
        let packed = pack(&vec![0.5; width * width], Format::Bf16);
        let weight = Weight {
            data: gpu.upload(&packed.bytes),
            scales: gpu.empty(0),
            format: Format::Bf16,
            rows: width,
            columns: width,
        };
        let (x, out) = (gpu.zeros(4 * width * width), gpu.empty(4 * width * width));
        best(|| {
            let started = Instant::now();
            match self.matmul() {
                Some(matmul) => {
                    gpu.matmul(matmul, &x, &weight.data, [width; 3], &out);
                }
                None => gpu.matvec(&x, &weight, width, Gating::None, &out),
            }
            gpu.read_some::<f32>(&out, 1)?;
            Ok(2.0 * (width as f64).powi(3) / started.elapsed().as_secs_f64())
        })
    }
}

/// The best of some rounds, after one that is not counted.
fn best(mut run: impl FnMut() -> Result<f64, DeviceError>) -> Result<f64, DeviceError> {
    run()?;
    (0..ROUNDS).try_fold(0.0, |best: f64, _| Ok(best.max(run()?)))
}
