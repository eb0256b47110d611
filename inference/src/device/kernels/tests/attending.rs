use super::cases::{Attention, EPS};
use super::{assert_close, on_device};
use crate::device::kernels::attention::{Attend, PART, partial_bytes};
use crate::device::kernels::format::Format;
use crate::device::kernels::heads::Projections;
use crate::device::kernels::{Buffer, Gpu, HeadShape};
use crate::kernels::BLOCK;

/// Both ways to round a key may fall to either side of a border.
fn bound(format: Format) -> f32 {
    if format == Format::F32 { 2e-5 } else { 2e-3 }
}

#[test]
fn the_processor_sees_what_attention_is_defined_to() {
    for case in Attention::all() {
        assert_close(&format!("{case:?}"), &case.expected(), &case.defined(), bound(case.format));
    }
}

/// A head's values with zeros behind them.
fn widened(x: &[f32], dim: usize, wide: usize) -> Vec<f32> {
    x.chunks(dim).flat_map(|head| [head, &vec![0.0; wide - dim]].concat()).collect()
}

struct OnDevice<'a> {
    gpu: &'a Gpu,
    case: &'a Attention,
    heads: HeadShape,
    pool: Buffer,
    tables: Buffer,
    starts: Vec<u32>,
}

impl<'a> OnDevice<'a> {
    fn new(gpu: &'a Gpu, case: &'a Attention) -> Self {
        let heads = HeadShape {
            heads: case.heads,
            kv_heads: case.kv_heads,
            dim: case.dim,
            wide: case.dim.next_multiple_of(8),
            format: case.format,
        };
        let blocks: Vec<u32> = (0..case.blocks() as u32).collect();
        // What is not a token's is not a number, and must not be looked at.
        let pool = gpu.upload(&vec![u32::MAX; heads.block_bytes() * blocks.len() / 4]);
        let tables = case.tables();
        let starts = tables.iter().scan(0, |at, table| {
            *at += table.len() as u32;
            Some(*at - table.len() as u32)
        });
        let starts = starts.collect();
        Self { gpu, case, heads, pool, tables: gpu.upload(&tables.concat()), starts }
    }

    /// Keeps the rows of these spots, and gives what they see.
    fn run(&self, x: &[f32], spots: &[(usize, usize)], attend: bool) -> Vec<f32> {
        let Self { gpu, case, heads, .. } = self;
        if spots.is_empty() {
            return Vec::new();
        }
        let flat: Vec<u32> = spots.iter().flat_map(|s| [s.1 as u32, self.starts[s.0]]).collect();
        let frequencies = case.frequencies();
        let angles: Vec<f32> = spots
            .iter()
            .flat_map(|s| {
                let angle = |f: &f32| f64::from(s.1 as f32 * f);
                let cos = frequencies.iter().map(move |f| angle(f).cos() as f32);
                cos.chain(frequencies.iter().map(move |f| angle(f).sin() as f32)).collect::<Vec<_>>()
            })
            .collect();
        let norms = case.norm_weights().map(|w| gpu.upload(&w));
        let (qkv, spots_buffer) = (gpu.upload(&widened(x, case.dim, heads.wide)), gpu.upload(&flat));
        let stride = (case.heads + 2 * case.kv_heads) * heads.wide;
        gpu.heads(
            *heads,
            Projections {
                qkv: &qkv,
                stride,
                bias: None,
                norms: case.norms.then_some((&norms[0], &norms[1])),
                eps: EPS,
                angles: &gpu.upload(&angles),
                spots: &spots_buffer,
                tables: &self.tables,
            },
            spots.len(),
            &self.pool,
        );
        if !attend {
            return Vec::new();
        }
        let parts = spots.iter().map(|s| s.1 / PART + 1).max().unwrap();
        let out = gpu.empty(spots.len() * case.heads * heads.wide * 4);
        let attend = Attend {
            qkv: &qkv,
            stride,
            spots: &spots_buffer,
            tables: &self.tables,
            window: case.window,
            scale: case.scale(),
            parts,
            partial: &gpu.empty(partial_bytes(*heads, spots.len(), parts)),
            format: Format::F32,
        };
        gpu.attend(*heads, attend, spots.len(), &self.pool, &out);
        if parts > 1 {
            gpu.merge(*heads, attend, spots.len(), &out);
        }
        let seen = gpu.read::<f32>(&out).unwrap();
        seen.chunks(heads.wide).flat_map(|head| head[..case.dim].to_vec()).collect()
    }
}

#[test]
fn a_device_sees_what_a_processor_does() {
    on_device(|gpu| {
        for case in Attention::all() {
            let device = OnDevice::new(&gpu, &case);
            let [old, new] = case.projections();
            let [old_spots, new_spots] = case.spots();
            device.run(&old, &old_spots, false);
            let found = device.run(&new, &new_spots, true);
            assert_close(&format!("{case:?}"), &found, &case.expected(), bound(case.format));
        }
    });
}

#[test]
fn a_row_sees_the_same_bits_alone_and_among_others() {
    on_device(|gpu| {
        for case in Attention::all() {
            let device = OnDevice::new(&gpu, &case);
            let [old, new] = case.projections();
            let [old_spots, new_spots] = case.spots();
            device.run(&old, &old_spots, false);
            let together = device.run(&new, &new_spots, true);
            let width = case.heads * case.dim;
            for (i, spot) in new_spots.iter().enumerate() {
                let alone = device.run(&new[i * case.stride()..][..case.stride()], &[*spot], true);
                let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&alone), bits(&together[i * width..][..width]), "{case:?}, row {i}");
            }
        }
    });
}

#[test]
fn a_wiped_block_is_zero_and_its_neighbours_are_not() {
    on_device(|gpu| {
        let heads = HeadShape { heads: 2, kv_heads: 1, dim: 16, wide: 16, format: Format::Bf16 };
        let words = heads.block_bytes() / 4;
        assert_eq!(words, BLOCK * 2 * 16 / 2);
        let pool = gpu.upload(&vec![7u32; 3 * words]);
        gpu.wipe(heads, &pool, &gpu.upload(&[1u32]), 1);
        let found = gpu.read::<u32>(&pool).unwrap();
        assert_eq!(found, [vec![7; words], vec![0; words], vec![7; words]].concat());
    });
}
