use super::cases::{kept, normed, values};
use super::{assert_close, on_device};
use crate::device::kernels::format::{Format, pack};
use crate::device::kernels::norm::{Delta, Norm};
use crate::device::kernels::sample::NO_TOKEN;
use crate::device::kernels::{Buffer, Gpu, Weight};

/// What a kernel left for the next product.
pub(super) fn activations(gpu: &Gpu, from: &Buffer, count: usize, format: Format) -> Vec<f32> {
    if format == Format::F32 {
        return gpu.read::<f32>(from).unwrap()[..count].to_vec();
    }
    gpu.read::<u16>(from).unwrap()[..count].iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect()
}

#[test]
fn rows_of_a_table_are_its_rows_times_the_factor() {
    on_device(|gpu| {
        let (height, width) = (50, 96);
        let table = values(height * width, 1);
        for format in [Format::F32, Format::Bf16, Format::Int8] {
            let packed = pack(&table, format);
            let weight = Weight {
                data: gpu.upload(&packed.bytes),
                scales: gpu.upload(&packed.scales),
                format,
                rows: height,
                columns: width,
            };
            let ids = [3u32, 49, 0, 3];
            let out = gpu.empty(ids.len() * width * 4);
            gpu.embed(&gpu.upload(&ids), &weight, ids.len(), 1.5, &out);
            let kept = kept(&table, format);
            let expected: Vec<f32> = ids
                .iter()
                .flat_map(|id| kept[*id as usize * width..][..width].iter().map(|v| v * 1.5))
                .collect();
            assert_close(&format!("{format:?}"), &gpu.read::<f32>(&out).unwrap(), &expected, 1e-6);
        }
    });
}

/// Rows of `real` values with zeros behind them.
fn filled(x: &[f32], real: usize, width: usize) -> Vec<f32> {
    x.chunks(real).flat_map(|row| [row, &vec![0.0; width - real]].concat()).collect()
}

#[test]
fn what_a_layer_adds_is_added_and_the_sum_is_normed() {
    const EPS: f32 = 1e-5;
    on_device(|gpu| {
        for (real, width) in [(64, 64), (40, 64), (4096, 4096), (1100, 1120)] {
            let rows = 3;
            let [x, delta] = [1, 2].map(|seed| values(rows * real, seed));
            let [bias, delta_weight, weight] = [3, 4, 5].map(|seed| values(real, seed));
            let buffer = |x: &[f32]| gpu.upload(&filled(x, real, width));
            for (has_bias, has_norm) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut add: Vec<f32> = delta.clone();
                if has_bias {
                    add.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % real]);
                }
                if has_norm {
                    add = normed(&add, &delta_weight, EPS);
                }
                let sum: Vec<f32> = x.iter().zip(&add).map(|(x, d)| x + d).collect();
                let expected = normed(&sum, &weight, EPS);
                for (format, bound) in [(Format::F32, 1e-5), (Format::Bf16, 1.0 / 256.0)] {
                    let (stream, out) = (buffer(&x), gpu.empty(rows * width * 4));
                    let (values, bias, own) = (buffer(&delta), buffer(&bias), buffer(&delta_weight));
                    let delta = Delta {
                        values: &values,
                        bias: has_bias.then_some(&bias),
                        norm: has_norm.then_some(&own),
                    };
                    let norm = Norm { weight: &buffer(&weight), eps: EPS, width, real, format };
                    gpu.add_norm(&stream, Some(delta), norm, rows, None, &out);
                    let what = format!("{real} {has_bias} {has_norm} {format:?}");
                    let stream = gpu.read::<f32>(&stream).unwrap();
                    assert_close(&what, &stream, &filled(&sum, real, width), 1e-5);
                    let found = activations(&gpu, &out, rows * width, format);
                    assert_close(&what, &found, &filled(&expected, real, width), bound);
                }
            }
        }
    });
}

#[test]
fn picked_rows_are_normed_in_the_order_they_are_picked() {
    on_device(|gpu| {
        let width = 64;
        let (x, weight) = (values(5 * width, 1), values(width, 2));
        let norm = Norm { weight: &gpu.upload(&weight), eps: 1e-6, width, real: width, format: Format::F32 };
        let out = gpu.empty(2 * width * 4);
        gpu.add_norm(&gpu.upload(&x), None, norm, 2, Some(&gpu.upload(&[4u32, 1])), &out);
        let all = normed(&x, &weight, 1e-6);
        let expected = [&all[4 * width..], &all[width..2 * width]].concat();
        assert_close("picked", &gpu.read::<f32>(&out).unwrap(), &expected, 1e-5);
    });
}

#[test]
fn the_rounding_to_bf16_is_a_processors_for_every_kind_of_value() {
    on_device(|gpu| {
        let mut x = vec![0.0f32, -0.0, 1.0, -3.5, 65504.0, 3.3e38, 1e-30, f32::MAX, f32::INFINITY, f32::NAN];
        x.extend([0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f80_0001].map(f32::from_bits));
        x.resize(64, 2.0);
        // A gate of one leaves silu(30) = 30 beside the value: what is stored is thirty times it, rounded.
        let gates = vec![30.0f32; 64];
        let out = gpu.empty(64 * 2);
        gpu.gate(
            &gpu.upload(&[gates, x.clone()].concat()),
            1,
            64,
            crate::device::kernels::Gating::Silu,
            Format::Bf16,
            &out,
        );
        let found = gpu.read::<u16>(&out).unwrap();
        for (found, x) in found.iter().zip(x) {
            let expected = half::bf16::from_f32(30.0 * x);
            let found = half::bf16::from_bits(*found);
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{found} for {expected}");
        }
    });
}

#[test]
fn the_best_token_is_the_first_of_the_greatest_and_a_drawn_one_has_its_share() {
    on_device(|gpu| {
        let (vocabulary, stride) = (1000, 1024);
        let mut rows = [1, 2, 3, 4].map(|seed| values(stride, seed));
        (rows[0][600], rows[0][200]) = (2.0, 2.0);
        rows[1][1010] = 50.0;
        rows[2][999] = f32::NAN;
        let best =
            |row: &[f32]| (0..vocabulary).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap() as u32;
        let logits = gpu.upload(&rows.concat());
        let out = gpu.empty(16);
        let sample = |temperature: [f32; 4], shares: [f32; 4]| {
            let (temperatures, shares) = (gpu.upload(&temperature), gpu.upload(&shares));
            gpu.sample(&logits, (vocabulary, stride), &temperatures, &shares, 4, &out);
            gpu.read::<u32>(&out).unwrap()
        };
        assert_eq!(sample([0.0; 4], [0.5; 4]), [200, best(&rows[1]), NO_TOKEN, best(&rows[3])]);
        for share in [0.0f32, 0.1, 0.37, 0.9, 0.999_99] {
            let found = sample([0.7; 4], [share; 4]);
            assert_eq!(found[2], NO_TOKEN);
            for row in [0, 1, 3] {
                let weights: Vec<f64> = rows[row][..vocabulary]
                    .iter()
                    .map(|l| (f64::from(*l) / f64::from(0.7f32)).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                let before: f64 = weights[..found[row] as usize].iter().sum::<f64>() / total;
                let after = before + weights[found[row] as usize] / total;
                let share = f64::from(share);
                assert!(before - 1e-5 <= share && share <= after + 1e-5, "{before}..{after} for {share}");
            }
        }
    });
}
