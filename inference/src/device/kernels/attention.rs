//! Grouped-query attention over keys and values in blocks, with the softmax of Milakov and Gimelshein ("Online
//! normalizer calculation for softmax", 2018): scores are never stored.
//!
//! A *team* of lanes holds a token: each lane some words of its key and value, and the same parts of up to
//! [`HEADS`] queries that share them. A cube has a row, a key head and a *part* of [`PART`] tokens at positions that
//! are multiples of it; its teams take turns with the tokens, each with a maximum and sums of its own, which are
//! merged at the end. Where a sequence has several parts, what each finds is merged by [`merge_kernel`].
//!
//! Which team takes a token depends on the token's position alone, and so does its part: a row's result does not
//! depend on what else is computed, nor on how long its table is. Tokens outside the row's range are never read.

use cubecl::prelude::*;

use super::format::{Format, Words, pack_bf16, unpack};
use super::{Buffer, Gpu, HeadShape};
use crate::kernels::BLOCK;

/// Tokens that a cube looks at. Short, so that one long sequence occupies a whole GPU; long enough that merging is
/// little beside it.
pub const PART: usize = 512;

/// Query heads that are computed at once: their queries and sums are in registers.
const HEADS: usize = 4;

/// Tokens that a team reads before it updates its sums.
const TOKENS: usize = 4;

/// Values of a head that a lane holds, if the device's planes are large enough.
const LANE_VALUES: usize = 16;

/// Below every score. Finite, so that a difference of two is a number.
const LOWEST: f32 = -3.0e38;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    heads: HeadShape,
    /// Query heads of a cube; divides those that share a key head.
    at_once: usize,
    stride: usize,
    /// 0 for none.
    window: usize,
    /// Lanes of a team.
    team: usize,
    teams: usize,
    plane: usize,
    /// Whether a sequence may have several parts, which are merged later.
    several: bool,
    out: Format,
}

impl Shape {
    /// Words that a lane holds of a key.
    fn lane_words(self) -> usize {
        self.heads.words() / self.team
    }

    /// Values that a lane holds of all its heads.
    fn lane_values(self) -> usize {
        self.at_once * self.lane_words() * self.heads.format.per_word()
    }
}

/// The first position that a row sees.
#[cube]
fn first_key(position: usize, #[comptime] window: usize) -> usize {
    let mut first = 0usize;
    if comptime!(window > 0) {
        if position >= comptime!(window) {
            first = position - comptime!(window) + 1;
        }
    }
    first
}

#[cube(launch_unchecked)]
fn attend_kernel(
    qkv: &[f32],
    pool: &[Words],
    spots: &[u32],
    tables: &[u32],
    out: &mut [u32],
    partial: &mut [f32],
    scale: f32,
    parts: u32,
    #[comptime] shape: Shape,
) {
    let wide = comptime!(shape.heads.wide);
    let per_word = comptime!(shape.heads.format.per_word());
    let at_once = comptime!(shape.at_once);
    let lane_words = comptime!(shape.lane_words());
    let of_head = comptime!(lane_words * per_word);
    let kv = comptime!(shape.heads.kv_heads);
    let groups = comptime!(shape.heads.heads / shape.heads.kv_heads / shape.at_once);

    let kv_head = CUBE_POS_X as usize / groups;
    let first_head = CUBE_POS_X as usize * at_once;
    let row = CUBE_POS_Y as usize;
    let part = CUBE_POS_Z as usize;
    let unit = UNIT_POS as usize;
    let lane = unit % comptime!(shape.team);
    let team = unit / comptime!(shape.team);

    let position = spots[2 * row] as usize;
    let table = spots[2 * row + 1] as usize;
    let start = max(first_key(position, shape.window), part * comptime!(PART));
    let end = min(position + 1, (part + 1) * comptime!(PART));

    let mut highest = Array::<f32>::new(at_once);
    let mut sums = Array::<f32>::new(at_once);
    let mut query = Array::<f32>::new(comptime!(shape.lane_values()));
    let mut acc = Array::<f32>::new(comptime!(shape.lane_values()));
    #[unroll]
    for h in 0..at_once {
        highest[h] = f32::new(LOWEST);
        sums[h] = 0.0f32;
        #[unroll]
        for i in 0..lane_words {
            let from = row * comptime!(shape.stride)
                + (first_head + h) * wide
                + (i * comptime!(shape.team) + lane) * per_word;
            #[unroll]
            for e in 0..per_word {
                query[h * of_head + i * per_word + e] = qkv[from + e] * scale;
                acc[h * of_head + i * per_word + e] = 0.0f32;
            }
        }
    }

    if start < end {
        // Turns begin at a multiple of the teams, so that a token is always the same team's. All teams of a cube
        // take as many, for lanes of a plane must stay together.
        let turn = comptime!(shape.teams * TOKENS);
        let from = start / turn * turn;
        let turns = (end - from).div_ceil(turn);
        for t in 0..turns {
            let mut scores = Array::<f32>::new(comptime!(TOKENS * at_once));
            #[unroll]
            for j in 0..comptime!(TOKENS) {
                let wanted = from + t * turn + j * comptime!(shape.teams) + team;
                let token = clamp(wanted, start, end - 1);
                let block = tables[table + token / comptime!(BLOCK)] as usize;
                let at = ((block * kv + kv_head) * comptime!(2 * BLOCK) + token % comptime!(BLOCK))
                    * comptime!(shape.heads.words());
                let mut dots = Array::<f32>::new(at_once);
                #[unroll]
                for h in 0..at_once {
                    dots[h] = 0.0f32;
                }
                #[unroll]
                for i in 0..lane_words {
                    let key = unpack(pool[at + i * comptime!(shape.team) + lane], shape.heads.format);
                    #[unroll]
                    for h in 0..at_once {
                        #[unroll]
                        for e in 0..per_word {
                            dots[h] = fma(query[h * of_head + i * per_word + e], key[e], dots[h]);
                        }
                    }
                }
                #[unroll]
                for h in 0..at_once {
                    let score = team_sum(dots[h], shape.team);
                    scores[j * at_once + h] = select(wanted == token, score, f32::new(LOWEST));
                }
            }
            #[unroll]
            for h in 0..at_once {
                let mut top = highest[h];
                #[unroll]
                for j in 0..comptime!(TOKENS) {
                    top = max(top, scores[j * at_once + h]);
                }
                let kept = f32::exp(highest[h] - top);
                highest[h] = top;
                sums[h] *= kept;
                #[unroll]
                for e in 0..of_head {
                    acc[h * of_head + e] *= kept;
                }
            }
            #[unroll]
            for j in 0..comptime!(TOKENS) {
                let wanted = from + t * turn + j * comptime!(shape.teams) + team;
                let token = clamp(wanted, start, end - 1);
                let block = tables[table + token / comptime!(BLOCK)] as usize;
                let at = ((block * kv + kv_head) * comptime!(2 * BLOCK)
                    + comptime!(BLOCK)
                    + token % comptime!(BLOCK))
                    * comptime!(shape.heads.words());
                let mut weights = Array::<f32>::new(at_once);
                #[unroll]
                for h in 0..at_once {
                    let weight = f32::exp(scores[j * at_once + h] - highest[h]);
                    weights[h] = select(wanted == token, weight, 0.0f32);
                    sums[h] += weights[h];
                }
                #[unroll]
                for i in 0..lane_words {
                    let value = unpack(pool[at + i * comptime!(shape.team) + lane], shape.heads.format);
                    #[unroll]
                    for h in 0..at_once {
                        #[unroll]
                        for e in 0..per_word {
                            let index = comptime!(h * of_head + i * per_word + e);
                            acc[index] = fma(weights[h], value[e], acc[index]);
                        }
                    }
                }
            }
        }
    }

    let teams = comptime!(shape.teams);
    let mut team_highest = Shared::<[f32]>::new_slice(comptime!(shape.teams * shape.at_once));
    let mut team_sums = Shared::<[f32]>::new_slice(comptime!(shape.teams * shape.at_once));
    let mut team_acc = Shared::<[f32]>::new_slice(comptime!(shape.teams * shape.at_once * shape.heads.wide));
    #[unroll]
    for h in 0..at_once {
        if lane == 0 {
            team_highest[team * at_once + h] = highest[h];
            team_sums[team * at_once + h] = sums[h];
        }
        #[unroll]
        for i in 0..lane_words {
            let to = (team * at_once + h) * wide + (i * comptime!(shape.team) + lane) * per_word;
            #[unroll]
            for e in 0..per_word {
                team_acc[to + e] = acc[h * of_head + i * per_word + e];
            }
        }
    }
    sync_cube();

    let mut pair = unit;
    while pair < comptime!(shape.at_once * shape.heads.wide / 2) {
        let head = 2 * pair / wide;
        let at = 2 * pair % wide;
        let mut top = f32::new(LOWEST);
        for t in 0..teams {
            top = max(top, team_highest[t * at_once + head]);
        }
        let mut sum = 0.0f32;
        let mut low = 0.0f32;
        let mut high = 0.0f32;
        for t in 0..teams {
            let weight = f32::exp(team_highest[t * at_once + head] - top);
            let from = (t * at_once + head) * wide + at;
            sum = fma(weight, team_sums[t * at_once + head], sum);
            low = fma(weight, team_acc[from], low);
            high = fma(weight, team_acc[from + 1], high);
        }
        let of_row = row * comptime!(shape.heads.heads) + first_head + head;
        if comptime!(!shape.several) {
            store_pair(out, of_row * wide + at, low / sum, high / sum, shape.out);
        } else {
            let to = (of_row * parts as usize + part) * (wide + 2);
            partial[to + at] = low;
            partial[to + at + 1] = high;
            if at == 0 {
                partial[to + wide] = top;
                partial[to + wide + 1] = sum;
            }
        }
        pair += CUBE_DIM as usize;
    }
}

/// The sum over a team, in each of its lanes.
#[cube]
fn team_sum(value: f32, #[comptime] team: usize) -> f32 {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(team.trailing_zeros() as usize) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step as u32));
    }
    sum
}

#[cube]
fn store_pair(out: &mut [u32], at: usize, low: f32, high: f32, #[comptime] format: Format) {
    if comptime!(format == Format::F32) {
        out[at] = u32::reinterpret(low);
        out[at + 1] = u32::reinterpret(high);
    } else {
        out[at / 2] = pack_bf16(low, high);
    }
}

/// Merges what the parts of a row's sequence found.
#[cube(launch_unchecked)]
fn merge_kernel(partial: &[f32], spots: &[u32], out: &mut [u32], parts: u32, #[comptime] shape: Shape) {
    let wide = comptime!(shape.heads.wide);
    let row = CUBE_POS_Y as usize;
    let of_row = row * comptime!(shape.heads.heads) + CUBE_POS_X as usize;
    let position = spots[2 * row] as usize;
    let first = first_key(position, shape.window) / comptime!(PART);
    let last = position / comptime!(PART);
    let base = of_row * parts as usize * (wide + 2);
    let mut pair = UNIT_POS_X as usize;
    while pair < wide / 2 {
        let mut top = f32::new(LOWEST);
        for part in first..last + 1 {
            top = max(top, partial[base + part * (wide + 2) + wide]);
        }
        let mut sum = 0.0f32;
        let mut low = 0.0f32;
        let mut high = 0.0f32;
        for part in first..last + 1 {
            let from = base + part * (wide + 2);
            let weight = f32::exp(partial[from + wide] - top);
            sum = fma(weight, partial[from + wide + 1], sum);
            low = fma(weight, partial[from + 2 * pair], low);
            high = fma(weight, partial[from + 2 * pair + 1], high);
        }
        store_pair(out, of_row * wide + 2 * pair, low / sum, high / sum, shape.out);
        pair += CUBE_DIM_X as usize;
    }
}

/// What the queries of some rows see.
#[derive(Debug, Clone, Copy)]
pub(in crate::device) struct Attend<'a> {
    /// Rows whose first heads are the queries.
    pub(in crate::device) qkv: &'a Buffer,
    pub(in crate::device) stride: usize,
    pub(in crate::device) spots: &'a Buffer,
    pub(in crate::device) tables: &'a Buffer,
    pub(in crate::device) window: Option<usize>,
    pub(in crate::device) scale: f32,
    /// Parts of the longest sequence.
    pub(in crate::device) parts: usize,
    /// Room for [`partial_bytes`], if there are several.
    pub(in crate::device) partial: &'a Buffer,
    /// What the next product reads.
    pub(in crate::device) format: Format,
}

/// What the parts of `rows` rows need to keep.
pub(in crate::device) fn partial_bytes(heads: HeadShape, rows: usize, parts: usize) -> usize {
    if parts == 1 { 0 } else { rows * heads.heads * parts * (heads.wide + 2) * 4 }
}

/// Lanes of a team: as many as leave each [`LANE_VALUES`], within what divides a head's words.
fn team(heads: HeadShape, plane: usize) -> usize {
    let wanted = (heads.wide / LANE_VALUES).max(1).next_power_of_two();
    let divides = 1 << heads.words().trailing_zeros();
    wanted.min(divides).min(plane)
}

impl Gpu {
    fn shape(&self, heads: HeadShape, from: &Attend<'_>) -> Shape {
        let group = heads.heads / heads.kv_heads;
        // The largest divisor that is not too large.
        let at_once = (1..=HEADS).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1);
        let team = team(heads, self.plane);
        // As many planes as let the teams' sums fit what every device shares within a cube.
        let sums = (self.plane / team) * at_once * (heads.wide + 2) * 4;
        let planes = (self.shared_bytes / sums).clamp(1, 4);
        Shape {
            heads,
            at_once,
            stride: from.stride,
            window: from.window.unwrap_or(0),
            team,
            teams: planes * self.plane / team,
            plane: self.plane,
            several: from.parts > 1,
            out: from.format,
        }
    }

    /// What the queries of `rows` rows see of their sequences, `[rows, heads · wide]`; with several parts, what
    /// [`merge`](Self::merge) makes that of.
    pub(in crate::device) fn attend(
        &self,
        heads: HeadShape,
        from: Attend<'_>,
        rows: usize,
        pool: &Buffer,
        out: &Buffer,
    ) {
        let shape = self.shape(heads, &from);
        let planes = shape.teams * shape.team / shape.plane;
        // SAFETY: every block in a row's range is in its table and in the pool, which `Inputs` checks; `partial` has
        // room for the parts, which `Workspace` sees to.
        unsafe {
            attend_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static((heads.heads / shape.at_once) as u32, rows as u32, from.parts as u32),
                CubeDim::new_2d(self.plane as u32, planes as u32),
                from.qkv.arg(),
                pool.arg(),
                from.spots.arg(),
                from.tables.arg(),
                out.arg(),
                from.partial.arg(),
                from.scale,
                from.parts as u32,
                shape,
            );
        }
    }

    /// Merges what [`attend`](Self::attend) found in several parts.
    pub(in crate::device) fn merge(&self, heads: HeadShape, from: Attend<'_>, rows: usize, out: &Buffer) {
        // SAFETY: the parts within a row's range were all written.
        unsafe {
            merge_kernel::launch_unchecked(
                &self.client,
                CubeCount::Static(heads.heads as u32, rows as u32, 1),
                CubeDim::new_1d((heads.wide / 2).next_multiple_of(self.plane) as u32),
                from.partial.arg(),
                from.spots.arg(),
                out.arg(),
                from.parts as u32,
                self.shape(heads, &from),
            );
        }
    }
}
