"""A float64 reference of the decoders in numpy (Qwen3, Llama, Mistral, Gemma 3), written to be checked by eye.

Reads a Hugging Face checkpoint directory and computes the logits of a sequence, without a cache and
without any of the tricks of the engine. `python3 reference.py DIR 1 2 3` prints them.
"""

import json
import pathlib
import sys

import numpy as np


def read_safetensors(path):
    """Tensors of a safetensors file: 8 bytes of header length, a JSON header, the data."""
    data = pathlib.Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[start:end]
        if entry["dtype"] == "BF16":  # the upper half of an f32
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "U32": "<u4"}[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def frequencies(width, rope):
    """Radians per position of each pair of components."""
    plain = rope["rope_theta"] ** (-np.arange(width // 2) * 2 / width)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / rope["factor"]
    assert kind == "llama3", kind
    turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    kept = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    kept = np.clip(kept, 0, 1)
    return kept * plain + (1 - kept) * plain / rope["factor"]


def rotate(x, frequency):
    """x: [time, heads, width]; component i turns with component i + width/2."""
    time, _, width = x.shape
    half = width // 2
    angle = np.arange(time)[:, None, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def visible(time, window):
    """0 where query (row) sees key (column), -inf elsewhere."""
    query, key = np.arange(time)[:, None], np.arange(time)[None]
    seen = (key <= query) & (key > query - (window or time))
    return np.where(seen, 0.0, -np.inf)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def bf16(x):
    """Rounded to the nearest bfloat16, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))


def read_weights(folder):
    """All tensors of a checkpoint, in one file or in shards."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return read_safetensors(folder / "model.safetensors")
    shard_of = json.loads(index.read_text())["weight_map"]
    shards = {shard: read_safetensors(folder / shard) for shard in set(shard_of.values())}
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def attention_of_layers(config):
    """For each layer its sliding window, or None, and its rotary embedding."""
    count, window = config["num_hidden_layers"], config.get("sliding_window")
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}
    if config["model_type"] == "gemma3_text":
        kinds = config["layer_types"]
        return [(window if kind == "sliding_attention" else None, rope[kind]) for kind in kinds]
    return [(window if config["model_type"] == "mistral" else None, rope)] * count


def logits(folder, ids):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.astype(np.float64) for k, v in read_weights(folder).items()}
    gemma = config["model_type"] == "gemma3_text"
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width, eps = config["head_dim"], config["rms_norm_eps"]
    scale = (config["query_pre_attn_scalar"] if gemma else width) ** -0.5
    activation = gelu_tanh if gemma else silu
    time = len(ids)

    def norm(x, w, name):
        return rms_norm(x, w[name + ".weight"] + (1 if gemma else 0), eps)

    def project(x, w, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    x = weights["model.embed_tokens.weight"][ids]
    if gemma:
        assert config["dtype"] == "bfloat16"
        x = x * bf16(config["hidden_size"] ** 0.5)
    for i, (window, rope) in enumerate(attention_of_layers(config)):
        prefix = f"model.layers.{i}."
        w = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        y = norm(x, w, "input_layernorm")
        q = project(y, w, "self_attn.q_proj").reshape(time, heads, width)
        k = project(y, w, "self_attn.k_proj").reshape(time, kv_heads, width)
        v = project(y, w, "self_attn.v_proj").reshape(time, kv_heads, width)
        if "self_attn.q_norm.weight" in w:
            q, k = norm(q, w, "self_attn.q_norm"), norm(k, w, "self_attn.k_norm")
        frequency = frequencies(width, rope)
        q, k = rotate(q, frequency), rotate(k, frequency)
        out = np.empty_like(q)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, shared].T * scale + visible(time, window)
            out[:, head] = softmax(scores) @ v[:, shared]
        y = project(out.reshape(time, heads * width), w, "self_attn.o_proj")
        if gemma:
            x = x + norm(y, w, "post_attention_layernorm")
            y = norm(x, w, "pre_feedforward_layernorm")
        else:
            x = x + y
            y = norm(x, w, "post_attention_layernorm")
        y = activation(project(y, w, "mlp.gate_proj")) * project(y, w, "mlp.up_proj")
        y = project(y, w, "mlp.down_proj")
        x = x + (norm(y, w, "post_feedforward_layernorm") if gemma else y)
    x = norm(x, weights, "model.norm")
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return x @ weights[head].T


if __name__ == "__main__":
    print(logits(sys.argv[1], [int(i) for i in sys.argv[2:]]))
