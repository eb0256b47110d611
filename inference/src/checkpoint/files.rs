//! The files of a checkpoint: those of text are read at once, those of weights up to their data.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::index::{INDEX_FILE, Index, TensorError, head_of, read_head};
use super::{
    ChatTemplate, ConfigError, LoadError, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, ModelConfig, Tensors,
    TextTokenizer, parse_config,
};
use crate::ModelDigest;
use crate::manifest::{self, Manifest, ManifestError};

/// Room for a weight file's header and for tensors that are not used, beside the weights themselves.
const WEIGHT_SLACK_BYTES: u64 = 64 * 1024 * 1024;

/// A file of weights whose data are still to be read.
#[derive(Debug)]
pub(super) struct WeightFile {
    pub(super) name: String,
    pub(super) size: u64,
    /// The beginning, as it was read.
    pub(super) head: Vec<u8>,
    rest: Rest,
}

/// What follows the beginning of a file.
#[derive(Debug)]
enum Rest {
    /// It is on disk.
    File(PathBuf),
    /// It is in memory, behind the beginning.
    Memory(Vec<u8>),
}

impl WeightFile {
    /// Reads what follows the beginning.
    pub(super) fn rest(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(match &self.rest {
            Rest::File(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(self.head.len() as u64))?;
                Box::new(file)
            }
            Rest::Memory(bytes) => Box::new(&bytes[self.head.len()..]),
        })
    }

    /// What a failure to read is called.
    pub(super) fn error(&self, source: io::Error) -> LoadError {
        let path = match &self.rest {
            Rest::File(path) => path.display().to_string(),
            Rest::Memory(_) => self.name.clone(),
        };
        let source = match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(source.kind(), "it became shorter while it was read; fetch it again")
            }
            _ => source,
        };
        ManifestError::Io { path, source }.into()
    }
}

/// All files that belong to a checkpoint.
#[derive(Debug)]
pub(super) struct Files {
    /// Name of their folder.
    pub(super) name: String,
    pub(super) texts: Texts,
    pub(super) weights: Vec<WeightFile>,
}

impl Files {
    /// Opens a folder. `parameters` says from `config.json` how many values the weight files may hold.
    pub(super) fn open(
        dir: &Path,
        parameters: impl FnOnce(&[u8]) -> Result<u64, ConfigError>,
    ) -> Result<Self, LoadError> {
        let names = manifest::model_files(dir)?;
        // The configuration first: it bounds everything else.
        let config = read_config(dir)?;
        let mut room = parameters(&config)?.saturating_mul(4).saturating_add(WEIGHT_SLACK_BYTES);
        let (mut texts, mut weights) = (Vec::new(), Vec::new());
        for name in names {
            if name == "config.json" {
                texts.push((name, config.clone()));
            } else if is_weights(&name) {
                let (mut file, size) = open(dir, &name, room)?;
                room -= size;
                let head = read_head(&mut file, size).map_err(|e| failed(dir, &name, e))?;
                let rest = Rest::File(dir.join(&name));
                weights.push(WeightFile { name, size, head, rest });
            } else {
                let bytes = read(dir, &name, MAX_TOKENIZER_BYTES)?;
                texts.push((name, bytes));
            }
        }
        Ok(Files { name: folder_name(dir), texts: Texts(texts), weights })
    }

    /// Files that are in memory already. Those that no engine reads are ignored.
    pub(super) fn in_memory(name: String, files: Vec<(String, Vec<u8>)>) -> Self {
        let (mut texts, mut weights) = (Vec::new(), Vec::new());
        for (name, bytes) in files.into_iter().filter(|(name, _)| manifest::is_model_file(name)) {
            if is_weights(&name) {
                let (size, head) = (bytes.len() as u64, head_of(&bytes).to_vec());
                weights.push(WeightFile { name, size, head, rest: Rest::Memory(bytes) });
            } else {
                texts.push((name, bytes));
            }
        }
        Files { name, texts: Texts(texts), weights }
    }

    /// Where the tensors are.
    pub(super) fn index(&self) -> Result<Index, TensorError> {
        let heads = self.weights.iter().map(|file| (file.name.as_str(), file.head.as_slice(), file.size));
        Index::new(heads, self.texts.find(INDEX_FILE))
    }

    /// Reads the weights into memory too. `progress` gets bytes read and bytes in all.
    fn read(self, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
        let total = self.texts.bytes() + self.weights.iter().map(|file| file.size).sum::<u64>();
        let mut done = self.texts.bytes();
        let mut all = self.texts.0;
        for file in self.weights {
            progress(done, total);
            let mut bytes = Vec::with_capacity(file.size as usize);
            bytes.extend_from_slice(&file.head);
            let rest = file.size - file.head.len() as u64;
            // The file may grow while it is read.
            let read = file.rest().and_then(|from| from.take(rest).read_to_end(&mut bytes));
            read.map_err(|e| file.error(e))?;
            if bytes.len() as u64 != file.size {
                return Err(file.error(io::ErrorKind::UnexpectedEof.into()));
            }
            done += file.size;
            all.push((file.name, bytes));
        }
        progress(done, total);
        Ok(all)
    }
}

/// Files in memory as a whole, and what they are called together.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Name of their folder.
    pub(crate) name: String,
    /// What identifies them.
    pub(crate) manifest: Manifest,
    pub(super) texts: Texts,
    weights: Vec<(String, Vec<u8>)>,
}

impl Contents {
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
        let (weights, texts) = files.into_iter().partition(|(name, _)| is_weights(name));
        Ok(Self { name, manifest, texts: Texts(texts), weights })
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
        let opened = Files::open(dir, parameters).and_then(|files| {
            let name = files.name.clone();
            Self::new(name, files.read(progress)?, expected)
        });
        opened.and_then(parse).map_err(|error| super::blame(dir, expected, error))
    }

    /// A file, not of weights, that may be there.
    pub(crate) fn find(&self, wanted: &str) -> Option<&[u8]> {
        self.texts.find(wanted)
    }

    /// A file, not of weights, that must be there.
    pub(crate) fn need(&self, wanted: &'static str) -> Result<&[u8], LoadError> {
        self.texts.need(wanted)
    }

    /// The weights; everything else is let go.
    pub(crate) fn into_tensors(self) -> Result<Tensors, LoadError> {
        Ok(Tensors::parse(self.weights, self.texts.find(INDEX_FILE))?)
    }
}

/// The small files: configuration, vocabulary, template, index.
#[derive(Debug)]
pub(super) struct Texts(Vec<(String, Vec<u8>)>);

impl Texts {
    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    pub(super) fn find(&self, wanted: &str) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes.as_slice())
    }

    pub(super) fn need(&self, name: &'static str) -> Result<&[u8], LoadError> {
        self.find(name).ok_or(LoadError::Missing { name })
    }

    /// Dimensions and end-of-turn tokens, and whether there is a vocabulary to go with them.
    pub(super) fn config(&self) -> Result<ModelConfig, LoadError> {
        let config = parse_config(self.need("config.json")?, self.find("generation_config.json"))?;
        self.need("tokenizer.json")?;
        Ok(config)
    }

    /// The vocabulary of a model with so many rows.
    pub(super) fn tokenizer(&self, vocab: usize) -> Result<TextTokenizer, LoadError> {
        Ok(TextTokenizer::parse(self.need("tokenizer.json")?, vocab)?)
    }

    pub(super) fn template(&self) -> Result<ChatTemplate, LoadError> {
        Ok(ChatTemplate::parse(self.find("tokenizer_config.json"), self.find("chat_template.jinja"))?)
    }

    /// Lists them.
    pub(super) fn manifest(&self) -> Manifest {
        Manifest::of_files(self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
    }
}

/// `config.json` of a folder, alone.
pub(crate) fn read_config(dir: &Path) -> Result<Vec<u8>, LoadError> {
    read(dir, "config.json", MAX_CONFIG_BYTES)
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn folder_name(dir: &Path) -> String {
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = resolved.file_name().and_then(|n| n.to_str()).unwrap_or("model");
    name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(96).collect()
}

/// Opens a file of at most `limit` bytes, and says how many it has.
fn open(dir: &Path, name: &str, limit: u64) -> Result<(File, u64), LoadError> {
    let file = File::open(dir.join(name)).map_err(|e| failed(dir, name, e))?;
    let found = file.metadata().map_err(|e| failed(dir, name, e))?.len();
    if found > limit {
        return Err(LoadError::TooLarge { name: name.to_owned(), found, limit });
    }
    Ok((file, found))
}

fn read(dir: &Path, name: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
    let (file, found) = open(dir, name, limit)?;
    let mut bytes = Vec::with_capacity(found as usize);
    // The file may grow while it is read.
    file.take(limit).read_to_end(&mut bytes).map_err(|e| failed(dir, name, e))?;
    Ok(bytes)
}

fn failed(dir: &Path, name: &str, source: io::Error) -> LoadError {
    ManifestError::Io { path: dir.join(name).display().to_string(), source }.into()
}
