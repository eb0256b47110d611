//! Parameters by their Hugging Face names.
//!
//! One table of names and shapes says what is read, in which order.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::layer::Layer;
use super::{Qwen3, Qwen3Config};

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
}
