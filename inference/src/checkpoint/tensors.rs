//! Weights from `*.safetensors`.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Why a tensor cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorError {
    /// Not a safetensors file.
    #[error("{file} is no safetensors file: {why}")]
    File {
        /// Its name.
        file: String,
        /// What the parser found.
        why: String,
    },
    /// A tensor is not there.
    #[error(
        "tensor {name} is missing; the configuration asks for it (see `num_hidden_layers` and \
         `tie_word_embeddings`)"
    )]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor is there twice.
    #[error("tensor {name} is in more than one file; remove the files of another checkpoint")]
    Twice {
        /// Its name.
        name: String,
    },
    /// A tensor has other dimensions.
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has a number format that is not read.
    #[error("tensor {name} is {found}; F32, F16 and BF16 are read, so convert the checkpoint to one of them")]
    Dtype {
        /// Its name.
        name: String,
        /// Format in the file.
        found: String,
    },
    /// A tensor has a value that is no number.
    #[error("tensor {name} holds NaN or infinity at index {index}; the checkpoint is damaged")]
    NotFinite {
        /// Its name.
        name: String,
        /// Row-major index of the first such value.
        index: usize,
    },
}

/// The weight files of a checkpoint.
#[derive(Debug, Default)]
pub struct Tensors {
    files: Vec<(String, Vec<u8>)>,
}

impl Tensors {
    /// Checks the headers of the files.
    pub fn parse(files: Vec<(String, Vec<u8>)>) -> Result<Self, TensorError> {
        let mut names = std::collections::BTreeSet::new();
        for (file, bytes) in &files {
            for name in open(file, bytes)?.names() {
                if !names.insert(name.to_owned()) {
                    return Err(TensorError::Twice { name: name.to_owned() });
                }
            }
        }
        Ok(Self { files })
    }

    /// The tensor of this name, which must have this shape, as f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorError> {
        let owned = || name.to_owned();
        for (file, bytes) in &self.files {
            let file = open(file, bytes)?;
            let Ok(view) = file.tensor(name) else { continue };
            if view.shape() != shape {
                let found = view.shape().to_vec();
                return Err(TensorError::Shape { name: owned(), found, expected: shape.to_vec() });
            }
            let values = to_f32(view.dtype(), view.data())
                .ok_or_else(|| TensorError::Dtype { name: owned(), found: format!("{:?}", view.dtype()) })?;
            return match values.iter().position(|v| !v.is_finite()) {
                Some(index) => Err(TensorError::NotFinite { name: owned(), index }),
                None => Ok(values),
            };
        }
        Err(TensorError::Missing { name: owned() })
    }
}

fn open<'a>(file: &str, bytes: &'a [u8]) -> Result<SafeTensors<'a>, TensorError> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| TensorError::File { file: file.to_owned(), why: e.to_string() })
}

fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let halves = || data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    match dtype {
        Dtype::F32 => Some(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(halves().map(|b| f16::from_bits(b).to_f32()).collect()),
        Dtype::BF16 => Some(halves().map(|b| bf16::from_bits(b).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{TensorView, serialize};

    use super::*;

    fn file(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> (String, Vec<u8>) {
        let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
        ("model.safetensors".into(), serialize([(name, view)], None).unwrap())
    }

    #[test]
    fn all_three_formats_become_f32() {
        let f32s = file("x", Dtype::F32, &[1, 2], &[0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0]);
        let f16s = file("x", Dtype::F16, &[1, 2], &[0, 0x3C, 0, 0xC0]);
        let bf16s = file("x", Dtype::BF16, &[1, 2], &[0x80, 0x3F, 0, 0xC0]);
        for file in [f32s, f16s, bf16s] {
            let tensors = Tensors::parse(vec![file]).unwrap();
            assert_eq!(tensors.get("x", &[1, 2]).unwrap(), [1.0, -2.0]);
        }
    }

    #[test]
    fn each_defect_names_its_tensor() {
        let get = |dtype, data: &[u8], shape: &[usize]| {
            Tensors::parse(vec![file("w.weight", dtype, shape, data)]).unwrap().get("w.weight", &[2])
        };
        let nan = [0, 0, 0x80, 0x3F, 0, 0, 0xC0, 0x7F];
        assert!(matches!(get(Dtype::F32, &nan, &[2]), Err(TensorError::NotFinite { index: 1, .. })));
        assert!(matches!(get(Dtype::I8, &[0, 0], &[2]), Err(TensorError::Dtype { .. })));
        assert!(matches!(get(Dtype::F32, &nan, &[1, 2]), Err(TensorError::Shape { .. })));
        let missing = Tensors::default().get("w.weight", &[2]).unwrap_err();
        assert!(missing.to_string().starts_with("tensor w.weight is missing"));
        let twice = file("a", Dtype::I8, &[1], &[0]);
        assert!(matches!(Tensors::parse(vec![twice.clone(), twice]), Err(TensorError::Twice { .. })));
        let cut = ("model.safetensors".to_owned(), vec![9, 0, 0, 0, 0, 0, 0, 0, b'{']);
        assert!(matches!(Tensors::parse(vec![cut]), Err(TensorError::File { .. })));
    }
}
