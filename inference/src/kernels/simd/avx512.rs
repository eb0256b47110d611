//! One register of AVX-512 per vector, with VNNI for the integer dot product.
#![allow(unsafe_code, reason = "intrinsics, on a processor that was asked whether it has them")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that the processor has what [`enter`] enables.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && super::avx2::detected()
}

/// Runs `kernel` compiled for AVX-512. The caller has asked [`detected`].
pub(super) fn enter<K: Kernel>(kernel: K) {
    debug_assert!(detected());
    // SAFETY: `Isa::run`, the only caller, asked the processor for exactly these features.
    unsafe { enabled(kernel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn enabled<K: Kernel>(kernel: K) {
    kernel.run(Avx512(()));
}

/// An operation on registers.
macro_rules! op {
    ($op:expr) => {
        // SAFETY: the token `self` exists only below `enabled`, on a processor with AVX-512.
        unsafe { $op }
    };
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: as `op`, and the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        // SAFETY: as `op`, and the reference covers the 64 bytes written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn widen(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: as `op`, and the reference covers the 32 bytes read.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn smaller(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        op!(_mm512_cvtps_epi32(x))
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn int(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn int_sub(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn halve(self, x: __m512i) -> __m512i {
        op!(_mm512_srai_epi32::<1>(x))
    }
    #[inline(always)]
    fn power_of_two(self, x: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(x, _mm512_set1_epi32(127)))))
    }
    #[inline(always)]
    fn dot_start(self, offset: i32) -> __m512i {
        op!(_mm512_set1_epi32(offset))
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: &[u8; 4 * LANES], x: [i8; 4]) -> __m512i {
        let x = i32::from_ne_bytes(x.map(|x| x as u8));
        // SAFETY: as `op`, and the reference covers the 64 bytes read.
        unsafe { _mm512_dpbusd_epi32(acc, _mm512_loadu_si512(w.as_ptr().cast()), _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    fn dot_nibbles(self, acc: __m512i, w: &[u8; 4 * LANES], x: [i8; 4], y: [i8; 4]) -> __m512i {
        let x = i32::from_ne_bytes(x.map(|x| x as u8));
        let y = i32::from_ne_bytes(y.map(|y| y as u8));
        // SAFETY: as `op`, and the reference covers the 64 bytes read.
        unsafe {
            let w = _mm512_loadu_si512(w.as_ptr().cast());
            let first = _mm512_and_si512(w, _mm512_set1_epi8(15));
            let second = _mm512_and_si512(_mm512_srli_epi16::<4>(w), _mm512_set1_epi8(15));
            let acc = _mm512_dpbusd_epi32(acc, first, _mm512_set1_epi32(x));
            _mm512_dpbusd_epi32(acc, second, _mm512_set1_epi32(y))
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: every x86-64 has the instruction, which reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
