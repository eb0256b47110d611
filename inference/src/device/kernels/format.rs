//! How numbers lie in a device's memory.
//!
//! Everything is read in words of 16 bytes, four `u32` at a time, whatever it holds; [`unpack`] makes numbers of a
//! word with shifts and bit patterns alone. So the kernels need no 16-bit and no 8-bit type of the device, run on
//! every runtime alike, and can be tested on one that has neither.
//!
//! Widths are filled up with zeros to whole groups of [`WIDE`] values. What is real starts every row, so that zeros
//! meet zeros and change no sum.

use cubecl::prelude::*;
use half::bf16;
use rayon::prelude::*;

use crate::kernels::RoundingError;

/// Widths are multiples of this: a group of eight-bit integers, and two words of anything else.
pub const WIDE: usize = 32;

/// Four `u32`, the unit of every read.
pub(super) type Words = Vector<u32, Const<4>>;
/// The same, as floats.
pub(super) type Four = Vector<f32, Const<4>>;

/// How numbers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Single precision: 4 bytes.
    F32,
    /// The upper half of single precision, rounded to nearest even: 2 bytes. It has the range of single precision,
    /// which the activations of some models need, and what most checkpoints are published in.
    Bf16,
    /// Bytes with one `f32` scale for 32 values, 1.125 bytes: as [`Int8`](crate::kernels::Precision::Int8) on a
    /// processor, kept as `q + 128`. Weights only.
    Int8,
}

impl Format {
    /// Its name in lists and ads.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Values in 16 bytes.
    pub(super) fn per_word(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 8,
            Self::Int8 => 16,
        }
    }

    /// Bytes of this many values, a whole number of [`WIDE`] groups, without scales.
    pub(in crate::device) fn bytes(self, values: usize) -> usize {
        values / self.per_word() * 16
    }
}

/// The values of a word, in order.
#[cube]
pub(super) fn unpack(word: Words, #[comptime] format: Format) -> Array<f32> {
    let mut out = Array::<f32>::new(comptime!(format.per_word()));
    if comptime!(format == Format::F32) {
        let values = Four::reinterpret(word);
        #[unroll]
        for i in 0..4usize {
            out[i] = values.extract(i);
        }
    } else if comptime!(format == Format::Bf16) {
        let even = Four::reinterpret(word << Words::new(16u32));
        let odd = Four::reinterpret(word & Words::new(0xffff_0000u32));
        #[unroll]
        for i in 0..4usize {
            out[2 * i] = even.extract(i);
            out[2 * i + 1] = odd.extract(i);
        }
    } else {
        #[unroll]
        for byte in 0..4usize {
            let shift = comptime!(8 * byte as u32);
            let quants = (word >> Words::new(shift)) & Words::new(0xffu32);
            // A float of 2^23 and more has its unit in the last bit: put there, a byte is its own value beside
            // 2^23. That is faster than converting, which few units of a GPU do.
            let values = Four::reinterpret(quants | Words::new(0x4b00_0000u32)) - Four::new(8_388_736.0f32);
            #[unroll]
            for i in 0..4usize {
                out[4 * i + byte] = values.extract(i);
            }
        }
    }
    out
}

/// Two values, rounded to [`Format::Bf16`] as a processor rounds.
#[cube]
pub(super) fn pack_bf16(low: f32, high: f32) -> u32 {
    bf16_bits(low) | (bf16_bits(high) << 16u32)
}

#[cube]
fn bf16_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let rounded = (bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) >> 16u32;
    // Rounding would carry some patterns that are not a number into numbers.
    let not_a_number = (bits & 0x7fff_ffffu32) > 0x7f80_0000u32;
    select(not_a_number, 0x7fc0u32, rounded)
}

/// Writes eight values as the eights `at` of a row of words, in [`Format::F32`] or [`Format::Bf16`].
#[cube]
pub(super) fn store_eight(out: &mut [Words], at: usize, values: &Array<f32>, #[comptime] format: Format) {
    if comptime!(format == Format::F32) {
        #[unroll]
        for half in 0..2usize {
            let mut four = Four::empty();
            #[unroll]
            for i in 0..4usize {
                four.insert(i, values[4 * half + i]);
            }
            out[2 * at + half] = Words::reinterpret(four);
        }
    } else {
        let mut word = Words::empty();
        #[unroll]
        for i in 0..4usize {
            word.insert(i, pack_bf16(values[2 * i], values[2 * i + 1]));
        }
        out[at] = word;
    }
}

/// A matrix as it is copied to a device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// Words, row after row.
    pub bytes: Vec<u8>,
    /// For [`Format::Int8`], one scale for each group of 32, row after row.
    pub scales: Vec<f32>,
    /// Sums of squares of the differences to what was packed, and of that.
    pub squares: (f64, f64),
    /// The largest difference, and the largest magnitude of what was packed.
    pub largest: (f64, f64),
}

/// Packs values whose rows are whole groups of [`WIDE`].
pub fn pack(values: &[f32], format: Format) -> Packed {
    /// Values of a task: many, and whole groups.
    const RUN: usize = WIDE << 12;
    let parts: Vec<Packed> = values.par_chunks(RUN).map(|run| pack_run(run, format)).collect();
    let mut all = Packed { bytes: Vec::with_capacity(format.bytes(values.len())), ..Packed::default() };
    // In order, so that the report is always the same.
    for part in parts {
        all.bytes.extend(part.bytes);
        all.scales.extend(part.scales);
        all.squares = (all.squares.0 + part.squares.0, all.squares.1 + part.squares.1);
        all.largest = (all.largest.0.max(part.largest.0), all.largest.1.max(part.largest.1));
    }
    all
}

fn pack_run(values: &[f32], format: Format) -> Packed {
    let mut packed = Packed { bytes: Vec::with_capacity(format.bytes(values.len())), ..Packed::default() };
    match format {
        Format::F32 => packed.bytes.extend_from_slice(bytemuck::cast_slice(values)),
        Format::Bf16 => {
            for &value in values {
                let kept = bf16::from_f32(value);
                packed.bytes.extend(kept.to_le_bytes());
                packed.note(value, kept.to_f32());
            }
        }
        Format::Int8 => {
            for group in values.chunks(WIDE) {
                let (quants, scale) = quantise(group);
                packed.scales.push(scale);
                for (&value, &quant) in group.iter().zip(&quants) {
                    packed.note(value, f32::from(quant) * scale);
                    packed.bytes.push((i16::from(quant) + 128) as u8);
                }
            }
        }
    }
    packed
}

impl Packed {
    /// What packing changed.
    pub fn rounding_error(&self) -> RoundingError {
        let ratio = |(a, b): (f64, f64)| if a == 0.0 { 0.0 } else { a / b };
        RoundingError { max: ratio(self.largest), rms: ratio(self.squares).sqrt() }
    }

    fn note(&mut self, value: f32, kept: f32) {
        // A weight that is not finite has no relative error.
        if value.is_finite() {
            let (value, difference) = (f64::from(value), f64::from(kept) - f64::from(value));
            self.squares = (self.squares.0 + difference * difference, self.squares.1 + value * value);
            self.largest = (self.largest.0.max(difference.abs()), self.largest.1.max(value.abs()));
        }
    }
}

/// Bytes and their scale. As on a processor, a group of tiny values is zero, and one with a value that is not finite
/// gets a scale that is not a number.
fn quantise(group: &[f32]) -> ([i8; WIDE], f32) {
    const TINY: f32 = 1e-30;
    let mut quants = [0; WIDE];
    let largest = group.iter().fold(0.0f32, |a, b| if b.abs() > a || b.is_nan() { b.abs() } else { a });
    if largest < TINY {
        return (quants, 0.0);
    }
    if !largest.is_finite() {
        return (quants, f32::NAN);
    }
    for (quant, value) in quants.iter_mut().zip(group) {
        *quant = (value * (127.0 / largest)).round_ties_even() as i8;
    }
    (quants, largest / 127.0)
}
