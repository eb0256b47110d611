//! Parameters by their Hugging Face names.
//!
//! One table of names and shapes says what is read, in which order.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::layer::Layer;
use super::{Decoder, DecoderConfig};

/// Names and shapes of all tensors of a checkpoint of these dimensions, in a fixed order.
pub fn layout(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (d, width) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * width, config.num_key_value_heads * width);
    let (ffn, family) = (config.intermediate_size, config.family);
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, d])];
    for i in 0..config.layers.len() {
        let mut put = |name: &str, shape: &[usize]| {
            all.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        };
        put("input_layernorm.weight", &[d]);
        put("self_attn.q_proj.weight", &[q, d]);
        put("self_attn.k_proj.weight", &[kv, d]);
        put("self_attn.v_proj.weight", &[kv, d]);
        put("self_attn.o_proj.weight", &[d, q]);
        if config.attention_bias {
            put("self_attn.q_proj.bias", &[q]);
            put("self_attn.k_proj.bias", &[kv]);
            put("self_attn.v_proj.bias", &[kv]);
            put("self_attn.o_proj.bias", &[d]);
        }
        if family.normalises_heads() {
            put("self_attn.q_norm.weight", &[width]);
            put("self_attn.k_norm.weight", &[width]);
        }
        // Without output norms, `post_attention_layernorm` stands before the feed-forward part; with
        // them it is what its name says.
        put("post_attention_layernorm.weight", &[d]);
        if family.normalises_outputs() {
            put("pre_feedforward_layernorm.weight", &[d]);
            put("post_feedforward_layernorm.weight", &[d]);
        }
        put("mlp.gate_proj.weight", &[ffn, d]);
        put("mlp.up_proj.weight", &[ffn, d]);
        put("mlp.down_proj.weight", &[d, ffn]);
    }
    all.push(("model.norm.weight".to_owned(), vec![d]));
    if !config.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![config.vocab_size, d]));
    }
    all
}

/// Tensors in the order of [`layout`].
struct Reader<'a, F> {
    names: std::vec::IntoIter<(String, Vec<usize>)>,
    fetch: F,
    norm_offset: f32,
    device: &'a Device,
}

impl<F, E> Reader<'_, F>
where
    F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
{
    fn next(&mut self) -> Result<(Vec<f32>, Vec<usize>), E> {
        // `layout` lists exactly what `from_tensors` takes; an empty tensor could only follow a slip
        // there, and the parity test would see it.
        let (name, shape) = self.names.next().unwrap_or_default();
        Ok(((self.fetch)(&name, &shape)?, shape))
    }

    /// The next `parts` matrices of equal width as one, row under row.
    fn matrix(&mut self, parts: usize) -> Result<Param<Tensor<2>>, E> {
        let (mut data, mut rows, mut columns) = (Vec::new(), 0, 0);
        for _ in 0..parts {
            let (part, shape) = self.next()?;
            if let [height, width] = shape[..] {
                (rows, columns) = (rows + height, width);
            }
            // The first part is taken as it is: the largest matrices are single and need no copy.
            if data.is_empty() { data = part } else { data.extend(part) }
        }
        let data = TensorData::new(data, [rows, columns]);
        Ok(Param::from_tensor(Tensor::from_data(data, self.device)))
    }

    fn vector(&self, data: Vec<f32>) -> Param<Tensor<1>> {
        let length = data.len();
        Param::from_tensor(Tensor::from_data(TensorData::new(data, [length]), self.device))
    }

    /// The next `parts` vectors as one.
    fn bias(&mut self, parts: usize) -> Result<Param<Tensor<1>>, E> {
        let mut data = Vec::new();
        for _ in 0..parts {
            data.extend(self.next()?.0);
        }
        Ok(self.vector(data))
    }

    /// The next norm weight, as it is multiplied.
    fn norm_values(&mut self) -> Result<Vec<f32>, E> {
        let mut weight = self.next()?.0;
        if self.norm_offset != 0.0 {
            weight.iter_mut().for_each(|w| *w += self.norm_offset);
        }
        Ok(weight)
    }

    fn norm(&mut self) -> Result<Param<Tensor<1>>, E> {
        let values = self.norm_values()?;
        Ok(self.vector(values))
    }

    /// The next two norm weights, of queries and keys, repeated for each head.
    fn head_norms(&mut self, config: &DecoderConfig) -> Result<Param<Tensor<2>>, E> {
        let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
        let scale = config.query_scale as f32;
        let query: Vec<f32> = self.norm_values()?.into_iter().map(|w| w * scale).collect();
        let mut data = query.repeat(heads);
        data.extend(self.norm_values()?.repeat(kv));
        let data = TensorData::new(data, [heads + kv, config.head_dim]);
        Ok(Param::from_tensor(Tensor::from_data(data, self.device)))
    }
}

impl Decoder {
    /// Builds a decoder from tensors that `fetch` hands out by name and shape, in the order of
    /// [`layout`]. `fetch` vouches for the number of values.
    pub fn from_tensors<E>(
        config: DecoderConfig,
        device: &Device,
        fetch: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let family = config.family;
        let names = layout(&config).into_iter();
        let mut reader = Reader { names, fetch, norm_offset: family.norm_offset(), device };
        let embed = reader.matrix(1)?;
        let mut layers = Vec::with_capacity(config.layers.len());
        for _ in 0..config.layers.len() {
            let attention_norm = reader.norm()?;
            let (qkv, o) = (reader.matrix(3)?, reader.matrix(1)?);
            let (qkv_bias, o_bias) = match config.attention_bias {
                true => (Some(reader.bias(3)?), Some(reader.bias(1)?)),
                false => (None, None),
            };
            let head_norms = match family.normalises_heads() {
                true => Some(reader.head_norms(&config)?),
                false => None,
            };
            let post_attention = reader.norm()?;
            let (attention_out_norm, mlp_norm, mlp_out_norm) = match family.normalises_outputs() {
                true => (Some(post_attention), reader.norm()?, Some(reader.norm()?)),
                false => (None, post_attention, None),
            };
            layers.push(Layer {
                attention_norm,
                attention_out_norm,
                mlp_norm,
                mlp_out_norm,
                head_norms,
                qkv,
                qkv_bias,
                o,
                o_bias,
                gate_up: reader.matrix(2)?,
                down: reader.matrix(1)?,
            });
        }
        let norm = reader.norm()?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(reader.matrix(1)?),
        };
        Ok(Self { embed, layers, norm, lm_head, config })
    }
}
