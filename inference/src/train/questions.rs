//! The held-out questions, and what counts as a right answer.
//!
//! They come from the generator's held-out split: operand pairs, invented words and wordings that stand in no
//! training text. The same questions steer a run (teacher-forced, in [`quick`]) and judge its result through
//! the serving engine ([`super::evaluation`]).

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;

use super::chat::{Chat, ChatError};
use super::corpus::{Row, Split};
use super::facts::{self, Fact};
use super::forms::Mention;
use super::functions::Ending;
use super::manners::Manner;
use super::model::{Batch, Net, Shape, Tables};
use super::numbers::{Op, fill, result};
use super::source::{Rng, Source, is_held_out};
use super::tasks;
use super::wordings::{DIFFERENCES, SUMS};
use crate::Structure;
use crate::constraint::Grammar;
use crate::tools::ToolChoice;

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// The row of the result table it belongs to.
    pub category: &'static str,
    /// The line of the summary.
    pub group: &'static str,
    /// The conversation, and the answer as trained.
    pub row: Row,
    /// What the request demands.
    pub structure: Structure,
    /// What would be right.
    pub expected: Expected,
}

/// What makes an answer right.
#[derive(Debug, Clone)]
pub enum Expected {
    /// This number comes last.
    Number(i64),
    /// This fact's key term and no other's.
    Fact(&'static Fact),
    /// This text, and no other.
    Text(String),
    /// This value, in JSON.
    Json(Value),
    /// A call of this function, with these arguments.
    Call(String, Value),
}

/// An answer, taken apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    /// What is said, without thoughts and calls.
    pub text: String,
    /// Calls: names and arguments.
    pub calls: Vec<(String, String)>,
}

impl Expected {
    /// Judges an answer.
    pub fn accepts(&self, given: &Given) -> bool {
        let said = given.text.trim();
        match self {
            Self::Call(name, arguments) => match given.calls.as_slice() {
                [(called, with)] => {
                    let with = serde_json::from_str(with).map(unspaced);
                    called == name && with.is_ok_and(|with| with == unspaced(arguments.clone()))
                }
                _ => false,
            },
            _ if !given.calls.is_empty() => false,
            Self::Number(number) => last_number(said) == Some(*number),
            Self::Fact(fact) => facts::is_right(fact, said),
            Self::Text(text) => said == text,
            Self::Json(value) => serde_json::from_str::<Value>(said).is_ok_and(|found| found == *value),
        }
    }
}

/// A value whose texts have no spaces: `17 + 25` and `17+25` are the same formula.
fn unspaced(value: Value) -> Value {
    match value {
        Value::String(text) => text.replace(' ', "").into(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, unspaced(value))).collect(),
        other => other,
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
            (Op::Add, false, _) => "sums, up to two digits",
            (Op::Subtract, false, false) => "differences, up to two digits",
            (Op::Subtract, false, true) => "differences below zero, up to two digits",
            (Op::Add, true, _) => "sums, three digits",
            (Op::Subtract, true, false) => "differences, three digits",
            (Op::Subtract, true, true) => "differences below zero, three digits",
        };
        let wording = rng.pick(if op == Op::Add { SUMS } else { DIFFERENCES });
        questions.push(Question {
            category,
            group: if three { "arithmetic, three digits" } else { "arithmetic, up to two digits" },
            row: Row::of(&tasks::sum(op, a, b, fill(wording, a, b))),
            structure: Structure::default(),
            expected: Expected::Number(result(op, a, b)),
        });
    }
    questions
}

/// Every held-out wording of every fact.
pub fn facts() -> Vec<Question> {
    let ask = |fact: &'static Fact| {
        fact.held_out.iter().map(move |wording| Question {
            category: "facts",
            group: "facts, held-out wordings",
            row: Row::of(&tasks::about(fact, (*wording).to_owned())),
            structure: Structure::default(),
            expected: Expected::Fact(fact),
        })
    };
    facts::facts().iter().flat_map(ask).collect()
}

/// Questions about everything else: `count` for each category.
pub fn others(seed: u64, count: usize) -> Vec<Question> {
    let mut source = Source { rng: Rng::new(seed), split: Split::HeldOut };
    let mut questions = Vec::new();
    for _ in 0..count {
        questions.push(plain("words: reversed, spelled, counted", Row::of(&source.word())));
        questions.push(plain("numbers: compared", Row::of(&source.compare())));
        for manner in Manner::ALL {
            let row = source.row_in(manner);
            questions.push(Question { group: "system prompts", ..plain(manner.name(), row) });
        }
        for (mention, category) in [
            (Mention::Keys, "JSON: keys named in the question"),
            (Mention::Json, "JSON: asked for, schema given"),
            (Mention::Nothing, "JSON: schema alone"),
        ] {
            questions.push(form(&mut source, mention, category, false));
        }
        questions.push(form(&mut source, Mention::Keys, "JSON: data out of a sentence", true));
        for (ending, choice, category) in [
            (Ending::Call, ToolChoice::Auto, "functions: called by choice"),
            (Ending::Call, ToolChoice::Required, "functions: called on demand"),
            (Ending::Call, ToolChoice::Named(String::new()), "functions: called by name"),
            (Ending::Result, ToolChoice::Auto, "functions: answer from the result"),
            (Ending::Unneeded, ToolChoice::Auto, "functions: offered, not needed"),
        ] {
            questions.push(function(&mut source, ending, choice, category));
        }
    }
    questions.sort_by_key(|question| question.category);
    questions
}

/// The answer must be the trained one, but for its working-out.
fn plain(category: &'static str, row: Row) -> Question {
    let expected = Expected::Text(without_thoughts(&row.answer_text()).to_owned());
    Question { category, group: category, row, structure: Structure::default(), expected }
}

fn without_thoughts(answer: &str) -> &str {
    answer.rsplit_once("</think>").map_or(answer, |(_, said)| said).trim()
}

fn form(source: &mut Source, mention: Mention, category: &'static str, extraction: bool) -> Question {
    let formed = match extraction {
        true => source.extraction(mention),
        false => {
            let task = source.arithmetic();
            source.formed(mention, &task)
        }
    };
    let mut question = plain(category, formed.row());
    question.group = "JSON";
    question.expected = Expected::Json(formed.value);
    if mention != Mention::Keys {
        question.structure.grammar = Some(Grammar::JsonSchema(formed.schema.to_string()));
    }
    question
}

fn function(source: &mut Source, ending: Ending, choice: ToolChoice, category: &'static str) -> Question {
    let offered = source.offered(ending);
    let mut question = Question { group: "functions", ..plain(category, offered.row) };
    question.structure.tools = question.row.tools.clone();
    question.structure.choice = choice;
    if let Some((name, arguments)) = offered.call {
        if let ToolChoice::Named(named) = &mut question.structure.choice {
            named.clone_from(&name);
        }
        question.expected = Expected::Call(name, arguments);
    }
    question
}

/// Right answers and questions per category.
pub type Score = BTreeMap<String, (usize, usize)>;

/// How many questions would be answered word for word as trained. One pass without sampling: greedy
/// decoding gives the trained answer exactly when each of its tokens is the likeliest at its place.
pub fn quick(
    net: &Net,
    shape: &Shape,
    device: &Device,
    chat: &Chat,
    questions: &[Question],
) -> Result<Score, ChatError> {
    let mut score = Score::new();
    for part in questions.chunks(16) {
        let mut examples = Vec::new();
        for question in part {
            let mut example = chat.example(&question.row)?;
            // Earlier answers are not what is asked.
            example.trained.iter_mut().take(example.answer).for_each(|trained| *trained = false);
            examples.push(example);
        }
        let batch = Batch::new(&examples);
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
        for (question, example) in part.iter().zip(&examples) {
            let length = example.trained.iter().filter(|trained| **trained).count();
            let right = best[at..at + length] == batch.targets[at..at + length];
            at += length;
            let entry = score.entry(question.group.to_owned()).or_default();
            entry.0 += usize::from(right);
            entry.1 += 1;
        }
    }
    Ok(score)
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

    fn said(text: &str) -> Given {
        Given { text: text.to_owned(), calls: Vec::new() }
    }

    #[test]
    fn only_the_final_number_counts() {
        let ask = Expected::Number(-12);
        assert!(ask.accepts(&said("-12")));
        assert!(ask.accepts(&said("3 - 15 is -12.")));
        assert!(!ask.accepts(&said("12")));
        assert!(!ask.accepts(&said("")), "an answer that never ends its working-out says nothing");
    }

    #[test]
    fn a_call_is_right_in_name_and_arguments() {
        let ask = Expected::Call("calc".into(), serde_json::json!({"expression": "17 + 25"}));
        let call = |name: &str, arguments: &str| Given {
            text: String::new(),
            calls: vec![(name.to_owned(), arguments.to_owned())],
        };
        assert!(ask.accepts(&call("calc", "{\"expression\": \"17+25\"}")));
        assert!(!ask.accepts(&call("calc", "{\"expression\": \"17 + 26\"}")));
        assert!(!ask.accepts(&call("calculate", "{\"expression\": \"17 + 25\"}")));
        assert!(!ask.accepts(&call("calc", "{\"expression\"")));
        assert!(!ask.accepts(&said("42")));
        assert!(!Expected::Text("42".into()).accepts(&call("calc", "{}")));
    }

    #[test]
    fn the_questions_are_held_out_and_balanced() {
        let asked = arithmetic(1, 2_000);
        assert_eq!(asked.len(), 2_000);
        assert!(asked.iter().all(|question| shows_held_out_pair(question.row.question())));
        let three = asked.iter().filter(|question| question.group == "arithmetic, three digits");
        assert_eq!(three.count(), 1_000);
        assert!(asked.iter().filter(|question| question.category.contains("below zero")).count() > 150);
        assert_eq!(facts().len(), facts::facts().len() * 4);
    }

    #[test]
    fn the_trained_answers_are_right() {
        let mut asked = arithmetic(2, 500);
        asked.extend(facts());
        asked.extend(others(3, 50));
        for question in asked.iter().filter(|question| !matches!(question.expected, Expected::Call(..))) {
            let given = said(without_thoughts(&question.row.answer_text()));
            assert!(question.expected.accepts(&given), "{}: {}", question.category, given.text);
        }
    }

    #[test]
    fn every_request_is_one_that_a_worker_accepts() {
        for question in others(4, 50) {
            question.structure.validate().unwrap();
        }
    }
}
