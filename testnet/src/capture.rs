//! Records what a host could see, and searches it for what a host must not see.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use cocoon_node::instruments::{Direction, Tap};

/// A tap that writes every frame to a file per process, place and direction: a 32-bit length, then the
/// frame.
#[derive(Debug)]
pub struct FileTap {
    folder: PathBuf,
    files: Mutex<Vec<((&'static str, bool), File)>>,
}

impl FileTap {
    /// A tap that writes into `folder`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, files: Mutex::new(Vec::new()) })
    }
}

impl Tap for FileTap {
    fn record(&self, place: &'static str, direction: Direction, frame: &[u8]) {
        let inward = direction == Direction::In;
        let Ok(mut files) = self.files.lock() else { return };
        if !files.iter().any(|(key, _)| *key == (place, inward)) {
            let name = format!("{}-{place}-{}.frames", std::process::id(), if inward { "in" } else { "out" });
            let Ok(file) = File::options().create(true).append(true).open(self.folder.join(name)) else {
                return;
            };
            files.push(((place, inward), file));
        }
        if let Some((_, file)) = files.iter_mut().find(|(key, _)| *key == (place, inward)) {
            let mut record = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
            record.extend_from_slice(frame);
            let _ = file.write_all(&record);
        }
    }
}

/// One recorded direction of one place in one process.
#[derive(Debug)]
pub struct Recording {
    /// File name: process, place and direction.
    pub name: String,
    /// The frames in order.
    pub frames: Vec<Vec<u8>>,
}

/// Reads what a [`FileTap`] has written.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn recordings(folder: &Path) -> io::Result<Vec<Recording>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        let mut frames = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            // The last frame may be cut where a process was killed.
            let frame = &tail[..length.min(tail.len())];
            frames.push(frame.to_vec());
            rest = &tail[frame.len()..];
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        all.push(Recording { name, frames });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Says in which form `secret` can be found in a recording, if in any.
///
/// Looked for: the bytes themselves, in a frame and across the ends of frames; the JSON escape of them
/// (with every character as `\uXXXX`); and the sequence of its bytes at every distance up to 16, which is
/// how a run of one-byte tokens looks, be it as ids or as ids and texts in turn.
pub fn find(recording: &Recording, secret: &str) -> Option<&'static str> {
    let whole: Vec<u8> = recording.frames.concat();
    // Between two frames lie at least a type byte and a header: also search with those cut off.
    let payloads = |skip: usize| -> Vec<u8> {
        recording.frames.iter().flat_map(|frame| frame.get(skip..).unwrap_or_default()).copied().collect()
    };
    let escaped: String = secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    if contains(&whole, secret.as_bytes(), 1) {
        return Some("raw");
    }
    if (1..=16).any(|skip| contains(&payloads(skip), secret.as_bytes(), 1)) {
        return Some("raw, over concatenated payloads");
    }
    if contains(&whole, escaped.as_bytes(), 1) || contains(&whole, escaped.to_uppercase().as_bytes(), 1) {
        return Some("JSON-escaped");
    }
    if (2..=16).any(|stride| contains(&whole, secret.as_bytes(), stride)) {
        return Some("as token ids");
    }
    None
}

fn contains(haystack: &[u8], needle: &[u8], stride: usize) -> bool {
    let span = (needle.len() - 1) * stride + 1;
    haystack.len() >= span
        && (0..=haystack.len() - span)
            .any(|at| needle.iter().enumerate().all(|(i, byte)| haystack[at + i * stride] == *byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(frames: &[&[u8]]) -> Recording {
        Recording { name: String::new(), frames: frames.iter().map(|frame| frame.to_vec()).collect() }
    }

    #[test]
    fn every_form_is_found() {
        assert_eq!(find(&recording(&[b"xxcanaryxx"]), "canary"), Some("raw"));
        assert_eq!(find(&recording(&[b"Tcan", b"Tary"]), "canary"), Some("raw, over concatenated payloads"));
        assert_eq!(find(&recording(&[br"\u0063\u0061\u006e"]), "can"), Some("JSON-escaped"));
        let ids: Vec<u8> = b"canary".iter().flat_map(|byte| u32::from(*byte).to_le_bytes()).collect();
        assert_eq!(find(&recording(&[&ids]), "canary"), Some("as token ids"));
        let pairs: Vec<u8> = b"canary".iter().flat_map(|byte| [1, 1, *byte]).collect();
        assert_eq!(find(&recording(&[&pairs]), "canary"), Some("as token ids"));
        assert_eq!(find(&recording(&[b"nothing here"]), "canary"), None);
    }
}
