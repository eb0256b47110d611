//! The questions that can be asked in any manner: sums, facts, words, counting, comparing, small talk.
//!
//! A [`Task`] knows its answer in several forms, so that [`super::manners`] and [`super::forms`] can demand
//! it in upper case, in one word or in JSON.

use serde_json::{Value, json};

use super::corpus::Kind;
use super::facts;
use super::numbers::{Op, fill, result, work_out};
use super::source::{Source, Split, is_held_out};
use super::wordings::{
    COUNT, DIFFERENCES, LARGER, LETTERS, REPEAT, REVERSE, SMALLER, SPELL, SUMS, TALK, WORDS, YES_LARGER,
    YES_SMALLER,
};

/// A question and what is to be said.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What it practises.
    pub kind: Kind,
    /// The question.
    pub user: String,
    /// The working-out before the answer, or nothing.
    pub thought: String,
    /// The answer.
    pub said: String,
    /// The answer as one word or number, where it can be one.
    pub word: Option<String>,
    /// The answer as a sentence, where that is another.
    pub sentence: Option<String>,
    /// The answer as JSON.
    pub value: Value,
    /// Names that JSON would give it.
    pub keys: &'static [&'static str],
    /// What else JSON could repeat of the question.
    pub fields: Vec<(&'static str, Value)>,
}

impl Task {
    fn new(kind: Kind, user: String, said: impl Into<String>) -> Self {
        let said = said.into();
        Self {
            kind,
            user,
            thought: String::new(),
            word: None,
            sentence: None,
            value: Value::from(said.as_str()),
            said,
            keys: &["answer", "text", "response"],
            fields: Vec::new(),
        }
    }
}

/// What comes before an answer that was worked out.
pub fn thinking(thought: &str) -> String {
    if thought.is_empty() { String::new() } else { format!("<think>{thought}</think>\n") }
}

impl Source {
    /// A sum or difference.
    pub fn arithmetic(&mut self) -> Task {
        let (mut a, mut b) = self.pair();
        let op = if self.rng.chance(45) { Op::Add } else { Op::Subtract };
        // Two differences of three have the larger number first, as people ask them more often.
        if op == Op::Subtract && a < b && self.rng.chance(33) {
            (a, b) = (b, a);
        }
        let wording = self.rng.pick(if op == Op::Add { SUMS } else { DIFFERENCES });
        let user = fill(wording, a, b);
        sum(op, a, b, self.soften(user))
    }

    /// A question about the network. The held-out wordings are asked as they are.
    pub fn fact(&mut self) -> Task {
        let facts = facts::facts();
        let fact = &facts[self.rng.below(facts.len())];
        let user = match self.split {
            Split::HeldOut => self.rng.pick(&fact.held_out).to_owned(),
            Split::Trained => {
                let plain = facts::trained_wording(fact, &mut self.rng);
                facts::disturb(&plain, &mut self.rng)
            }
        };
        about(fact, user)
    }

    /// Something about the letters of a word.
    pub fn word(&mut self) -> Task {
        let known = !self.is_held_out() && self.rng.chance(40);
        let word = if known { self.rng.pick(WORDS).to_owned() } else { self.letters() };
        let counted: Vec<String> = word.chars().zip(1..).map(|(letter, n)| format!("{letter}{n}")).collect();
        let backwards: Vec<&str> = counted.iter().rev().map(String::as_str).collect();
        let (counted, backwards) = (counted.join(" "), backwards.join(" "));
        let (wordings, thought, said, keys): (_, _, _, &[&str]) = match self.rng.below(100) {
            0..50 => {
                let reversed = word.chars().rev().collect();
                (REVERSE, format!("{counted} / {backwards}"), reversed, &["reversed", "result", "word"])
            }
            50..75 => {
                let dashed: Vec<String> = word.chars().map(String::from).collect();
                (SPELL, counted, dashed.join("-"), &["spelling", "letters", "result"])
            }
            75..90 => (LETTERS, counted, word.len().to_string(), &["length", "letters", "count"]),
            _ => (REPEAT, String::new(), word.clone(), &["word", "text", "result"]),
        };
        let value = said.parse::<u32>().map_or_else(|_| json!(said), |number| json!(number));
        let wording = self.rng.pick(wordings).replace("{w}", &word);
        let user = self.soften(wording);
        let fields = vec![("word", json!(word))];
        Task { thought, word: Some(said.clone()), value, keys, fields, ..Task::new(Kind::Word, user, said) }
    }

    /// Counting from one number to another.
    pub fn count(&mut self) -> Task {
        loop {
            let digits = 1 + self.rng.below(2);
            let a = self.number(digits);
            let b = a + self.rng.between(1, 9);
            // Neighbours in the list are pairs as well, and cannot all be held out.
            let neighbours = self.split == Split::Trained && (a..b).any(|n| is_held_out(n, n + 1));
            if is_held_out(a, b) != self.is_held_out() || neighbours {
                continue;
            }
            let list: Vec<String> = (a..=b).map(|n| n.to_string()).collect();
            let wording = self.rng.pick(COUNT);
            let user = self.soften(fill(wording, a, b));
            let value = (a..=b).collect();
            let fields = vec![("from", json!(a)), ("to", json!(b))];
            let keys = &["numbers", "list", "values"];
            return Task { value, keys, fields, ..Task::new(Kind::Count, user, list.join(", ")) };
        }
    }

    /// Which of two numbers is larger or smaller, or whether one is.
    pub fn compare(&mut self) -> Task {
        let (a, b) = loop {
            let (a, b) = self.pair();
            if a != b {
                break (a, b);
            }
        };
        let larger = self.rng.chance(60);
        let (low, high) = (a.min(b), a.max(b));
        let sentence = match larger {
            true => format!("{high} is larger than {low}."),
            false => format!("{low} is smaller than {high}."),
        };
        let fields = vec![("a", json!(a)), ("b", json!(b))];
        if self.rng.chance(35) {
            let wording = self.rng.pick(if larger { YES_LARGER } else { YES_SMALLER });
            let user = self.soften(fill(wording, a, b));
            let yes = larger == (a > b);
            let compared = if a > b { "larger" } else { "smaller" };
            let word = if yes { "Yes" } else { "No" };
            let said = format!("{word}, {a} is {compared} than {b}.");
            let keys = &["answer", "result", "is_true"];
            let word = Some(word.to_owned());
            return Task { word, value: json!(yes), keys, fields, ..Task::new(Kind::Compare, user, said) };
        }
        let wording = self.rng.pick(if larger { LARGER } else { SMALLER });
        let user = self.soften(fill(wording, a, b));
        let (value, keys): (_, &[&str]) = match larger {
            true => (high, &["larger", "answer", "number"]),
            false => (low, &["smaller", "answer", "number"]),
        };
        let word = Some(value.to_string());
        Task { word, value: json!(value), keys, fields, ..Task::new(Kind::Compare, user, sentence) }
    }

    /// Greetings, thanks, what the model can do.
    pub fn talk(&mut self) -> Task {
        let (wordings, answer) = TALK[self.rng.below(TALK.len())];
        let plain = self.rng.pick(wordings).to_owned();
        let user = facts::disturb(&plain, &mut self.rng);
        Task::new(Kind::SmallTalk, user, answer)
    }
}

/// The task of a fact in a wording.
pub fn about(fact: &facts::Fact, user: String) -> Task {
    let word = (!fact.key.contains(' ')).then(|| fact.key.to_owned());
    Task { word, ..Task::new(Kind::Fact, user, fact.answer) }
}

/// The task of a sum or difference in a wording.
pub fn sum(op: Op, a: u32, b: u32, user: String) -> Task {
    let said = result(op, a, b).to_string();
    let (sign, keys): (_, &[&str]) = match op {
        Op::Add => ('+', &["answer", "result", "sum", "total"]),
        Op::Subtract => ('-', &["answer", "result", "difference", "value"]),
    };
    let fields = vec![("a", json!(a)), ("b", json!(b)), ("expression", json!(format!("{a} {sign} {b}")))];
    Task {
        thought: work_out(op, a, b),
        word: Some(said.clone()),
        sentence: Some(format!("{a} {sign} {b} is {said}.")),
        value: json!(result(op, a, b)),
        keys,
        fields,
        ..Task::new(Kind::Arithmetic, user, said)
    }
}
