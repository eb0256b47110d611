//! Each kernel against its definition in double precision, and against itself by another road.

mod attending;
mod encoding;
mod products;
mod rowwise;

use proptest::prelude::*;

use super::Isa;

/// Values of ordinary size, some of them zero.
fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(prop_oneof![9 => -4.0_f32..4.0, 1 => Just(0.0)], len)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Asserts that `run` writes the same bits on every instruction set of this machine, alone and on two
/// threads, and returns them.
fn same_everywhere(len: usize, run: impl Fn(Isa, &mut [f32]) + Sync) -> Vec<f32> {
    let on = |isa: Isa, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![f32::NAN; len];
        pool.install(|| run(isa, &mut out));
        out
    };
    let expected = on(Isa::Portable, 1);
    for isa in Isa::available() {
        for threads in [1, 2] {
            let got = on(isa, threads);
            let differs = bits(&got).iter().zip(bits(&expected)).position(|(a, b)| *a != b);
            assert_eq!(differs, None, "{isa} on {threads} threads");
        }
    }
    expected
}

/// Asserts that each value is within `relative` of the one expected, or of `scale` if that is larger.
fn assert_close(got: &[f32], expected: &[f64], relative: f64, scale: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let allowed = relative * expected.abs().max(scale);
        assert!((f64::from(*got) - expected).abs() <= allowed, "value {i}: {got} for {expected}");
    }
}

/// Values that spoil sums.
const ODD: [f32; 8] =
    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, -0.0, 1e30];

#[test]
fn this_machine_has_an_instruction_set() {
    assert_eq!(Isa::available().first(), Some(&Isa::best()));
    assert_eq!(Isa::available().last(), Some(&Isa::Portable));
}

#[test]
fn every_half_precision_value_widens_as_the_standard_says() {
    for half in 0..=u16::MAX {
        let (ours, standard) = (super::simd::widen(half), half::f16::from_bits(half).to_f32());
        assert!(ours.to_bits() == standard.to_bits() || ours.is_nan() && standard.is_nan(), "{half:#06x}");
    }
}
