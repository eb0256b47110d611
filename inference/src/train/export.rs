//! Writes a trained decoder as an ordinary Hugging Face checkpoint directory.
//!
//! `config.json` names `Qwen3ForCausalLM`, `model.safetensors` holds f32 tensors under the usual
//! names, `tokenizer.json` is the byte-level vocabulary of [`super::tokenizer`], `tokenizer_config.json`
//! carries the chat template, and `training.json` says how it was made.

use std::path::Path;

use serde_json::{Value, json};

use super::chat::CHAT_TEMPLATE;
use super::model::{Net, Shape};
use super::tokenizer::{self, Tokens};
use super::trainer::TrainError;

fn tokenizer_config(shape: &Shape) -> Value {
    let decoder: serde_json::Map<String, Value> =
        tokenizer::markers().map(|(id, marker)| (id.to_string(), marker)).collect();
    json!({
        "added_tokens_decoder": decoder, "bos_token": null, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false, "eos_token": "<|im_end|>",
        "model_max_length": shape.max_position_embeddings, "pad_token": "<|endoftext|>",
        // Read from tokenizer.json as it is; Qwen's own class would make merges of its own.
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": null,
    })
}

fn config(shape: &Shape) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": null, "eos_token_id": tokenizer::IM_END, "pad_token_id": tokenizer::END_OF_TEXT, "head_dim": shape.head_dim,
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
pub fn write(
    net: &Net,
    shape: &Shape,
    tokens: &Tokens,
    record: &Value,
    dir: &Path,
) -> Result<(), TrainError> {
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
        ("tokenizer.json", tokens.file().clone()),
        ("tokenizer_config.json", tokenizer_config(shape)),
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
