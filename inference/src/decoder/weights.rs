//! Parameters by their Hugging Face names.
//!
//! One table of names and shapes says what is read, in which order.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::layer::Layer;
use super::{Decoder, DecoderConfig};

/// A tensor of a checkpoint: its name and its shape.
pub type Named = (String, Vec<usize>);

/// What a matrix multiplies, or a vector is added to or multiplied with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Rows of the embedding table or of the output projection.
    Vocabulary,
    /// The residual stream: the norms of its values, and what is added to them.
    #[default]
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

/// A parameter of a decoder, which may be several tensors of a checkpoint: row under row, or end to end.
#[derive(Debug, Default)]
pub(crate) struct Parameter {
    pub(crate) role: Role,
    pub(crate) tensors: Vec<Named>,
}

/// Names and shapes of all tensors of a checkpoint of these dimensions, in a fixed order.
pub fn layout(config: &DecoderConfig) -> Vec<Named> {
    parameters(config).into_iter().flat_map(|parameter| parameter.tensors).collect()
}

/// All parameters, in the order in which [`read`] takes them.
pub(super) fn parameters(config: &DecoderConfig) -> Vec<Parameter> {
    let (d, width) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * width, config.num_key_value_heads * width);
    let (ffn, family) = (config.intermediate_size, config.family);
    let one = |role, name: &str, shape: &[usize]| Parameter {
        role,
        tensors: vec![(name.to_owned(), shape.to_vec())],
    };
    let mut all = vec![one(Role::Vocabulary, "model.embed_tokens.weight", &[config.vocab_size, d])];
    for i in 0..config.layers.len() {
        let mut put = |role, tensors: &[(&str, &[usize])]| {
            let named =
                |(name, shape): &(&str, &[usize])| (format!("model.layers.{i}.{name}"), shape.to_vec());
            all.push(Parameter { role, tensors: tensors.iter().map(named).collect() });
        };
        put(Role::Stream, &[("input_layernorm.weight", &[d])]);
        put(
            Role::Projections,
            &[
                ("self_attn.q_proj.weight", &[q, d]),
                ("self_attn.k_proj.weight", &[kv, d]),
                ("self_attn.v_proj.weight", &[kv, d]),
            ],
        );
        put(Role::AttentionOutput, &[("self_attn.o_proj.weight", &[d, q])]);
        if config.attention_bias {
            put(
                Role::Projections,
                &[
                    ("self_attn.q_proj.bias", &[q]),
                    ("self_attn.k_proj.bias", &[kv]),
                    ("self_attn.v_proj.bias", &[kv]),
                ],
            );
            put(Role::Stream, &[("self_attn.o_proj.bias", &[d])]);
        }
        if family.normalises_heads() {
            put(Role::Stream, &[("self_attn.q_norm.weight", &[width])]);
            put(Role::Stream, &[("self_attn.k_norm.weight", &[width])]);
        }
        // Without output norms, `post_attention_layernorm` stands before the feed-forward part; with
        // them it is what its name says.
        put(Role::Stream, &[("post_attention_layernorm.weight", &[d])]);
        if family.normalises_outputs() {
            put(Role::Stream, &[("pre_feedforward_layernorm.weight", &[d])]);
            put(Role::Stream, &[("post_feedforward_layernorm.weight", &[d])]);
        }
        put(Role::GateUp, &[("mlp.gate_proj.weight", &[ffn, d]), ("mlp.up_proj.weight", &[ffn, d])]);
        put(Role::Down, &[("mlp.down_proj.weight", &[d, ffn])]);
    }
    all.push(one(Role::Stream, "model.norm.weight", &[d]));
    if !config.tie_word_embeddings {
        all.push(one(Role::Vocabulary, "lm_head.weight", &[config.vocab_size, d]));
    }
    all
}

/// Where a decoder's parameters come from.
pub(crate) trait Source {
    /// A weight.
    type Matrix;
    /// A norm or a bias.
    type Vector;
    /// Why one cannot be had.
    type Error;

    /// The tensors, row under row.
    fn matrix(&mut self, parameter: &Parameter) -> Result<Self::Matrix, Self::Error>;
    /// The tensors, end to end.
    fn values(&mut self, parameter: &Parameter) -> Result<Vec<f32>, Self::Error>;
    /// Values as they are multiplied or added.
    fn vector(&self, role: Role, values: Vec<f32>) -> Self::Vector;
}

/// What a decoder makes of the values of whole tensors.
pub(crate) trait Make {
    /// A weight.
    type Matrix;
    /// A norm or a bias.
    type Vector;

    fn matrix(&self, role: Role, values: Vec<f32>, shape: [usize; 2]) -> Self::Matrix;
    fn vector(&self, role: Role, values: Vec<f32>) -> Self::Vector;
}

/// Parameters made of tensors that `fetch` hands out by name and shape. It vouches for the number of values.
pub(crate) struct Whole<'a, T, F> {
    pub(crate) make: &'a T,
    pub(crate) fetch: F,
}

impl<T: Make, F, E> Source for Whole<'_, T, F>
where
    F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
{
    type Matrix = T::Matrix;
    type Vector = T::Vector;
    type Error = E;

    fn matrix(&mut self, parameter: &Parameter) -> Result<T::Matrix, E> {
        let (mut rows, mut columns) = (0, 0);
        for (_, shape) in &parameter.tensors {
            if let [height, width] = shape[..] {
                (rows, columns) = (rows + height, width);
            }
        }
        let values = self.values(parameter)?;
        Ok(self.make.matrix(parameter.role, values, [rows, columns]))
    }

    fn values(&mut self, parameter: &Parameter) -> Result<Vec<f32>, E> {
        let mut data = Vec::new();
        for (name, shape) in &parameter.tensors {
            let part = (self.fetch)(name, shape)?;
            // The first part is taken as it is: the largest matrices are single and need no copy.
            if data.is_empty() { data = part } else { data.extend(part) }
        }
        Ok(data)
    }

    fn vector(&self, role: Role, values: Vec<f32>) -> T::Vector {
        self.make.vector(role, values)
    }
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

/// Reads all parameters, in the order of [`parameters`].
pub(crate) fn read<S: Source>(
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
    parameters: std::vec::IntoIter<Parameter>,
    source: &'a mut S,
    norm_offset: f32,
}

impl<S: Source> Reader<'_, S> {
    fn next(&mut self) -> Parameter {
        // `parameters` lists exactly what `read` takes; nothing could only follow a slip there, and the parity test
        // would see it.
        self.parameters.next().unwrap_or_default()
    }

    fn matrix(&mut self) -> Result<S::Matrix, S::Error> {
        let parameter = self.next();
        self.source.matrix(&parameter)
    }

    fn bias(&mut self) -> Result<S::Vector, S::Error> {
        let parameter = self.next();
        let values = self.source.values(&parameter)?;
        Ok(self.source.vector(parameter.role, values))
    }

    /// The next norm weight, as it is multiplied.
    fn norm_values(&mut self) -> Result<Vec<f32>, S::Error> {
        let parameter = self.next();
        let mut weight = self.source.values(&parameter)?;
        if self.norm_offset != 0.0 {
            weight.iter_mut().for_each(|w| *w += self.norm_offset);
        }
        Ok(weight)
    }

    fn norm(&mut self) -> Result<S::Vector, S::Error> {
        let values = self.norm_values()?;
        Ok(self.source.vector(Role::Stream, values))
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
        let Parts { embed, layers, norm, lm_head } = read(&config, &mut Whole { make: &make, fetch })?;
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
