use super::cases::{Product, gated, kept, values};
use super::{assert_close, on_device};
use crate::device::kernels::format::{Format, pack};
use crate::device::kernels::matmul::Matmul;
use crate::device::kernels::{Gating, Gpu, Weight};

fn weight(gpu: &Gpu, values: &[f32], rows: usize, columns: usize, format: Format) -> Weight {
    let packed = pack(values, format);
    Weight { data: gpu.upload(&packed.bytes), scales: gpu.upload(&packed.scales), format, rows, columns }
}

#[test]
fn the_processor_multiplies_as_products_are_defined() {
    for case in Product::all() {
        let (x, w) = (case.x(), kept(&case.weight(), case.format));
        let defined: Vec<f32> = x
            .chunks(case.inputs)
            .flat_map(|x| w.chunks(case.inputs).map(move |w| (x, w)))
            .map(|(x, w)| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32)
            .collect();
        assert_close(&format!("{case:?}"), &case.expected(), &defined, 1e-5);
    }
}

#[test]
fn packing_keeps_what_the_format_can_hold() {
    let x = values(64, 9);
    assert_eq!(kept(&x, Format::F32), x);
    assert_close("bf16", &kept(&x, Format::Bf16), &x, 1.0 / 256.0);
    assert_close("int8", &kept(&x, Format::Int8), &x, 0.5 / 127.0 + 1e-6);
    assert!(kept(&[f32::NAN; 32], Format::Int8).iter().all(|v| v.is_nan()));
    assert_eq!(kept(&[0.0; 32], Format::Int8), [0.0; 32]);
}

#[test]
fn a_device_multiplies_what_a_processor_does() {
    on_device(|gpu| {
        for case in Product::all() {
            let weight = weight(&gpu, &case.weight(), case.outputs, case.inputs, case.format);
            let out = gpu.empty(case.rows * case.outputs * 4);
            gpu.matvec(&gpu.upload(&case.x()), &weight, case.rows, Gating::None, &out);
            let found = gpu.read::<f32>(&out).unwrap();
            assert_close(&format!("{case:?}"), &found[..case.rows * case.outputs], &case.expected(), 1e-5);
        }
    });
}

#[test]
fn a_row_is_multiplied_to_the_same_bits_among_any_number_of_others() {
    on_device(|gpu| {
        for format in [Format::F32, Format::Bf16, Format::Int8] {
            let (inputs, outputs) = (352, 24);
            let weight = weight(&gpu, &values(inputs * outputs, 1), outputs, inputs, format);
            let x = values(13 * inputs, 2);
            let mut of_first = Vec::new();
            for rows in [1, 2, 4, 8, 13] {
                let out = gpu.empty(rows * outputs * 4);
                gpu.matvec(&gpu.upload(&x[..rows * inputs]), &weight, rows, Gating::None, &out);
                of_first.push(gpu.read::<u32>(&out).unwrap()[..outputs].to_vec());
            }
            assert!(of_first.iter().all(|row| *row == of_first[0]), "{format:?}");
        }
    });
}

#[test]
fn a_gate_within_a_product_is_the_gate_after_it() {
    on_device(|gpu| {
        let (rows, inputs, width) = (3, 64, 40);
        for (gating, gelu) in [(Gating::Silu, false), (Gating::GeluTanh, true)] {
            // Large enough for the gates to be in their bends.
            let w: Vec<f32> = values(2 * width * inputs, 3).iter().map(|w| 3.0 * w).collect();
            let x = values(rows * inputs, 4);
            let product = Product { rows, inputs, outputs: 2 * width, format: Format::F32 };
            let matrix = crate::kernels::Matrix::from_slice(
                product.outputs,
                inputs,
                crate::kernels::Precision::F32,
                &w,
            );
            let mut both = vec![0.0; rows * 2 * width];
            crate::kernels::matmul(&x, rows, &matrix, &mut both);
            let expected = gated(&both, width, gelu);

            let fused = gpu.empty(rows * width * 4);
            let weight = weight(&gpu, &w, 2 * width, inputs, Format::F32);
            gpu.matvec(&gpu.upload(&x), &weight, rows, gating, &fused);
            assert_close("within", &gpu.read::<f32>(&fused).unwrap()[..rows * width], &expected, 1e-5);
            for (format, bound) in [(Format::F32, 1e-5), (Format::Bf16, 1.0 / 256.0)] {
                let after = gpu.empty(rows * width * 4);
                gpu.gate(&gpu.upload(&both), rows, width, gating, format, &after);
                let found = super::rowwise::activations(&gpu, &after, rows * width, format);
                assert_close("after", &found, &expected, bound);
            }
        }
    });
}

#[test]
fn widened_integers_are_the_values_they_stand_for() {
    on_device(|gpu| {
        let values = values(3 * 64, 8);
        let weight = weight(&gpu, &values, 3, 64, Format::Int8);
        let out = gpu.empty(values.len() * 2);
        gpu.widen(&weight, &out);
        let expected = kept(&kept(&values, Format::Int8), Format::Bf16);
        let found = super::rowwise::activations(&gpu, &out, values.len(), Format::Bf16);
        assert_eq!(found, expected);
    });
}

#[test]
fn matrix_units_multiply_what_tiles_do_where_there_are_any() {
    on_device(|gpu| {
        let Some(matmul) = Matmul::probe(&gpu) else {
            println!("skipped: no kernel for matrix units on this device");
            return;
        };
        println!("matrix units by {}", matmul.name());
        for format in [Format::Bf16, Format::Int8] {
            for (rows, inputs, outputs) in [(9, 64, 96), (33, 512, 160), (300, 1024, 1024)] {
                let (x, w) = (values(rows * inputs, 1), values(inputs * outputs, 2));
                let weight = weight(&gpu, &w, outputs, inputs, format);
                let (out, wide) = (gpu.empty(rows * outputs * 4), gpu.empty(inputs * outputs * 2));
                let packed = gpu.upload(&pack(&x, Format::Bf16).bytes);
                let mut data = &weight.data;
                if format == Format::Int8 {
                    gpu.widen(&weight, &wide);
                    data = &wide;
                }
                assert!(gpu.matmul(&matmul, &packed, data, [rows, inputs, outputs], &out));
                let by_tiles = gpu.empty(rows * outputs * 4);
                gpu.matvec(&gpu.upload(&kept(&x, Format::Bf16)), &weight, rows, Gating::None, &by_tiles);
                let [found, expected] = [&out, &by_tiles].map(|b| gpu.read::<f32>(b).unwrap());
                let bound = if format == Format::Bf16 { 1e-4 } else { 1.0 / 256.0 };
                assert_close(&format!("{format:?} {rows}x{inputs}x{outputs}"), &found, &expected, bound);
            }
        }
    });
}
