"""A float64 reference of BERT's encoder and of the ways of pooling in numpy, written to be checked by eye."""

import json
import math
import pathlib

import numpy as np
from reference import read_weights, softmax

erf = np.vectorize(math.erf)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def hidden(folder, ids):
    """The rows of the last layer for one text."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {k.removeprefix("bert."): v.astype(np.float64) for k, v in read_weights(folder).items()}
    heads, time = config["num_attention_heads"], len(ids)
    width = config["hidden_size"] // heads

    def project(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config["layer_norm_eps"])
        return centred / deviation * weights[name + ".weight"] + weights[name + ".bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][:time]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        query, key, value = (
            project(x, f"{layer}attention.self.{part}").reshape(time, heads, width)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(width)
        seen = np.einsum("hqk,khd->qhd", softmax(scores), value).reshape(time, heads * width)
        x = norm(x + project(seen, layer + "attention.output.dense"), layer + "attention.output.LayerNorm")
        y = project(gelu(project(x, layer + "intermediate.dense")), layer + "output.dense")
        x = norm(x + y, layer + "output.LayerNorm")
    return x


POOLING = {
    "mean": lambda rows: rows.mean(axis=0),
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(axis=0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(axis=0) / math.sqrt(len(rows)),
}
