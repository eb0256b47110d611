//! Matrix products.

use proptest::prelude::*;
use rayon::prelude::*;

use super::super::matmul::matmul_on;
use super::super::{Isa, Matrix, Precision, matmul};
use super::{ODD, assert_close, bits, same_everywhere, values};

const PRECISIONS: [Precision; 4] = Precision::ALL;

#[derive(Debug, Clone)]
struct Product {
    rows: usize,
    width: usize,
    outputs: usize,
    x: Vec<f32>,
    w: Vec<f32>,
}

impl Product {
    fn matrix(&self, precision: Precision) -> Matrix {
        Matrix::from_slice(self.outputs, self.width, precision, &self.w)
    }
}

/// Shapes around the edges of panels, groups and tiles.
fn product() -> impl Strategy<Value = Product> {
    (1..=70_usize, 1..=140_usize, 1..=100_usize).prop_flat_map(|(rows, width, outputs)| {
        (values(rows * width), values(outputs * width)).prop_map(move |(x, w)| Product {
            rows,
            width,
            outputs,
            x,
            w,
        })
    })
}

/// The definition for integers, one value at a time. The largest weight of a group becomes `levels`.
fn quantised_definition(p: &Product, levels: f32) -> Vec<f32> {
    let quantise = |values: &[f32], levels: f32| {
        let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let inverse = if largest == 0.0 { 0.0 } else { levels / largest };
        let quants: Vec<i32> = values.iter().map(|v| (v * inverse).round_ties_even() as i32).collect();
        (quants, largest / levels)
    };
    let mut out = Vec::new();
    for x in p.x.chunks(p.width) {
        for w in p.w.chunks(p.width) {
            let mut sum = 0.0_f32;
            for (x, w) in x.chunks(32).zip(w.chunks(32)) {
                let ((xq, xs), (wq, ws)) = (quantise(x, 127.0), quantise(w, levels));
                let dot: i32 = xq.iter().zip(&wq).map(|(x, w)| x * w).sum();
                sum = (dot as f32).mul_add(xs * ws, sum);
            }
            out.push(sum);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_product_is_one_chain_of_fused_operations_on_the_rounded_weights(p in product()) {
        for precision in [Precision::F32, Precision::F16] {
            let matrix = p.matrix(precision);
            let mut w = vec![0.0; p.width];
            let mut expected = vec![0.0_f32; p.rows * p.outputs];
            for o in 0..p.outputs {
                matrix.row(o, &mut w);
                for (r, x) in p.x.chunks(p.width).enumerate() {
                    expected[r * p.outputs + o] = x.iter().zip(&w).fold(0.0, |s, (x, w)| x.mul_add(*w, s));
                }
            }
            let got = same_everywhere(p.rows * p.outputs, |isa, out| matmul_on(isa, &p.x, p.rows, &matrix, out));
            prop_assert_eq!(bits(&got), bits(&expected));
        }
    }

    #[test]
    fn a_quantised_product_is_exact_within_groups(p in product()) {
        for (precision, levels) in [(Precision::Int8, 127.0), (Precision::Int4, 7.0)] {
            let matrix = p.matrix(precision);
            let run = |isa, out: &mut [f32]| matmul_on(isa, &p.x, p.rows, &matrix, out);
            let got = same_everywhere(p.rows * p.outputs, run);
            prop_assert_eq!(bits(&got), bits(&quantised_definition(&p, levels)));
        }
    }

    #[test]
    fn a_product_is_near_the_one_in_double_precision(p in product()) {
        let exact: Vec<f64> =
            p.x.chunks(p.width)
                .flat_map(|x| p.w.chunks(p.width).map(move |w| (x, w)))
                .map(|(x, w)| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum())
                .collect();
        // Values are up to 4, so a sum of rounded terms is off by as many times 16 times the precision.
        let terms = 16.0 * p.width as f64;
        for (precision, relative) in PRECISIONS.into_iter().zip([1e-6, 6e-4, 1.0 / 120.0, 1.0 / 13.0]) {
            let mut out = vec![0.0; p.rows * p.outputs];
            matmul(&p.x, p.rows, &p.matrix(precision), &mut out);
            assert_close(&out, &exact, relative, terms);
        }
    }

    #[test]
    fn a_row_alone_gives_what_it_gives_in_a_batch(p in product()) {
        for precision in PRECISIONS {
            let matrix = p.matrix(precision);
            let mut together = vec![0.0; p.rows * p.outputs];
            matmul(&p.x, p.rows, &matrix, &mut together);
            let mut alone = vec![0.0; p.rows * p.outputs];
            for (x, out) in p.x.chunks(p.width).zip(alone.chunks_mut(p.outputs)) {
                matmul(x, 1, &matrix, out);
            }
            prop_assert_eq!(bits(&together), bits(&alone));
        }
    }

    #[test]
    fn a_weight_does_not_depend_on_how_its_rows_came(p in product(), step in 1..40_usize) {
        for precision in PRECISIONS {
            let whole = p.matrix(precision);
            let mut parts = Matrix::zeros(p.outputs, p.width, precision).unwrap();
            let filling = parts.filling();
            // From the last rows to the first, on both threads at a time.
            let pieces: Vec<_> = p.w.chunks(step * p.width).enumerate().collect();
            pieces.par_iter().rev().for_each(|(i, rows)| filling.rows(i * step, rows));
            filling.finish();
            prop_assert_eq!(parts.rounding_error(), whole.rounding_error());
            let (mut a, mut b) = (vec![0.0; p.width], vec![0.0; p.width]);
            for o in 0..p.outputs {
                whole.row(o, &mut a);
                parts.row(o, &mut b);
                prop_assert_eq!(bits(&a), bits(&b));
            }
        }
    }

    #[test]
    fn rounding_is_reported_as_found(p in product()) {
        for (precision, most) in PRECISIONS.into_iter().zip([0.0, 1.0 / 2048.0, 0.5 / 126.0, 0.5 / 6.99]) {
            let matrix = p.matrix(precision);
            let largest = p.w.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let (mut row, mut max) = (vec![0.0; p.width], 0.0_f64);
            for (o, w) in p.w.chunks(p.width).enumerate() {
                matrix.row(o, &mut row);
                for (kept, w) in row.iter().zip(w) {
                    max = max.max((f64::from(*kept) - f64::from(*w)).abs());
                }
            }
            let max = if largest == 0.0 { 0.0 } else { max / f64::from(largest) };
            let error = matrix.rounding_error();
            prop_assert_eq!(error.max, max);
            prop_assert!(error.max <= most && error.rms <= 2.0 * most.max(0.0), "{:?}", error);
        }
    }
}

#[test]
fn products_large_enough_for_threads_and_blocks_are_the_same_everywhere() {
    let wave = |n: usize| (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect::<Vec<_>>();
    for (rows, width, outputs) in [(1, 512, 1030), (8, 512, 1030), (131, 1500, 97), (260, 520, 100)] {
        let x = wave(rows * width);
        for precision in PRECISIONS {
            let matrix = Matrix::from_slice(outputs, width, precision, &wave(outputs * width));
            let got = same_everywhere(rows * outputs, |isa, out| matmul_on(isa, &x, rows, &matrix, out));
            let mut last = vec![0.0; outputs];
            matmul_on(Isa::Portable, &x[(rows - 1) * width..], 1, &matrix, &mut last);
            assert_eq!(bits(&last), bits(&got[(rows - 1) * outputs..]));
        }
    }
}

#[test]
fn values_that_are_not_finite_stay_in_their_rows_and_do_not_panic() {
    let width = 40;
    let mut w = vec![0.5; 35 * width];
    w[..ODD.len()].copy_from_slice(&ODD);
    for precision in PRECISIONS {
        let matrix = Matrix::from_slice(35, width, precision, &w);
        for odd in ODD {
            let mut x = vec![1.0; 3 * width];
            x[width + 33] = odd;
            for isa in Isa::available() {
                let mut out = vec![0.0; 3 * 35];
                matmul_on(isa, &x, 3, &matrix, &mut out);
                assert!(out[1..35].iter().chain(&out[71..]).all(|v| (v - 20.0).abs() < 0.2), "{isa} {odd}");
                assert!(odd.is_finite() || !out[36].is_finite(), "{isa} {odd}");
                assert!(!out[0].is_finite() && !out[70].is_finite());
            }
        }
    }
}

#[test]
fn a_matrix_is_filled_row_by_row_and_read_back() {
    let matrix = Matrix::pack(70, 33, Precision::F16, |o, row| row.fill(o as f32));
    assert_eq!((matrix.out_features(), matrix.in_features()), (70, 33));
    assert_eq!((matrix.precision(), matrix.bytes()), (Precision::F16, 96 * 33 * 2));
    let mut row = vec![0.0; 33];
    matrix.row(69, &mut row);
    assert_eq!(row, vec![69.0; 33]);
    matmul(&[], 0, &matrix, &mut []);
}
