//! The tensors of a checkpoint that is in memory, as `f32`.

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;

use super::index::{Index, TensorError, head_of};

/// The weight files of a checkpoint. Data are converted when a tensor is asked for.
#[derive(Debug, Default)]
pub struct Tensors {
    files: Vec<Vec<u8>>,
    index: Index,
}

impl Tensors {
    /// Checks the headers of the files, and, where there is an index, that each shard is there and
    /// holds what the index says.
    pub fn parse(files: Vec<(String, Vec<u8>)>, index: Option<&[u8]>) -> Result<Self, TensorError> {
        let heads = files.iter().map(|(name, bytes)| (name.as_str(), head_of(bytes), bytes.len() as u64));
        let index = Index::new(heads, index)?;
        Ok(Self { files: files.into_iter().map(|(_, bytes)| bytes).collect(), index })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains(name)
    }

    /// The tensor of this name, which must have this shape, as f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorError> {
        let (entry, file) = self.index.find(name, shape)?;
        let bytes = self.files.get(entry.file).and_then(|bytes| bytes.get(entry.start..entry.end));
        let mut values = vec![0.0; shape.iter().product()];
        widen(entry.dtype, bytes.unwrap_or_default(), &mut values);
        match not_finite(&values) {
            Some(index) => {
                Err(TensorError::NotFinite { file: file.to_owned(), name: name.to_owned(), index })
            }
            None => Ok(values),
        }
    }
}

/// Values of one of the three formats that are read.
pub(super) fn widen(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<4>();
    let (halves, _) = bytes.as_chunks::<2>();
    match dtype {
        Dtype::F32 => to.iter_mut().zip(words).for_each(|(to, b)| *to = f32::from_le_bytes(*b)),
        Dtype::BF16 => {
            let bits = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            to.iter_mut().zip(halves).for_each(|(to, b)| *to = bits(b));
        }
        // By the processor's own instruction, which is asked for once in 64 values.
        _ => {
            for (to, bytes) in to.chunks_mut(64).zip(halves.chunks(64)) {
                let mut values = [f16::ZERO; 64];
                values.iter_mut().zip(bytes).for_each(|(v, b)| *v = f16::from_bits(u16::from_le_bytes(*b)));
                values[..to.len()].convert_to_f32_slice(to);
            }
        }
    }
}

/// The index of the first value that is NaN or infinite.
pub(super) fn not_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    // Without an early end, so that vectors do it.
    let any = values.iter().fold(false, |any, v| any | (v.to_bits() & EXPONENT == EXPONENT));
    if any { values.iter().position(|v| !v.is_finite()) } else { None }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{TensorView, serialize};
    use serde_json::json;

    use super::super::index::TensorError;
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
