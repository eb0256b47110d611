//! Weights from `*.safetensors`, in one file or in shards.
//!
//! A sharded checkpoint has a `model.safetensors.index.json` whose `weight_map` says which file holds
//! which tensor; then a tensor is taken from there and nowhere else. Headers are parsed once; data is
//! converted when a tensor is asked for.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// The file that maps tensors to shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

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
    /// The index cannot be read.
    #[error("{INDEX_FILE}: {why}")]
    Index {
        /// What was found and what was expected.
        why: String,
    },
    /// The index names something that cannot be a shard.
    #[error(
        "{INDEX_FILE}: tensor {name} is said to be in {shard:?}; a shard is a `*.safetensors` file in the same folder"
    )]
    ShardName {
        /// The tensor.
        name: String,
        /// What the index names.
        shard: String,
    },
    /// A shard is not there.
    #[error("{shard} is missing, in which {INDEX_FILE} puts tensor {name}; fetch it again")]
    MissingShard {
        /// The shard.
        shard: String,
        /// A tensor in it.
        name: String,
    },
    /// A shard has not what the index says.
    #[error("{shard} holds no tensor {name}, though {INDEX_FILE} says so; fetch both files again")]
    NotInShard {
        /// The shard.
        shard: String,
        /// The tensor.
        name: String,
    },
    /// A tensor is not there.
    #[error(
        "tensor {name} is missing from {place}; the configuration asks for it (see `num_hidden_layers` and \
         `tie_word_embeddings`)"
    )]
    Missing {
        /// Its name.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// A tensor is there twice.
    #[error("tensor {name} is in {first} and in {second}; remove the files of another checkpoint")]
    Twice {
        /// Its name.
        name: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor has other dimensions.
    #[error("{file}: tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// The file.
        file: String,
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has a number format that is not read.
    #[error(
        "{file}: tensor {name} is {found}; F32, F16 and BF16 are read, so convert the checkpoint to one of them"
    )]
    Dtype {
        /// The file.
        file: String,
        /// Its name.
        name: String,
        /// Format in the file.
        found: String,
    },
    /// A tensor has a value that is no number.
    #[error("{file}: tensor {name} holds NaN or infinity at index {index}; the checkpoint is damaged")]
    NotFinite {
        /// The file.
        file: String,
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
    tensors: BTreeMap<String, Entry>,
    sharded: bool,
}

/// Where a tensor is.
#[derive(Debug)]
struct Entry {
    /// Index into the files.
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file.
    start: usize,
    end: usize,
}

impl Tensors {
    /// Checks the headers of the files, and, where there is an index, that each shard is there and
    /// holds what the index says.
    pub fn parse(files: Vec<(String, Vec<u8>)>, index: Option<&[u8]>) -> Result<Self, TensorError> {
        let shard_of = index.map(weight_map).transpose()?;
        if let Some(shard_of) = &shard_of {
            for (name, shard) in shard_of {
                if !files.iter().any(|(file, _)| file == shard) {
                    return Err(TensorError::MissingShard { shard: shard.clone(), name: name.clone() });
                }
            }
        }
        let mut tensors = BTreeMap::<String, Entry>::new();
        for (file, (file_name, bytes)) in files.iter().enumerate() {
            for (name, entry) in entries(file, file_name, bytes)? {
                if shard_of.as_ref().is_some_and(|map| map.get(&name) != Some(file_name)) {
                    continue;
                }
                if let Some(first) = tensors.get(&name).and_then(|first| files.get(first.file)) {
                    let (first, second) = (first.0.clone(), file_name.clone());
                    return Err(TensorError::Twice { name, first, second });
                }
                tensors.insert(name, entry);
            }
        }
        let sharded = shard_of.is_some();
        for (name, shard) in shard_of.unwrap_or_default() {
            if !tensors.contains_key(&name) {
                return Err(TensorError::NotInShard { shard, name });
            }
        }
        Ok(Self { files, tensors, sharded })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name, which must have this shape, as f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorError> {
        let name = || name.to_owned();
        let found = self.tensors.get(&name());
        let Some((entry, (file, bytes))) = found.and_then(|e| Some((e, self.files.get(e.file)?))) else {
            return Err(TensorError::Missing { name: name(), place: self.place() });
        };
        let file = || file.clone();
        if entry.shape != shape {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(TensorError::Shape { file: file(), name: name(), found, expected });
        }
        let data = bytes.get(entry.start..entry.end).unwrap_or_default();
        let values = to_f32(entry.dtype, data).ok_or_else(|| TensorError::Dtype {
            file: file(),
            name: name(),
            found: format!("{:?}", entry.dtype),
        })?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(TensorError::NotFinite { file: file(), name: name(), index }),
            None => Ok(values),
        }
    }

    fn place(&self) -> String {
        match (&self.files[..], self.sharded) {
            (_, true) => INDEX_FILE.into(),
            ([], _) => "the checkpoint, which has no `*.safetensors`".into(),
            ([(file, _)], _) => file.clone(),
            (files, _) => format!("all {} `*.safetensors`", files.len()),
        }
    }
}

/// Tensor to shard, from the index. How many there are is bounded by the size of the file.
fn weight_map(index: &[u8]) -> Result<BTreeMap<String, String>, TensorError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|e| TensorError::Index { why: e.to_string() })?;
    for (name, shard) in &index.weight_map {
        if !shard.ends_with(".safetensors") || !crate::manifest::is_model_file(shard) {
            let short = |text: &str| text.chars().take(200).collect();
            return Err(TensorError::ShardName { name: short(name), shard: short(shard) });
        }
    }
    if index.weight_map.is_empty() {
        return Err(TensorError::Index { why: "`weight_map` is empty".into() });
    }
    Ok(index.weight_map)
}

/// The tensors of one file. The parser checks that their data lie within it and fit their shapes.
fn entries(file: usize, file_name: &str, bytes: &[u8]) -> Result<Vec<(String, Entry)>, TensorError> {
    let fail = |why: String| TensorError::File { file: file_name.to_owned(), why };
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| fail(e.to_string()))?;
    // Eight bytes of header length, the header, the data.
    let data = header + 8;
    let entry = |info: &safetensors::tensor::TensorInfo| {
        let (start, end) = info.data_offsets;
        Entry { file, dtype: info.dtype, shape: info.shape.clone(), start: data + start, end: data + end }
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
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
    use serde_json::json;

    use super::*;

    fn named(file: &str, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> (String, Vec<u8>) {
        let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
        (file.into(), serialize([(name, view)], None).unwrap())
    }

    fn file(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> (String, Vec<u8>) {
        named("model.safetensors", name, dtype, shape, data)
    }

    #[test]
    fn all_three_formats_become_f32() {
        let f32s = file("x", Dtype::F32, &[1, 2], &[0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0]);
        let f16s = file("x", Dtype::F16, &[1, 2], &[0, 0x3C, 0, 0xC0]);
        let bf16s = file("x", Dtype::BF16, &[1, 2], &[0x80, 0x3F, 0, 0xC0]);
        for file in [f32s, f16s, bf16s] {
            let tensors = Tensors::parse(vec![file], None).unwrap();
            assert_eq!(tensors.get("x", &[1, 2]).unwrap(), [1.0, -2.0]);
        }
    }

    #[test]
    fn each_defect_names_its_tensor() {
        let get = |dtype, data: &[u8], shape: &[usize]| {
            let file = file("w.weight", dtype, shape, data);
            Tensors::parse(vec![file], None).unwrap().get("w.weight", &[2]).unwrap_err()
        };
        let nan = [0, 0, 0x80, 0x3F, 0, 0, 0xC0, 0x7F];
        let infinite = [0, 0, 0x80, 0x7F];
        assert!(matches!(get(Dtype::F32, &nan, &[2]), TensorError::NotFinite { index: 1, .. }));
        assert!(matches!(get(Dtype::BF16, &infinite, &[2]), TensorError::NotFinite { index: 1, .. }));
        assert!(matches!(get(Dtype::I8, &[0, 0], &[2]), TensorError::Dtype { .. }));
        assert!(matches!(get(Dtype::F32, &nan, &[1, 2]), TensorError::Shape { .. }));
        for error in [get(Dtype::F32, &nan, &[2]), get(Dtype::I8, &[0, 0], &[2])] {
            assert!(error.to_string().starts_with("model.safetensors: tensor w.weight"), "{error}");
        }
        let missing = Tensors::default().get("w.weight", &[2]).unwrap_err();
        assert!(missing.to_string().starts_with("tensor w.weight is missing"));
        let twice = file("a", Dtype::I8, &[1], &[0]);
        assert!(matches!(Tensors::parse(vec![twice.clone(), twice], None), Err(TensorError::Twice { .. })));
        let cut = ("model.safetensors".to_owned(), vec![9, 0, 0, 0, 0, 0, 0, 0, b'{']);
        assert!(matches!(Tensors::parse(vec![cut], None), Err(TensorError::File { .. })));
    }

    fn sharded(map: &serde_json::Value) -> Result<Tensors, TensorError> {
        let one = named("1.safetensors", "a", Dtype::F32, &[1], &1f32.to_le_bytes());
        let two = named("2.safetensors", "b", Dtype::F32, &[1], &2f32.to_le_bytes());
        // Another checkpoint's file beside the shards is not looked at.
        let other = named("other.safetensors", "a", Dtype::F32, &[1], &9f32.to_le_bytes());
        let index = json!({"metadata": {"total_size": 8}, "weight_map": map}).to_string();
        Tensors::parse(vec![one, other, two], Some(index.as_bytes()))
    }

    #[test]
    fn shards_are_read_where_the_index_says() {
        let tensors = sharded(&json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap();
        assert_eq!(tensors.get("a", &[1]).unwrap(), [1.0]);
        assert_eq!(tensors.get("b", &[1]).unwrap(), [2.0]);
        let error = tensors.get("c", &[1]).unwrap_err().to_string();
        assert!(error.starts_with("tensor c is missing from model.safetensors.index.json"), "{error}");
    }

    #[test]
    fn each_defect_of_an_index_is_named() {
        let error = |map| sharded(&map).unwrap_err();
        assert!(matches!(error(json!({"a": "3.safetensors"})), TensorError::MissingShard { .. }));
        assert!(matches!(error(json!({"a": "2.safetensors"})), TensorError::NotInShard { .. }));
        for escape in ["../1.safetensors", "/1.safetensors", "x\\1.safetensors", "1.bin", ""] {
            let error = error(json!({"a": escape}));
            assert!(matches!(error, TensorError::ShardName { .. }), "{escape}: {error}");
        }
        assert!(matches!(error(json!({})), TensorError::Index { .. }));
        assert!(matches!(error(json!({"a": 1})), TensorError::Index { .. }));
        assert!(matches!(error(json!([])), TensorError::Index { .. }));
    }
}
