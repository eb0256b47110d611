//! An append-only file of small records, made for being cut off anywhere.
//!
//! A record is `MARK crc32 length payload`, the checksum covering length and payload. It is appended
//! by **one** `write(2)`, so after `kill -9` it is there as soon as the call returned: the page cache
//! belongs to the kernel, not to the process. A crash of the machine may lose or tear what was not
//! synced, in any order. The reader therefore skips whatever is not a whole record and goes on at the
//! next mark: an unfinished record costs itself and no other.
//!
//! Records are cumulative (the newest total wins), so reading one twice, or an older one after a newer
//! one, changes nothing.

use std::{
    fs::File,
    io::{self, Write},
};

/// Unlikely in the payload, and where reading resumes after damage.
const MARK: [u8; 4] = *b"\xc0JR\n";
const HEADER: usize = MARK.len() + 4 + 2;
/// The longest payload is a channel's terms.
pub(super) const MAX_PAYLOAD: usize = 512;

/// The part of a file that a journal needs, so that tests can make it fail.
pub(super) trait Medium {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize>;
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

impl Medium for File {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// Why nothing was appended.
#[derive(Debug)]
pub(super) struct AppendError {
    pub(super) source: io::Error,
    /// Whether the file is as it was. If not, nothing more may be appended.
    pub(super) undone: bool,
}

/// Appends to a medium opened in append mode.
#[derive(Debug)]
pub(super) struct Journal<M> {
    pub(super) medium: M,
    len: u64,
    buffer: Vec<u8>,
}

impl<M: Medium> Journal<M> {
    /// `len` is the medium's length.
    pub(super) fn new(medium: M, len: u64) -> Self {
        Self { medium, len, buffer: Vec::with_capacity(HEADER + MAX_PAYLOAD) }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends one record. On failure the file is cut back to where it was: a torn record would only
    /// be skipped, but its bytes must not pile up on a full disk.
    pub(super) fn append(&mut self, payload: &[u8]) -> Result<(), AppendError> {
        encode(payload, &mut self.buffer);
        let written = loop {
            match self.medium.write_once(&self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let source = match written {
            Ok(written) if written == self.buffer.len() => {
                self.len += written as u64;
                return Ok(());
            }
            Ok(_) => io::Error::new(io::ErrorKind::WriteZero, "the disk took only a part of a record"),
            Err(error) => error,
        };
        let undone = self.medium.set_len(self.len).is_ok();
        Err(AppendError { source, undone })
    }
}

fn encode(payload: &[u8], buffer: &mut Vec<u8>) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let len = (payload.len() as u16).to_le_bytes();
    buffer.clear();
    buffer.extend_from_slice(&MARK);
    buffer.extend_from_slice(&checksum(&len, payload).to_le_bytes());
    buffer.extend_from_slice(&len);
    buffer.extend_from_slice(payload);
}

fn checksum(len: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(len);
    crc.update(payload);
    crc.finalize()
}

/// Calls `found` with the payload of every whole record; returns the number of bytes skipped.
pub(crate) fn scan(mut bytes: &[u8], mut found: impl FnMut(&[u8])) -> usize {
    let mut skipped = 0;
    while !bytes.is_empty() {
        if let Some((payload, rest)) = record(bytes) {
            found(payload);
            bytes = rest;
            continue;
        }
        // The next mark, if any, is at least one byte on.
        let next = bytes[1..].windows(MARK.len()).position(|window| window == MARK);
        let step = next.map_or(bytes.len(), |position| position + 1);
        skipped += step;
        bytes = &bytes[step..];
    }
    skipped
}

/// The record that `bytes` begin with, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let body = bytes.strip_prefix(&MARK)?;
    let (crc, body) = body.split_first_chunk::<4>()?;
    let (len, body) = body.split_first_chunk::<2>()?;
    let (payload, rest) = body.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let good = payload.len() <= MAX_PAYLOAD && checksum(len, payload) == u32::from_le_bytes(*crc);
    good.then_some((payload, rest))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A file that takes `room` bytes and then fails as told.
    #[derive(Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
        cannot_cut: bool,
    }

    impl Medium for Disk {
        fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room);
            if fits == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.room -= fits;
            self.bytes.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn set_len(&mut self, len: u64) -> io::Result<()> {
            if self.cannot_cut {
                return Err(io::Error::other("no"));
            }
            self.bytes.truncate(len as usize);
            Ok(())
        }
    }

    fn journal(room: usize) -> Journal<Disk> {
        Journal::new(Disk { room, ..Disk::default() }, 0)
    }

    fn read(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        scan(bytes, |payload| payloads.push(payload.to_vec()));
        payloads
    }

    #[test]
    fn truncating_anywhere_costs_at_most_the_unfinished_record() {
        let mut journal = journal(usize::MAX);
        let mut ends = vec![0];
        let payloads: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; 20 + usize::from(n)]).collect();
        for payload in &payloads {
            journal.append(payload).unwrap();
            ends.push(journal.len() as usize);
        }
        for cut in 0..=journal.medium.bytes.len() {
            let whole = ends.iter().filter(|end| **end != 0 && **end <= cut).count();
            assert_eq!(read(&journal.medium.bytes[..cut]), payloads[..whole], "cut at {cut}");
        }
    }

    #[test]
    fn a_hole_in_the_middle_costs_only_the_records_it_touches() {
        let mut journal = journal(usize::MAX);
        for n in 0..5u8 {
            journal.append(&[n; 40]).unwrap();
        }
        let mut bytes = journal.medium.bytes;
        // As after a power cut that lost one page: zeros where records 1 and 2 meet.
        bytes[90..110].fill(0);
        assert_eq!(read(&bytes), [[0; 40], [3; 40], [4; 40]]);
    }

    #[test]
    fn a_failed_append_leaves_no_trace() {
        let mut full = journal(70);
        full.append(&[1; 40]).unwrap();
        let error = full.append(&[2; 40]).unwrap_err();
        assert!(error.undone);
        full.medium.room = 1000;
        full.append(&[3; 40]).unwrap();
        assert_eq!(read(&full.medium.bytes), [[1; 40], [3; 40]]);

        let mut broken = journal(70);
        broken.medium.cannot_cut = true;
        broken.append(&[1; 40]).unwrap();
        assert!(!broken.append(&[2; 40]).unwrap_err().undone);
    }

    proptest! {
        #[test]
        fn what_was_appended_is_read_back(payloads in vec(vec(any::<u8>(), 0..MAX_PAYLOAD), 0..8)) {
            let mut journal = journal(usize::MAX);
            for payload in &payloads {
                journal.append(payload).unwrap();
            }
            prop_assert_eq!(scan(&journal.medium.bytes, |_| {}), 0);
            prop_assert_eq!(read(&journal.medium.bytes), payloads);
        }

        #[test]
        fn any_bytes_can_be_scanned(bytes in vec(any::<u8>(), 0..300)) {
            scan(&bytes, |_| {});
        }
    }
}
