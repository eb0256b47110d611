//! Reading weights once: each byte is hashed and unpacked from the same copy.
//!
//! The files belong to the host, which an enclave does not trust: it may change or cut a file at any moment. A memory
//! map would show those changes. What the hash saw in a page need not be what the next instruction reads there, so a
//! model could be served that is not the one the digest names; and a page beyond a file's new end kills the process.
//! Therefore every byte is copied from the file exactly once, by `read`, into memory of the process; the hash and the
//! conversion take that copy. (From the page cache a read takes as long as a copy out of a map.) A file that changes
//! while it is read is then simply another file, of which the digest knows nothing. Weights are in their places
//! before the digest is compared, and are dropped if it differs: nobody computes with them before.
//!
//! SHA-256 is one chain for each file, so no second thread can help with it. Around it everything is done at the same
//! time: while a chunk is hashed, its rows are converted and packed by the other threads, and the next chunk is read.
//! Files are read side by side, as many as there are threads. Beside the packed weights this takes two chunks for each
//! of these files, hence at most `2 · STREAMS · CHUNK` bytes (128 MiB, or 8 MiB where one file is read at a time), and
//! on each thread some rows in single precision. (Where 32 rows are more than a chunk, they make one.)

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::LoadError;
use super::files::WeightFile;
use super::index::{Index, TensorError};
use super::tensors::{not_finite, widen};
use crate::manifest::Entry;

/// Bytes read, hashed and unpacked in one step, unless 32 rows have more. Threads wait for each other after each step,
/// which costs time where others use the machine too: a megabyte was slower.
const CHUNK: usize = 4 << 20;
/// Bytes that one thread unpacks at a time: what its cache holds together with the same in other forms.
const PIECE: usize = 64 << 10;
/// Rows that lie side by side in packed weights: a thread takes a multiple of them.
const ROWS: usize = 32;
/// Files read side by side, at most.
const STREAMS: usize = 16;

thread_local! {
    /// Rows in single precision.
    static VALUES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Takes rows of a tensor: the number of the tensor, that of the first row, the values.
pub(super) type Put<'a> = &'a (dyn Fn(usize, usize, &[f32]) + Sync);

/// What is read from where.
#[derive(Debug)]
pub(super) struct Plan {
    wanted: Vec<(String, Vec<usize>)>,
    /// For each file.
    targets: Vec<Vec<Target>>,
}

impl Plan {
    /// Looks for the tensors that are `wanted`.
    pub(super) fn new(index: &Index, wanted: Vec<(String, Vec<usize>)>) -> Result<Self, TensorError> {
        let mut targets: Vec<Vec<Target>> = index.files().iter().map(|_| Vec::new()).collect();
        for (tensor, (name, shape)) in wanted.iter().enumerate() {
            let (entry, _) = index.find(name, shape)?;
            let rows = shape.first().copied().unwrap_or_default().max(1);
            let row_bytes = ((entry.end - entry.start) / rows).max(1);
            let target = Target { tensor, rows, row_bytes, dtype: entry.dtype, start: entry.start };
            if let Some(of_file) = targets.get_mut(entry.file) {
                of_file.push(target);
            }
        }
        targets.iter_mut().for_each(|of_file| of_file.sort_unstable_by_key(|target| target.start));
        Ok(Self { wanted, targets })
    }

    /// Reads what follows the beginnings of the files, calls `put` with all rows of the wanted tensors, from several
    /// threads and in any order, and returns what a manifest says of each file. `progress` gets bytes read.
    pub(super) fn read(
        &self,
        files: &[WeightFile],
        progress: &mut (dyn FnMut(u64) + Send),
        put: Put<'_>,
    ) -> Result<Vec<(String, Entry)>, LoadError> {
        let loading = Loading {
            plan: self,
            files,
            put,
            progress: Mutex::new((0, progress)),
            stop: AtomicBool::new(false),
            next: AtomicUsize::new(0),
        };
        let streams = rayon::current_num_threads().min(files.len()).clamp(1, STREAMS);
        let found: Vec<Vec<_>> = (0..streams)
            .into_par_iter()
            .with_max_len(1)
            .map(|_| {
                let found = loading.stream();
                loading.stop.fetch_or(found.is_err(), Ordering::Relaxed);
                found
            })
            .collect::<Result<_, _>>()?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// A wanted tensor in its file.
#[derive(Debug)]
struct Target {
    tensor: usize,
    rows: usize,
    row_bytes: usize,
    dtype: Dtype,
    /// The first byte.
    start: usize,
}

/// A part of a file.
#[derive(Default)]
struct Chunk {
    bytes: usize,
    pieces: Vec<Piece>,
}

/// Rows of a tensor in a chunk.
struct Piece {
    tensor: usize,
    first: usize,
    dtype: Dtype,
    /// Byte range in the chunk.
    start: usize,
    end: usize,
    /// Values in each row.
    width: usize,
}

/// Divides what follows `at` into chunks of whole rows.
fn chunks(mut at: usize, size: usize, targets: &[Target]) -> Vec<Chunk> {
    let (mut all, mut open) = (Vec::new(), Chunk::default());
    for &Target { tensor, rows, row_bytes, dtype, start } in targets {
        skip(&mut all, &mut open, start - at);
        let most = (PIECE / (row_bytes * ROWS)).max(1) * ROWS;
        for first in (0..rows).step_by(most) {
            let bytes = most.min(rows - first) * row_bytes;
            if open.bytes > 0 && open.bytes + bytes > CHUNK {
                all.push(std::mem::take(&mut open));
            }
            let (start, end) = (open.bytes, open.bytes + bytes);
            let width = row_bytes * 8 / dtype.bitsize();
            open.pieces.push(Piece { tensor, first, dtype, start, end, width });
            open.bytes = end;
        }
        at = start + rows * row_bytes;
    }
    skip(&mut all, &mut open, size - at);
    if open.bytes > 0 {
        all.push(open);
    }
    all
}

/// Bytes that are hashed only.
fn skip(all: &mut Vec<Chunk>, open: &mut Chunk, mut bytes: usize) {
    while bytes > 0 {
        if open.bytes >= CHUNK {
            all.push(std::mem::take(open));
        }
        let now = bytes.min(CHUNK - open.bytes);
        open.bytes += now;
        bytes -= now;
    }
}

struct Loading<'a, 'p> {
    plan: &'a Plan,
    files: &'a [WeightFile],
    put: Put<'a>,
    /// Bytes read, and who wants to know.
    progress: Mutex<(u64, &'p mut (dyn FnMut(u64) + Send))>,
    /// Something is wrong with one of the files.
    stop: AtomicBool,
    /// The next file that nobody reads yet.
    next: AtomicUsize,
}

impl Loading<'_, '_> {
    /// Reads one file after the other until none is left.
    fn stream(&self) -> Result<Vec<(String, Entry)>, LoadError> {
        let (mut found, mut buffers) = (Vec::new(), (Vec::new(), Vec::new()));
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (Some(file), Some(targets)) = (self.files.get(number), self.plan.targets.get(number)) else {
                return Ok(found);
            };
            let chunks = chunks(file.head.len(), file.size as usize, targets);
            found.push((file.name.clone(), self.file(file, &chunks, &mut buffers)?));
        }
    }

    fn file(
        &self,
        file: &WeightFile,
        chunks: &[Chunk],
        (now, next): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<Entry, LoadError> {
        let mut hasher = Sha256::new();
        hasher.update(&file.head);
        self.report(file.head.len());
        let mut rest = file.rest().map_err(|e| file.error(e))?;
        fill(&mut *rest, now, chunks.first()).map_err(|e| file.error(e))?;
        for (number, chunk) in chunks.iter().enumerate() {
            // Another file is wrong: the model is refused, whatever this one holds.
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let bytes = &now[..chunk.bytes];
            let following = chunks.get(number + 1);
            let ((), (read, unpacked)) = rayon::join(
                || hasher.update(bytes),
                || rayon::join(|| fill(&mut *rest, next, following), || self.unpack(file, chunk, bytes)),
            );
            unpacked?;
            read.map_err(|e| file.error(e))?;
            self.report(chunk.bytes);
            std::mem::swap(now, next);
        }
        Ok(Entry { size: file.size, sha256: hasher.finalize().into() })
    }

    fn report(&self, bytes: usize) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, tell) = &mut *progress;
        *done += bytes as u64;
        tell(*done);
    }

    /// Converts the rows of a chunk and hands them out.
    fn unpack(&self, file: &WeightFile, chunk: &Chunk, bytes: &[u8]) -> Result<(), TensorError> {
        let damage = |piece: &Piece| {
            let bytes = bytes.get(piece.start..piece.end)?;
            let mut buffer = VALUES.take();
            let count = bytes.len() * 8 / piece.dtype.bitsize();
            buffer.resize(buffer.len().max(count), 0.0);
            let values = &mut buffer[..count];
            widen(piece.dtype, bytes, values);
            let damage = not_finite(values);
            if damage.is_none() {
                (self.put)(piece.tensor, piece.first, values);
            }
            VALUES.set(buffer);
            damage.map(|index| (piece.tensor, piece.first * piece.width + index))
        };
        match chunk.pieces.par_iter().find_map_first(damage) {
            Some((tensor, index)) => {
                let name = self.plan.wanted.get(tensor).map(|(name, _)| name.clone()).unwrap_or_default();
                Err(TensorError::NotFinite { file: file.name.clone(), name, index })
            }
            None => Ok(()),
        }
    }
}

/// Reads a chunk, if there is one.
fn fill(from: &mut dyn Read, to: &mut Vec<u8>, chunk: Option<&Chunk>) -> io::Result<()> {
    let Some(chunk) = chunk else { return Ok(()) };
    if to.len() < chunk.bytes {
        to.resize(chunk.bytes, 0);
    }
    from.read_exact(&mut to[..chunk.bytes])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::prelude::*;
    use safetensors::tensor::{TensorView, serialize};

    use super::super::files::Files;
    use super::super::{Tensors, index};
    use super::*;
    use crate::manifest::Manifest;

    /// Rows above a chunk, tensors that nobody wants, every format, vectors, and an odd number of rows.
    const SHAPES: [(&str, Dtype, &[usize]); 6] = [
        ("a", Dtype::F32, &[3001, 400]),
        ("b", Dtype::F32, &[1_300_000]),
        ("c", Dtype::BF16, &[70, 33]),
        ("d", Dtype::F16, &[77]),
        ("e", Dtype::I8, &[9]),
        ("f", Dtype::BF16, &[2, 3 << 20]),
    ];
    const WANTED: [usize; 4] = [5, 2, 3, 0];

    fn data(dtype: Dtype, count: usize) -> Vec<u8> {
        (0..count * dtype.bitsize() / 8).map(|i| (i * 7919 % 61) as u8).collect()
    }

    fn safetensors(change: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
        let tensors = SHAPES.map(|(name, dtype, shape)| {
            let mut data = data(dtype, shape.iter().product());
            change(name, &mut data);
            (name, dtype, shape, data)
        });
        let view = |(name, dtype, shape, data)| {
            let shape: &[usize] = shape;
            (name, TensorView::new(dtype, shape.to_vec(), data).unwrap())
        };
        let tensors = tensors.iter().map(|(name, dtype, shape, data)| view((*name, *dtype, *shape, data)));
        serialize(tensors.collect::<Vec<_>>(), None).unwrap()
    }

    fn wanted() -> Vec<(String, Vec<usize>)> {
        WANTED.map(|i| (SHAPES[i].0.to_owned(), SHAPES[i].2.to_vec())).to_vec()
    }

    /// All values by tensor, and what the manifest says.
    type Found = (BTreeMap<String, Vec<f32>>, Vec<(String, Entry)>);

    fn stream(files: &Files) -> Result<Found, LoadError> {
        let plan = Plan::new(&files.index()?, wanted())?;
        let rows = |shape: &[usize]| (shape[0], shape.get(1).copied().unwrap_or(1));
        let found = wanted().into_iter().map(|(_, shape)| {
            let (rows, width) = rows(&shape);
            Mutex::new((vec![f32::NAN; rows * width], width))
        });
        let found: Vec<_> = found.collect();
        let put = |tensor: usize, first: usize, values: &[f32]| {
            let (all, width) = &mut *found[tensor].lock().unwrap();
            all[first * *width..][..values.len()].copy_from_slice(values);
        };
        let entries = plan.read(&files.weights, &mut |_| (), &put)?;
        let names = wanted().into_iter().map(|(name, _)| name);
        Ok((names.zip(found.into_iter().map(|f| f.into_inner().unwrap().0)).collect(), entries))
    }

    fn in_memory(bytes: &[u8]) -> Files {
        Files::in_memory("model".to_owned(), vec![("model.safetensors".to_owned(), bytes.to_vec())])
    }

    #[test]
    fn a_stream_gives_what_the_file_holds_and_hashes_all_of_it() {
        let bytes = safetensors(|_, _| ());
        let tensors = Tensors::parse(vec![("model.safetensors".to_owned(), bytes.clone())], None).unwrap();
        let (found, entries) = stream(&in_memory(&bytes)).unwrap();
        for (name, shape) in wanted() {
            assert!(found[&name] == tensors.get(&name, &shape).unwrap(), "{name}");
        }
        let manifest = Manifest::of_files([("model.safetensors", bytes.as_slice())]);
        let expected: Vec<_> = manifest.files().iter().map(|(name, entry)| (name.clone(), *entry)).collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_first_damaged_value_is_named() {
        let bytes = safetensors(|name, data| {
            if name == "a" {
                for at in [1_000_003, 1_000_001, 400] {
                    data[4 * at..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
                }
            }
        });
        let error = stream(&in_memory(&bytes)).unwrap_err().to_string();
        let expected = "weights: model.safetensors: tensor a holds NaN or infinity at index 400;";
        assert!(error.starts_with(expected), "{error}");
    }

    fn on_disk(dir: &Path, bytes: &[u8]) -> Files {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cocoon-tiny");
        std::fs::copy(fixture.join("config.json"), dir.join("config.json")).unwrap();
        std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
        Files::open(dir, super::super::parameters).unwrap()
    }

    /// The host changes a file after it was opened. What is handed out is what was hashed.
    #[test]
    fn a_file_that_changes_is_hashed_as_it_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = safetensors(|_, _| ());
        let files = on_disk(dir.path(), &bytes);
        let changed = bytes.len() / 4 * 3;
        bytes[changed] ^= 1;
        std::fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let (found, entries) = stream(&files).unwrap();
        let tensors = Tensors::parse(vec![("model.safetensors".to_owned(), bytes.clone())], None).unwrap();
        for (name, shape) in wanted() {
            assert!(found[&name] == tensors.get(&name, &shape).unwrap(), "{name}");
        }
        let entry = Entry { size: bytes.len() as u64, sha256: Sha256::digest(&bytes).into() };
        assert_eq!(entries, [("model.safetensors".to_owned(), entry)]);
    }

    #[test]
    fn a_file_that_becomes_shorter_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = on_disk(dir.path(), &safetensors(|_, _| ()));
        let file = std::fs::File::options().write(true).open(dir.path().join("model.safetensors")).unwrap();
        file.set_len(9_000_000).unwrap();
        let error = stream(&files).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: it became shorter while it was read"), "{error}");
    }

    #[test]
    fn a_header_that_is_cut_off_is_no_header() {
        let bytes = safetensors(|_, _| ());
        for cut in [0, 7, 8, 100, bytes.len() - 1] {
            let head = index::read_head(&mut &bytes[..cut], cut as u64).unwrap();
            assert_eq!(head, index::head_of(&bytes[..cut]), "{cut}");
            assert!(stream(&in_memory(&bytes[..cut])).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn chunks_are_the_file_in_order_and_pieces_whole_rows(
            shapes in prop::collection::vec((1..5000_usize, 1..3000_usize, any::<bool>(), 0..9_000_000_usize), 0..5),
            head in 0..1000_usize,
        ) {
            let (mut at, mut targets) = (head, Vec::new());
            for (tensor, &(rows, width, half, gap)) in shapes.iter().enumerate() {
                let dtype = if half { Dtype::BF16 } else { Dtype::F32 };
                let row_bytes = width * dtype.bitsize() / 8;
                targets.push(Target { tensor, rows, row_bytes, dtype, start: at + gap });
                at += gap + rows * row_bytes;
            }
            let all = chunks(head, at + 5, &targets);
            let (mut here, mut next) = (head, vec![0; shapes.len()]);
            for chunk in &all {
                prop_assert!(chunk.bytes > 0 && chunk.bytes <= CHUNK.max(ROWS * 4 * 3000));
                for piece in &chunk.pieces {
                    let target = &targets[piece.tensor];
                    prop_assert_eq!(piece.first, next[piece.tensor]);
                    prop_assert_eq!(piece.first % ROWS, 0);
                    prop_assert_eq!(here + piece.start, target.start + piece.first * target.row_bytes);
                    prop_assert_eq!((piece.end - piece.start) % target.row_bytes, 0);
                    next[piece.tensor] += (piece.end - piece.start) / target.row_bytes;
                }
                here += chunk.bytes;
            }
            prop_assert_eq!(here, at + 5);
            prop_assert!(targets.iter().all(|target| next[target.tensor] == target.rows));
        }
    }
}
