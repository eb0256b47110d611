//! What the kernels are asked, and what a processor answers.

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::device::kernels::format::{Format, pack};
use crate::kernels::attention::{Row, attend};
use crate::kernels::{
    BLOCK, Heads, KvPool, KvPrecision, Matrix, Precision, activation, matmul, norm, rope::Rope,
};

/// Values of ordinary size, the same for a seed on every machine.
pub(super) fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0f32..1.0)).collect()
}

/// What a device keeps of values.
pub(super) fn kept(values: &[f32], format: Format) -> Vec<f32> {
    let packed = pack(values, format);
    match format {
        Format::F32 => values.to_vec(),
        Format::Bf16 => {
            let halves = packed.bytes.as_chunks::<2>().0;
            halves.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        Format::Int8 => {
            let scales = packed.scales.iter().flat_map(|s| [*s; 32]);
            packed.bytes.iter().zip(scales).map(|(q, s)| (f32::from(*q) - 128.0) * s).collect()
        }
    }
}

/// Rows times a weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) format: Format,
}

impl Product {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let shapes = [(32, 32), (96, 160), (1056, 64), (64, 37), (4096, 8)];
        let formats = [Format::F32, Format::Bf16, Format::Int8];
        let rows = [1, 2, 3, 4, 8, 11];
        formats.into_iter().flat_map(move |format| {
            shapes.into_iter().flat_map(move |(inputs, outputs)| {
                rows.into_iter().map(move |rows| Self { rows, inputs, outputs, format })
            })
        })
    }

    pub(super) fn x(self) -> Vec<f32> {
        values(self.rows * self.inputs, 1)
    }

    pub(super) fn weight(self) -> Vec<f32> {
        values(self.outputs * self.inputs, 2)
    }

    /// By the processor's kernel, of the weight as the device keeps it.
    pub(super) fn expected(self) -> Vec<f32> {
        let weight = kept(&self.weight(), self.format);
        let matrix = Matrix::from_slice(self.outputs, self.inputs, Precision::F32, &weight);
        let mut out = vec![0.0; self.rows * self.outputs];
        matmul(&self.x(), self.rows, &matrix, &mut out);
        out
    }
}

/// `gate(x)` of rows of `2 · width`, by the processor's kernel.
pub(super) fn gated(x: &[f32], width: usize, gelu: bool) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / 2];
    let gate = if gelu { activation::gelu_tanh_gate } else { activation::silu_gate };
    gate(x, width, &mut out);
    out
}

/// The norm of rows, by the processor's kernel.
pub(super) fn normed(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    norm::rms_norm(x, weight, eps, &mut out);
    out
}

/// Some sequences, of each of which some tokens are new.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) window: Option<usize>,
    pub(super) norms: bool,
    pub(super) format: Format,
    /// Tokens that are there, and tokens that are new, of each sequence.
    pub(super) sequences: Vec<(usize, usize)>,
}

/// Added to mean squares.
pub(super) const EPS: f32 = 1e-6;

impl Attention {
    pub(super) fn all() -> Vec<Self> {
        let base = Self {
            heads: 4,
            kv_heads: 2,
            dim: 64,
            window: None,
            norms: true,
            format: Format::F32,
            sequences: vec![(0, 3), (17, 1), (31, 2), (40, 1)],
        };
        let shapes = [(4, 2, 64), (3, 1, 16), (8, 1, 32), (6, 2, 24), (2, 2, 128), (5, 1, 256)];
        let mut all = Vec::new();
        for format in [Format::F32, Format::Bf16] {
            for (i, (heads, kv_heads, dim)) in shapes.into_iter().enumerate() {
                let window = [None, Some(14)][i % 2];
                all.push(Self { heads, kv_heads, dim, window, format, norms: i % 3 != 2, ..base.clone() });
            }
            // Several parts, with windows that leave the first of them unseen.
            let sequences = vec![(1100, 1), (511, 2), (5, 1)];
            for window in [None, Some(20), Some(600)] {
                all.push(Self { window, format, sequences: sequences.clone(), ..base.clone() });
            }
        }
        all
    }

    pub(super) fn rows(&self) -> usize {
        self.sequences.iter().map(|s| s.1).sum()
    }

    pub(super) fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    pub(super) fn frequencies(&self) -> Vec<f32> {
        (0..self.dim / 2).map(|i| 1000.0f32.powf(-2.0 * i as f32 / self.dim as f32)).collect()
    }

    /// Stacked projections of the tokens that are there, then of those that are new.
    pub(super) fn projections(&self) -> [Vec<f32>; 2] {
        let old: usize = self.sequences.iter().map(|s| s.0).sum();
        [values(old * self.stride(), 3), values(self.rows() * self.stride(), 4)]
    }

    pub(super) fn norm_weights(&self) -> [Vec<f32>; 2] {
        [5, 6].map(|seed| values(self.dim, seed).iter().map(|w| 1.0 + w / 2.0).collect())
    }

    /// Blocks of each sequence, dealt out in turns so that none lies in one piece.
    pub(super) fn tables(&self) -> Vec<Vec<u32>> {
        let mut tables = vec![Vec::new(); self.sequences.len()];
        let mut next = 1;
        while let Some(short) = (0..tables.len())
            .filter(|&i| tables[i].len() < (self.sequences[i].0 + self.sequences[i].1).div_ceil(BLOCK))
            .min_by_key(|&i| tables[i].len())
        {
            tables[short].push(next);
            next += 1;
        }
        tables
    }

    /// Blocks that a pool needs.
    pub(super) fn blocks(&self) -> usize {
        1 + self.tables().iter().map(Vec::len).sum::<usize>()
    }

    /// Of each row, its sequence and position: of the rows that are there, then of the new ones.
    pub(super) fn spots(&self) -> [Vec<(usize, usize)>; 2] {
        let of = |range: fn((usize, usize)) -> std::ops::Range<usize>| {
            let sequences = self.sequences.iter().enumerate();
            sequences.flat_map(|(i, s)| range(*s).map(move |position| (i, position))).collect()
        };
        [of(|(old, _)| 0..old), of(|(old, new)| old..old + new)]
    }

    /// What the new tokens see, by the processor's kernels; keys and values rounded as the device rounds them.
    pub(super) fn expected(&self) -> Vec<f32> {
        let (stride, tables) = (self.stride(), self.tables());
        let wide = self.dim.next_multiple_of(BLOCK);
        let mut pool = KvPool::new(self.blocks(), self.kv_heads, wide, KvPrecision::F32);
        let part =
            |offset: usize, count: usize| Heads { stride, offset: offset * self.dim, count, dim: self.dim };
        let widened = |head: &[f32]| -> Vec<f32> {
            let heads = head.chunks_exact(self.dim);
            heads.flat_map(|h| h.iter().copied().chain(std::iter::repeat_n(0.0, wide - self.dim))).collect()
        };
        let mut queries = Vec::new();
        for (mut x, spots) in self.projections().into_iter().zip(self.spots()) {
            if self.norms {
                let [query, key] = self.norm_weights();
                norm::head_norm(&mut x, part(0, self.heads), &query, EPS);
                norm::head_norm(&mut x, part(self.heads, self.kv_heads), &key, EPS);
            }
            let positions: Vec<usize> = spots.iter().map(|s| s.1).collect();
            Rope::new(&self.frequencies(), &positions).apply(&mut x, part(0, self.heads + self.kv_heads));
            for (x, &(sequence, position)) in x.chunks_exact(stride).zip(&spots) {
                let (q, kv) = x.split_at(self.heads * self.dim);
                let kv = kept(kv, self.format);
                let (k, v) = kv.split_at(self.kv_heads * self.dim);
                pool.append(&tables[sequence], position, &widened(k), &widened(v));
                queries.push(widened(q));
            }
        }
        let queries = queries[queries.len() - self.rows()..].concat();
        let rows: Vec<Row<'_>> = self.spots()[1]
            .iter()
            .map(|&(sequence, position)| {
                let first_key = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
                Row { position, first_key, table: &tables[sequence] }
            })
            .collect();
        let mut out = vec![0.0; queries.len()];
        let heads = Heads { stride: self.heads * wide, offset: 0, count: self.heads, dim: wide };
        attend(&pool, &queries, heads, &rows, self.scale(), &mut out);
        out.chunks_exact(wide).flat_map(|head| head[..self.dim].to_vec()).collect()
    }

    /// The same by its definition, in double precision.
    pub(super) fn defined(&self) -> Vec<f32> {
        let turned = |x: &[f32], position: usize, norm: Option<&[f32]>| -> Vec<f64> {
            let mut x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            if let Some(weight) = norm {
                let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
                let root = (mean + f64::from(EPS)).sqrt();
                x.iter_mut().zip(weight).for_each(|(v, w)| *v = *v / root * f64::from(*w));
            }
            let half = self.dim / 2;
            for (i, frequency) in self.frequencies().into_iter().enumerate() {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                (x[i], x[i + half]) = (x[i] * cos - x[i + half] * sin, x[i] * sin + x[i + half] * cos);
            }
            x
        };
        let [query_norm, key_norm] = self.norm_weights();
        let [query_norm, key_norm] = [&query_norm, &key_norm].map(|weight| self.norms.then_some(&weight[..]));
        let mut seen: Vec<Vec<[Vec<f64>; 2]>> = vec![Vec::new(); self.sequences.len()];
        let mut out = Vec::new();
        for (age, (x, spots)) in self.projections().into_iter().zip(self.spots()).enumerate() {
            for (x, (sequence, position)) in x.chunks_exact(self.stride()).zip(spots) {
                let heads: Vec<&[f32]> = x.chunks_exact(self.dim).collect();
                let rounded = |x: Vec<f64>| -> Vec<f64> {
                    let single: Vec<f32> = x.into_iter().map(|v| v as f32).collect();
                    kept(&single, self.format).into_iter().map(f64::from).collect()
                };
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for head in 0..self.kv_heads {
                    keys.extend(rounded(turned(heads[self.heads + head], position, key_norm)));
                    let value = heads[self.heads + self.kv_heads + head];
                    values.extend(rounded(value.iter().map(|v| f64::from(*v)).collect()));
                }
                seen[sequence].push([keys, values]);
                if age == 0 {
                    continue;
                }
                let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
                for head in 0..self.heads {
                    let query = turned(heads[head], position, query_norm);
                    let from = head / (self.heads / self.kv_heads) * self.dim;
                    let range = &seen[sequence][first..=position];
                    let scores: Vec<f64> = range
                        .iter()
                        .map(|[key, _]| query.iter().zip(&key[from..]).map(|(q, k)| q * k).sum::<f64>())
                        .map(|dot| (dot * f64::from(self.scale())).exp())
                        .collect();
                    let total: f64 = scores.iter().sum();
                    out.extend((0..self.dim).map(|d| {
                        let sum: f64 = scores.iter().zip(range).map(|(p, [_, v])| p * v[from + d]).sum();
                        (sum / total) as f32
                    }));
                }
            }
        }
        out
    }
}
