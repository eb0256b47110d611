//! What the tokens of one step see of their sequence.

use burn::tensor::{Device, Tensor, TensorData};

use super::rope::Rope;
use super::{Attention, DecoderConfig};

/// Added to the score of a key that a query must not see. Finite, so that no row of scores can
/// become NaN; e to this power is zero in f32 beside any real score.
const MASKED: f32 = -1e9;

/// Rows of a batch: `batch` sequences of `time` tokens each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) batch: usize,
    pub(super) time: usize,
}

/// Positions and visibility of one step, for all layers of equal [`Attention`].
#[derive(Debug)]
pub(super) struct View {
    pub(super) rope: Rope,
    /// Added to the scores, `[1, 1, group · time, time]`. A single token sees itself and needs none.
    pub(super) mask: Option<Tensor<4>>,
}

impl View {
    /// For the first `time` tokens of a sequence.
    pub(super) fn new(config: &DecoderConfig, attention: Attention, time: usize, device: &Device) -> Self {
        let group = config.num_attention_heads / config.num_key_value_heads;
        let mask = (time > 1).then(|| {
            let values = mask(time, group, attention.window);
            Tensor::from_data(TensorData::new(values, [1, 1, group * time, time]), device)
        });
        Self { rope: Rope::new(time, config.head_dim, attention.rotary, device), mask }
    }
}

/// The first key that the token at `position` sees.
pub(super) fn first_key(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Row-major `[group · time, time]`: the query at `position` sees keys `first_key(position)..=position`.
fn mask(time: usize, group: usize, window: Option<usize>) -> Vec<f32> {
    let mut mask = Vec::with_capacity(group * time * time);
    for position in 0..time {
        let seen = first_key(position, window)..=position;
        mask.extend((0..time).map(|key| if seen.contains(&key) { 0.0 } else { MASKED }));
    }
    let one_head = mask.len();
    for _ in 1..group {
        mask.extend_from_within(..one_head);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(time: usize, group: usize, window: Option<usize>) -> String {
        mask(time, group, window).iter().map(|&m| if m == 0.0 { 'x' } else { '.' }).collect()
    }

    #[test]
    fn without_a_window_a_token_sees_itself_and_all_before() {
        assert_eq!(seen(3, 1, None), ["x..", "xx.", "xxx"].concat());
        assert_eq!(seen(2, 2, None), ["x.", "xx", "x.", "xx"].concat());
    }

    #[test]
    fn with_a_window_it_sees_that_many() {
        assert_eq!(seen(4, 1, Some(2)), ["x...", "xx..", ".xx.", "..xx"].concat());
        assert_eq!(first_key(5, Some(3)), 3);
    }
}
