//! Where the generator's choices come from, and what they must leave out.
//!
//! Held out of all training text are one operand pair in ten ([`is_held_out`]), and one invented word or name
//! in ten ([`is_held_out_text`]). A [`Source`] of the split [`Split::HeldOut`] gives just those.

/// A small generator with a fixed algorithm (splitmix64), so that a seed means the same text forever.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n` (0 for an empty range).
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next_u64() % n as u64) as usize }
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below((high - low + 1) as usize) as u32
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the entries, which must not be empty.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Brings entries into a drawn order.
    pub fn shuffle<T>(&mut self, entries: &mut [T]) {
        for index in (1..entries.len()).rev() {
            entries.swap(index, self.below(index + 1));
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether a pair of operands is kept out of all training text, in both orders. Single digits are all
/// trained: they are the table that the columns look up.
pub fn is_held_out(a: u32, b: u32) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    high > 9 && mix(u64::from(low) << 32 | u64::from(high)).is_multiple_of(10)
}

/// Whether an invented word is kept out of all training text, whatever its case.
pub fn is_held_out_text(text: &str) -> bool {
    let step = |hash: u64, byte: u8| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0000_0100_0000_01b3)
    };
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, step)).is_multiple_of(10)
}

/// Which part of all that could be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What a run sees.
    Trained,
    /// What judges it.
    HeldOut,
}

/// Choices within a split.
#[derive(Debug, Clone)]
pub struct Source {
    /// All choices.
    pub rng: Rng,
    /// The split.
    pub split: Split,
}

impl Source {
    /// Whether the held-out part is asked for.
    pub fn is_held_out(&self) -> bool {
        self.split == Split::HeldOut
    }

    /// A number of so many digits.
    pub fn number(&mut self, digits: usize) -> u32 {
        match digits {
            1 => self.rng.between(0, 9),
            2 => self.rng.between(10, 99),
            3 => self.rng.between(100, 999),
            _ => self.rng.between(1_000, 9_999),
        }
    }

    /// Two numbers of the split: mostly two and three digits, lengths mixed now and then.
    pub fn pair(&mut self) -> (u32, u32) {
        loop {
            let longest = match self.rng.below(100) {
                0..5 => 1,
                5..40 => 2,
                _ => 3,
            };
            let other = if self.rng.chance(75) { longest } else { 1 + self.rng.below(longest) };
            let (mut a, mut b) = (self.number(longest), self.number(other));
            // Which of two numbers is larger is hard to see only where they begin alike: one pair in
            // four does.
            if self.rng.chance(25) {
                let step = [1, 10, 100][self.rng.below(longest)];
                b = (a + step * self.rng.between(0, 9)).min(999);
            }
            if self.rng.chance(50) {
                (a, b) = (b, a);
            }
            if is_held_out(a, b) == self.is_held_out() {
                return (a, b);
            }
        }
    }

    /// A word of drawn letters.
    pub fn letters(&mut self) -> String {
        loop {
            let length = 2 + self.rng.below(8);
            let word: String = (0..length).map(|_| char::from(b'a' + self.rng.below(26) as u8)).collect();
            if is_held_out_text(&word) == self.is_held_out() {
                return word;
            }
        }
    }

    /// A word that can be pronounced, of two to four syllables: a name, or a part of one.
    pub fn invented(&mut self) -> String {
        const ONSETS: &[&str] = &[
            "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st", "br", "ch", "sh",
        ];
        const VOWELS: &[&str] = &["a", "e", "i", "o", "u", "ai", "ou"];
        loop {
            let mut word = String::new();
            for _ in 0..2 + self.rng.below(2) {
                word.push_str(self.rng.pick(ONSETS));
                word.push_str(self.rng.pick(VOWELS));
            }
            if self.rng.chance(40) {
                word.push_str(self.rng.pick(&["n", "r", "s", "l", "k"]));
            }
            if is_held_out_text(&word) == self.is_held_out() {
                return word;
            }
        }
    }

    /// One of the known words, or an invented one. Known words are trained, so that the held-out split
    /// always invents.
    pub fn known_or_invented(&mut self, known: &[&str], percent: usize) -> String {
        if !self.is_held_out() && self.rng.chance(percent) {
            self.rng.pick(known).to_owned()
        } else {
            self.invented()
        }
    }

    /// A wording of the split.
    pub fn wording(&mut self, wordings: &Wordings) -> &'static str {
        self.rng.pick(if self.is_held_out() { wordings.held_out } else { wordings.trained })
    }

    /// Small changes of case and punctuation that people make; digits and words stay.
    pub fn soften(&mut self, text: String) -> String {
        let mut text = text;
        if self.rng.chance(12) && text.ends_with(['.', '?']) {
            text.pop();
        }
        if self.rng.chance(12) {
            text = text.to_lowercase();
        }
        text
    }
}

/// Ways to say one thing.
#[derive(Debug, Clone, Copy)]
pub struct Wordings {
    /// Those that a run sees.
    pub trained: &'static [&'static str],
    /// Those that judge it.
    pub held_out: &'static [&'static str],
}

/// Begins with a capital letter.
pub fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pair_in_ten_is_held_out_in_both_orders() {
        let held = (0..1000)
            .flat_map(|a| (0..1000).map(move |b| (a, b)))
            .filter(|&(a, b)| is_held_out(a, b))
            .count();
        assert!((95_000..105_000).contains(&held), "{held} of a million");
        assert!((0..100).all(|a| (0..100).all(|b| is_held_out(a, b) == is_held_out(b, a))));
    }

    #[test]
    fn the_splits_share_no_pair_and_no_invented_word() {
        for split in [Split::Trained, Split::HeldOut] {
            let mut source = Source { rng: Rng::new(4), split };
            for _ in 0..2_000 {
                let held_out = split == Split::HeldOut;
                let (a, b) = source.pair();
                assert_eq!(is_held_out(a, b), held_out);
                assert_eq!(is_held_out_text(&source.letters()), held_out);
                assert_eq!(is_held_out_text(&capital(&source.invented())), held_out);
            }
        }
    }
}
