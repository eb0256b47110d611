//! A weight times many rows, by the device's matrix units: the product of prompts and of large batches.
//!
//! The kernels are those of `cubek`, which burn's CUDA backend uses too. Which of them a device has is found by
//! asking for a small product and looking at the result: one that is refused, or wrong, is not used. The choice is
//! the same for every shape and kept, where burn measures for each shape anew: a sum is then always in the same order.
//!
//! Both factors are [`Format::Bf16`], sums are f32. A weight in [`Format::Int8`] is widened first, into memory that
//! all of them share: that reads and writes it twice more, and many rows make little of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::zspace::Shape;
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy;
use cubek_std::InputBinding;

use super::format::{Format, Words, pack, store_eight, unpack};
use super::{Buffer, Gating, Gpu, Weight};

/// Rows from which matrix units are worth their rounding.
pub const FEWEST_ROWS: usize = super::matvec::TILE + 1;

/// The kernels to ask for, the ones expected to be faster first.
fn candidates() -> [(&'static str, Strategy); 4] {
    [
        ("double-buffered mma", Strategy::DoubleCyclicMma(Default::default())),
        ("double-buffered cmma", Strategy::DoubleCyclicCmma(Default::default())),
        ("mma", Strategy::SimpleCyclicMma(Default::default())),
        ("cmma", Strategy::SimpleCyclicCmma(Default::default())),
    ]
}

/// A device's product of many rows.
#[derive(Clone)]
pub(in crate::device) struct Matmul {
    name: &'static str,
    strategy: Strategy,
}

impl std::fmt::Debug for Matmul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Matmul").field(&self.name).finish()
    }
}

impl Matmul {
    /// The first kernel that works, or none: then rows are computed in tiles.
    pub(in crate::device) fn probe(gpu: &Gpu) -> Option<Self> {
        let bf16 = ElemType::Float(FloatKind::BF16);
        if !gpu.client.properties().features.supports_type(bf16) {
            return None;
        }
        // A kernel that is asked for what it cannot do may panic.
        let works = |one: &Self| catch_unwind(AssertUnwindSafe(|| one.works(gpu))).unwrap_or(false);
        candidates().into_iter().map(|(name, strategy)| Self { name, strategy }).find(works)
    }

    /// Which it is.
    pub(in crate::device) fn name(&self) -> &'static str {
        self.name
    }

    /// Compares a small product with that of tiles.
    fn works(&self, gpu: &Gpu) -> bool {
        let (rows, inputs, outputs) = (80, 256, 320);
        let values = |count: usize, step: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * step) % 31) as f32 / 16.0 - 1.0).collect()
        };
        let (x, w) = (values(rows * inputs, 7), pack(&values(inputs * outputs, 5), Format::Bf16));
        let weight = Weight {
            data: gpu.upload(&w.bytes),
            scales: gpu.nothing.clone(),
            format: Format::Bf16,
            rows: outputs,
            columns: inputs,
        };
        let [by_tiles, by_units] = [0, 1].map(|_| gpu.empty(rows * outputs * 4));
        gpu.matvec(&gpu.upload(&x), &weight, rows, Gating::None, &by_tiles);
        let x = gpu.upload(&pack(&x, Format::Bf16).bytes);
        if !self.launch(gpu, &x, &weight.data, [rows, inputs, outputs], &by_units) {
            return false;
        }
        let read = |buffer: &Buffer| gpu.read_some::<f32>(buffer, rows * outputs);
        let (Ok(a), Ok(b)) = (read(&by_tiles), read(&by_units)) else { return false };
        // The values are exact in bf16, and so are their products in f32.
        a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-3)
    }

    /// Whether the kernel took the product `[rows, inputs] · [outputs, inputs]ᵀ`.
    fn launch(
        &self,
        gpu: &Gpu,
        x: &Buffer,
        weight: &Buffer,
        [rows, inputs, outputs]: [usize; 3],
        out: &Buffer,
    ) -> bool {
        let (bf16, f32) = (ElemType::Float(FloatKind::BF16), ElemType::Float(FloatKind::F32));
        // SAFETY: shapes and strides are those that the buffers were made with.
        let tensor = |buffer: &Buffer, shape: [usize; 2], strides: [usize; 2]| unsafe {
            TensorBinding::from_raw_parts(buffer.handle.clone(), strides.into(), Shape::from(shape))
        };
        let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: bf16, rhs: bf16, out: f32 });
        let launched = launch_ref(
            &self.strategy.clone().into(),
            &gpu.client,
            InputBinding::new(tensor(x, [rows, inputs], [inputs, 1]), bf16),
            InputBinding::new(tensor(weight, [inputs, outputs], [1, inputs]), bf16),
            tensor(out, [rows, outputs], [outputs, 1]),
            &mut types,
        );
        launched.is_ok()
    }
}

#[cube(launch_unchecked)]
fn widen_kernel(quants: &[Words], scales: &[f32], out: &mut [Words], words: u32) {
    let word = ABSOLUTE_POS_X as usize;
    if word < words as usize {
        let values = unpack(quants[word], Format::Int8);
        let scale = scales[word / 2];
        #[unroll]
        for half in 0..2usize {
            let mut eight = Array::<f32>::new(8usize);
            #[unroll]
            for i in 0..8usize {
                eight[i] = values[8 * half + i] * scale;
            }
            store_eight(out, 2 * word + half, &eight, Format::Bf16);
        }
    }
}

impl Gpu {
    /// `x · weightᵀ` for `rows` rows of `inputs`, by matrix units; all in [`Format::Bf16`], sums in f32.
    ///
    /// Whether the kernel took it: one that took the probe should take every shape that a decoder has.
    pub(in crate::device) fn matmul(
        &self,
        matmul: &Matmul,
        x: &Buffer,
        weight: &Buffer,
        [rows, inputs, outputs]: [usize; 3],
        out: &Buffer,
    ) -> bool {
        matmul.launch(self, x, weight, [rows, inputs, outputs], out)
    }

    /// A weight of eight-bit integers in [`Format::Bf16`].
    pub(in crate::device) fn widen(&self, weight: &Weight, out: &Buffer) {
        const UNITS: usize = 256;
        let words = weight.rows * weight.columns / Format::Int8.per_word();
        // SAFETY: units beyond the last word do nothing; `out` has room for two words for each.
        unsafe {
            widen_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(words.div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                weight.data.arg(),
                weight.scales.arg(),
                out.arg(),
                words as u32,
            );
        }
    }
}
