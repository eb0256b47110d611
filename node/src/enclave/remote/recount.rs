//! Text as ids of the model's own vocabulary.
//!
//! Most servers send text, not ids. What an asker pays for and what another worker continues are ids, so the text is
//! written again with the model's vocabulary: as its tokenizer would, and where a tokenizer treats the beginning of a
//! text in its own way, by the longest pieces that spell the same bytes.

use std::collections::HashMap;

use cocoon_inference::engine::frontend::Frontend;

/// Pieces of a vocabulary by what they spell.
#[derive(Debug)]
pub(super) struct Recount {
    pieces: HashMap<Box<[u8]>, u32>,
    longest: usize,
}

impl Recount {
    pub(super) fn new(frontend: &Frontend) -> Self {
        let mut pieces: HashMap<Box<[u8]>, u32> = HashMap::new();
        let ids = 0..u32::try_from(frontend.vocab()).unwrap_or(u32::MAX);
        for id in ids {
            let bytes = frontend.tokenizer().bytes(id);
            if !bytes.is_empty() {
                // Of two pieces that spell the same, the first.
                pieces.entry(bytes.into()).or_insert(id);
            }
        }
        let longest = pieces.keys().map(|piece| piece.len()).max().unwrap_or(0);
        Self { pieces, longest }
    }

    /// Ids that spell a text, byte for byte; `None` if the vocabulary cannot.
    pub(super) fn ids(&self, frontend: &Frontend, text: &str) -> Option<Vec<u32>> {
        let tokenizer = frontend.tokenizer();
        let spells =
            |ids: &Vec<u32>| ids.iter().flat_map(|&id| tokenizer.bytes(id)).copied().eq(text.bytes());
        tokenizer.encode(text).ok().filter(spells).or_else(|| self.longest_pieces(text.as_bytes()))
    }

    fn longest_pieces(&self, mut rest: &[u8]) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        while !rest.is_empty() {
            let lengths = (1..=self.longest.min(rest.len())).rev();
            let mut found = lengths.filter_map(|n| Some((n, *self.pieces.get(&rest[..n])?)));
            let (length, id) = found.next()?;
            ids.push(id);
            rest = &rest[length..];
        }
        Some(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_spelled_by_the_vocabulary() {
        let dir = tempfile::tempdir().unwrap();
        cocoon_inference::embedded::write_to(dir.path()).unwrap();
        let frontend = Frontend::open(dir.path(), None, &mut |_, _| ()).unwrap();
        let recount = Recount::new(&frontend);
        for text in ["", "a voucher", " 12+34", "naïve ☕ 漢字", "<|im_end|>", "\0\n\n\t"] {
            for ids in [recount.ids(&frontend, text), recount.longest_pieces(text.as_bytes())] {
                let spelled: Vec<u8> =
                    ids.unwrap().iter().flat_map(|&id| frontend.tokenizer().bytes(id)).copied().collect();
                assert_eq!(spelled, text.as_bytes(), "{text:?}");
            }
        }
    }
}
