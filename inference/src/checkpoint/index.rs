//! Which tensors the weight files hold, and where.
//!
//! A safetensors file begins with eight bytes of length and a header of names, formats, shapes and places; the data
//! follow without gaps. A sharded checkpoint has a `model.safetensors.index.json` whose `weight_map` says which file
//! holds which tensor; then a tensor is taken from there and nowhere else.

use std::collections::BTreeMap;
use std::io::{self, Read};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

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

/// Longest header; that of a shard of a large model has some hundred kilobytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The length of the header.
const LENGTH_BYTES: usize = 8;

/// The beginning of a safetensors file, up to the data.
pub(super) fn read_head(from: &mut dyn Read, size: u64) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    (&mut *from).take(LENGTH_BYTES as u64).read_to_end(&mut head)?;
    let length = head.as_array().map_or(0, |length| u64::from_le_bytes(*length));
    // A length that cannot be is left for `tensors` to refuse.
    if length <= MAX_HEADER_BYTES.min(size) {
        from.take(length).read_to_end(&mut head)?;
    }
    Ok(head)
}

/// The beginning of a safetensors file that is in memory.
pub(super) fn head_of(bytes: &[u8]) -> &[u8] {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    let end = usize::try_from(length).ok().and_then(|length| length.checked_add(LENGTH_BYTES));
    end.and_then(|end| bytes.get(..end)).unwrap_or(&bytes[..bytes.len().min(LENGTH_BYTES)])
}

/// A tensor of a checkpoint.
#[derive(Debug)]
pub(super) struct Entry {
    /// The number of the file.
    pub(super) file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Byte range in the file.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The tensors of all weight files.
#[derive(Debug, Default)]
pub(super) struct Index {
    files: Vec<String>,
    tensors: BTreeMap<String, Entry>,
    sharded: bool,
}

impl Index {
    /// Checks the beginnings of the files, `(name, beginning, size)`, and, where there is an index, that each shard
    /// is there and holds what the index says.
    pub(super) fn new<'a>(
        files: impl Iterator<Item = (&'a str, &'a [u8], u64)> + Clone,
        index: Option<&[u8]>,
    ) -> Result<Self, TensorError> {
        let names: Vec<String> = files.clone().map(|(name, ..)| name.to_owned()).collect();
        let shard_of = index.map(weight_map).transpose()?;
        if let Some(shard_of) = &shard_of {
            for (name, shard) in shard_of {
                if !names.contains(shard) {
                    return Err(TensorError::MissingShard { shard: shard.clone(), name: name.clone() });
                }
            }
        }
        let mut all = BTreeMap::<String, Entry>::new();
        for (file, (file_name, head, size)) in files.enumerate() {
            for (name, entry) in tensors(file, file_name, head, size)? {
                if shard_of.as_ref().is_some_and(|map| map.get(&name).is_none_or(|of| of != file_name)) {
                    continue;
                }
                if let Some(first) = all.get(&name).and_then(|first| names.get(first.file)) {
                    let (first, second) = (first.clone(), file_name.to_owned());
                    return Err(TensorError::Twice { name, first, second });
                }
                all.insert(name, entry);
            }
        }
        let sharded = shard_of.is_some();
        for (name, shard) in shard_of.unwrap_or_default() {
            if !all.contains_key(&name) {
                return Err(TensorError::NotInShard { shard, name });
            }
        }
        Ok(Self { files: names, tensors: all, sharded })
    }

    /// The names of the files.
    pub(super) fn files(&self) -> &[String] {
        &self.files
    }

    /// The number format and the number of values of each tensor.
    pub(super) fn formats(&self) -> impl Iterator<Item = (String, u64)> {
        let values = |shape: &[usize]| shape.iter().fold(1_u64, |all, n| all.saturating_mul(*n as u64));
        self.tensors
            .values()
            .map(move |entry| (format!("{:?}", entry.dtype).to_lowercase(), values(&entry.shape)))
    }

    /// Whether there is a tensor of this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name, which must have this shape and a format that is read, and the name of its file.
    pub(super) fn find(&self, name: &str, shape: &[usize]) -> Result<(&Entry, &str), TensorError> {
        let name = || name.to_owned();
        let found = self.tensors.get(&name());
        let Some((entry, file)) = found.and_then(|entry| Some((entry, self.files.get(entry.file)?))) else {
            return Err(TensorError::Missing { name: name(), place: self.place() });
        };
        if entry.shape != shape {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(TensorError::Shape { file: file.clone(), name: name(), found, expected });
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let found = format!("{:?}", entry.dtype);
            return Err(TensorError::Dtype { file: file.clone(), name: name(), found });
        }
        Ok((entry, file))
    }

    fn place(&self) -> String {
        match (&self.files[..], self.sharded) {
            (_, true) => INDEX_FILE.into(),
            ([], _) => "the checkpoint, which has no `*.safetensors`".into(),
            ([file], _) => file.clone(),
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

/// The tensors of one file. Their data lie within it one after the other, and fit their shapes.
fn tensors(
    file: usize,
    file_name: &str,
    head: &[u8],
    size: u64,
) -> Result<Vec<(String, Entry)>, TensorError> {
    let fail = |why: String| TensorError::File { file: file_name.to_owned(), why };
    let Some((length, header)) = head.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(fail(format!("it has {size} bytes")));
    };
    let length = u64::from_le_bytes(*length);
    if length != header.len() as u64 || length > MAX_HEADER_BYTES {
        return Err(fail(format!(
            "its header would have {length} bytes; it was cut off, or is another file"
        )));
    }
    // The parser checks that the data have no gaps and fit their shapes.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| fail(e.to_string()))?;
    let expected = (head.len() as u64).saturating_add(metadata.data_len() as u64);
    if expected != size {
        return Err(fail(format!("it has {size} bytes, by its header {expected}; fetch it again")));
    }
    let entry = |info: &safetensors::tensor::TensorInfo| {
        let (start, end) = info.data_offsets;
        let (start, end) = (head.len() + start, head.len() + end);
        Entry { file, dtype: info.dtype, shape: info.shape.clone(), start, end }
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}
