//! One vector of many: how the rows of a text's tokens become its embedding.

/// How the rows of a text are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Their mean.
    Mean,
    /// The first row, that of the token the tokenizer puts before every text.
    Cls,
    /// The largest value of each column.
    Max,
    /// Their sum by the root of their number.
    MeanSqrtLen,
}

/// Below this length a vector is divided by this instead, as PyTorch does, so that zeros stay zeros.
const SHORTEST: f64 = 1e-12;

impl Pooling {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Mean, Self::Cls, Self::Max, Self::MeanSqrtLen];

    /// Its name in sentence-transformers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::MeanSqrtLen => "mean_sqrt_len_tokens",
        }
    }

    /// Its flag in files of versions up to 5.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Mean => "pooling_mode_mean_tokens",
            Self::Cls => "pooling_mode_cls_token",
            Self::Max => "pooling_mode_max_tokens",
            Self::MeanSqrtLen => "pooling_mode_mean_sqrt_len_tokens",
        }
    }

    /// The vector of some rows of `width` values, of which there is at least one. Rows are added in order, so that
    /// the result is always the same.
    pub(super) fn pool(self, rows: &[f32], width: usize) -> Vec<f32> {
        let count = (rows.len() / width) as f32;
        match self {
            Self::Mean => sum(rows, width, count),
            Self::MeanSqrtLen => sum(rows, width, count.sqrt()),
            Self::Cls => rows[..width].to_vec(),
            Self::Max => {
                let mut largest = rows[..width].to_vec();
                for row in rows.chunks_exact(width).skip(1) {
                    for (largest, x) in largest.iter_mut().zip(row) {
                        // Not `max`, which would drop what is not a number.
                        if *x > *largest || x.is_nan() {
                            *largest = *x;
                        }
                    }
                }
                largest
            }
        }
    }
}

fn sum(rows: &[f32], width: usize, divisor: f32) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums.iter_mut().for_each(|sum| *sum /= divisor);
    sums
}

/// Gives a vector length one.
pub(super) fn normalise(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|x| f64::from(*x).powi(2)).sum();
    let length = squares.sqrt().max(SHORTEST);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_pooling_is_what_its_name_says() {
        let rows = [1.0, -2.0, 3.0, -6.0, 2.0, -1.0, 2.0, -3.0];
        let pool = |pooling: Pooling| pooling.pool(&rows, 2);
        assert_eq!(pool(Pooling::Mean), [2.0, -3.0]);
        assert_eq!(pool(Pooling::MeanSqrtLen), [4.0, -6.0]);
        assert_eq!(pool(Pooling::Cls), [1.0, -2.0]);
        assert_eq!(pool(Pooling::Max), [3.0, -1.0]);
    }

    #[test]
    fn no_way_of_pooling_hides_what_is_not_a_number() {
        for pooling in [Pooling::Mean, Pooling::MeanSqrtLen, Pooling::Max] {
            assert!(pooling.pool(&[1.0, f32::NAN, 2.0], 1)[0].is_nan(), "{pooling:?}");
        }
    }

    #[test]
    fn a_normalised_vector_has_length_one_and_zeros_stay() {
        let mut vector = [3.0, -4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, -0.8]);
        let mut zeros = [0.0; 3];
        normalise(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
        let mut huge = [f32::MAX; 4];
        normalise(&mut huge);
        assert_eq!(huge, [0.5; 4]);
    }
}
