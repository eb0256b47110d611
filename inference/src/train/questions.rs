//! The held-out questions, and what counts as a right answer.
//!
//! Arithmetic asks only operand pairs that [`is_held_out`] kept from the training text; facts are
//! asked in the wordings that were never trained. The same questions steer a run (teacher-forced, in
//! [`quick`]) and judge its result through the serving engine (`cocoon-train eval`).

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::bytes;
use super::corpus::{Op, Rng, fill, is_held_out, result, work_out};
use super::facts::{self, Fact};
use super::model::{Batch, Net, Shape, Tables};
use super::wordings::{DIFFERENCES, SUMS};

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// The row of the result table it belongs to.
    pub category: &'static str,
    /// What is asked.
    pub user: String,
    /// What would be right.
    pub expected: Expected,
}

/// What makes an answer right.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    /// This number comes last.
    Number {
        /// Plus or minus.
        op: Op,
        /// First operand.
        a: u32,
        /// Second operand.
        b: u32,
    },
    /// This fact's key term and no other's.
    Fact(&'static Fact),
}

impl Question {
    /// The line of the summary it belongs to.
    pub fn group(&self) -> &'static str {
        match self.expected {
            Expected::Number { a, b, .. } if a.max(b) < 100 => "arithmetic, up to two digits",
            Expected::Number { .. } => "arithmetic, three digits",
            Expected::Fact(_) => "facts",
        }
    }
}

impl Expected {
    /// Judges an answer. Of arithmetic only the final number counts: what follows the working-out.
    pub fn accepts(&self, answer: &str) -> bool {
        match self {
            Self::Number { op, a, b } => {
                // Working-out that never ended, or ended without a number, is no answer.
                let said = match answer.rsplit_once("</think>") {
                    Some((_, said)) => said,
                    None if answer.contains("<think>") => "",
                    None => answer,
                };
                last_number(said) == Some(result(*op, *a, *b))
            }
            Self::Fact(fact) => facts::is_right(fact, answer),
        }
    }

    /// The answer as trained.
    pub fn model_answer(&self) -> String {
        match self {
            Self::Number { op, a, b } => work_out(*op, *a, *b),
            Self::Fact(fact) => fact.answer.to_owned(),
        }
    }
}

/// The last whole number in a text, with its sign.
pub fn last_number(text: &str) -> Option<i64> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = text[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    let value: i64 = text[start..end].parse().ok()?;
    Some(if text[..start].ends_with('-') { -value } else { value })
}

/// Held-out arithmetic: `count` questions, half with numbers of at most two digits, half with at
/// least one of three; sums and differences in equal parts, one difference in four below zero.
pub fn arithmetic(seed: u64, count: usize) -> Vec<Question> {
    let mut rng = Rng::new(seed);
    let mut questions = Vec::with_capacity(count);
    while questions.len() < count {
        let three = questions.len() % 2 == 1;
        let op = if questions.len() % 4 < 2 { Op::Add } else { Op::Subtract };
        let (low, high) = if three { (0, 999) } else { (0, 99) };
        let (mut a, mut b) = (rng.between(low, high), rng.between(low, high));
        if !is_held_out(a, b) || (three && a.max(b) < 100) {
            continue;
        }
        if op == Op::Subtract && a < b && rng.chance(50) {
            (a, b) = (b, a);
        }
        let category = match (op, three, a < b) {
            (Op::Add, false, _) => "sums, two digits",
            (Op::Subtract, false, false) => "differences, two digits",
            (Op::Subtract, false, true) => "differences below zero, two digits",
            (Op::Add, true, _) => "sums, three digits",
            (Op::Subtract, true, false) => "differences, three digits",
            (Op::Subtract, true, true) => "differences below zero, three digits",
        };
        let wording = rng.pick(if op == Op::Add { SUMS } else { DIFFERENCES });
        questions.push(Question {
            category,
            user: fill(wording, a, b),
            expected: Expected::Number { op, a, b },
        });
    }
    questions
}

/// Every held-out wording of every fact.
pub fn facts() -> Vec<Question> {
    let ask = |fact: &'static Fact| {
        fact.held_out.iter().map(move |wording| Question {
            category: "facts",
            user: (*wording).to_owned(),
            expected: Expected::Fact(fact),
        })
    };
    facts::facts().iter().flat_map(ask).collect()
}

/// Right answers and questions per category.
pub type Score = BTreeMap<String, (usize, usize)>;

/// How many questions would be answered word for word as trained. One pass without sampling: greedy
/// decoding gives the trained answer exactly when each of its tokens is the likeliest at its place.
pub fn quick(net: &Net, shape: &Shape, device: &Device, questions: &[Question]) -> Score {
    let mut score = Score::new();
    for part in questions.chunks(32) {
        let rows: Vec<_> = part
            .iter()
            .map(|question| bytes::conversation(None, &question.user, &question.expected.model_answer()))
            .collect();
        let batch = Batch::new(&rows);
        let tables = Tables::new(shape, batch.length, device);
        let ids = Tensor::<2, Int>::from_data(
            TensorData::new(batch.ids.clone(), [batch.rows, batch.length]),
            device,
        );
        let count = batch.positions.len();
        let positions =
            Tensor::<1, Int>::from_data(TensorData::new(batch.positions.clone(), [count]), device);
        let logits = net.logits(net.hidden(ids, &tables).select(0, positions));
        let best: Vec<i64> = logits.argmax(1).into_data().iter::<i64>().collect();
        let mut at = 0;
        for (question, (ids, answer)) in part.iter().zip(&rows) {
            let length = ids.len() - answer;
            let right = best[at..at + length] == batch.targets[at..at + length];
            at += length;
            let entry = score.entry(question.category.to_owned()).or_default();
            entry.0 += usize::from(right);
            entry.1 += 1;
        }
    }
    score
}

/// Whether a text shows a held-out pair, scanning neighbouring numbers.
pub fn shows_held_out_pair(text: &str) -> bool {
    let numbers: Vec<u32> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .filter_map(|part| part.parse().ok())
        .collect();
    numbers.windows(2).any(|pair| is_held_out(pair[0], pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_final_number_counts() {
        let ask = Expected::Number { op: Op::Subtract, a: 3, b: 15 };
        assert!(ask.accepts("<think>swap 5-3=2</think>\n-12"));
        assert!(ask.accepts("3 - 15 is -12."));
        assert!(!ask.accepts("<think>-12</think>\n12"));
        assert!(!ask.accepts("<think>-12"), "an answer that never ends its working-out says nothing");
        assert!(!ask.accepts("-12</think>"));
    }

    #[test]
    fn the_questions_are_held_out_and_balanced() {
        let asked = arithmetic(1, 2_000);
        assert_eq!(asked.len(), 2_000);
        assert!(asked.iter().all(|question| shows_held_out_pair(&question.user)));
        assert_eq!(
            asked.iter().filter(|question| question.group() == "arithmetic, three digits").count(),
            1_000
        );
        assert!(asked.iter().filter(|question| question.category.contains("below zero")).count() > 150);
        assert_eq!(facts().len(), facts::facts().len() * 4);
    }

    #[test]
    fn the_trained_answers_are_right() {
        for question in arithmetic(2, 500).iter().chain(&facts()) {
            assert!(question.expected.accepts(&question.expected.model_answer()), "{question:?}");
        }
    }
}
