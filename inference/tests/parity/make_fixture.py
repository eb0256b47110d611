"""Writes the parity fixtures: two small random Qwen3 checkpoints and what `transformers` says they compute.

Run once, with (Debian sid, all on the CPU):

    python3 3.14.10, python3-torch 2.14.1, python3-transformers 5.12.1, python3-numpy 2.4.6
    python3 make_fixture.py

The tests and CI read only the files written here; neither ever needs torch.

`untied/` is f32, `tied/` is bf16 with tied embeddings and another RoPE base. Both have
head_dim != hidden_size / heads, fewer key/value heads than query heads, and norm weights that are
not one, since those are the places where a decoder can be wrong and still look right.

expected.safetensors holds `ids` (the sequence), `logits` (f32, after every position) and `greedy`
(the continuation that `generate` picks). expected_chat.json holds rendered conversations with their
token ids, from `apply_chat_template`.
"""

import json
import pathlib
import sys

import numpy
import torch
import transformers
from safetensors.numpy import save_file as save_numpy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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
        {"role": "user", "content": "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f980"},
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


def write_tokenizer(folder):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(), indent=1) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_checkpoint(name, dtype, seed, **dimensions):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        max_position_embeddings=96,
        rms_norm_eps=1e-6,
        eos_token_id=257,
        pad_token_id=258,
        **dimensions,
    )
    model = Qwen3ForCausalLM(config).to(torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.4, 1.8)
            else:
                parameter.normal_(0.0, 0.1 if "embed" in parameter_name else 0.3)
            # What the checkpoint will hold is what is run below.
            parameter.copy_(parameter.to(dtype).to(torch.float32))
        ids = torch.randint(0, 261, (1, 40))
        logits = model(ids).logits[0]
        model.generation_config.eos_token_id = None
        greedy = model.generate(
            ids[:, :8], attention_mask=torch.ones(1, 8, dtype=torch.long), do_sample=False, max_new_tokens=32
        )[0, 8:]
        model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_numpy(
        {
            "ids": ids[0].numpy().astype(numpy.uint32),
            "logits": logits.numpy().astype(numpy.float32),
            "greedy_prompt": ids[0, :8].numpy().astype(numpy.uint32),
            "greedy": greedy.numpy().astype(numpy.uint32),
        },
        folder / "expected.safetensors",
        metadata={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    write_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    chats = []
    for messages in CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        chats.append({"messages": messages, "text": text, "ids": ids})
    (folder / "expected_chat.json").write_text(json.dumps(chats, indent=1) + "\n")
    print(name, sum(p.numel() for p in model.parameters()), "parameters; greedy", greedy.tolist())


def main():
    print(sys.version, torch.__version__, transformers.__version__, numpy.__version__)
    write_checkpoint(
        "untied", torch.float32, 1, tie_word_embeddings=False, hidden_size=48, intermediate_size=80,
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=24, rope_theta=10000.0,
    )
    write_checkpoint(
        "tied", torch.bfloat16, 2, tie_word_embeddings=True, hidden_size=32, intermediate_size=72,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=16, rope_theta=1000000.0,
    )


if __name__ == "__main__":
    main()
