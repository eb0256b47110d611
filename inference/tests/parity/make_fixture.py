"""Writes the parity fixtures: small random checkpoints and what `transformers` says they compute.

Run once, with (PyPI, all on the CPU):

    python3 3.11.7, torch 2.15.0, transformers 5.23.0, numpy 2.4.6, safetensors 0.8.0
    python3 make_fixture.py

The tests and CI read only the files written here; neither ever needs torch.

| folder | family | what it covers |
|---|---|---|
| `untied` | Qwen3 | f32 |
| `tied` | Qwen3 | bf16, tied embeddings, another RoPE base, one key/value head |
| `llama3` | Llama | f16, `llama3` RoPE scaling with high, blended and low frequencies, positions beyond the original context |
| `llama-linear` | Llama | f32, `linear` RoPE scaling, biases of attention, tied embeddings |
| `mistral` | Mistral | bf16, sequences longer than the sliding window, weights in shards |
| `gemma3` | Gemma 3 | bf16, sliding and global layers with two RoPE bases (the global one scaled), weights in shards |
| `bert` | BERT | f32, heads narrower than a vector, all four ways of pooling |
| `bert-masked` | BERT | f16, the encoder inside a `BertForMaskedLM`, whose tensors are called `bert.…` |

The decoders all have head_dim != hidden_size / heads, fewer key/value heads than query heads, and norm weights that
are not one, since those are the places where a decoder can be wrong and still look right.

expected.safetensors holds `ids` (the sequence), `logits` (f32, after every position), `greedy_prompt` and
`greedy` (the continuation that `generate` picks). expected_chat.json holds rendered conversations with
their token ids, from `apply_chat_template`. `mistral` and `gemma3` have SentencePiece vocabularies, the
others byte-level ones.

The encoders' expected.safetensors holds, for each text of expected_texts.json, what each way of pooling makes of its
last hidden states, as sentence-transformers defines them, before any normalisation.
"""

import json
import pathlib
import sys

import numpy
import torch
import transformers
from safetensors.numpy import save_file as save_numpy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = pathlib.Path(__file__).parent
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<think>", "</think>"]
VOCAB = 272  # 256 bytes, the specials, and rows that no token uses
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CHATS = [
    [{"role": "user", "content": "What is 17 + 25?"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "in the thin  ether: Gr\u00fc\u00dfe, \u4e16\u754c \U0001f980"},
        {"role": "assistant", "content": "<think>hm</think>Hi"},
        {"role": "user", "content": "  twice   "},
    ],
]


def byte_alphabet():
    """GPT-2's printable stand-in for every byte value."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(b) if b in keep else chr(next(spare)) for b in range(256)]


def tokenizer_json():
    """Byte-level BPE without merges: token id = byte value, specials behind."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 256 + i,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": content.startswith("<|"),
            }
            for i, content in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {symbol: byte for byte, symbol in enumerate(byte_alphabet())},
            "merges": [],
        },
    }


def sentencepiece_json(prepend):
    """SentencePiece's BPE as `transformers` converts it: spaces are U+2581, unknown characters bytes.

    With `prepend` as in Mistral and Llama 2, where every text begins with a space; without it as in Gemma.
    """
    whole = tokenizer_json()
    space, replace = "\u2581", {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    merges = [(space, "t"), ("h", "e"), (space + "t", "he"), ("i", "n"), (space, "in")]
    pieces = [space, "t", "h", "e", "i", "n", *(a + b for a, b in merges)]
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    # Here, unlike above, control tokens are entries of the vocabulary too.
    vocab.update({piece: 256 + i for i, piece in enumerate([*SPECIALS, *pieces])})
    assert len(vocab) == VOCAB
    decoders = [
        {"type": "Replace", "pattern": {"String": space}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prepend:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        replace = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, replace]}
    whole.update(normalizer=replace, pre_tokenizer=None, decoder={"type": "Sequence", "decoders": decoders})
    whole["model"].update(byte_fallback=True, fuse_unk=True, vocab=vocab, merges=merges)
    return whole


def write_tokenizer(folder):
    kinds = {"mistral": lambda: sentencepiece_json(True), "gemma3": lambda: sentencepiece_json(False)}
    tokenizer = kinds.get(folder.name, tokenizer_json)()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def check_greedy(name, model, prompt, greedy):
    """The continuation must not hang on rounding: the best token leads by more than the tests' bound."""
    whole = torch.cat([prompt, greedy])[None]
    rows = model(whole).logits[0, len(prompt) - 1 : -1]
    assert rows.argmax(dim=-1).tolist() == greedy.tolist(), f"{name}: generate() and forward() disagree"
    best = rows.topk(2).values
    lead = ((best[:, 0] - best[:, 1]) / rows.abs().amax(dim=-1)).min().item()
    assert lead > 3e-4, f"{name}: the greedy continuation hangs on a lead of {lead:.1e}; take another seed"
    assert len(set(greedy.tolist())) > 8, f"{name}: the greedy continuation says nothing; take another seed"
    return lead


def write_checkpoint(name, model_class, config_class, dtype, seed, length=40, shard="1GB", **dimensions):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=VOCAB,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=258,
        **{"max_position_embeddings": 96, **dimensions},
    )
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    gemma = model_class is Gemma3ForCausalLM
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                # Gemma stores the difference from one.
                parameter.uniform_(0.4, 1.8).sub_(1.0 if gemma else 0.0)
            else:
                # Small where the tied head would otherwise just repeat the scaled embedding.
                parameter.normal_(0.0, (0.02 if gemma else 0.1) if "embed" in parameter_name else 0.3)
            # What the checkpoint will hold is what is run below.
            parameter.copy_(parameter.to(dtype).to(torch.float32))
        if gemma:
            # In a model of `dtype`, transformers multiplies with the scale in `dtype`; the sums below
            # are f32, the constants those of the checkpoint.
            scale = model.model.embed_tokens.embed_scale
            assert scale.to(dtype).float() != scale, "the rounding of the embedding scale must show"
            model.model.embed_tokens.embed_scale = scale.to(dtype).float()
        ids = torch.randint(0, 261, (1, length))
        logits = model(ids).logits[0]
        model.generation_config.eos_token_id = None
        prompt = ids[0, :8]
        greedy = model.generate(
            prompt[None], attention_mask=torch.ones(1, 8, dtype=torch.long), do_sample=False, max_new_tokens=64
        )[0, 8:]
        lead = check_greedy(name, model, prompt, greedy)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_numpy(
        {
            "ids": ids[0].numpy().astype(numpy.uint32),
            "logits": logits.numpy().astype(numpy.float32),
            "greedy_prompt": prompt.numpy().astype(numpy.uint32),
            "greedy": greedy.numpy().astype(numpy.uint32),
        },
        folder / "expected.safetensors",
        metadata={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    for file in folder.iterdir():
        file.chmod(0o644)
    write_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    chats = []
    for messages in CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        chats.append({"messages": messages, "text": text, "ids": ids, "decoded": decoded})
    (folder / "expected_chat.json").write_text(json.dumps(chats, indent=1) + "\n")
    count = sum(p.numel() for p in model.parameters())
    print(f"{name}: {count} parameters; smallest lead {lead:.1e}; greedy", greedy.tolist())


TEXTS = [
    "The cat sits outside.",
    "a",
    "Gr\u00fc\u00dfe, \u4e16\u754c! Don't PANIC",
    "in the garden the dog plays and the cat sits and the sun shines and nobody is outside at all",
    "unknowable \U0001f980 outside",
]
MAX_TOKENS = 16  # one text is longer


def wordpiece_json():
    """BERT's uncased vocabulary, with words for the texts above: some whole, some in pieces, one unknown."""
    letters = "abcdefghiklmnoprstuwy"
    words = ["the", "cat", "dog", "sits", "outside", "in", "garden", "and", "don", "panic", ".", ",", "!", "'"]
    pieces = [*letters, *("##" + letter for letter in letters), "##able", "\u4e16"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, token in enumerate(vocab[:5])
    ]
    parts = [("SpecialToken", "[CLS]", 0), ("Sequence", "A", 0), ("SpecialToken", "[SEP]", 0)]
    pair = [*parts, ("Sequence", "B", 1), ("SpecialToken", "[SEP]", 1)]
    return {
        "version": "1.0",
        # As published files have them: left from training, and not what the model is used with.
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{kind: {"id": name, "type_id": type_id}} for kind, name, type_id in parts],
            "pair": [{kind: {"id": name, "type_id": type_id}} for kind, name, type_id in pair],
            "special_tokens": {
                token: {"id": token, "ids": [vocab.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {token: i for i, token in enumerate(vocab)}},
    }


def write_encoder(name, model_class, dtype, seed, **dimensions):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    vocabulary = wordpiece_json()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary["model"]["vocab"]) + 3, max_position_embeddings=24, layer_norm_eps=1e-12,
        **dimensions,
    )
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "LayerNorm.weight" in parameter_name:
                parameter.uniform_(0.4, 1.8)
            else:
                parameter.normal_(0.0, 0.3)
            parameter.copy_(parameter.to(dtype).to(torch.float32))
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary, indent=1) + "\n")
    files = {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": 20, "do_lower_case": True},
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.hidden_size, "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(["Transformer", "Pooling", "Normalize"])
        ],
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    encoder = getattr(model, "bert", model)
    pooled, texts = {"mean": [], "cls": [], "max": [], "mean_sqrt_len_tokens": []}, []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
            rows = encoder(ids).last_hidden_state[0]
            texts.append({"text": text, "ids": ids[0].tolist()})
            pooled["mean"].append(rows.mean(dim=0))
            pooled["cls"].append(rows[0])
            pooled["max"].append(rows.max(dim=0).values)
            pooled["mean_sqrt_len_tokens"].append(rows.sum(dim=0) / len(rows) ** 0.5)
    lengths = [len(text["ids"]) for text in texts]
    assert max(lengths) == MAX_TOKENS, "one text must be cut"
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_numpy(
        {way: torch.stack(rows).numpy().astype(numpy.float32) for way, rows in pooled.items()},
        folder / "expected.safetensors",
        metadata={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    (folder / "expected_texts.json").write_text(json.dumps(texts, indent=1) + "\n")
    for file in folder.rglob("*.*"):
        file.chmod(0o644)
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, tokens {lengths}")


def main():
    print(sys.version, torch.__version__, transformers.__version__, numpy.__version__)
    write_checkpoint(
        "untied", Qwen3ForCausalLM, Qwen3Config, torch.float32, 1, tie_word_embeddings=False, hidden_size=48,
        intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=24,
        rope_theta=10000.0,
    )
    write_checkpoint(
        "tied", Qwen3ForCausalLM, Qwen3Config, torch.bfloat16, 2, tie_word_embeddings=True, hidden_size=32,
        intermediate_size=72, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        rope_theta=1000000.0,
    )
    # Turns within the original context: 5.1 (kept), 2.3 and 1.1 (blended), 0.5 and below (stretched).
    write_checkpoint(
        "llama3", LlamaForCausalLM, LlamaConfig, torch.float16, 3, length=72, tie_word_embeddings=False,
        hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    )
    write_checkpoint(
        "llama-linear", LlamaForCausalLM, LlamaConfig, torch.float32, 4, attention_bias=True,
        tie_word_embeddings=True, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, head_dim=12, length=72,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    )
    write_checkpoint(
        "mistral", MistralForCausalLM, MistralConfig, torch.bfloat16, 5, length=72, shard="24KB",
        tie_word_embeddings=False, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, sliding_window=20,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    write_checkpoint(
        "gemma3", Gemma3ForCausalLM, Gemma3TextConfig, torch.bfloat16, 6, length=72, shard="24KB",
        tie_word_embeddings=True, hidden_size=40, intermediate_size=56, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=14, query_pre_attn_scalar=20,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    write_encoder(
        "bert", BertModel, torch.float32, 7, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40,
    )
    write_encoder(
        "bert-masked", BertForMaskedLM, torch.float16, 8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=56,
    )


if __name__ == "__main__":
    main()
