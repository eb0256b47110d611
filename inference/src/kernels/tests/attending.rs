//! Attention and its pool.

use proptest::prelude::*;

use super::super::attention::{Row, attend, attend_on};
use super::super::{BLOCK, Heads, Isa, KvPool, KvPrecision};
use super::{ODD, assert_close, bits, same_everywhere, values};

/// One sequence of some tokens, in a pool where its blocks are in disorder and the others hold what spoils.
#[derive(Debug, Clone)]
struct Case {
    kv_heads: usize,
    heads: Heads,
    tokens: usize,
    window: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (1..=3_usize, 1..=6_usize, 1..=6_usize, 1..=100_usize, 1..=120_usize, 0..=3_usize);
    shape.prop_flat_map(|(kv_heads, group, vectors, tokens, window, offset)| {
        let (count, dim) = (kv_heads * group, 16 * vectors);
        let heads = Heads { stride: offset + count * dim, offset, count, dim };
        let kv = tokens * kv_heads * dim;
        (values(kv), values(kv), values(tokens * heads.stride)).prop_map(move |(keys, values, queries)| {
            Case { kv_heads, heads, tokens, window, keys, values, queries }
        })
    })
}

impl Case {
    fn table(&self) -> Vec<u32> {
        (0..self.tokens.div_ceil(BLOCK) as u32).rev().map(|b| 2 * b + 1).collect()
    }

    fn pool(&self, precision: KvPrecision, spoiled: f32) -> KvPool {
        let table = self.table();
        let width = self.kv_heads * self.heads.dim;
        let mut pool = KvPool::new(2 * table.len() + 1, self.kv_heads, self.heads.dim, precision);
        for block in 0..pool.blocks() as u32 {
            for place in 0..BLOCK {
                pool.append(&[block], place, &vec![spoiled; width], &vec![spoiled; width]);
            }
        }
        let tokens = self.keys.chunks(width).zip(self.values.chunks(width)).enumerate();
        tokens.for_each(|(p, (keys, values))| pool.append(&table, p, keys, values));
        pool
    }

    fn rows<'a>(&self, table: &'a [u32]) -> Vec<Row<'a>> {
        let row =
            |position: usize| Row { position, first_key: (position + 1).saturating_sub(self.window), table };
        (0..self.tokens).map(row).collect()
    }

    fn definition(&self, scale: f64) -> Vec<f64> {
        let (dim, width) = (self.heads.dim, self.kv_heads * self.heads.dim);
        let mut out = Vec::new();
        for row in self.rows(&[]) {
            for head in 0..self.heads.count {
                let query =
                    &self.heads.of(&self.queries[row.position * self.heads.stride..])[head * dim..][..dim];
                let kv = head / (self.heads.count / self.kv_heads) * dim;
                let seen = row.first_key..=row.position;
                let scores: Vec<f64> = seen
                    .clone()
                    .map(|t| {
                        let key = &self.keys[t * width + kv..][..dim];
                        query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * scale
                    })
                    .collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..dim {
                    let value = |t: usize| f64::from(self.values[t * width + kv + d]);
                    let weighed = weights.iter().zip(seen.clone()).map(|(w, t)| w * value(t));
                    out.push(weighed.sum::<f64>() / sum);
                }
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_is_near_its_definition_and_the_same_everywhere(case in case()) {
        let (table, len) = (case.table(), case.tokens * case.heads.count * case.heads.dim);
        let expected = case.definition(0.25);
        for (precision, relative) in [(KvPrecision::F32, 2e-5), (KvPrecision::F16, 5e-2)] {
            let pool = case.pool(precision, 1.0);
            let got = same_everywhere(len, |isa, out| {
                attend_on(isa, &pool, &case.queries, case.heads, &case.rows(&table), 0.25, out);
            });
            assert_close(&got, &expected, relative, 4.0);
        }
    }

    #[test]
    fn a_row_sees_its_own_keys_and_nothing_else(case in case(), spoiled in prop::sample::select(&ODD[..])) {
        let (table, len) = (case.table(), case.heads.count * case.heads.dim);
        let rows = case.rows(&table);
        let mut together = vec![0.0; rows.len() * len];
        let pool = case.pool(KvPrecision::F32, spoiled);
        attend(&pool, &case.queries, case.heads, &rows, 0.3, &mut together);
        prop_assert!(together.iter().all(|v| v.is_finite()));

        // A pool that holds no token after the row's, asked for that row alone.
        let last = case.tokens / 2;
        let mut shorter = case.clone();
        shorter.tokens = last + 1;
        shorter.keys.truncate(shorter.tokens * case.kv_heads * case.heads.dim);
        shorter.values.truncate(shorter.tokens * case.kv_heads * case.heads.dim);
        let (pool, table) = (shorter.pool(KvPrecision::F32, 0.0), shorter.table());
        let query = &case.queries[last * case.heads.stride..][..case.heads.stride];
        let mut alone = vec![0.0; len];
        attend(&pool, query, case.heads, &shorter.rows(&table)[last..], 0.3, &mut alone);
        prop_assert_eq!(bits(&alone), bits(&together[last * len..][..len]));
    }
}

#[test]
fn blocks_before_the_window_may_be_gone() {
    let mut pool = KvPool::new(2, 1, 16, KvPrecision::F32);
    for position in 32..40 {
        pool.append(&[9, 9, 1], position, &[1.0; 16], &[position as f32; 16]);
    }
    let mut out = [0.0; 16];
    let row = Row { position: 39, first_key: 32, table: &[9, 9, 1] };
    attend(&pool, &[0.0; 16], Heads::alone(1, 16), &[row], 1.0, &mut out);
    assert_eq!(out, [35.5; 16]);
}

#[test]
fn a_wiped_block_is_like_a_new_one() {
    let wiped = |precision| {
        let mut pool = KvPool::new(3, 2, 32, precision);
        for position in 0..3 * BLOCK {
            pool.append(&[0, 1, 2], position, &[1.0; 64], &[2.0; 64]);
        }
        pool.wipe(1);
        let read = |block: u32| {
            let mut out = [0.0; 64];
            let row = Row { position: BLOCK - 1, first_key: 0, table: &[block] };
            attend(&pool, &[1.0; 64], Heads::alone(2, 32), &[row], 1.0, &mut out);
            out
        };
        [read(0), read(1), read(2)]
    };
    for precision in [KvPrecision::F32, KvPrecision::F16] {
        assert_eq!(wiped(precision), [[2.0; 64], [0.0; 64], [2.0; 64]]);
    }
    let (f32s, f16s) = (KvPool::new(3, 2, 32, KvPrecision::F32), KvPool::new(3, 2, 32, KvPrecision::F16));
    assert_eq!((f32s.bytes(), f16s.bytes()), (3 * 2 * 2 * 16 * 32 * 4, 3 * 2 * 2 * 16 * 32 * 2));
}

#[test]
fn keys_that_are_not_finite_do_not_panic() {
    let mut pool = KvPool::new(1, 1, 16, KvPrecision::F32);
    for (position, odd) in ODD.into_iter().enumerate() {
        pool.append(&[0], position, &[odd; 16], &[odd; 16]);
    }
    for isa in Isa::available() {
        for (first_key, position) in [(0, 7), (1, 1), (2, 2), (3, 5)] {
            let mut out = [0.0; 16];
            let row = Row { position, first_key, table: &[0] };
            attend_on(isa, &pool, &[1.0; 16], Heads::alone(1, 16), &[row], 1.0, &mut out);
        }
    }
}
