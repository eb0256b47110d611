//! What encoders have beside the decoders' kernels: norms by mean and variance, GELU by the error function.

use proptest::prelude::*;

use super::super::Isa;
use super::super::gelu::gelu_on;
use super::super::layer_norm::{add_layer_norm_on, layer_norm_on};
use super::{ODD, assert_close, bits, same_everywhere, values};

fn norm_definition(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let norm = |x: &[f32]| {
        let n = x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (variance + eps).sqrt();
        let parts = x.iter().zip(weight).zip(bias);
        parts
            .map(move |((x, w), b)| (f64::from(*x) - mean) * r * f64::from(*w) + f64::from(*b))
            .collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(norm).collect()
}

/// `Φ(-a)` for `a` of at least zero: the series without cancellation, or Laplace's continued fraction.
fn tail(a: f64) -> f64 {
    let density = (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if a < 3.0 {
        let (mut term, mut sum) = (a, 0.0);
        for n in 1..200 {
            sum += term;
            term *= a * a / f64::from(2 * n + 1);
        }
        return 0.5 - density * sum;
    }
    density / (1..200).rev().fold(a, |rest, n| a + f64::from(n) / rest)
}

fn gelu_definition(x: f32) -> f64 {
    let x = f64::from(x);
    if x < 0.0 { x * tail(-x) } else { x - x * tail(x) }
}

fn gelu_everywhere(x: &[f32]) -> Vec<f32> {
    same_everywhere(x.len(), |isa, out| {
        out.copy_from_slice(x);
        gelu_on(isa, out);
    })
}

#[test]
fn gelu_is_right_to_its_last_digits_and_its_tail_to_some_parts_in_a_million() {
    let x: Vec<f32> = (-60_000..=60_000).map(|i| i as f32 / 10_000.0).collect();
    let expected: Vec<f64> = x.iter().map(|x| gelu_definition(*x)).collect();
    let got = gelu_everywhere(&x);
    assert_close(&got, &expected, 2e-6, 1e-30);
    // Where a network's values are, and absolutely everywhere.
    let near: Vec<usize> = (0..x.len()).filter(|i| x[*i] > -2.0).collect();
    let pick = |values: &[f64]| near.iter().map(|i| values[*i]).collect::<Vec<_>>();
    assert_close(&near.iter().map(|i| got[*i]).collect::<Vec<_>>(), &pick(&expected), 6e-7, 1e-30);
    assert_close(&got, &expected, 3e-7, 1.0);
}

#[test]
fn gelu_of_values_at_the_edges() {
    let x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, -20.0, 20.0, f32::NAN];
    for isa in Isa::available() {
        let mut out = x;
        gelu_on(isa, &mut out);
        assert_eq!(out[..8], [0.0, 0.0, f32::INFINITY, 0.0, f32::MAX, 0.0, 0.0, 20.0]);
        assert!(out[8].is_nan());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_layer_norm_is_near_its_definition(
        (x, weight, bias, shift) in (1..=70_usize, 1..=80_usize)
            .prop_flat_map(|(r, n)| (values(r * n), values(n), values(n), -3.0_f32..3.0))
    ) {
        let x: Vec<f32> = x.iter().map(|x| x + shift).collect();
        let norm = |x: &[f32]| same_everywhere(x.len(), |isa, out| {
            out.copy_from_slice(x);
            layer_norm_on(isa, out, &weight, &bias, 1e-3);
        });
        let got = norm(&x);
        assert_close(&got, &norm_definition(&x, &weight, &bias, 1e-3), 5e-5, 1.0);
        let last = x.len() - weight.len();
        prop_assert_eq!(bits(&norm(&x[last..])), bits(&got[last..]));
    }

    #[test]
    fn adding_and_norming_is_adding_then_norming(
        (x, delta, weight, bias) in (1..=70_usize, 1..=80_usize)
            .prop_flat_map(|(r, n)| (values(r * n), values(r * n), values(n), values(n)))
    ) {
        let got = same_everywhere(x.len(), |isa, out| {
            out.copy_from_slice(&x);
            add_layer_norm_on(isa, out, &delta, &weight, &bias, 1e-12);
        });
        let mut expected: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
        layer_norm_on(Isa::Portable, &mut expected, &weight, &bias, 1e-12);
        prop_assert_eq!(bits(&got), bits(&expected));
    }

    #[test]
    fn gelu_of_a_value_is_the_same_in_any_company(x in values(300), from in 0..300_usize) {
        let whole = gelu_everywhere(&x);
        prop_assert_eq!(bits(&gelu_everywhere(&x[from..])), bits(&whole[from..]));
    }
}

#[test]
fn rows_enough_for_threads_are_the_same_everywhere() {
    let x: Vec<f32> = (0..200_000).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 100.0).collect();
    let (weight, bias) = (vec![1.5; 500], vec![0.25; 500]);
    same_everywhere(x.len(), |isa, out| {
        out.copy_from_slice(&x);
        layer_norm_on(isa, out, &weight, &bias, 1e-12);
        add_layer_norm_on(isa, out, &x, &weight, &bias, 1e-12);
        gelu_on(isa, out);
    });
}

#[test]
fn values_that_are_not_finite_do_not_panic() {
    let x: Vec<f32> = ODD.iter().copied().cycle().take(48).collect();
    for isa in Isa::available() {
        let mut out = x.clone();
        layer_norm_on(isa, &mut out, &[1.0; 24], &[0.0; 24], 1e-6);
        assert!(out.iter().all(|v| v.is_nan()));
        gelu_on(isa, &mut x.clone());
    }
}
