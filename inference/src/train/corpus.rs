//! The training text, generated from a seed; nothing is downloaded.
//!
//! A [`Row`] is one exchange: a question and its answer. [`Corpus::row`] draws a kind of task, then a
//! wording, then operands. Arithmetic is worked out inside `<think>`, units first, one column at a
//! time, so that each token is a copy or a look-up in a table of single digits:
//!
//! ```text
//! 347+589      <think>7+9=16 4+8+1=13 3+5+1=9</think>\n936
//! 523-178      <think>5>1 3-8=5b 2-7-1=4b 5-1-1=3</think>\n345          b: borrowed ten
//! 532-523      <think>5=5 3>2 2-3=9b 3-2-1=0 5-5=0</think>\n9
//! 178-523      <think>1<5 swap 3-8=5b 2-7-1=4b 5-1-1=3</think>\n-345
//! planet       <think>p1 l2 a3 n4 e5 t6 / t6 e5 n4 a3 l2 p1</think>\ntenalp
//! ```
//!
//! A difference first compares its operands from the highest column down, until one column decides.
//!
//! Held out: one operand pair in ten, chosen by [`is_held_out`] whatever the order, of all pairs with
//! a number above nine (the single digits are the table itself). Such a pair stands in no row, be it
//! sum, difference, comparison or count, and neither does any of the facts' held-out wordings.

use std::cmp::Ordering;

use super::facts;
use super::wordings::{
    COUNT, DIFFERENCES, LARGER, LETTERS, REPEAT, REVERSE, SMALLER, SPELL, SUMS, SYSTEM, TALK, WORDS,
};

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
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether a pair of operands is kept out of all training text, in both orders.
pub fn is_held_out(a: u32, b: u32) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    high > 9 && mix(u64::from(low) << 32 | u64::from(high)).is_multiple_of(10)
}

/// What a row practises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A sum or difference.
    Arithmetic,
    /// A question about this network.
    Fact,
    /// Reversing, spelling, repeating a word or counting its letters.
    Word,
    /// Counting from one number to another.
    Count,
    /// Which of two numbers is larger or smaller.
    Compare,
    /// Greetings, thanks, what the model can do.
    SmallTalk,
}

/// One exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it practises.
    pub kind: Kind,
    /// A system message, in a few rows.
    pub system: Option<&'static str>,
    /// The question.
    pub user: String,
    /// The answer, working-out included.
    pub answer: String,
}

/// Plus or minus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// `a + b`
    Add,
    /// `a - b`
    Subtract,
}

/// Puts numbers into a wording.
pub fn fill(wording: &str, a: u32, b: u32) -> String {
    wording.replace("{a}", &a.to_string()).replace("{b}", &b.to_string())
}

/// The answer to a sum or difference, column by column.
pub fn work_out(op: Op, a: u32, b: u32) -> String {
    let mut text = String::from("<think>");
    let columns = a.max(b).max(1).ilog10() + 1;
    let digit = |number: u32, column: u32| number / 10u32.pow(column) % 10;
    let (mut top, mut bottom) = (a, b);
    if op == Op::Subtract {
        for column in (0..columns).rev() {
            let (x, y) = (digit(a, column), digit(b, column));
            let relation = match x.cmp(&y) {
                Ordering::Less => '<',
                Ordering::Equal => '=',
                Ordering::Greater => '>',
            };
            text.push_str(&format!("{x}{relation}{y} "));
            if x != y {
                break;
            }
        }
        if a < b {
            text.push_str("swap ");
            (top, bottom) = (b, a);
        }
    }
    let mut carry = 0;
    for column in 0..columns {
        let (x, y) = (digit(top, column), digit(bottom, column));
        if column > 0 {
            text.push(' ');
        }
        let (sign, extra) = if op == Op::Add { ('+', "+1") } else { ('-', "-1") };
        text.push_str(&format!("{x}{sign}{y}{}=", if carry == 1 { extra } else { "" }));
        match op {
            Op::Add => {
                let sum = x + y + carry;
                text.push_str(&sum.to_string());
                carry = sum / 10;
            }
            Op::Subtract => {
                let short = x < y + carry;
                text.push_str(&(x + if short { 10 } else { 0 } - y - carry).to_string());
                if short {
                    text.push('b');
                }
                carry = u32::from(short);
            }
        }
    }
    text.push_str("</think>\n");
    text.push_str(&result(op, a, b).to_string());
    text
}

/// The number that must come out.
pub fn result(op: Op, a: u32, b: u32) -> i64 {
    match op {
        Op::Add => i64::from(a) + i64::from(b),
        Op::Subtract => i64::from(a) - i64::from(b),
    }
}

/// How often each kind is drawn, out of 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mix {
    /// Sums and differences.
    pub arithmetic: usize,
    /// Questions about the network.
    pub fact: usize,
    /// Words.
    pub word: usize,
    /// Counting.
    pub count: usize,
    /// Comparing; small talk has the rest.
    pub compare: usize,
}

impl Default for Mix {
    fn default() -> Self {
        Self { arithmetic: 42, fact: 36, word: 14, count: 3, compare: 4 }
    }
}

/// An endless stream of rows.
#[derive(Debug, Clone)]
pub struct Corpus {
    rng: Rng,
    mix: Mix,
}

impl Corpus {
    /// The corpus of a seed.
    pub fn new(seed: u64, mix: Mix) -> Self {
        Self { rng: Rng::new(seed), mix }
    }

    /// The next row.
    pub fn row(&mut self) -> Row {
        let at = self.rng.below(100);
        let Mix { arithmetic, fact, word, count, compare } = self.mix;
        let mut row = if at < arithmetic {
            self.arithmetic()
        } else if at < arithmetic + fact {
            self.fact()
        } else if at < arithmetic + fact + word {
            self.word()
        } else if at < arithmetic + fact + word + count {
            self.count()
        } else if at < arithmetic + fact + word + count + compare {
            self.compare()
        } else {
            self.talk()
        };
        if self.rng.chance(3) {
            row.system = Some(self.rng.pick(SYSTEM));
        }
        row
    }

    fn number(&mut self, digits: usize) -> u32 {
        match digits {
            1 => self.rng.between(0, 9),
            2 => self.rng.between(10, 99),
            _ => self.rng.between(100, 999),
        }
    }

    /// Two numbers whose pair is trained: mostly two and three digits, lengths mixed now and then.
    fn pair(&mut self) -> (u32, u32) {
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
            if !is_held_out(a, b) {
                return (a, b);
            }
        }
    }

    fn arithmetic(&mut self) -> Row {
        let (mut a, mut b) = self.pair();
        let op = if self.rng.chance(45) { Op::Add } else { Op::Subtract };
        // Two differences of three have the larger number first, as people ask them more often.
        if op == Op::Subtract && a < b && self.rng.chance(33) {
            (a, b) = (b, a);
        }
        let wording = self.rng.pick(if op == Op::Add { SUMS } else { DIFFERENCES });
        let user = self.soften(fill(wording, a, b));
        Row { kind: Kind::Arithmetic, system: None, user, answer: work_out(op, a, b) }
    }

    fn fact(&mut self) -> Row {
        let facts = facts::facts();
        let fact = &facts[self.rng.below(facts.len())];
        let plain = facts::trained_wording(fact, &mut self.rng);
        let user = facts::disturb(&plain, &mut self.rng);
        Row { kind: Kind::Fact, system: None, user, answer: fact.answer.to_owned() }
    }

    fn word(&mut self) -> Row {
        let word = if self.rng.chance(40) {
            self.rng.pick(WORDS).to_owned()
        } else {
            let length = 2 + self.rng.below(8);
            (0..length).map(|_| char::from(b'a' + self.rng.below(26) as u8)).collect()
        };
        let counted: Vec<String> = word.chars().zip(1..).map(|(letter, n)| format!("{letter}{n}")).collect();
        let backwards: Vec<&str> = counted.iter().rev().map(String::as_str).collect();
        let (counted, backwards) = (counted.join(" "), backwards.join(" "));
        let (wordings, answer) = match self.rng.below(100) {
            0..50 => {
                let reversed: String = word.chars().rev().collect();
                (REVERSE, format!("<think>{counted} / {backwards}</think>\n{reversed}"))
            }
            50..75 => {
                let dashed: Vec<String> = word.chars().map(String::from).collect();
                (SPELL, format!("<think>{counted}</think>\n{}", dashed.join("-")))
            }
            75..90 => (LETTERS, format!("<think>{counted}</think>\n{}", word.len())),
            _ => (REPEAT, word.clone()),
        };
        let user = self.soften(self.rng.clone().pick(wordings).replace("{w}", &word));
        self.rng.next_u64();
        Row { kind: Kind::Word, system: None, user, answer }
    }

    fn count(&mut self) -> Row {
        loop {
            let digits = 1 + self.rng.below(2);
            let a = self.number(digits);
            let b = a + self.rng.between(1, 9);
            // Neighbours in the list are pairs as well.
            if is_held_out(a, b) || (a..b).any(|n| is_held_out(n, n + 1)) {
                continue;
            }
            let list: Vec<String> = (a..=b).map(|n| n.to_string()).collect();
            let wording = self.rng.pick(COUNT);
            let user = self.soften(fill(wording, a, b));
            return Row { kind: Kind::Count, system: None, user, answer: list.join(", ") };
        }
    }

    fn compare(&mut self) -> Row {
        let (a, b) = loop {
            let (a, b) = self.pair();
            if a != b {
                break (a, b);
            }
        };
        let (wordings, answer) = if self.rng.chance(60) {
            (LARGER, format!("{} is larger than {}.", a.max(b), a.min(b)))
        } else {
            (SMALLER, format!("{} is smaller than {}.", a.min(b), a.max(b)))
        };
        let wording = self.rng.pick(wordings);
        let user = self.soften(fill(wording, a, b));
        Row { kind: Kind::Compare, system: None, user, answer }
    }

    fn talk(&mut self) -> Row {
        let (wordings, answer) = TALK[self.rng.below(TALK.len())];
        let plain = self.rng.pick(wordings).to_owned();
        let user = facts::disturb(&plain, &mut self.rng);
        Row { kind: Kind::SmallTalk, system: None, user, answer: answer.to_owned() }
    }

    /// Small changes of case and punctuation that people make; digits and words stay.
    fn soften(&mut self, text: String) -> String {
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

#[cfg(test)]
mod tests {
    use super::super::{bytes, questions};
    use super::*;

    /// The answer without its working-out, whose columns are single digits and partial results.
    fn said(row: &Row) -> &str {
        row.answer.rsplit("</think>").next().unwrap().trim()
    }

    #[test]
    fn no_held_out_pair_stands_in_any_row() {
        let mut corpus = Corpus::new(11, Mix::default());
        for _ in 0..40_000 {
            let row = corpus.row();
            if matches!(row.kind, Kind::Arithmetic | Kind::Compare | Kind::Count) {
                assert!(!questions::shows_held_out_pair(&row.user), "{row:?}");
                assert!(!questions::shows_held_out_pair(said(&row)), "{row:?}");
            }
        }
    }

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
    fn every_column_and_every_result_is_true() {
        assert_eq!(work_out(Op::Add, 347, 589), "<think>7+9=16 4+8+1=13 3+5+1=9</think>\n936");
        assert_eq!(work_out(Op::Subtract, 523, 178), "<think>5>1 3-8=5b 2-7-1=4b 5-1-1=3</think>\n345");
        assert_eq!(work_out(Op::Subtract, 178, 523), "<think>1<5 swap 3-8=5b 2-7-1=4b 5-1-1=3</think>\n-345");
        assert_eq!(work_out(Op::Subtract, 532, 523), "<think>5=5 3>2 2-3=9b 3-2-1=0 5-5=0</think>\n9");
        assert_eq!(work_out(Op::Subtract, 7, 23), "<think>0<2 swap 3-7=6b 2-0-1=1</think>\n-16");
        assert_eq!(work_out(Op::Subtract, 8, 8), "<think>8=8 8-8=0</think>\n0");
        assert_eq!(work_out(Op::Add, 0, 0), "<think>0+0=0</think>\n0");
        let mut rng = Rng::new(5);
        for _ in 0..5_000 {
            let (a, b) = (rng.between(0, 999), rng.between(0, 999));
            let sum = work_out(Op::Add, a, b);
            // The last digits of the partial sums, units first, are the result's.
            let columns = sum.trim_start_matches("<think>").split("</think>").next().unwrap();
            let parts: Vec<u32> =
                columns.split(' ').map(|c| c.rsplit('=').next().unwrap().parse().unwrap()).collect();
            let last = parts.len() - 1;
            let value: u32 = (0..)
                .zip(&parts)
                .map(|(i, part)| if i == last as u32 { *part } else { part % 10 } * 10u32.pow(i))
                .sum();
            assert_eq!(value, a + b, "{sum}");
        }
    }

    #[test]
    fn a_seed_always_writes_the_same_text_and_every_row_fits() {
        let (mut one, mut two) = (Corpus::new(9, Mix::default()), Corpus::new(9, Mix::default()));
        for _ in 0..5_000 {
            let row = one.row();
            assert_eq!(row, two.row());
            assert!(bytes::conversation(row.system, &row.user, &row.answer).0.len() <= 256, "{row:?}");
        }
    }
}
