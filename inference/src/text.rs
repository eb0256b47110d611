//! From token bytes to released text.
//!
//! A token of a byte-level vocabulary may end in the middle of a character, and a character may
//! begin a stop string that the next tokens complete or not. [`TextStream`] therefore holds back
//! two things: the bytes of an unfinished character, and the longest suffix of the text that is a
//! proper prefix of a stop string. Everything else is released at once.
//!
//! What is released after each token is a function of the bytes so far and the stop strings, and of
//! nothing else: not of timing, and not of who asks. A request that another worker resumes replays
//! the tokens already received through [`TextStream::push`], throws the text away, and goes on.
//!
//! Bytes that are no UTF-8 become U+FFFD exactly as in [`String::from_utf8_lossy`].

/// Turns token bytes into text, see the [module](self).
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    stops: Vec<String>,
    /// At most three bytes of an unfinished character.
    bytes: Vec<u8>,
    /// A proper prefix of a stop string, or empty.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends at the first of `stops`. Empty stop strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { stops, ..Self::default() }
    }

    /// Whether a stop string was completed. Nothing is released after it.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the bytes of the next token and returns the text that this releases.
    pub fn push(&mut self, token: &[u8]) -> String {
        let mut released = String::new();
        if self.stopped {
            return released;
        }
        self.bytes.extend_from_slice(token);
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.extend(text, &mut released);
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.extend(std::str::from_utf8(valid).unwrap_or_default(), &mut released);
                    match error.error_len() {
                        Some(bad) => {
                            self.extend("\u{FFFD}", &mut released);
                            rest = after.get(bad..).unwrap_or_default();
                        }
                        None => {
                            self.bytes = after.to_vec();
                            break;
                        }
                    }
                }
            }
        }
        released
    }

    /// The generation ended without a stop string: releases what was held back.
    pub fn finish(&mut self) -> String {
        let mut released = String::new();
        if !self.stopped {
            let unfinished = !std::mem::take(&mut self.bytes).is_empty();
            if unfinished {
                self.extend("\u{FFFD}", &mut released);
            }
        }
        if !self.stopped {
            released.push_str(&std::mem::take(&mut self.held));
        }
        released
    }

    /// Goes character by character, so that what is released does not depend on how the text was
    /// cut into tokens.
    fn extend(&mut self, text: &str, released: &mut String) {
        if self.stops.is_empty() {
            released.push_str(text);
            return;
        }
        for c in text.chars() {
            if self.stopped {
                return;
            }
            self.held.push(c);
            // Two stop strings may end at the same character; the longer one began earlier.
            let stop = self.stops.iter().filter(|s| self.held.ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = stop {
                self.held.truncate(self.held.len() - len);
                released.push_str(&std::mem::take(&mut self.held));
                self.stopped = true;
                return;
            }
            let keep = self.longest_stop_prefix();
            released.extend(self.held.drain(..self.held.len() - keep));
        }
    }

    /// Length of the longest suffix of `held` that is a proper prefix of a stop string.
    fn longest_stop_prefix(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|&i| self.held.is_char_boundary(i))
            .find(|&i| self.stops.iter().any(|s| s.starts_with(&self.held[i..])))
            .map_or(0, |i| self.held.len() - i)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(tokens: &[&[u8]], stops: &[String]) -> (Vec<String>, String, bool) {
        let mut stream = TextStream::new(stops);
        let parts = tokens.iter().map(|t| stream.push(t)).collect();
        let tail = stream.finish();
        (parts, tail, stream.stopped())
    }

    fn stops(all: &[&str]) -> Vec<String> {
        all.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_character_is_released_when_its_last_byte_arrives() {
        let (parts, tail, _) = run(&[b"a\xE4", b"\xB8", b"\x96b"], &[]);
        assert_eq!((parts, tail.as_str()), (stops(&["a", "", "世b"]), ""));
    }

    #[test]
    fn an_unfinished_character_becomes_a_replacement_at_the_end() {
        assert_eq!(run(&[b"\xF0\x9F"], &[]).1, "\u{FFFD}");
        assert_eq!(run(&[b"\xF0\x9Fx"], &[]).0, stops(&["\u{FFFD}x"]));
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_not_released() {
        let (parts, tail, stopped) = run(&[b"one E", b"N", b"D two"], &stops(&["END"]));
        assert_eq!((parts, tail.as_str(), stopped), (stops(&["one ", "", ""]), "", true));
    }

    #[test]
    fn text_that_only_looked_like_a_stop_string_is_released() {
        let (parts, tail, stopped) = run(&[b"aab", b"aab", b"aa"], &stops(&["aabaac"]));
        assert_eq!((parts.concat() + &tail, stopped), ("aabaabaa".into(), false));
        assert_eq!(tail, "aabaa");
    }

    #[test]
    fn of_two_stop_strings_the_one_completed_first_wins() {
        let (parts, tail, _) = run(&[b"xyzw"], &stops(&["xyzw", "y"]));
        assert_eq!((parts.concat(), tail.as_str()), ("x".into(), ""));
    }

    proptest! {
        #[test]
        fn released_text_does_not_depend_on_how_bytes_are_cut(
            bytes in prop::collection::vec(prop::sample::select(b"ab\xC3\xA9\xE4\xB8\x96\xFFn".to_vec()), 0..40),
            cuts in prop::collection::vec(0usize..40, 0..6),
            stops in prop::collection::vec("[abné世]{1,4}", 0..3),
        ) {
            let mut whole = TextStream::new(&stops);
            let all = whole.push(&bytes) + &whole.finish();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut parts = TextStream::new(&stops);
            let mut text = String::new();
            let mut from = 0;
            for cut in cuts {
                text += &parts.push(&bytes[from..cut]);
                from = cut;
            }
            text += &parts.finish();
            prop_assert_eq!(&text, &all);
            prop_assert_eq!(parts.stopped(), whole.stopped());
            // The oracle: lossy decoding, cut where the first stop string is completed.
            let lossy = String::from_utf8_lossy(&bytes).into_owned();
            let end = (0..=lossy.len()).filter(|&e| lossy.is_char_boundary(e)).find_map(|e| {
                stops.iter().filter(|s| lossy[..e].ends_with(s.as_str())).map(|s| e - s.len()).min()
            });
            prop_assert_eq!(text, lossy[..end.unwrap_or(lossy.len())].to_owned());
        }

        #[test]
        fn a_resumed_stream_emits_exactly_the_rest(
            tokens in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..30),
            stops in prop::collection::vec("[a-c]{1,3}", 0..3),
            k in 0usize..30,
        ) {
            let k = k.min(tokens.len());
            let mut whole = TextStream::new(&stops);
            let mut parts: Vec<String> = tokens.iter().map(|t| whole.push(t)).collect();
            parts.push(whole.finish());
            let mut resumed = TextStream::new(&stops);
            for token in &tokens[..k] {
                resumed.push(token);
            }
            let mut rest: Vec<String> = tokens[k..].iter().map(|t| resumed.push(t)).collect();
            rest.push(resumed.finish());
            prop_assert_eq!(&parts[k..], &rest[..]);
        }
    }
}
