//! The lanes as an array: what the other instruction sets must equal.

use super::{Kernel, LANES, Simd};

/// Proof of nothing: runs anywhere.
#[derive(Clone, Copy)]
pub(super) struct Portable(());

pub(super) fn enter<K: Kernel>(kernel: K) {
    kernel.run(Portable(()));
}

macro_rules! lanes {
    (|$l:ident| $value:expr) => {{
        let mut out = [Default::default(); LANES];
        for ($l, out) in out.iter_mut().enumerate() {
            *out = $value;
        }
        out
    }};
}

/// Half precision to single by moving the bits: the exponent is rebiased by an exact multiplication, which
/// also makes subnormal halves normal.
pub(crate) fn widen(half: u16) -> f32 {
    let half = u32::from(half);
    let magnitude = (half & 0x7fff) << 13;
    let bits = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    f32::from_bits(bits | special | (half & 0x8000) << 16)
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn widen(self, from: &[u16; LANES]) -> Self::F {
        lanes!(|l| widen(from[l]))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] - b[l])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] * b[l])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] / b[l])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes!(|l| a[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }
    #[inline(always)]
    fn smaller(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| if a[l] < b[l] { a[l] } else { b[l] })
    }
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::I {
        lanes!(|l| x[l].round_ties_even() as i32)
    }
    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        lanes!(|l| x[l] as f32)
    }
    #[inline(always)]
    fn int(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn int_sub(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|l| a[l].wrapping_sub(b[l]))
    }
    #[inline(always)]
    fn halve(self, x: Self::I) -> Self::I {
        lanes!(|l| x[l] >> 1)
    }
    #[inline(always)]
    fn power_of_two(self, x: Self::I) -> Self::F {
        lanes!(|l| f32::from_bits((x[l].wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn dot_start(self, _offset: i32) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4]) -> Self::I {
        let (w, _) = w.as_chunks::<4>();
        lanes!(|l| {
            let mut sum = acc[l];
            for i in 0..4 {
                sum += (i32::from(w[l][i]) - 128) * i32::from(x[i]);
            }
            sum
        })
    }
    #[inline(always)]
    fn dot_nibbles(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4], y: [i8; 4]) -> Self::I {
        let (w, _) = w.as_chunks::<4>();
        lanes!(|l| {
            let mut sum = acc[l];
            for i in 0..4 {
                sum += i32::from(w[l][i] & 15) * i32::from(x[i]);
                sum += i32::from(w[l][i] >> 4) * i32::from(y[i]);
            }
            sum
        })
    }
}
