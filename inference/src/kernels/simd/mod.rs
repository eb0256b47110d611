//! Sixteen lanes, written once and run on every instruction set.
//!
//! A kernel is a value that implements [`Kernel`]; [`Isa::run`] enters a function compiled for one
//! instruction set and calls it there with a token of type [`Simd`]. The token can be had in no other
//! way, so whoever holds one runs on a processor that has been asked, and the operations on it are safe.
//!
//! Every operation is defined lane by lane, by IEEE 754 single precision rounded to nearest: one AVX-512
//! register, two of AVX2, four of NEON or an array of sixteen give the same bits. Nothing here adds two
//! lanes together except [`Simd::sum`], which does so in one fixed tree.
//!
//! Everything below `run` must be `#[inline(always)]`: a function that stays out of line is compiled
//! without the instruction set, and then so are the operations in it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(test)]
pub(super) use portable::widen;

use std::fmt;
use std::sync::LazyLock;

/// Lanes in every vector, whatever the registers of the machine.
pub(crate) const LANES: usize = 16;

/// Operations on sixteen `f32` or `i32` lanes, each defined by its portable form.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`.
    type I: Copy;
    /// Whether there are registers for tiles of 24 vectors; otherwise for about six.
    const WIDE: bool;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// Reads sixteen values.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Writes sixteen values.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Reads sixteen half-precision values, which `f32` holds exactly.
    fn widen(self, from: &[u16; LANES]) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`, hence `b` where either is not a number.
    fn larger(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`, hence `b` where either is not a number.
    fn smaller(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer, ties to even. Only for values within `i32`: elsewhere, any integer.
    fn round(self, x: Self::F) -> Self::I;
    /// The integer as `f32`, rounded to nearest.
    fn float(self, x: Self::I) -> Self::F;
    /// `i32` in every lane.
    fn int(self, x: i32) -> Self::I;
    /// `a - b`, wrapping.
    fn int_sub(self, a: Self::I, b: Self::I) -> Self::I;
    /// `x >> 1`, keeping the sign.
    fn halve(self, x: Self::I) -> Self::I;
    /// Two to the `x`, for `x` in -126..=127: elsewhere, any value.
    fn power_of_two(self, x: Self::I) -> Self::F;
    /// What [`dot`](Simd::dot) starts from, given `-128` times the sum of all `x` it will see.
    fn dot_start(self, offset: i32) -> Self::I;
    /// Adds, in lane `l`, the four products of `w[4 l + i] - 128` and `x[i]`. Exact: `x` is in -127..=127
    /// and `w` in 1..=255.
    fn dot(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4]) -> Self::I;

    /// Adds, in lane `l`, the eight products of the low halves of the bytes `w[4 l + i]` and `x[i]`, and of the high
    /// halves and `y[i]`. Exact: the halves are unsigned, and `x` and `y` are in -127..=127.
    fn dot_nibbles(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4], y: [i8; 4]) -> Self::I;

    /// Asks for memory that will be read soon, to the second-level cache. A hint: any address will do.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}

    /// All lanes added as a tree: lane `l` to `l + 8`, then to `l + 4`, `l + 2`, `l + 1`.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
        }
        lanes[0]
    }

    /// Reads up to sixteen values; the lanes beyond hold `rest`.
    #[inline(always)]
    fn load_part(self, from: &[f32], rest: f32) -> Self::F {
        let mut lanes = [rest; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Writes the first lanes, as many as `to` has room for, at most sixteen.
    #[inline(always)]
    fn store_part(self, x: Self::F, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

/// A computation that [`Isa::run`] compiles for each instruction set.
pub(crate) trait Kernel {
    /// Computes. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S);
}

/// An instruction set the kernels are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with F, BW, DQ, VL and VNNI: Xeons since Cascade Lake, Zen 4.
    Avx512,
    /// AVX2, FMA and F16C: x86 since Haswell and Zen.
    Avx2,
    /// NEON, which every 64-bit ARM has.
    Neon,
    /// No assumption: the definition of the others, and slow where `mul_add` is a library call.
    Portable,
}

impl Isa {
    /// The fastest this machine has. The processor is asked once.
    pub fn best() -> Self {
        static BEST: LazyLock<Isa> =
            LazyLock::new(|| Isa::available().into_iter().next().unwrap_or(Isa::Portable));
        *BEST
    }

    /// All that this machine has, the fastest first.
    pub fn available() -> Vec<Self> {
        [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable].into_iter().filter(|isa| isa.detected()).collect()
    }

    fn detected(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::detected(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::detected(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            Isa::Portable => true,
            _ => false,
        }
    }

    /// Runs `kernel` with this instruction set, or portably where the machine lacks it.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if avx512::detected() => avx512::enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if avx2::detected() => avx2::enter(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::enter(kernel),
            _ => portable::enter(kernel),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "AVX-512 VNNI",
            Isa::Avx2 => "AVX2",
            Isa::Neon => "NEON",
            Isa::Portable => "portable",
        })
    }
}
