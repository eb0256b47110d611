//! The exponential, from multiplications and additions alone.
//!
//! `e^x = 2^n · e^r` with `n` the nearest integer to `x / ln 2` and `r = x - n ln 2`, where `ln 2` is split in
//! two so that `n` times its first part is exact. `e^r` is the polynomial of Cephes' `expf`. The power of two is
//! applied in two halves, so that results pass into the subnormal numbers, zero and infinity as they should.

use super::simd::Simd;

/// Beyond these the result is zero and infinity.
const LOWEST: f32 = -105.0;
const HIGHEST: f32 = 89.0;

const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Coefficients of `r^7` down to `r^2`.
const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

/// `e^x`, within about one unit in the last place; not a number for what is not.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // In this order of operands, a value that is not a number passes through.
    let x = simd.larger(simd.splat(LOWEST), x);
    let x = simd.smaller(simd.splat(HIGHEST), x);
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let whole = simd.float(n);
    let r = simd.fma(whole, simd.splat(-LN2_HIGH), x);
    let r = simd.fma(whole, simd.splat(-LN2_LOW), r);
    let mut p = simd.splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = simd.fma(p, r, simd.splat(*c));
    }
    let p = simd.add(simd.fma(p, simd.mul(r, r), r), simd.splat(1.0));
    let half = simd.halve(n);
    simd.mul(simd.mul(p, simd.power_of_two(half)), simd.power_of_two(simd.int_sub(n, half)))
}
