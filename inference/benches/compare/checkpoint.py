"""Writes a random checkpoint of about 100 million multiplied weights, once for each engine that is compared.

    python checkpoint.py DIR

DIR/hf holds it in Hugging Face's form (config, safetensors, tokenizer); DIR/f32.gguf and DIR/q8_0.gguf hold the
same weights in llama.cpp's. Speed does not depend on the values, so random ones will do. Needs numpy,
safetensors, tokenizers and gguf.
"""

import json
import pathlib
import sys
import sysconfig

import gguf
import numpy
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, CONTEXT = 768, 12, 12, 4, 64, 2048, 32000, 4096
EPS, THETA = 1e-5, 10000.0

# Hugging Face's name of each matrix of a layer, llama.cpp's, and its shape.
LAYER = [
    ("self_attn.q_proj", "attn_q", (HEADS * HEAD_DIM, HIDDEN)),
    ("self_attn.k_proj", "attn_k", (KV_HEADS * HEAD_DIM, HIDDEN)),
    ("self_attn.v_proj", "attn_v", (KV_HEADS * HEAD_DIM, HIDDEN)),
    ("self_attn.o_proj", "attn_output", (HIDDEN, HEADS * HEAD_DIM)),
    ("mlp.gate_proj", "ffn_gate", (FFN, HIDDEN)),
    ("mlp.up_proj", "ffn_up", (FFN, HIDDEN)),
    ("mlp.down_proj", "ffn_down", (HIDDEN, FFN)),
    ("input_layernorm", "attn_norm", (HIDDEN,)),
    ("post_attention_layernorm", "ffn_norm", (HIDDEN,)),
]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tensors():
    """Yields (Hugging Face name, llama.cpp name, values)."""
    rng = numpy.random.default_rng(0)

    def values(shape):
        if len(shape) == 1:
            return numpy.ones(shape, numpy.float32)
        return rng.standard_normal(shape, dtype=numpy.float32) * 0.02

    yield "model.embed_tokens.weight", "token_embd.weight", values((VOCAB, HIDDEN))
    yield "lm_head.weight", "output.weight", values((VOCAB, HIDDEN))
    yield "model.norm.weight", "output_norm.weight", values((HIDDEN,))
    for i in range(LAYERS):
        for hf, cpp, shape in LAYER:
            yield f"model.layers.{i}.{hf}.weight", f"blk.{i}.{cpp}.weight", values(shape)


def tokenizer():
    """A byte-level BPE of Python's own library, filled up with unused tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:150]
    made.train([str(path) for path in sources], trainer)
    missing = range(VOCAB - made.get_vocab_size())
    made.add_tokens([AddedToken(f"<unused{i}>", normalized=False) for i in missing])
    return made


def write_hf(folder, weights, made):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({hf: values for hf, _, values in weights}, folder / "model.safetensors", {"format": "pt"})
    made.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "intermediate_size": FFN, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPS, "rope_theta": THETA, "hidden_act": "silu", "tie_word_embeddings": False,
        "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1, "attention_bias": False,
        "mlp_bias": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}) + "\n")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")


def interleave(values, heads):
    """llama.cpp rotates neighbouring values of a head, Hugging Face value i and i + head_dim / 2."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, weights, made, kind):
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(HIDDEN)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(EPS)
    out.add_rope_dimension_count(HEAD_DIM)
    out.add_rope_freq_base(THETA)
    out.add_vocab_size(VOCAB)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    by_id = {id: token for token, id in made.get_vocab().items()}
    out.add_token_list([by_id[i] for i in range(VOCAB)])
    out.add_token_types([3 if i < 2 else 1 for i in range(VOCAB)])
    merges = json.loads(made.to_str())["model"]["merges"]
    out.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    for _, cpp, values in weights:
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(cpp.split(".")[-2])
        if heads:
            values = interleave(values, heads)
        if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            out.add_tensor(cpp, values)
        else:
            out.add_tensor(cpp, gguf.quants.quantize(values, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    folder = pathlib.Path(sys.argv[1])
    weights, made = list(tensors()), tokenizer()
    write_hf(folder / "hf", weights, made)
    write_gguf(folder / "f32.gguf", weights, made, gguf.GGMLQuantizationType.F32)
    write_gguf(folder / "q8_0.gguf", weights, made, gguf.GGMLQuantizationType.Q8_0)


if __name__ == "__main__":
    main()
