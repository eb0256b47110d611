//! What a step of the decoder is given, checked once for all the reads of all its kernels.

use std::collections::HashSet;

use super::DeviceError;
use super::kernels::attention::PART;
use super::layout::Layout;
use crate::kernels::BLOCK;

/// One row of a step: where it is in which sequence.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'a> {
    /// Its position in its sequence.
    pub position: usize,
    /// The blocks of its sequence in the pools, from position 0 to its own. Rows that give the same slice share it.
    pub table: &'a [u32],
}

/// How a device chooses a row's token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choose {
    /// Temperature; at 0 the best token is taken.
    pub temperature: f32,
    /// The random share in [0, 1) at which the vocabulary is cut.
    pub share: f32,
}

/// A step as it is uploaded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inputs {
    pub(super) ids: Vec<u32>,
    /// Of each row, its position and where its table begins.
    pub(super) spots: Vec<u32>,
    pub(super) tables: Vec<u32>,
    /// For each kind of attention, of each row, the cosines and then the sines of its position.
    pub(super) angles: Vec<Vec<f32>>,
    /// The rows whose logits are wanted.
    pub(super) picks: Vec<u32>,
    /// Parts of the longest sequence.
    pub(super) parts: usize,
}

/// What a step must keep within.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Tokens of the vocabulary.
    pub(super) vocab: usize,
    /// Blocks of the pools.
    pub(super) blocks: usize,
}

impl Inputs {
    /// Checks and lays out a step. `frequencies` are those of each kind of attention.
    pub(super) fn new(
        bounds: Bounds,
        frequencies: &[Vec<f32>],
        ids: &[u32],
        spots: &[Spot<'_>],
        wanted: &[usize],
    ) -> Result<Self, DeviceError> {
        let refuse = |why: String| Err(DeviceError::Step { why });
        if ids.is_empty() || ids.len() != spots.len() {
            return refuse(format!("{} tokens at {} places", ids.len(), spots.len()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= bounds.vocab) {
            return refuse(format!("token {id} is not below `vocab_size`, {}", bounds.vocab));
        }
        let (mut tables, mut starts) = (Vec::new(), Vec::<(&[u32], u32)>::new());
        let mut flat = Vec::with_capacity(2 * spots.len());
        let mut places = HashSet::with_capacity(spots.len());
        for &Spot { position, table } in spots {
            let Some(seen) = table.get(..=position / BLOCK) else {
                return refuse(format!("position {position} in a table of {} blocks", table.len()));
            };
            if let Some(block) = seen.iter().find(|&&block| block as usize >= bounds.blocks) {
                return refuse(format!("there is no block {block} among {}", bounds.blocks));
            }
            if !places.insert((seen[position / BLOCK], position % BLOCK)) {
                return refuse(format!("two rows write position {position} of one block"));
            }
            // Rows of one sequence mostly follow each other.
            let known = starts.iter().rev().find(|(known, _)| std::ptr::eq(*known, table));
            let start = match known {
                Some(&(_, start)) => start,
                None => {
                    let start = tables.len() as u32;
                    tables.extend_from_slice(table);
                    starts.push((table, start));
                    start
                }
            };
            flat.extend([position as u32, start]);
        }
        let mut picked = HashSet::with_capacity(wanted.len());
        if let Some(row) = wanted.iter().find(|&&row| row >= ids.len() || !picked.insert(row)) {
            return refuse(format!("logits of row {row}, twice or of {}", ids.len()));
        }
        let angles = frequencies.iter().map(|frequencies| angles(frequencies, spots)).collect();
        Ok(Self {
            ids: ids.to_vec(),
            spots: flat,
            tables,
            angles,
            picks: wanted.iter().map(|&row| row as u32).collect(),
            parts: spots.iter().map(|spot| spot.position / PART + 1).max().unwrap_or(1),
        })
    }
}

impl Bounds {
    pub(super) fn new(layout: &Layout, blocks: usize) -> Self {
        Self { vocab: layout.vocab, blocks }
    }
}

/// Angles are computed as on a processor: the single precision product of position and frequency, as in
/// `transformers`, and sine and cosine in double precision.
fn angles(frequencies: &[f32], spots: &[Spot<'_>]) -> Vec<f32> {
    let mut out = Vec::with_capacity(2 * frequencies.len() * spots.len());
    for spot in spots {
        let (cos, sin): (Vec<f32>, Vec<f32>) = frequencies
            .iter()
            .map(|frequency| f64::from(spot.position as f32 * frequency).sin_cos())
            .map(|(sin, cos)| (cos as f32, sin as f32))
            .unzip();
        out.extend(cos);
        out.extend(sin);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { vocab: 100, blocks: 8 };

    fn spot(position: usize, table: &[u32]) -> Spot<'_> {
        Spot { position, table }
    }

    #[test]
    fn rows_of_one_sequence_share_a_table() {
        let (a, b) = ([3, 1, 2], [7]);
        let spots = [spot(40, &a), spot(41, &a), spot(2, &b), spot(42, &a)];
        let inputs = Inputs::new(BOUNDS, &[vec![0.5, 0.0]], &[1, 2, 3, 4], &spots, &[1, 3]).unwrap();
        assert_eq!(inputs.tables, [3, 1, 2, 7]);
        assert_eq!(inputs.spots, [40, 0, 41, 0, 2, 3, 42, 0]);
        assert_eq!((inputs.picks, inputs.parts), (vec![1, 3], 1));
        let (sin, cos) = 1.0f64.sin_cos();
        assert_eq!(inputs.angles[0][8..12], [cos as f32, 1.0, sin as f32, 0.0]);
    }

    #[test]
    fn the_longest_sequence_gives_the_parts() {
        let table: Vec<u32> = (0..8).cycle().take(PART / BLOCK + 1).collect();
        let parts = |position| Inputs::new(BOUNDS, &[], &[0], &[spot(position, &table)], &[0]).unwrap().parts;
        assert_eq!((parts(PART - 1), parts(PART)), (1, 2));
    }

    #[test]
    fn what_a_kernel_would_read_or_write_wrongly_is_refused() {
        let table = [1, 2];
        let refused = |ids: &[u32], spots: &[Spot<'_>], wanted: &[usize]| {
            Inputs::new(BOUNDS, &[], ids, spots, wanted).unwrap_err().to_string()
        };
        assert!(refused(&[], &[], &[]).contains("0 tokens"));
        assert!(refused(&[1, 2], &[spot(0, &table)], &[]).contains("2 tokens at 1 places"));
        assert!(refused(&[100], &[spot(0, &table)], &[]).contains("token 100"));
        assert!(refused(&[1], &[spot(32, &table)], &[]).contains("table of 2 blocks"));
        assert!(refused(&[1], &[spot(0, &[8])], &[]).contains("no block 8"));
        assert!(refused(&[1, 2], &[spot(3, &table), spot(3, &table)], &[]).contains("two rows"));
        assert!(refused(&[1], &[spot(0, &table)], &[1]).contains("row 1"));
        assert!(refused(&[1], &[spot(0, &table)], &[0, 0]).contains("row 0"));
        // A block that the row does not reach need not exist.
        assert!(Inputs::new(BOUNDS, &[], &[1], &[spot(0, &[1, 99])], &[]).is_ok());
    }
}
