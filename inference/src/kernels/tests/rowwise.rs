//! Norms, rotary positions, gates.

use proptest::prelude::*;

use super::super::activation::{Gate, gate_on};
use super::super::norm::{add_rms_norm_on, head_norm_on, rms_norm_on};
use super::super::rope::Rope;
use super::super::simd::{Kernel, LANES, Simd};
use super::super::{Heads, Isa, exp::exp};
use super::{ODD, assert_close, bits, same_everywhere, values};

fn norm_definition(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let norm = |x: &[f32]| {
        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let r = 1.0 / (squares / x.len() as f64 + eps).sqrt();
        x.iter().zip(weight).map(move |(x, w)| f64::from(*x) * r * f64::from(*w)).collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(norm).collect()
}

/// Frequencies without scaling.
fn plain_frequencies(theta: f64, count: usize) -> Vec<f32> {
    (0..count).map(|i| theta.powf(-(i as f64) / count as f64) as f32).collect()
}

/// The exponential of every value, by sixteen.
struct Exp<'a>(&'a mut [f32]);

impl Kernel for Exp<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for x in self.0.chunks_mut(LANES) {
            simd.store_part(exp(simd, simd.load_part(x, 0.0)), x);
        }
    }
}

fn exp_on(isa: Isa, x: &[f32], out: &mut [f32]) {
    out.copy_from_slice(x);
    isa.run(Exp(out));
}

#[test]
fn the_exponential_is_right_to_two_parts_in_ten_million() {
    let x: Vec<f32> = (-870_000..=887_000).map(|i| i as f32 / 10_000.0).collect();
    let got = same_everywhere(x.len(), |isa, out| exp_on(isa, &x, out));
    for (x, got) in x.iter().zip(&got) {
        let expected = f64::from(*x).exp();
        assert!((f64::from(*got) / expected - 1.0).abs() < 2e-7, "exp({x}) = {got}");
    }
}

#[test]
fn the_exponential_ends_in_zero_and_infinity() {
    let x = [f32::NEG_INFINITY, -1e30, -104.0, -103.0, 0.0, 88.8, 1e30, f32::INFINITY, f32::NAN];
    for isa in Isa::available() {
        let mut out = [0.0; 9];
        exp_on(isa, &x, &mut out);
        assert_eq!(out[..3], [0.0; 3]);
        assert!(out[3] > 0.0 && out[3].is_subnormal());
        assert_eq!(out[4], 1.0);
        assert_eq!(out[5..8], [f32::INFINITY; 3]);
        assert!(out[8].is_nan());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_norm_is_near_its_definition(
        (x, weight) in (1..=70_usize, 1..=80_usize).prop_flat_map(|(r, n)| (values(r * n), values(n)))
    ) {
        let got = same_everywhere(x.len(), |isa, out| rms_norm_on(isa, &x, &weight, 1e-5, out));
        assert_close(&got, &norm_definition(&x, &weight, 1e-5), 1e-6, 1e-30);
        let last = x.len() - weight.len();
        let alone = same_everywhere(weight.len(), |isa, out| rms_norm_on(isa, &x[last..], &weight, 1e-5, out));
        prop_assert_eq!(bits(&alone), bits(&got[last..]));
    }

    #[test]
    fn adding_and_norming_is_adding_then_norming(
        (x, delta, weight) in
            (1..=70_usize, 1..=80_usize).prop_flat_map(|(r, n)| (values(r * n), values(r * n), values(n)))
    ) {
        let sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
        let got = same_everywhere(2 * x.len(), |isa, out| {
            let (hidden, out) = out.split_at_mut(x.len());
            hidden.copy_from_slice(&x);
            add_rms_norm_on(isa, hidden, &delta, &weight, 1e-6, out);
        });
        let mut norm = vec![0.0; x.len()];
        rms_norm_on(Isa::Portable, &sum, &weight, 1e-6, &mut norm);
        prop_assert_eq!(bits(&got), bits(&[sum, norm].concat()));
    }

    #[test]
    fn heads_are_normed_and_their_neighbours_left(
        (heads, x, weight) in (1..=9_usize, 0..=5_usize, 1..=4_usize, 1..=40_usize, 0..=3_usize)
            .prop_flat_map(|(rows, offset, count, dim, rest)| {
                let heads = Heads { stride: offset + count * dim + rest, offset, count, dim };
                (Just(heads), values(rows * heads.stride), values(dim))
            })
    ) {
        let got = same_everywhere(x.len(), |isa, out| {
            out.copy_from_slice(&x);
            head_norm_on(isa, out, heads, &weight, 1e-6);
        });
        let mut expected = x.clone();
        for row in expected.chunks_mut(heads.stride) {
            let inner = heads.of_mut(row);
            let normed = inner.to_vec();
            rms_norm_on(Isa::Portable, &normed, &weight, 1e-6, inner);
        }
        prop_assert_eq!(bits(&got), bits(&expected));
    }

    #[test]
    fn heads_turn_by_the_angle_of_their_position(
        (heads, frequencies, x, positions) in
            (1..=9_usize, 0..=5_usize, 1..=4_usize, 1..=40_usize, 0..=3_usize)
                .prop_flat_map(|(rows, offset, count, half, rest)| {
                    let dim = 2 * half + rest;
                    let heads = Heads { stride: offset + count * dim, offset, count, dim };
                    (Just(heads), Just(half), values(rows * heads.stride), prop::collection::vec(0..5000_usize, rows))
                })
    ) {
        let frequencies = plain_frequencies(10_000.0, frequencies);
        let rope = Rope::new(&frequencies, &positions);
        let got = same_everywhere(x.len(), |isa, out| {
            out.copy_from_slice(&x);
            rope.apply_on(isa, out, heads);
        });
        let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for (row, position) in expected.chunks_mut(heads.stride).zip(&positions) {
            for head in row[heads.offset..].chunks_mut(heads.dim).take(heads.count) {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = f64::from(*position as f32 * frequency).sin_cos();
                    let (a, b) = (head[i], head[i + frequencies.len()]);
                    head[i] = a * cos - b * sin;
                    head[i + frequencies.len()] = b * cos + a * sin;
                }
            }
        }
        assert_close(&got, &expected, 2e-7, 4.0);
    }

    #[test]
    fn gates_are_near_their_definitions(
        (width, x) in (1..=9_usize, 1..=300_usize).prop_flat_map(|(r, n)| {
            (Just(n), prop::collection::vec(prop_oneof![-4.0_f32..4.0, -60.0_f32..60.0], 2 * r * n))
        })
    ) {
        type Definition = fn(f64) -> f64;
        let silu: Definition = |x| x / (1.0 + (-x).exp());
        let gelu: Definition = |x| {
            let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / (1.0 + (-2.0 * y).exp())
        };
        // The exponential magnifies the rounding of what it is taken of.
        for (gate, definition, relative) in [(Gate::Silu, silu, 1e-6), (Gate::GeluTanh, gelu, 2e-5)] {
            let got = same_everywhere(x.len() / 2, |isa, out| gate_on(isa, gate, &x, width, out));
            let expected: Vec<f64> = x
                .chunks(2 * width)
                .flat_map(|row| row[..width].iter().zip(&row[width..]))
                .map(|(g, u)| definition(f64::from(*g)) * f64::from(*u))
                .collect();
            assert_close(&got, &expected, relative, 1e-25);
        }
    }
}

#[test]
fn rows_enough_for_threads_are_the_same_everywhere() {
    let x: Vec<f32> = (0..200_000).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 100.0).collect();
    let weight = vec![1.5; 500];
    same_everywhere(x.len(), |isa, out| rms_norm_on(isa, &x, &weight, 1e-6, out));
    same_everywhere(2 * x.len(), |isa, out| {
        let (hidden, out) = out.split_at_mut(x.len());
        hidden.copy_from_slice(&x);
        add_rms_norm_on(isa, hidden, &x, &weight, 1e-6, out);
    });
    same_everywhere(x.len() / 2, |isa, out| gate_on(isa, Gate::Silu, &x, 250, out));
    let heads = Heads::alone(10, 50);
    let positions: Vec<usize> = (0..400).rev().collect();
    let rope = Rope::new(&plain_frequencies(1e6, 25), &positions);
    same_everywhere(x.len(), |isa, out| {
        out.copy_from_slice(&x);
        rope.apply_on(isa, out, heads);
        head_norm_on(isa, out, heads, &weight[..50], 1e-6);
    });
}

#[test]
fn values_that_are_not_finite_do_not_panic() {
    let x: Vec<f32> = ODD.iter().copied().cycle().take(48).collect();
    for isa in Isa::available() {
        let mut out = x.clone();
        rms_norm_on(isa, &x, &[1.0; 24], 1e-6, &mut out);
        assert!(out.iter().all(|v| !v.is_normal()));
        head_norm_on(isa, &mut x.clone(), Heads::alone(2, 24), &[1.0; 24], 1e-6);
        for gate in [Gate::Silu, Gate::GeluTanh] {
            gate_on(isa, gate, &x, 24, &mut out[..24]);
            assert!(out[0].is_nan());
        }
    }
}
