//! Parameters by their Hugging Face names.
//!
//! One table of names and shapes says what is read, in which order.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::layer::Layer;
use super::{Decoder, DecoderConfig};

/// A tensor of a checkpoint: its name and its shape.
pub type Named = (String, Vec<usize>);

/// Names and shapes of all tensors of a checkpoint of these dimensions, in a fixed order.
pub fn layout(config: &DecoderConfig) -> Vec<Named> {
    parameters(config).concat()
}

/// The tensors of each parameter, row under row or end to end, in the order in which [`read`] takes them.
pub(super) fn parameters(config: &DecoderConfig) -> Vec<Vec<Named>> {
    let (d, width) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * width, config.num_key_value_heads * width);
    let (ffn, family) = (config.intermediate_size, config.family);
    let mut all = vec![vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, d])]];
    for i in 0..config.layers.len() {
        let mut put = |tensors: &[(&str, &[usize])]| {
            let named =
                |(name, shape): &(&str, &[usize])| (format!("model.layers.{i}.{name}"), shape.to_vec());
            all.push(tensors.iter().map(named).collect());
        };
        put(&[("input_layernorm.weight", &[d])]);
        put(&[
            ("self_attn.q_proj.weight", &[q, d]),
            ("self_attn.k_proj.weight", &[kv, d]),
            ("self_attn.v_proj.weight", &[kv, d]),
        ]);
        put(&[("self_attn.o_proj.weight", &[d, q])]);
        if config.attention_bias {
            put(&[
                ("self_attn.q_proj.bias", &[q]),
                ("self_attn.k_proj.bias", &[kv]),
                ("self_attn.v_proj.bias", &[kv]),
            ]);
            put(&[("self_attn.o_proj.bias", &[d])]);
        }
        if family.normalises_heads() {
            put(&[("self_attn.q_norm.weight", &[width])]);
            put(&[("self_attn.k_norm.weight", &[width])]);
        }
        // Without output norms, `post_attention_layernorm` stands before the feed-forward part; with
        // them it is what its name says.
        put(&[("post_attention_layernorm.weight", &[d])]);
        if family.normalises_outputs() {
            put(&[("pre_feedforward_layernorm.weight", &[d])]);
            put(&[("post_feedforward_layernorm.weight", &[d])]);
        }
        put(&[("mlp.gate_proj.weight", &[ffn, d]), ("mlp.up_proj.weight", &[ffn, d])]);
        put(&[("mlp.down_proj.weight", &[d, ffn])]);
    }
    all.push(vec![("model.norm.weight".to_owned(), vec![d])]);
    if !config.tie_word_embeddings {
        all.push(vec![("lm_head.weight".to_owned(), vec![config.vocab_size, d])]);
    }
    all
}

/// Where a decoder's parameters come from.
pub(super) trait Source {
    /// A weight.
    type Matrix;
    /// A norm or a bias.
    type Vector;
    /// Why one cannot be had.
    type Error;

    /// The tensors, row under row.
    fn matrix(&mut self, tensors: &[Named]) -> Result<Self::Matrix, Self::Error>;
    /// The tensors, end to end.
    fn values(&mut self, tensors: &[Named]) -> Result<Vec<f32>, Self::Error>;
    /// Values as they are multiplied or added.
    fn vector(&self, values: Vec<f32>) -> Self::Vector;
}

/// The parameters of a decoder.
#[derive(Debug)]
pub(super) struct Parts<M, V> {
    /// `[vocab, hidden]`.
    pub(super) embed: M,
    pub(super) layers: Vec<LayerParts<M, V>>,
    /// Before the output projection, `[hidden]`.
    pub(super) norm: V,
    /// `[vocab, hidden]`; absent when embeddings are tied.
    pub(super) lm_head: Option<M>,
}

/// The parameters of a layer. Norm weights are as they are multiplied: Gemma's offset is added already.
#[derive(Debug)]
pub(super) struct LayerParts<M, V> {
    /// Before attention, `[hidden]`.
    pub(super) attention_norm: V,
    /// After attention, where the family has it.
    pub(super) attention_out_norm: Option<V>,
    /// Before the feed-forward part, `[hidden]`.
    pub(super) mlp_norm: V,
    /// After the feed-forward part, where the family has it.
    pub(super) mlp_out_norm: Option<V>,
    /// Norms of a query head and of a key head, `[head_dim]` each, where heads are normalised.
    pub(super) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    /// Query, key and value projections, stacked: `[(heads + 2 · kv_heads) · head_dim, hidden]`.
    pub(super) qkv: M,
    pub(super) qkv_bias: Option<V>,
    /// `[hidden, heads · head_dim]`.
    pub(super) o: M,
    pub(super) o_bias: Option<V>,
    /// Gate and up projections, stacked: `[2 · intermediate, hidden]`.
    pub(super) gate_up: M,
    /// `[hidden, intermediate]`.
    pub(super) down: M,
}

/// Reads all parameters, in the order of [`parameters`].
pub(super) fn read<S: Source>(
    config: &DecoderConfig,
    source: &mut S,
) -> Result<Parts<S::Matrix, S::Vector>, S::Error> {
    let family = config.family;
    let parameters = parameters(config).into_iter();
    let mut reader = Reader { parameters, source, norm_offset: family.norm_offset() };
    let embed = reader.matrix()?;
    let mut layers = Vec::with_capacity(config.layers.len());
    for _ in 0..config.layers.len() {
        let attention_norm = reader.norm()?;
        let (qkv, o) = (reader.matrix()?, reader.matrix()?);
        let (qkv_bias, o_bias) = match config.attention_bias {
            true => (Some(reader.bias()?), Some(reader.bias()?)),
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
            gate_up: reader.matrix()?,
            down: reader.matrix()?,
        });
    }
    let norm = reader.norm()?;
    let lm_head = match config.tie_word_embeddings {
        true => None,
        false => Some(reader.matrix()?),
    };
    Ok(Parts { embed, layers, norm, lm_head })
}

/// Parameters in the order of [`parameters`].
struct Reader<'a, S> {
    parameters: std::vec::IntoIter<Vec<Named>>,
    source: &'a mut S,
    norm_offset: f32,
}

impl<S: Source> Reader<'_, S> {
    fn next(&mut self) -> Vec<Named> {
        // `parameters` lists exactly what `read` takes; nothing could only follow a slip there, and the parity test
        // would see it.
        self.parameters.next().unwrap_or_default()
    }

    fn matrix(&mut self) -> Result<S::Matrix, S::Error> {
        let tensors = self.next();
        self.source.matrix(&tensors)
    }

    fn bias(&mut self) -> Result<S::Vector, S::Error> {
        let tensors = self.next();
        let values = self.source.values(&tensors)?;
        Ok(self.source.vector(values))
    }

    /// The next norm weight, as it is multiplied.
    fn norm_values(&mut self) -> Result<Vec<f32>, S::Error> {
        let tensors = self.next();
        let mut weight = self.source.values(&tensors)?;
        if self.norm_offset != 0.0 {
            weight.iter_mut().for_each(|w| *w += self.norm_offset);
        }
        Ok(weight)
    }

    fn norm(&mut self) -> Result<S::Vector, S::Error> {
        let values = self.norm_values()?;
        Ok(self.source.vector(values))
    }
}

/// Parameters of burn modules, from tensors that `fetch` hands out.
struct Params<'a, F> {
    device: &'a Device,
    fetch: F,
}

impl<F> Params<'_, F> {
    fn tensor(&self, values: Vec<f32>, shape: [usize; 2]) -> Param<Tensor<2>> {
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }
}

impl<F, E> Source for Params<'_, F>
where
    F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
{
    type Matrix = Param<Tensor<2>>;
    type Vector = Param<Tensor<1>>;
    type Error = E;

    fn matrix(&mut self, tensors: &[Named]) -> Result<Param<Tensor<2>>, E> {
        let (mut rows, mut columns) = (0, 0);
        for (_, shape) in tensors {
            if let [height, width] = shape[..] {
                (rows, columns) = (rows + height, width);
            }
        }
        let values = self.values(tensors)?;
        Ok(self.tensor(values, [rows, columns]))
    }

    fn values(&mut self, tensors: &[Named]) -> Result<Vec<f32>, E> {
        let mut data = Vec::new();
        for (name, shape) in tensors {
            let part = (self.fetch)(name, shape)?;
            // The first part is taken as it is: the largest matrices are single and need no copy.
            if data.is_empty() { data = part } else { data.extend(part) }
        }
        Ok(data)
    }

    fn vector(&self, values: Vec<f32>) -> Param<Tensor<1>> {
        let length = values.len();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, [length]), self.device))
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
        let mut params = Params { device, fetch };
        let Parts { embed, layers, norm, lm_head } = read(&config, &mut params)?;
        // The norms of all heads in one matrix, the score's scale in that of the queries.
        let head_norms = |(query, key): (Vec<f32>, Vec<f32>)| {
            let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
            let scale = config.query_scale as f32;
            let mut data = query.into_iter().map(|w| w * scale).collect::<Vec<_>>().repeat(heads);
            data.extend(key.repeat(kv));
            params.tensor(data, [heads + kv, config.head_dim])
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
