//! The identity of a model: a canonical list of its files.
//!
//! A manifest has one line per file that an engine may read (`<sha256> <size> <name>`), sorted by
//! name, after a line that names the format. The model's digest is the SHA-256 of that text, and
//! `name@digest` is how people and ads name the model. Files that no engine reads (a readme, a
//! training log) do not change what the model computes and are no part of its identity.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::ModelDigest;

/// First line of a manifest.
const HEADER: &str = "cocoon-model-manifest/1";
/// Files an engine may read, beside `*.safetensors`.
const READ_FILES: [&str; 9] = [
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// How an embedder makes one vector of many: the only file that is read from a folder inside the model's.
pub(crate) const POOLING_FILE: &str = "1_Pooling/config.json";
/// A checkpoint of a few hundred shards is the largest there is.
pub const MAX_FILES: usize = 1024;
/// Longest file name in a manifest.
const MAX_FILE_NAME: usize = 128;

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    files: BTreeMap<String, Entry>,
}

/// Why a manifest cannot be made, read or matched.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The folder or a file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Nothing to list.
    #[error("{path} holds no model: expected config.json and *.safetensors in it")]
    Empty {
        /// The folder.
        path: String,
    },
    /// Too much to list.
    #[error("more than {MAX_FILES} model files in {path}")]
    TooMany {
        /// The folder.
        path: String,
    },
    /// The text is no manifest.
    #[error("manifest line {line}: {why}")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// What was expected.
        why: &'static str,
    },
    /// The files are others than expected.
    #[error(
        "model digest is {found}, expected {expected}: a file was changed or this is another model; \
         fetch the model again or correct the expected digest"
    )]
    DigestMismatch {
        /// Digest of the files found.
        found: String,
        /// Digest asked for.
        expected: String,
    },
    /// One file differs.
    #[error("model file {name}: {why}; fetch the model again")]
    FileMismatch {
        /// Name of the file.
        name: String,
        /// What differs.
        why: String,
    },
}

/// Whether an engine may read the file of this name, so that it belongs to the manifest.
pub fn is_model_file(name: &str) -> bool {
    let plain = name.len() <= MAX_FILE_NAME
        && (READ_FILES.contains(&name) || name.ends_with(".safetensors"))
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'\\');
    plain || name == POOLING_FILE
}

impl Manifest {
    /// Lists and hashes the model files of a folder.
    pub fn of_dir(dir: &Path) -> Result<Self, ManifestError> {
        let mut manifest = Self::default();
        for name in model_files(dir)? {
            let path = dir.join(&name);
            let entry = File::open(&path)
                .and_then(|file| Entry::of(file, |_| ()))
                .map_err(|source| ManifestError::Io { path: path.display().to_string(), source })?;
            manifest.files.insert(name, entry);
        }
        Ok(manifest)
    }

    /// Lists files held in memory; those that no engine reads are left out.
    pub fn of_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut manifest = Self::default();
        for (name, content) in files {
            if is_model_file(name) {
                manifest.insert(name, content);
            }
        }
        manifest
    }

    /// Adds a file by its content.
    pub fn insert(&mut self, name: &str, content: &[u8]) {
        let entry = Entry { size: content.len() as u64, sha256: Sha256::digest(content).into() };
        self.put(name.to_owned(), entry);
    }

    /// Adds a file that was hashed while it was read.
    pub fn put(&mut self, name: String, entry: Entry) {
        self.files.insert(name, entry);
    }

    /// The files, sorted by name.
    pub fn files(&self) -> &BTreeMap<String, Entry> {
        &self.files
    }

    /// The model's digest.
    pub fn digest(&self) -> ModelDigest {
        Sha256::digest(self.to_string()).into()
    }

    /// Reads the text form back. Only the canonical form is accepted.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let fail = |line, why| Err(ManifestError::Malformed { line, why });
        let mut lines = text.split_inclusive('\n').map(|l| l.strip_suffix('\n'));
        if lines.next() != Some(Some(HEADER)) {
            return fail(1, "expected `cocoon-model-manifest/1`");
        }
        let mut manifest = Self::default();
        for (i, line) in lines.enumerate() {
            let number = i + 2;
            if i >= MAX_FILES {
                return fail(number, "too many files");
            }
            let Some(line) = line else { return fail(number, "the last line must end") };
            let mut words = line.split(' ');
            let (Some(hash), Some(size), Some(name), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return fail(number, "expected `<sha256> <size> <name>`");
            };
            let mut sha256 = [0; 32];
            if hex::decode_to_slice(hash, &mut sha256).is_err() || hash != hex::encode(sha256) {
                return fail(number, "the hash must be 64 lower-case hexadecimal digits");
            }
            let parsed = size.parse::<u64>().ok().filter(|n| n.to_string() == size);
            let Some(size) = parsed else { return fail(number, "the size must be a number") };
            if !is_model_file(name) {
                return fail(number, "not the name of a model file");
            }
            if manifest.files.last_key_value().is_some_and(|(last, _)| last.as_str() >= name) {
                return fail(number, "names must be sorted and different");
            }
            manifest.files.insert(name.to_owned(), Entry { size, sha256 });
        }
        Ok(manifest)
    }

    /// Compares with what was found, naming the first file that differs.
    pub fn compare(&self, found: &Self) -> Result<(), ManifestError> {
        let differs =
            |name: &str, why: String| Err(ManifestError::FileMismatch { name: name.to_owned(), why });
        for (name, entry) in &self.files {
            match found.files.get(name) {
                None => return differs(name, "it is missing".into()),
                Some(other) if other.size != entry.size => {
                    return differs(name, format!("{} bytes, expected {}", other.size, entry.size));
                }
                Some(other) if other.sha256 != entry.sha256 => {
                    return differs(
                        name,
                        format!(
                            "SHA-256 is {}, expected {}",
                            hex::encode(other.sha256),
                            hex::encode(entry.sha256)
                        ),
                    );
                }
                Some(_) => {}
            }
        }
        match found.files.keys().find(|name| !self.files.contains_key(*name)) {
            Some(name) => differs(name, "it does not belong to the model".into()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Manifest {
    /// The canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        for (name, Entry { size, sha256 }) in &self.files {
            writeln!(f, "{} {size} {name}", hex::encode(sha256))?;
        }
        Ok(())
    }
}

/// Checks that a folder holds exactly the model of a manifest; the error names the file.
pub fn verify(dir: &Path, expected: &Manifest) -> Result<(), ManifestError> {
    expected.compare(&Manifest::of_dir(dir)?)
}

/// Checks that a folder holds the model of a digest, and returns its manifest.
pub fn verify_digest(dir: &Path, expected: &ModelDigest) -> Result<Manifest, ManifestError> {
    let manifest = Manifest::of_dir(dir)?;
    expect(&manifest, expected)?;
    Ok(manifest)
}

/// Compares a manifest's digest with the expected one.
pub fn expect(manifest: &Manifest, expected: &ModelDigest) -> Result<(), ManifestError> {
    let found = manifest.digest();
    if found == *expected {
        return Ok(());
    }
    Err(ManifestError::DigestMismatch { found: hex::encode(found), expected: hex::encode(expected) })
}

/// Names of the model files of a folder, sorted.
pub fn model_files(dir: &Path) -> Result<Vec<String>, ManifestError> {
    let path = || dir.display().to_string();
    let io = |source| ManifestError::Io { path: path(), source };
    let mut names = Vec::new();
    if dir.join(POOLING_FILE).is_file() {
        names.push(POOLING_FILE.to_owned());
    }
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if let Some(name) = name.to_str().filter(|n| is_model_file(n)) {
            if names.len() == MAX_FILES {
                return Err(ManifestError::TooMany { path: path() });
            }
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    let complete =
        names.iter().any(|n| n == "config.json") && names.iter().any(|n| n.ends_with(".safetensors"));
    if complete { Ok(names) } else { Err(ManifestError::Empty { path: path() }) }
}

impl Entry {
    /// Reads content to its end. `progress` gets the bytes read so far.
    pub(crate) fn of(mut content: impl Read, mut progress: impl FnMut(u64)) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            progress(size);
            match content.read(&mut buffer)? {
                0 => return Ok(Entry { size, sha256: hasher.finalize().into() }),
                n => {
                    hasher.update(&buffer[..n]);
                    size += n as u64;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        std::fs::write(dir.path().join("model.safetensors"), [0; 9]).unwrap();
        std::fs::write(dir.path().join("README.md"), "not part of it").unwrap();
        dir
    }

    #[test]
    fn the_text_form_is_canonical() {
        let manifest = Manifest::of_dir(folder().path()).unwrap();
        let text = manifest.to_string();
        assert_eq!(Manifest::parse(&text).unwrap(), manifest);
        assert_eq!(text.lines().count(), 3);
        let swapped: String = {
            let mut lines: Vec<_> = text.split_inclusive('\n').collect();
            lines.swap(1, 2);
            lines.concat()
        };
        assert!(matches!(Manifest::parse(&swapped), Err(ManifestError::Malformed { line: 3, .. })));
    }

    #[test]
    fn files_on_disk_and_in_memory_have_one_digest() {
        let files: [(&str, &[u8]); 3] =
            [("model.safetensors", &[0; 9]), ("README.md", b"x"), ("config.json", b"{}")];
        let dir = folder();
        assert_eq!(Manifest::of_files(files).digest(), Manifest::of_dir(dir.path()).unwrap().digest());
    }

    #[test]
    fn a_changed_byte_is_found_and_the_file_named() {
        let dir = folder();
        let good = Manifest::of_dir(dir.path()).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), [0, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap();
        let error = verify(dir.path(), &good).unwrap_err();
        assert!(error.to_string().starts_with("model file model.safetensors: SHA-256 is"), "{error}");
        assert!(matches!(
            verify_digest(dir.path(), &good.digest()),
            Err(ManifestError::DigestMismatch { .. })
        ));
    }

    #[test]
    fn how_an_embedder_pools_is_part_of_its_identity() {
        let dir = folder();
        let plain = Manifest::of_dir(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        std::fs::write(dir.path().join(POOLING_FILE), "{}").unwrap();
        let pooled = Manifest::of_dir(dir.path()).unwrap();
        assert_ne!(pooled.digest(), plain.digest());
        assert_eq!(Manifest::parse(&pooled.to_string()).unwrap(), pooled);
        let files: [(&str, &[u8]); 4] = [
            ("model.safetensors", &[0; 9]),
            ("config.json", b"{}"),
            (POOLING_FILE, b"{}"),
            ("2_Pooling/config.json", b"{}"),
        ];
        assert_eq!(Manifest::of_files(files).digest(), pooled.digest());
    }

    #[test]
    fn an_empty_folder_is_no_model() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Manifest::of_dir(dir.path()), Err(ManifestError::Empty { .. })));
    }
}
