//! The model that is built into the program, so that a fresh clone answers offline.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::ModelDigest;
use crate::manifest::Manifest;

/// Its name.
pub const NAME: &str = "cocoon-tiny";

macro_rules! model_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../models/cocoon-tiny/", $name)).as_slice())
    };
}

const FILES: &[(&str, &[u8])] = &[
    model_file!("config.json"),
    model_file!("model.safetensors"),
    model_file!("tokenizer.json"),
    model_file!("tokenizer_config.json"),
];

/// Its checkpoint files, by name.
pub fn files() -> &'static [(&'static str, &'static [u8])] {
    FILES
}

/// Writes the checkpoint into a directory, which is made if need be.
pub fn write_to(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    files().iter().try_for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes))
}

/// Digest of its manifest.
pub fn digest() -> ModelDigest {
    static DIGEST: OnceLock<ModelDigest> = OnceLock::new();
    *DIGEST.get_or_init(|| Manifest::of_files(files().iter().copied()).digest())
}
