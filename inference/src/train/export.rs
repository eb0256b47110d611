//! Writes a trained decoder as an ordinary Hugging Face checkpoint directory.
//!
//! `config.json` names `Qwen3ForCausalLM`, `model.safetensors` holds f32 tensors under the usual
//! names, `tokenizer.json` is a byte-level BPE without merges (so its tokens are exactly the bytes),
//! `tokenizer_config.json` carries the ChatML template, and `training.json` says how it was made.

use std::path::Path;

use serde_json::{Value, json};

use super::bytes;
use super::model::{Net, Shape};
use super::trainer::TrainError;

/// The chat template. The model never saw two questions in one conversation, so the template renders
/// the system message and the last question only; earlier turns are dropped here, in plain sight.
pub const CHAT_TEMPLATE: &str = "\
{%- set ns = namespace(last=0) -%}\
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}\
{%- for message in messages -%}\
{%- if message.role == 'system' or loop.index0 >= ns.last -%}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's table: printable bytes
/// are themselves, the others follow from U+0100 on).
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or('\u{fffd}')
}

fn tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (byte_character(byte).to_string(), json!(byte))).collect();
    let added: Vec<Value> = bytes::MARKERS
        .iter()
        .map(|(text, id)| {
            // The working-out is text for the reader, so its markers are not "special": they are shown.
            let special = !matches!(*id, bytes::THINK | bytes::THINK_END);
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}

fn tokenizer_config() -> Value {
    let decoder: serde_json::Map<String, Value> = bytes::MARKERS
        .iter()
        .map(|(text, id)| {
            let special = !matches!(*id, bytes::THINK | bytes::THINK_END);
            (
                id.to_string(),
                json!({"content": text, "lstrip": false, "normalized": false, "rstrip": false,
                                    "single_word": false, "special": special}),
            )
        })
        .collect();
    json!({
        "add_bos_token": false, "add_prefix_space": false, "added_tokens_decoder": decoder, "bos_token": null,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": false, "eos_token": "<|im_end|>",
        "model_max_length": Shape::tiny().max_position_embeddings, "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": null,
    })
}

fn config(shape: &Shape) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": null, "eos_token_id": bytes::IM_END, "pad_token_id": bytes::END_OF_TEXT, "head_dim": shape.head_dim,
        "hidden_act": "silu", "hidden_size": shape.hidden_size, "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size, "max_position_embeddings": shape.max_position_embeddings,
        "max_window_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers, "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": shape.rms_norm_eps, "rope_scaling": null, "rope_theta": shape.rope_theta, "sliding_window": null,
        "tie_word_embeddings": true, "torch_dtype": "float32", "use_cache": true, "use_sliding_window": false,
        "vocab_size": shape.vocab_size,
    })
}

/// The weights as the bytes of a safetensors file: tensors in the order of their names.
pub fn safetensors(net: &Net) -> Result<Vec<u8>, String> {
    let mut tensors = net.tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        let [rows, columns] = tensor.dims();
        let shape = if name.ends_with("norm.weight") { json!([columns]) } else { json!([rows, columns]) };
        let start = data.len();
        for value in tensor.into_data().iter::<f32>() {
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut head = serde_json::to_vec(&header).map_err(|error| error.to_string())?;
    // The format wants the data aligned to eight bytes; spaces after the header are allowed.
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head);
    file.extend(data);
    Ok(file)
}

/// Writes the whole directory; `record` becomes `training.json`.
pub fn write(net: &Net, shape: &Shape, record: &Value, dir: &Path) -> Result<(), TrainError> {
    let file = |action, path: &Path, source| TrainError::File { action, path: path.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(|source| file("creating", dir, source))?;
    let weights = safetensors(net)
        .map_err(|reason| TrainError::Checkpoint { path: dir.join("model.safetensors"), reason })?;
    let put = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(|source| file("writing", &path, source))
    };
    put("model.safetensors", &weights)?;
    for (name, value) in [
        ("config.json", config(shape)),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", tokenizer_config()),
        ("training.json", record.clone()),
    ] {
        put(name, format!("{value:#}\n").as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::checkpoint::ChatTemplate;
    use crate::{ChatRole, Message};

    #[test]
    fn the_tokenizer_file_gives_exactly_the_bytes_and_the_markers() {
        let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer().to_string()).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), bytes::VOCAB);
        for text in [
            "347+589 = ?",
            "  two  spaces\nand\ttabs\u{0}",
            "naïve Ωmega 🦋",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>1+1=2</think>\n2",
        ] {
            let encoded = tokenizer.encode(text, false).unwrap();
            assert_eq!(encoded.get_ids(), bytes::encode(text), "{text:?}");
            assert_eq!(tokenizer.decode(encoded.get_ids(), false).unwrap(), text);
            assert_eq!(bytes::decode(encoded.get_ids()), text);
        }
        let every: String = (0..=255u8).map(byte_character).collect();
        assert_eq!(every.chars().collect::<std::collections::BTreeSet<_>>().len(), 256);
    }

    #[test]
    fn the_template_renders_what_was_trained() {
        let config = tokenizer_config().to_string();
        let template = ChatTemplate::parse(Some(config.as_bytes()), None).unwrap();
        let message = |role, content: &str| Message::new(role, content);
        let render = |messages: &[Message]| {
            bytes::encode(&template.render(&crate::checkpoint::Prompt::new(messages)).unwrap())
        };
        let user = message(ChatRole::User, "2+2");
        let system = message(ChatRole::System, "You are a helpful assistant.");
        assert_eq!(render(std::slice::from_ref(&user)), bytes::prompt(None, "2+2"));
        let expected = bytes::prompt(Some("You are a helpful assistant."), "2+2");
        assert_eq!(render(&[system.clone(), user.clone()]), expected);
        let earlier = [message(ChatRole::User, "hi"), message(ChatRole::Assistant, "Hello!")];
        let whole = [std::slice::from_ref(&system), &earlier, std::slice::from_ref(&user)].concat();
        assert_eq!(render(&whole), expected, "earlier turns are dropped");
    }

    #[test]
    fn the_weights_file_is_read_by_the_safetensors_crate() {
        let shape = Shape::small();
        let net = Net::new(&shape, &Device::flex());
        let file = safetensors(&net).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(tensors.len(), 2 + 11 * shape.num_hidden_layers);
        let gate = tensors.tensor("model.layers.1.mlp.gate_proj.weight").unwrap();
        assert_eq!(gate.shape(), [shape.intermediate_size, shape.hidden_size]);
        assert_eq!(tensors.tensor("model.norm.weight").unwrap().shape(), [shape.hidden_size]);
    }
}
