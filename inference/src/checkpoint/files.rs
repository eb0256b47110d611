//! The files of a checkpoint folder, each read once.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{ConfigError, INDEX_FILE, LoadError, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, Tensors};
use crate::ModelDigest;
use crate::manifest::{self, Manifest, ManifestError};

/// Room for a weight file's header and for tensors that are not used, beside the weights themselves.
const WEIGHT_SLACK_BYTES: u64 = 64 * 1024 * 1024;

/// Files in memory, and what they are called together.
#[derive(Debug)]
pub(crate) struct Files {
    /// Name of their folder.
    pub(crate) name: String,
    /// What identifies them.
    pub(crate) manifest: Manifest,
    files: Vec<(String, Vec<u8>)>,
}

impl Files {
    /// Keeps the files that an engine reads, which must be those of the expected digest.
    pub(crate) fn new(
        name: String,
        files: Vec<(String, Vec<u8>)>,
        expected: Option<&ModelDigest>,
    ) -> Result<Self, LoadError> {
        let files: Vec<_> = files.into_iter().filter(|(name, _)| manifest::is_model_file(name)).collect();
        let manifest = Manifest::of_files(files.iter().map(|(n, b)| (n.as_str(), b.as_slice())));
        if let Some(digest) = expected {
            manifest::expect(&manifest, digest)?;
        }
        Ok(Self { name, manifest, files })
    }

    /// Reads a folder and makes of it what `parse` makes. `parameters` says from `config.json` how many values
    /// the weight files may hold; `progress` gets bytes read and bytes in all.
    pub(crate) fn open<T>(
        dir: &Path,
        expected: Option<&ModelDigest>,
        parameters: impl FnOnce(&[u8]) -> Result<u64, ConfigError>,
        progress: &mut dyn FnMut(u64, u64),
        parse: impl FnOnce(Self) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let opened = read_dir(dir, parameters, progress)
            .and_then(|files| Self::new(folder_name(dir), files, expected))
            .and_then(parse);
        match (opened, expected) {
            // Whatever is wrong inside a file, that it is not the expected file is the better
            // answer.
            (Err(error), Some(digest)) if !matches!(error, LoadError::Manifest(_)) => {
                manifest::verify_digest(dir, digest)?;
                Err(error)
            }
            (opened, _) => opened,
        }
    }

    /// A file that may be there.
    pub(crate) fn find(&self, wanted: &str) -> Option<&[u8]> {
        self.files.iter().find(|(n, _)| n == wanted).map(|(_, b)| b.as_slice())
    }

    /// A file that must be there.
    pub(crate) fn need(&self, wanted: &'static str) -> Result<&[u8], LoadError> {
        self.find(wanted).ok_or(LoadError::Missing { name: wanted })
    }

    /// The weights; everything else is let go.
    pub(crate) fn into_tensors(self) -> Result<Tensors, LoadError> {
        let index = self.find(INDEX_FILE).map(<[u8]>::to_vec);
        let weights = self.files.into_iter().filter(|(n, _)| n.ends_with(".safetensors")).collect();
        Ok(Tensors::parse(weights, index.as_deref())?)
    }
}

/// `config.json` of a folder, alone.
pub(crate) fn read_config(dir: &Path) -> Result<Vec<u8>, LoadError> {
    read(dir, "config.json", MAX_CONFIG_BYTES)
}

fn folder_name(dir: &Path) -> String {
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = resolved.file_name().and_then(|n| n.to_str()).unwrap_or("model");
    name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(96).collect()
}

fn read_dir(
    dir: &Path,
    parameters: impl FnOnce(&[u8]) -> Result<u64, ConfigError>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
    let names = manifest::model_files(dir)?;
    let mut total = 0;
    let mut sizes = Vec::new();
    for name in &names {
        let size = std::fs::metadata(dir.join(name)).map_err(|e| io(dir, name, e))?.len();
        total += size;
        sizes.push(size);
    }
    // The configuration first: it bounds everything else.
    let config = read_config(dir)?;
    let mut room = parameters(&config)?.saturating_mul(4).saturating_add(WEIGHT_SLACK_BYTES);
    let mut done = 0;
    let mut files = Vec::new();
    for (name, size) in names.into_iter().zip(sizes) {
        progress(done, total);
        let bytes = match name.as_str() {
            "config.json" => config.clone(),
            n if n.ends_with(".safetensors") => {
                let bytes = read(dir, &name, room)?;
                room -= bytes.len() as u64;
                bytes
            }
            _ => read(dir, &name, MAX_TOKENIZER_BYTES)?,
        };
        done += size;
        files.push((name, bytes));
    }
    progress(done, total);
    Ok(files)
}

fn read(dir: &Path, name: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
    let file = File::open(dir.join(name)).map_err(|e| io(dir, name, e))?;
    let found = file.metadata().map_err(|e| io(dir, name, e))?.len();
    if found > limit {
        return Err(LoadError::TooLarge { name: name.to_owned(), found, limit });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    // The file may grow while it is read.
    file.take(limit).read_to_end(&mut bytes).map_err(|e| io(dir, name, e))?;
    Ok(bytes)
}

fn io(dir: &Path, name: &str, source: std::io::Error) -> LoadError {
    ManifestError::Io { path: dir.join(name).display().to_string(), source }.into()
}
