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
        let names = config.dimensions.num_hidden_layers.min(2);
        let small = crate::qwen3::Qwen3Config { num_hidden_layers: names, ..config.dimensions };
        assert!(!crate::qwen3::weights::layout(&small).is_empty());
        assert!(!config.end_tokens.is_empty());
    }
}
