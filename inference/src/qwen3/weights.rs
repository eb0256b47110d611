//! Parameters by their Hugging Face names.
//!
//! One table of names and shapes serves reading, writing and random initialisation.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layer::Layer;
use super::{Qwen3, Qwen3Config};

/// A tensor on the host, f32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values.
    pub data: Vec<f32>,
}

/// Names and shapes of all tensors of a checkpoint of these dimensions, in a fixed order.
pub fn layout(config: &Qwen3Config) -> Vec<(String, Vec<usize>)> {
    let (d, width) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * width, config.num_key_value_heads * width);
    let ffn = config.intermediate_size;
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, d])];
    for i in 0..config.num_hidden_layers {
        let mut layer = |name: &str, shape: &[usize]| {
            all.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec()));
        };
        layer("input_layernorm", &[d]);
        layer("self_attn.q_proj", &[q, d]);
        layer("self_attn.k_proj", &[kv, d]);
        layer("self_attn.v_proj", &[kv, d]);
        layer("self_attn.q_norm", &[width]);
        layer("self_attn.k_norm", &[width]);
        layer("self_attn.o_proj", &[d, q]);
        layer("post_attention_layernorm", &[d]);
        layer("mlp.gate_proj", &[ffn, d]);
        layer("mlp.up_proj", &[ffn, d]);
        layer("mlp.down_proj", &[d, ffn]);
    }
    all.push(("model.norm.weight".to_owned(), vec![d]));
    if !config.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![config.vocab_size, d]));
    }
    all
}

impl Qwen3 {
    /// Builds a decoder from tensors that `fetch` hands out by name and shape, in the order of
    /// [`layout`]. `fetch` vouches for the number of values.
    pub fn from_tensors<E>(
        config: Qwen3Config,
        device: &Device,
        mut fetch: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let mut names = layout(&config).into_iter();
        // `layout` lists exactly what is taken below; an empty tensor could only follow a slip
        // here, and the parity test would see it.
        let mut next = || -> Result<(Vec<f32>, Vec<usize>), E> {
            let (name, shape) = names.next().unwrap_or_default();
            Ok((fetch(&name, &shape)?, shape))
        };
        // Matrices of equal width become one, row under row.
        let matrix = |parts: Vec<(Vec<f32>, Vec<usize>)>| {
            let columns = parts.first().and_then(|(_, shape)| shape.get(1)).copied().unwrap_or(0);
            let rows = parts.iter().filter_map(|(_, shape)| shape.first()).sum::<usize>();
            let data: Vec<f32> = parts.into_iter().flat_map(|(data, _)| data).collect();
            Param::from_tensor(Tensor::<2>::from_data(TensorData::new(data, [rows, columns]), device))
        };
        let vector = |(data, shape): (Vec<f32>, Vec<usize>)| {
            Param::from_tensor(Tensor::<1>::from_data(TensorData::new(data, shape), device))
        };
        let embed = matrix(vec![next()?]);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for _ in 0..config.num_hidden_layers {
            layers.push(Layer {
                input_norm: vector(next()?),
                qkv: matrix(vec![next()?, next()?, next()?]),
                q_norm: vector(next()?),
                k_norm: vector(next()?),
                o: matrix(vec![next()?]),
                post_norm: vector(next()?),
                gate_up: matrix(vec![next()?, next()?]),
                down: matrix(vec![next()?]),
            });
        }
        let norm = vector(next()?);
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(matrix(vec![next()?])),
        };
        Ok(Self { embed, layers, norm, lm_head, config })
    }

    /// A decoder to be trained: norms are one, matrices normal with deviation 0.02, and those that
    /// write into the residual stream smaller by √(2·layers), as in GPT-2. Equal seeds give equal
    /// weights on every machine.
    pub fn init(config: Qwen3Config, seed: u64, device: &Device) -> Self {
        let residual = 0.02 / (2.0 * config.num_hidden_layers as f64).sqrt();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let made = Self::from_tensors(config, device, |name, shape| {
            let count = shape.iter().product();
            let deviation = match name {
                _ if shape.len() == 1 => return Ok(vec![1.0; count]),
                _ if name.contains("o_proj") || name.contains("down_proj") => residual,
                _ => 0.02,
            };
            Ok::<_, std::convert::Infallible>(
                (0..count).map(|_| (normal(&mut rng) * deviation) as f32).collect(),
            )
        });
        match made {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }

    /// All tensors by name, in the order of [`layout`].
    pub fn to_tensors(&self) -> Vec<NamedTensor> {
        let width = self.config.head_dim;
        let q = self.config.num_attention_heads * width;
        let kv = self.config.num_key_value_heads * width;
        let ffn = self.config.intermediate_size;
        let mut values: Vec<Vec<f32>> = Vec::new();
        let rows = |m: &Param<Tensor<2>>, range: std::ops::Range<usize>| host(m.val().slice_dim(0, range));
        let whole = |m: &Param<Tensor<2>>| host(m.val());
        let vector = |v: &Param<Tensor<1>>| host(v.val());
        values.push(whole(&self.embed));
        for layer in &self.layers {
            values.extend([
                vector(&layer.input_norm),
                rows(&layer.qkv, 0..q),
                rows(&layer.qkv, q..q + kv),
                rows(&layer.qkv, q + kv..q + 2 * kv),
                vector(&layer.q_norm),
                vector(&layer.k_norm),
                whole(&layer.o),
                vector(&layer.post_norm),
                rows(&layer.gate_up, 0..ffn),
                rows(&layer.gate_up, ffn..2 * ffn),
                whole(&layer.down),
            ]);
        }
        values.push(vector(&self.norm));
        values.extend(self.lm_head.as_ref().map(whole));
        layout(&self.config)
            .into_iter()
            .zip(values)
            .map(|((name, shape), data)| NamedTensor { name, shape, data })
            .collect()
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// A standard normal value (Box and Muller, 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let (u, v) = (uniform(), uniform());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
