//! Two registers of AVX2 per vector.
#![allow(unsafe_code, reason = "intrinsics, on a processor that was asked whether it has them")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that the processor has what [`enter`] enables.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs `kernel` compiled for AVX2. The caller has asked [`detected`].
pub(super) fn enter<K: Kernel>(kernel: K) {
    debug_assert!(detected());
    // SAFETY: `Isa::run`, the only caller, asked the processor for exactly these features.
    unsafe { enabled(kernel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enabled<K: Kernel>(kernel: K) {
    kernel.run(Avx2(()));
}

/// An operation on each of the two registers.
macro_rules! both {
    (|$i:ident| $op:expr) => {
        // SAFETY: the token `self` exists only below `enabled`, on a processor with AVX2, FMA and F16C.
        // Pointers come from references to sixteen lanes, of which register `$i` is one half.
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
            ]
        }
    };
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        both!(|_i| _mm256_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        both!(|i| _mm256_loadu_ps(from.as_ptr().add(8 * i)))
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        both!(|i| _mm256_storeu_ps(to.as_mut_ptr().add(8 * i), x[i]));
    }
    #[inline(always)]
    fn widen(self, from: &[u16; LANES]) -> Self::F {
        both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(8 * i).cast())))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|i| _mm256_add_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|i| _mm256_sub_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|i| _mm256_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|i| _mm256_div_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|i| _mm256_max_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn smaller(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|i| _mm256_min_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::I {
        both!(|i| _mm256_cvtps_epi32(x[i]))
    }
    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        both!(|i| _mm256_cvtepi32_ps(x[i]))
    }
    #[inline(always)]
    fn int(self, x: i32) -> Self::I {
        both!(|_i| _mm256_set1_epi32(x))
    }
    #[inline(always)]
    fn int_sub(self, a: Self::I, b: Self::I) -> Self::I {
        both!(|i| _mm256_sub_epi32(a[i], b[i]))
    }
    #[inline(always)]
    fn halve(self, x: Self::I) -> Self::I {
        both!(|i| _mm256_srai_epi32::<1>(x[i]))
    }
    #[inline(always)]
    fn power_of_two(self, x: Self::I) -> Self::F {
        both!(|i| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            x[i],
            _mm256_set1_epi32(127)
        ))))
    }
    #[inline(always)]
    fn dot_start(self, _offset: i32) -> Self::I {
        self.int(0)
    }
    // `maddubs` adds two products in 16 bits, where 255 · 127 · 2 would saturate: so |w| · (±x) instead,
    // at most 127 · 127 · 2.
    #[inline(always)]
    fn dot(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4]) -> Self::I {
        let x = i32::from_ne_bytes(x.map(|x| x as u8));
        both!(|i| {
            let w = _mm256_loadu_si256(w.as_ptr().add(32 * i).cast());
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(_mm256_set1_epi32(x), w));
            _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    // Four products of at most 15 · 127 fit in the 16 bits that `maddubs` adds in.
    #[inline(always)]
    fn dot_nibbles(self, acc: Self::I, w: &[u8; 4 * LANES], x: [i8; 4], y: [i8; 4]) -> Self::I {
        let x = i32::from_ne_bytes(x.map(|x| x as u8));
        let y = i32::from_ne_bytes(y.map(|y| y as u8));
        both!(|i| {
            let w = _mm256_loadu_si256(w.as_ptr().add(32 * i).cast());
            let first = _mm256_and_si256(w, _mm256_set1_epi8(15));
            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(w), _mm256_set1_epi8(15));
            let pairs = _mm256_add_epi16(
                _mm256_maddubs_epi16(first, _mm256_set1_epi32(x)),
                _mm256_maddubs_epi16(second, _mm256_set1_epi32(y)),
            );
            _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: every x86-64 has the instruction, which reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
