//! Four registers of NEON per vector.
#![allow(unsafe_code, reason = "intrinsics that every 64-bit ARM processor has")]

use std::arch::aarch64::*;

use super::{Kernel, LANES, Simd};

/// Proof of nothing that a 64-bit ARM lacks.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

pub(super) fn enter<K: Kernel>(kernel: K) {
    kernel.run(Neon(()));
}

/// An operation on each of the four registers.
macro_rules! each {
    (|$i:ident| $op:expr) => {
        // SAFETY: NEON is part of the architecture's baseline. Pointers come from references to sixteen
        // lanes, of which register `$i` is one quarter.
        unsafe {
            [
                {
                    let $i = 0;
                    $op
                },
                {
                    let $i = 1;
                    $op
                },
                {
                    let $i = 2;
                    $op
                },
                {
                    let $i = 3;
                    $op
                },
            ]
        }
    };
}

impl Simd for Neon {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        each!(|_i| vdupq_n_f32(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        each!(|i| vld1q_f32(from.as_ptr().add(4 * i)))
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        each!(|i| vst1q_f32(to.as_mut_ptr().add(4 * i), x[i]));
    }
    // As `portable::widen`, four at a time: the conversion instruction wants a type not yet stable.
    #[inline(always)]
    fn widen(self, from: &[u16; LANES]) -> Self::F {
        each!(|i| {
            let half = vmovl_u16(vld1_u16(from.as_ptr().add(4 * i)));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(half, vdupq_n_u32(0x7fff)));
            let scale = vreinterpretq_f32_u32(vdupq_n_u32(0x7780_0000));
            let bits = vreinterpretq_u32_f32(vmulq_f32(vreinterpretq_f32_u32(magnitude), scale));
            let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00 << 13));
            let special = vandq_u32(special, vdupq_n_u32(0x7f80_0000));
            let sign = vshlq_n_u32::<16>(vandq_u32(half, vdupq_n_u32(0x8000)));
            vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(bits, special), sign))
        })
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|i| vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|i| vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|i| vdivq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    fn smaller(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::I {
        each!(|i| vcvtnq_s32_f32(x[i]))
    }
    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        each!(|i| vcvtq_f32_s32(x[i]))
    }
    #[inline(always)]
    fn int(self, x: i32) -> Self::I {
        each!(|_i| vdupq_n_s32(x))
    }
    #[inline(always)]
    fn int_sub(self, a: Self::I, b: Self::I) -> Self::I {
        each!(|i| vsubq_s32(a[i], b[i]))
    }
    #[inline(always)]
    fn halve(self, x: Self::I) -> Self::I {
        each!(|i| vshrq_n_s32::<1>(x[i]))
    }
    #[inline(always)]
    fn power_of_two(self, x: Self::I) -> Self::F {
        each!(|i| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(x[i], vdupq_n_s32(127)))))
    }
    #[inline(always)]
    fn dot_start(self, _offset: i32) -> Self::I {
        self.int(0)
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4]) -> Self::I {
        let x = i32::from_ne_bytes(x.map(|x| x as u8));
        each!(|i| {
            let x = vreinterpret_s8_s32(vdup_n_s32(x));
            let w = veorq_u8(vld1q_u8(w.as_ptr().add(16 * i)), vdupq_n_u8(0x80));
            let w = vreinterpretq_s8_u8(w);
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), x));
            let high = vpaddlq_s16(vmull_s8(vget_high_s8(w), x));
            vaddq_s32(acc[i], vpaddq_s32(low, high))
        })
    }
    #[inline(always)]
    fn dot_nibbles(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4], y: [i8; 4]) -> Self::I {
        let x = i32::from_ne_bytes(x.map(|x| x as u8));
        let y = i32::from_ne_bytes(y.map(|y| y as u8));
        each!(|i| {
            let (x, y) = (vreinterpret_s8_s32(vdup_n_s32(x)), vreinterpret_s8_s32(vdup_n_s32(y)));
            let w = vld1q_u8(w.as_ptr().add(16 * i));
            let first = vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15)));
            let second = vreinterpretq_s8_u8(vshrq_n_u8::<4>(w));
            // Two products of at most 15 · 127.
            let low = vmlal_s8(vmull_s8(vget_low_s8(first), x), vget_low_s8(second), y);
            let high = vmlal_s8(vmull_s8(vget_high_s8(first), x), vget_high_s8(second), y);
            vaddq_s32(acc[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        })
    }
}
