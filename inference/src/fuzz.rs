//! Bodies of the fuzz targets. Each takes arbitrary bytes and must neither panic nor grow without
//! bound; where a value parses, it must survive being written and parsed again.
#![allow(missing_docs)]

use crate::codec;
use crate::manifest::Manifest;

/// A request as it arrives from a stranger.
pub fn generate_request(bytes: &[u8]) {
    if let Ok(request) = codec::decode_request(bytes) {
        // A refusal is fine; a panic is not.
        let _refusal = request.validate();
        let again = codec::encode_request(&request);
        assert!(again.is_ok_and(|b| codec::decode_request(&b).is_ok()), "a request must survive the wire");
    }
}

/// A manifest.
pub fn manifest(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(manifest) = Manifest::parse(text)
    {
        assert_eq!(manifest.to_string(), text, "only the canonical form may parse");
    }
}

/// `config.json` of a checkpoint.
#[cfg(feature = "engine")]
pub fn hf_config(bytes: &[u8]) {
    if let Ok(config) = crate::checkpoint::parse_config(bytes, None) {
        let mut small = config.dimensions;
        small.layers.truncate(2);
        assert!(!crate::decoder::weights::layout(&small).is_empty());
        assert!(!config.end_tokens.is_empty());
    }
}

/// `model.safetensors.index.json` beside two shards.
#[cfg(feature = "engine")]
pub fn shard_index(bytes: &[u8]) {
    use crate::checkpoint::Tensors;
    // A header of two bytes, without tensors.
    let empty = [2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'].to_vec();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let files = shards.map(|name| (name.to_owned(), empty.clone())).to_vec();
    // The shards hold nothing, so an index that names a tensor cannot be right.
    assert!(Tensors::parse(files, Some(bytes)).is_err(), "an index must not be believed");
}

/// A file of weights, of which a tensor `x` of one value is wanted.
#[cfg(feature = "engine")]
pub fn weights_header(bytes: &[u8]) {
    use crate::checkpoint::Tensors;
    let files = vec![("model.safetensors".to_owned(), bytes.to_vec())];
    if let Ok(tensors) = Tensors::parse(files, None)
        && let Ok(values) = tensors.get("x", &[1])
    {
        assert!(values.len() == 1 && values[0].is_finite(), "a tensor must be what it was said to be");
    }
}

/// `config.json` of an encoder.
#[cfg(feature = "engine")]
pub fn encoder_config(bytes: &[u8]) {
    if let Ok(config) = crate::embedder::EncoderConfig::parse(bytes) {
        assert!(config.head_dim() * config.heads == config.hidden_size, "heads must share the width evenly");
        assert!(config.parameters() <= config.parameters_on_disk(), "files hold what is used");
    }
}

/// The files that say what becomes of an encoder's output: every one of them is these bytes, but for one.
#[cfg(feature = "engine")]
pub fn embedder_modules(bytes: &[u8]) {
    const MODULES: &[u8] = br#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
    let list = bytes.first() == Some(&b'[');
    for pooling in [bytes, br#"{"pooling_mode": "mean"}"#] {
        let find = |name: &str| match name {
            "modules.json" if !list => Some(MODULES),
            crate::manifest::POOLING_FILE => Some(pooling),
            _ if list && name != "modules.json" => None,
            _ => Some(bytes),
        };
        if let Ok(recipe) = crate::embedder::Recipe::read(find, 32, 64) {
            assert!((1..=64).contains(&recipe.max_tokens), "no text is longer than there are positions");
        }
    }
}
