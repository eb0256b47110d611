"""A float64 reference of the Qwen3 decoder in numpy, written to be checked by eye.

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


def rotate(x, theta):
    """x: [time, heads, width]; component i turns with component i + width/2."""
    time, _, width = x.shape
    half = width // 2
    frequency = theta ** (-np.arange(half) * 2 / width)
    angle = np.arange(time)[:, None, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def logits(folder, ids):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.astype(np.float64) for k, v in read_safetensors(folder / "model.safetensors").items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width, eps = config["head_dim"], config["rms_norm_eps"]
    theta = (config.get("rope_parameters") or config)["rope_theta"]
    time = len(ids)
    future = np.triu(np.full((time, time), -np.inf), 1)

    x = weights["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        w = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if k.startswith(f"model.layers.{i}.")}
        y = rms_norm(x, w["input_layernorm.weight"], eps)
        q = (y @ w["self_attn.q_proj.weight"].T).reshape(time, heads, width)
        k = (y @ w["self_attn.k_proj.weight"].T).reshape(time, kv_heads, width)
        v = (y @ w["self_attn.v_proj.weight"].T).reshape(time, kv_heads, width)
        q = rotate(rms_norm(q, w["self_attn.q_norm.weight"], eps), theta)
        k = rotate(rms_norm(k, w["self_attn.k_norm.weight"], eps), theta)
        out = np.empty_like(q)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, shared].T / np.sqrt(width) + future
            out[:, head] = softmax(scores) @ v[:, shared]
        x = x + out.reshape(time, heads * width) @ w["self_attn.o_proj.weight"].T
        y = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        gate = y @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    x = rms_norm(x, weights["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return x @ weights[head].T


if __name__ == "__main__":
    print(logits(sys.argv[1], [int(i) for i in sys.argv[2:]]))
