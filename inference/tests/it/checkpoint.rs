//! Damaged and foreign checkpoints are refused with words that name the defect.

use std::path::Path;

use cocoon_inference::{BurnEngine, Engine, LoadError, embedded};

use crate::testkit::{fixture, load};

/// A copy of the one-file fixture with one file changed.
fn changed(file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    changed_of("untied", file, change)
}

/// A copy of a fixture's model files with one changed.
fn changed_of(name: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_str().unwrap().starts_with("expected") {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let path = dir.path().join(file);
    let bytes = change(std::fs::read(&path).unwrap());
    std::fs::write(path, bytes).unwrap();
    dir
}

fn error(dir: &Path) -> String {
    BurnEngine::load(dir, None, &mut |_, _| ()).unwrap_err().to_string()
}

fn replace(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(from), "{from}");
    text.replace(from, to).into_bytes()
}

#[test]
fn one_changed_byte_of_any_file_breaks_the_digest() {
    let digest = load("untied").info().digest;
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let dir = changed(file, |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        });
        let error = BurnEngine::load(dir.path(), Some(digest), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().starts_with("model digest is"), "{file}: {error}");
    }
}

#[test]
fn the_right_digest_is_accepted_and_progress_reaches_the_end() {
    let digest = load("untied").info().digest;
    let mut last = (0, 1);
    BurnEngine::load(&fixture("untied"), Some(digest), &mut |done, all| last = (done, all)).unwrap();
    assert_eq!(last.0, last.1);
}

#[test]
fn a_defect_of_the_configuration_names_the_field() {
    let dir = changed("config.json", |b| replace(b, "\"head_dim\": 24", "\"head_dim\": 23"));
    assert_eq!(
        error(dir.path()),
        "config.json: field `head_dim` is 23; it must be even: rotary embedding pairs its halves"
    );
}

#[test]
fn a_defect_of_the_weights_names_the_tensor() {
    let wider =
        changed("config.json", |b| replace(b, "\"intermediate_size\": 80", "\"intermediate_size\": 84"));
    assert_eq!(
        error(wider.path()),
        "weights: model.safetensors: tensor model.layers.0.mlp.gate_proj.weight has shape [80, 48], the \
         configuration asks for [84, 48]"
    );
    let deeper = changed("config.json", |b| {
        let longer = replace(b, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
        replace(longer, "\"full_attention\",", "\"full_attention\", \"full_attention\",")
    });
    assert!(error(deeper.path()).contains("tensor model.layers.2.input_layernorm.weight is missing"));
    let nan = changed("model.safetensors", |mut bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    });
    assert!(error(nan.path()).contains("holds NaN or infinity at index"), "{}", error(nan.path()));
    let cut = changed("model.safetensors", |mut bytes| {
        bytes.truncate(1000);
        bytes
    });
    assert!(error(cut.path()).contains("model.safetensors is no safetensors file"));
}

#[test]
fn a_defect_of_a_sharded_checkpoint_names_file_and_tensor() {
    const INDEX: &str = "model.safetensors.index.json";
    const SECOND: &str = "model-00002-of-00005.safetensors";
    let missing = changed_of("mistral", INDEX, |b| b);
    std::fs::remove_file(missing.path().join(SECOND)).unwrap();
    let text = error(missing.path());
    assert!(text.starts_with(&format!("weights: {SECOND} is missing, in which")), "{text}");

    let moved = changed_of("mistral", INDEX, |b| replace(b, SECOND, "model-00001-of-00005.safetensors"));
    let text = error(moved.path());
    assert!(
        text.starts_with("weights: model-00001-of-00005.safetensors holds no tensor model.layers."),
        "{text}"
    );

    let outside = changed_of("mistral", INDEX, |b| replace(b, SECOND, "../../secret.safetensors"));
    let text = error(outside.path());
    assert!(text.contains("is said to be in \"../../secret.safetensors\""), "{text}");

    let unlisted = changed_of("mistral", INDEX, |b| replace(b, "lm_head.weight", "lm_head.other"));
    let text = error(unlisted.path());
    assert!(text.contains("holds no tensor lm_head.other"), "{text}");

    let nan = changed_of("mistral", SECOND, |mut bytes| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0xC0, 0x7F]);
        bytes
    });
    let text = error(nan.path());
    assert!(text.starts_with(&format!("weights: {SECOND}: tensor model.layers.")), "{text}");
    assert!(text.contains("holds NaN or infinity at index"), "{text}");
}

#[test]
fn one_changed_byte_of_the_index_breaks_the_digest() {
    let digest = load("gemma3").info().digest;
    let dir = changed_of("gemma3", "model.safetensors.index.json", |mut bytes| {
        bytes.push(b' ');
        bytes
    });
    let error = BurnEngine::load(dir.path(), Some(digest), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().starts_with("model digest is"), "{error}");
}

#[test]
fn a_defect_of_the_tokenizer_is_named() {
    let short = changed("config.json", |b| replace(b, "\"vocab_size\": 272", "\"vocab_size\": 258"));
    assert!(error(short.path()).contains("but config.json's `vocab_size` is 258"), "{}", error(short.path()));
    let broken = changed("tokenizer.json", |_| b"{".to_vec());
    assert!(error(broken.path()).starts_with("tokenizer.json: not a tokenizer"));
    let plain = changed("tokenizer_config.json", |_| b"{}".to_vec());
    assert!(error(plain.path()).starts_with("chat template: neither"));
}

#[test]
fn a_missing_file_and_an_oversized_one_are_named() {
    let dir = changed("config.json", |b| b);
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(matches!(
        BurnEngine::load(dir.path(), None, &mut |_, _| ()),
        Err(LoadError::Missing { name: "tokenizer.json" })
    ));
    let dir = changed("config.json", |b| b);
    let file = std::fs::File::options().write(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(BurnEngine::load(dir.path(), None, &mut |_, _| ()), Err(LoadError::TooLarge { .. })));
}

#[test]
fn the_embedded_model_loads_from_memory_and_from_disk_alike() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(embedded::NAME);
    embedded::write_to(&folder).unwrap();
    let disk = BurnEngine::load(&folder, Some(embedded::digest()), &mut |_, _| ()).unwrap();
    let memory = BurnEngine::embedded().unwrap();
    assert_eq!(disk.info(), memory.info());
    assert_eq!(disk.logits(&[1, 2, 3], 3).unwrap(), memory.logits(&[1, 2, 3], 3).unwrap());
}
