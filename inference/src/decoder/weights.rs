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

/// What a matrix multiplies, or a vector is added to or multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Rows of the embedding table or of the output projection.
    Vocabulary,
    /// The residual stream: the norms of its values, and what is added to them.
    Stream,
    /// Query, key and value heads, from the residual stream.
    Projections,
    /// Heads, back to the residual stream.
    AttentionOutput,
    /// The feed-forward layer and its gate, from the residual stream.
    GateUp,
    /// The feed-forward layer, back to the residual stream.
    Down,
}

/// What a decoder makes of the values of a tensor.
pub(crate) trait Make {
    /// A weight.
    type Matrix;
    /// A norm or a bias.
    type Vector;

    fn matrix(&self, role: Role, values: Vec<f32>, shape: [usize; 2]) -> Self::Matrix;
    fn vector(&self, role: Role, values: Vec<f32>) -> Self::Vector;
}

/// The parameters of a decoder.
#[derive(Debug)]
pub(crate) struct Parts<M, V> {
    /// `[vocab, hidden]`.
    pub(crate) embed: M,
    pub(crate) layers: Vec<LayerParts<M, V>>,
    /// Before the output projection, `[hidden]`.
    pub(crate) norm: V,
    /// `[vocab, hidden]`; absent when embeddings are tied.
    pub(crate) lm_head: Option<M>,
}

/// The parameters of a layer. Norm weights are as they are multiplied: Gemma's offset is added already.
#[derive(Debug)]
pub(crate) struct LayerParts<M, V> {
    /// Before attention, `[hidden]`.
    pub(crate) attention_norm: V,
    /// After attention, where the family has it.
    pub(crate) attention_out_norm: Option<V>,
    /// Before the feed-forward part, `[hidden]`.
    pub(crate) mlp_norm: V,
    /// After the feed-forward part, where the family has it.
    pub(crate) mlp_out_norm: Option<V>,
    /// Norms of a query head and of a key head, `[head_dim]` each, where heads are normalised.
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    /// Query, key and value projections, stacked: `[(heads + 2 · kv_heads) · head_dim, hidden]`.
    pub(crate) qkv: M,
    pub(crate) qkv_bias: Option<V>,
    /// `[hidden, heads · head_dim]`.
    pub(crate) o: M,
    pub(crate) o_bias: Option<V>,
    /// Gate and up projections, stacked: `[2 · intermediate, hidden]`.
    pub(crate) gate_up: M,
    /// `[hidden, intermediate]`.
    pub(crate) down: M,
}

/// Reads all parameters from tensors that `fetch` hands out by name and shape, in the order of [`layout`].
pub(crate) fn read<T: Make, E>(
    config: &DecoderConfig,
    make: &T,
    fetch: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
) -> Result<Parts<T::Matrix, T::Vector>, E> {
    let family = config.family;
    let names = layout(config).into_iter();
    let mut reader = Reader { names, fetch, norm_offset: family.norm_offset(), make };
    let embed = reader.matrix(Role::Vocabulary, 1)?;
    let mut layers = Vec::with_capacity(config.layers.len());
    for _ in 0..config.layers.len() {
        let attention_norm = reader.norm()?;
        let (qkv, o) = (reader.matrix(Role::Projections, 3)?, reader.matrix(Role::AttentionOutput, 1)?);
        let (qkv_bias, o_bias) = match config.attention_bias {
            true => (Some(reader.bias(Role::Projections, 3)?), Some(reader.bias(Role::Stream, 1)?)),
            false => (None, None),
        };
        let head_norms = match family.normalises_heads() {
            true => Some((reader.norm_values()?, reader.norm_values()?)),
            false => None,
        };
        let post_attention = reader.norm()?;
        let (attention_out_norm, mlp_norm, mlp_out_norm) = match family.normalises_outputs() {
            true => (Some(post_attention), reader.norm()?, Some(reader.norm()?)),
            false => (None, post_attention, None),
        };
        layers.push(LayerParts {
            attention_norm,
            attention_out_norm,
            mlp_norm,
            mlp_out_norm,
            head_norms,
            qkv,
            qkv_bias,
            o,
            o_bias,
            gate_up: reader.matrix(Role::GateUp, 2)?,
            down: reader.matrix(Role::Down, 1)?,
        });
    }
    let norm = reader.norm()?;
    let lm_head = match config.tie_word_embeddings {
        true => None,
        false => Some(reader.matrix(Role::Vocabulary, 1)?),
    };
    Ok(Parts { embed, layers, norm, lm_head })
}

/// Tensors in the order of [`layout`].
struct Reader<'a, F, T> {
    names: std::vec::IntoIter<(String, Vec<usize>)>,
    fetch: F,
    norm_offset: f32,
    make: &'a T,
}

impl<F, T, E> Reader<'_, F, T>
where
    F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    T: Make,
{
    fn next(&mut self) -> Result<(Vec<f32>, Vec<usize>), E> {
        // `layout` lists exactly what `read` takes; an empty tensor could only follow a slip there, and the
        // parity test would see it.
        let (name, shape) = self.names.next().unwrap_or_default();
        Ok(((self.fetch)(&name, &shape)?, shape))
    }

    /// The next `parts` matrices of equal width as one, row under row.
    fn matrix(&mut self, role: Role, parts: usize) -> Result<T::Matrix, E> {
        let (mut data, mut rows, mut columns) = (Vec::new(), 0, 0);
        for _ in 0..parts {
            let (part, shape) = self.next()?;
            if let [height, width] = shape[..] {
                (rows, columns) = (rows + height, width);
            }
            // The first part is taken as it is: the largest matrices are single and need no copy.
            if data.is_empty() { data = part } else { data.extend(part) }
        }
        Ok(self.make.matrix(role, data, [rows, columns]))
    }

    /// The next `parts` vectors as one.
    fn bias(&mut self, role: Role, parts: usize) -> Result<T::Vector, E> {
        let mut data = Vec::new();
        for _ in 0..parts {
            data.extend(self.next()?.0);
        }
        Ok(self.make.vector(role, data))
    }

    /// The next norm weight, as it is multiplied.
    fn norm_values(&mut self) -> Result<Vec<f32>, E> {
        let mut weight = self.next()?.0;
        if self.norm_offset != 0.0 {
            weight.iter_mut().for_each(|w| *w += self.norm_offset);
        }
        Ok(weight)
    }

    fn norm(&mut self) -> Result<T::Vector, E> {
        let values = self.norm_values()?;
        Ok(self.make.vector(Role::Stream, values))
    }
}

/// Parameters of burn modules.
struct Params<'a>(&'a Device);

impl Make for Params<'_> {
    type Matrix = Param<Tensor<2>>;
    type Vector = Param<Tensor<1>>;

    fn matrix(&self, _: Role, values: Vec<f32>, shape: [usize; 2]) -> Param<Tensor<2>> {
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.0))
    }

    fn vector(&self, _: Role, values: Vec<f32>) -> Param<Tensor<1>> {
        let length = values.len();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, [length]), self.0))
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
        let make = Params(device);
        let Parts { embed, layers, norm, lm_head } = read(&config, &make, fetch)?;
        // The norms of all heads in one matrix, the score's scale in that of the queries.
        let head_norms = |(query, key): (Vec<f32>, Vec<f32>)| {
            let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
            let scale = config.query_scale as f32;
            let mut data = query.into_iter().map(|w| w * scale).collect::<Vec<_>>().repeat(heads);
            data.extend(key.repeat(kv));
            make.matrix(Role::Stream, data, [heads + kv, config.head_dim])
        };
        let layer = |parts: LayerParts<_, _>| Layer {
            attention_norm: parts.attention_norm,
            attention_out_norm: parts.attention_out_norm,
            mlp_norm: parts.mlp_norm,
            mlp_out_norm: parts.mlp_out_norm,
            head_norms: parts.head_norms.map(head_norms),
            qkv: parts.qkv,
            qkv_bias: parts.qkv_bias,
            o: parts.o,
            o_bias: parts.o_bias,
            gate_up: parts.gate_up,
            down: parts.down,
        };
        let layers = layers.into_iter().map(layer).collect();
        Ok(Self { embed, layers, norm, lm_head, config })
    }
}
