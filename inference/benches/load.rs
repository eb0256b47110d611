//! How fast a checkpoint becomes a model, from the page cache, against the limits of reading it at all.
//!
//!     cargo bench -p cocoon-inference --features engine --bench load [-- FOLDER]
//!
//! Without a folder it writes checkpoints of 100 million parameters first. A digest is one SHA-256 for each file, so
//! the limit is what the longest file takes one thread to read and hash, or, where that is more, what all files take
//! all threads together. (Packing comes on top; it is done meanwhile, as far as there are threads.)

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use cocoon_inference::BurnEngine;
use cocoon_inference::checkpoint::{INDEX_FILE, parse_config};
use cocoon_inference::decoder::weights::layout;
use cocoon_inference::kernels::Precision;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use sha2::{Digest, Sha256};

const ROUNDS: usize = 7;

const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2048,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "float32", "eos_token_id": 1,
    "attention_bias": false, "mlp_bias": false
}"#;

/// Writes random weights in so many files, with the vocabulary of the embedded model.
fn write(dir: &Path, dtype: Dtype, shards: usize) {
    cocoon_inference::embedded::write_to(dir).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
    let tensors = layout(&parse_config(CONFIG.as_bytes(), None).unwrap().dimensions);
    let mut map = serde_json::Map::new();
    for (shard, tensors) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{shard:05}.safetensors");
        let data: Vec<_> = tensors.iter().map(|(_, shape)| values(dtype, shape.iter().product())).collect();
        let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
            map.insert(name.clone(), file.clone().into());
            (name, TensorView::new(dtype, shape.clone(), data).unwrap())
        });
        let views: Vec<_> = views.collect();
        serialize_to_file(views, None, &dir.join(&file)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(dir.join(INDEX_FILE), index).unwrap();
}

fn values(dtype: Dtype, count: usize) -> Vec<u8> {
    let value = |i: usize| (i.wrapping_mul(7919) % 1009) as f32 / 25_000.0 - 0.02;
    let bytes = |i: usize| value(i).to_le_bytes();
    match dtype {
        Dtype::F32 => (0..count).flat_map(bytes).collect(),
        // The upper half of a single is a bfloat16.
        _ => (0..count).flat_map(|i| [bytes(i)[2], bytes(i)[3]]).collect(),
    }
}

fn best(mut run: impl FnMut()) -> f64 {
    let once = |_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(once).fold(f64::INFINITY, f64::min)
}

/// Reads a file and hashes it, on one thread.
fn hash(path: &Path) {
    let (mut file, mut buffer, mut hasher) = (File::open(path).unwrap(), vec![0; 1 << 20], Sha256::new());
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    std::hint::black_box(hasher.finalize());
}

fn measure(name: &str, dir: &Path) {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    let sizes: Vec<u64> = files.iter().map(|path| path.metadata().unwrap().len()).collect();
    let bytes = sizes.iter().sum::<u64>() as f64;
    let hashes: Vec<f64> = files.iter().map(|path| best(|| hash(path))).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let longest = hashes.iter().copied().fold(0.0, f64::max);
    let limit = bytes / longest.max(hashes.iter().sum::<f64>() / threads) / 1e9;
    println!("{name}: {:.0} MB in {} files; limit {limit:.2} GB/s", bytes / 1e6, files.len());
    for precision in Precision::ALL {
        let took = best(|| {
            BurnEngine::load_as(dir, precision, None, &mut |_, _| ()).unwrap();
        });
        let speed = bytes / took / 1e9;
        println!(
            "  as {precision:<5}{took:>7.3} s, {speed:.2} GB/s: {speed:.2} of 1 GB/s, {:.2} of the limit",
            speed / limit
        );
    }
}

fn main() {
    if let Some(folder) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        return measure(&folder, Path::new(&folder));
    }
    for (name, dtype, shards) in
        [("f32", Dtype::F32, 1), ("f32 in shards", Dtype::F32, 4), ("bf16", Dtype::BF16, 1)]
    {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), dtype, shards);
        measure(name, dir.path());
    }
}
