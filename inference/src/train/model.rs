//! The training graph: the same Qwen3 decoder that the engine serves, written for whole batches.
//!
//! Serving wants a KV cache and one position at a time; training wants every position at once and a
//! gradient. The two share no code on purpose: they are checked against each other through the
//! exported checkpoint (`cocoon-train eval` and the tests go through the engine's loader).
//!
//! Rows are padded on the right. A causal mask already hides the padding from every real position,
//! so there is no padding mask, and only the positions that carry a target reach the unembedding.

use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::chat::Example;

/// The shape of the decoder; the fields are those of a Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Entries of the embedding, which is also the unembedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated feed-forward.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added under the root of every norm.
    pub rms_norm_eps: f64,
}

impl Shape {
    /// The embedded model: about 1.5 million parameters, which is what two hours of one core can train.
    pub fn tiny() -> Self {
        Self {
            vocab_size: super::tokenizer::VOCAB,
            hidden_size: 160,
            intermediate_size: 416,
            num_hidden_layers: 5,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            max_position_embeddings: 512,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
        }
    }

    /// A shape that trains visibly within seconds, for the tests.
    pub fn small() -> Self {
        Self { hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, head_dim: 16, ..Self::tiny() }
    }
}

/// One decoder block: attention and feed-forward, each behind its norm.
#[derive(Module, Debug)]
pub struct Block {
    /// `input_layernorm`
    pub attention_norm: RmsNorm,
    /// `self_attn.q_proj`
    pub q: Linear,
    /// `self_attn.k_proj`
    pub k: Linear,
    /// `self_attn.v_proj`
    pub v: Linear,
    /// `self_attn.o_proj`
    pub o: Linear,
    /// `self_attn.q_norm`
    pub q_norm: RmsNorm,
    /// `self_attn.k_norm`
    pub k_norm: RmsNorm,
    /// `post_attention_layernorm`
    pub mlp_norm: RmsNorm,
    /// `mlp.gate_proj`
    pub gate: Linear,
    /// `mlp.up_proj`
    pub up: Linear,
    /// `mlp.down_proj`
    pub down: Linear,
}

/// The decoder.
#[derive(Module, Debug)]
pub struct Net {
    /// `model.embed_tokens`, tied to the output.
    pub embed: Embedding,
    /// `model.layers.*`
    pub blocks: Vec<Block>,
    /// `model.norm`
    pub norm: RmsNorm,
}

/// What depends on the length of a batch only: rotary tables and causal mask.
#[derive(Debug, Clone)]
pub struct Tables {
    cos: Tensor<4>,
    sin: Tensor<4>,
    rotate: Tensor<2>,
    mask: Tensor<4>,
}

impl Tables {
    /// Tables for rows of `length` tokens.
    pub fn new(shape: &Shape, length: usize, device: &Device) -> Self {
        let (half, dim) = (shape.head_dim / 2, shape.head_dim);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..length {
            for i in 0..dim {
                let frequency = shape.rope_theta.powf(-2.0 * (i % half) as f64 / dim as f64);
                let angle = position as f64 * frequency;
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        // rotate_half as a product: (x·R)[i] = -x[i + half] below half, x[i - half] above. A product
        // has a product as its gradient, where slices and concatenations would copy both ways.
        let mut rotate = vec![0f32; dim * dim];
        for i in 0..half {
            rotate[(i + half) * dim + i] = -1.0;
            rotate[i * dim + i + half] = 1.0;
        }
        let group = shape.num_attention_heads / shape.num_key_value_heads;
        // e^-60 is far below what f32 can add to a sum near one, yet not so small that the exponential
        // takes its slow path for underflow, which a mask of -1e9 makes it do for half of all scores.
        let mut mask = Vec::with_capacity(group * length * length);
        for row in 0..group * length {
            mask.extend((0..length).map(|column| if column > row % length { -60f32 } else { 0.0 }));
        }
        Self {
            cos: Tensor::from_data(TensorData::new(cos, [1, length, 1, dim]), device),
            sin: Tensor::from_data(TensorData::new(sin, [1, length, 1, dim]), device),
            rotate: Tensor::from_data(TensorData::new(rotate, [dim, dim]), device),
            mask: Tensor::from_data(TensorData::new(mask, [1, 1, group * length, length]), device),
        }
    }

    /// Rotates `[batch, length, heads, head_dim]`.
    fn rope(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, length, heads, dim] = x.dims();
        let turned = x.clone().reshape([batch * length * heads, dim]).matmul(self.rotate.clone());
        x * self.cos.clone() + turned.reshape([batch, length, heads, dim]) * self.sin.clone()
    }
}

impl Net {
    /// A fresh decoder, GPT-2 style: normal weights, the two projections into the residual stream
    /// scaled down by the depth.
    pub fn new(shape: &Shape, device: &Device) -> Self {
        let normal = |std: f64| Initializer::Normal { mean: 0.0, std };
        let residual = 0.02 / (2.0 * shape.num_hidden_layers as f64).sqrt() * 2.0;
        let linear = |input: usize, output: usize, std: f64| {
            LinearConfig::new(input, output).with_bias(false).with_initializer(normal(std)).init(device)
        };
        let norm = |width: usize| RmsNormConfig::new(width).with_epsilon(shape.rms_norm_eps).init(device);
        let (d, hd) = (shape.hidden_size, shape.head_dim);
        let (q, kv) = (shape.num_attention_heads * hd, shape.num_key_value_heads * hd);
        let inner = 1.0 / (d as f64).sqrt() * 0.6;
        Self {
            embed: EmbeddingConfig::new(shape.vocab_size, d).with_initializer(normal(0.05)).init(device),
            blocks: (0..shape.num_hidden_layers)
                .map(|_| Block {
                    attention_norm: norm(d),
                    q: linear(d, q, inner),
                    k: linear(d, kv, inner),
                    v: linear(d, kv, inner),
                    o: linear(q, d, residual),
                    q_norm: norm(hd),
                    k_norm: norm(hd),
                    mlp_norm: norm(d),
                    gate: linear(d, shape.intermediate_size, inner),
                    up: linear(d, shape.intermediate_size, inner),
                    down: linear(shape.intermediate_size, d, residual),
                })
                .collect(),
            norm: norm(d),
        }
    }

    /// Hidden states after the last norm, `[batch · length, hidden]`.
    pub fn hidden(&self, ids: Tensor<2, Int>, tables: &Tables) -> Tensor<2> {
        let [batch, length] = ids.dims();
        let embedded = self.embed.forward(ids);
        let [_, _, width] = embedded.dims();
        let mut x = embedded.reshape([batch * length, width]);
        for block in &self.blocks {
            x = x.clone() + block.attend(block.attention_norm.forward(x), batch, length, tables);
            let y = block.mlp_norm.forward(x.clone());
            x = x + block.down.forward(silu(block.gate.forward(y.clone())) * block.up.forward(y));
        }
        self.norm.forward(x)
    }

    /// Logits of chosen rows of [`Net::hidden`].
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.embed.weight.val().transpose())
    }

    /// Mean cross-entropy at the given flat positions.
    pub fn loss(&self, batch: &Batch, tables: &Tables, device: &Device) -> Tensor<1> {
        let ids = Tensor::<2, Int>::from_data(
            TensorData::new(batch.ids.clone(), [batch.rows, batch.length]),
            device,
        );
        let count = batch.positions.len();
        let positions =
            Tensor::<1, Int>::from_data(TensorData::new(batch.positions.clone(), [count]), device);
        let targets = Tensor::<2, Int>::from_data(TensorData::new(batch.targets.clone(), [count, 1]), device);
        let logits = self.logits(self.hidden(ids, tables).select(0, positions));
        log_softmax(logits, 1).gather(1, targets).mean().neg()
    }

    /// Every tensor under its Hugging Face name, shape and values; linear weights turned to `[out, in]`.
    pub fn tensors(&self) -> Vec<(String, Tensor<2>)> {
        let matrix = |linear: &Linear| linear.weight.val().transpose();
        let row = |p: &Param<Tensor<1>>| p.val().unsqueeze::<2>();
        let mut out = vec![
            ("model.embed_tokens.weight".to_owned(), self.embed.weight.val()),
            ("model.norm.weight".to_owned(), row(&self.norm.gamma)),
        ];
        for (index, block) in self.blocks.iter().enumerate() {
            let mut put = |name: &str, tensor: Tensor<2>| {
                out.push((format!("model.layers.{index}.{name}.weight"), tensor));
            };
            put("input_layernorm", row(&block.attention_norm.gamma));
            put("post_attention_layernorm", row(&block.mlp_norm.gamma));
            put("self_attn.q_norm", row(&block.q_norm.gamma));
            put("self_attn.k_norm", row(&block.k_norm.gamma));
            put("self_attn.q_proj", matrix(&block.q));
            put("self_attn.k_proj", matrix(&block.k));
            put("self_attn.v_proj", matrix(&block.v));
            put("self_attn.o_proj", matrix(&block.o));
            put("mlp.gate_proj", matrix(&block.gate));
            put("mlp.up_proj", matrix(&block.up));
            put("mlp.down_proj", matrix(&block.down));
        }
        out
    }
}

impl Block {
    /// Grouped-query attention over `[batch · length, hidden]`. The query heads that share a key
    /// head are stacked along the length, so keys and values are never repeated.
    fn attend(&self, x: Tensor<2>, batch: usize, length: usize, tables: &Tables) -> Tensor<2> {
        let [dim] = self.q_norm.gamma.dims();
        let [_, wide] = self.q.weight.dims();
        let [_, narrow] = self.k.weight.dims();
        let (heads, shared) = (wide / dim, narrow / dim);
        let group = heads / shared;
        let q = self.q_norm.forward(self.q.forward(x.clone()).reshape([batch, length, heads, dim]));
        let k = self.k_norm.forward(self.k.forward(x.clone()).reshape([batch, length, shared, dim]));
        let v = self.v.forward(x).reshape([batch, length, shared, dim]).swap_dims(1, 2);
        let q = tables.rope(q).mul_scalar(1.0 / (dim as f64).sqrt()).swap_dims(1, 2).reshape([
            batch,
            shared,
            group * length,
            dim,
        ]);
        let k = tables.rope(k).permute([0, 2, 3, 1]);
        let weights = softmax(q.matmul(k) + tables.mask.clone(), 3);
        let mixed = weights.matmul(v).reshape([batch, heads, length, dim]).swap_dims(1, 2);
        self.o.forward(mixed.reshape([batch * length, wide]))
    }
}

/// A padded batch and the flat positions that are trained, with the token each should predict.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Padded length.
    pub length: usize,
    /// `rows · length` ids.
    pub ids: Vec<i64>,
    /// Flat positions with a target.
    pub positions: Vec<i64>,
    /// The target at each of those positions.
    pub targets: Vec<i64>,
}

impl Batch {
    /// Packs rows.
    pub fn new(rows: &[Example]) -> Self {
        let length = rows.iter().map(|row| row.ids.len().saturating_sub(1)).max().unwrap_or(0);
        let mut batch = Self { rows: rows.len(), length, ..Self::default() };
        for (index, row) in rows.iter().enumerate() {
            let inputs = row.ids.len().saturating_sub(1);
            batch.ids.extend(row.ids.iter().take(inputs).map(|&id| i64::from(id)));
            batch.ids.extend(std::iter::repeat_n(0, length - inputs));
            for (at, (&target, &trained)) in row.ids.iter().zip(&row.trained).enumerate().skip(1) {
                if trained {
                    batch.positions.push((index * length + at - 1) as i64);
                    batch.targets.push(i64::from(target));
                }
            }
        }
        batch
    }
}
