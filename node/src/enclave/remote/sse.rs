//! Server-sent events, as inference servers write them: lines of `data: …`, and nothing else that matters.

/// Longest line, beside what repeats the prompt: alternatives of a token take a few kilobytes.
const MAX_LINE: usize = 1 << 20;
/// Longest text of an id, with what separates it from the next.
const ID_BYTES: usize = 16;

/// Cuts bytes into the data of events.
#[derive(Debug)]
pub(super) struct Events {
    line: Vec<u8>,
    longest: usize,
}

/// A line that is longer than any event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Events {
    /// For the answer to a prompt of so many ids, which some servers send back in an event.
    pub(super) fn new(prompt: usize) -> Self {
        Self { line: Vec::new(), longest: MAX_LINE.saturating_add(prompt.saturating_mul(ID_BYTES)) }
    }

    /// Takes what arrived, and calls `event` with the data of each event that it completes.
    pub(super) fn push(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), TooLong> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.take(&rest[..end])?;
            let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
            if let Some(data) = line.strip_prefix(b"data:") {
                event(data.trim_ascii());
            }
            self.line.clear();
            rest = &rest[end + 1..];
        }
        self.take(rest)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + bytes.len() > self.longest {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut events, mut found) = (Events::new(0), Vec::new());
        for chunk in chunks {
            events.push(chunk, |data| found.push(data.to_vec())).unwrap();
        }
        found
    }

    const TEXT: &[u8] =
        b": a comment\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:{}\n\ndata: [DONE]\n\nunfinished";

    #[test]
    fn the_data_of_events_are_found() {
        let expected: [&[u8]; 3] = [b"{\"a\":1}", b"{}", b"[DONE]"];
        assert_eq!(all(&[TEXT]), expected);
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut events = Events::new(0);
        let chunk = vec![b'x'; MAX_LINE / 2];
        assert!(events.push(&chunk, |_| ()).is_ok());
        assert!(events.push(&chunk, |_| ()).is_ok());
        assert_eq!(events.push(b"x", |_| ()), Err(TooLong));
    }

    proptest! {
        #[test]
        fn where_it_is_cut_makes_no_difference(at in 0..TEXT.len(), next in 0..TEXT.len()) {
            let (from, to) = (at.min(next), at.max(next));
            prop_assert_eq!(all(&[&TEXT[..from], &TEXT[from..to], &TEXT[to..]]), all(&[TEXT]));
        }
    }
}
