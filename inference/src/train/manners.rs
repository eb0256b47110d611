//! How a system message can ask for an answer: in capitals, in one word, in JSON, under a name.
//!
//! A manner changes what is said and leaves the working-out as it is. Now and then the question itself asks
//! for it. One or two wordings of each manner are never trained; they judge the result.

use serde_json::json;

use super::source::{Source, Wordings, capital};
use super::tasks::Task;
use super::wordings::{NAMES, WHO, WORDS};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Capitals only.
    Upper,
    /// No capitals.
    Lower,
    /// One word or number.
    OneWord,
    /// A full sentence instead of a bare number.
    Sentence,
    /// `{"answer": …}`.
    Json,
    /// A word before everything.
    Begin,
    /// A word after everything.
    End,
    /// Who the model is.
    Named,
}

/// A system message or request, and the answer under it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mannered {
    /// What asks for the manner.
    pub demand: String,
    /// The task, whose `said` is in that manner.
    pub task: Task,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Upper,
        Self::Lower,
        Self::OneWord,
        Self::Sentence,
        Self::Json,
        Self::Begin,
        Self::End,
        Self::Named,
    ];

    /// The row of the evaluation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upper => "system prompt: upper case",
            Self::Lower => "system prompt: lower case",
            Self::OneWord => "system prompt: one word",
            Self::Sentence => "system prompt: full sentence",
            Self::Json => "system prompt: JSON",
            Self::Begin => "system prompt: begin with a word",
            Self::End => "system prompt: end with a word",
            Self::Named => "system prompt: a name",
        }
    }

    fn wordings(self) -> Wordings {
        let (trained, held_out): (&[&str], &[&str]) = match self {
            Self::Upper => (
                &[
                    "Answer in upper case.",
                    "Use capital letters only.",
                    "Write everything in capitals.",
                    "Reply in all caps.",
                    "Always answer in upper case letters.",
                    "Answer in uppercase.",
                    "Respond in capital letters.",
                ],
                &["Always reply in upper case.", "Answer in capital letters."],
            ),
            Self::Lower => (
                &[
                    "Answer in lower case.",
                    "Use small letters only.",
                    "Write everything in lower case.",
                    "Never use capital letters.",
                    "Always answer in lower case letters.",
                    "Answer in lowercase.",
                ],
                &["Always reply in lower case.", "Respond in lowercase."],
            ),
            Self::OneWord => (
                &[
                    "Answer in one word.",
                    "Answer with one word.",
                    "Use a single word.",
                    "Reply with one word only.",
                    "Say one word, no more.",
                    "Your answers have just one word.",
                    "Answer with a single word or number.",
                ],
                &["Always answer in one word.", "Reply in one word."],
            ),
            Self::Sentence => (
                &[
                    "Answer in a full sentence.",
                    "Use full sentences.",
                    "Reply with a complete sentence.",
                    "Always answer in a whole sentence.",
                    "Write complete sentences.",
                ],
                &["Answer in full sentences.", "Always reply in a complete sentence."],
            ),
            Self::Json => (
                &[
                    "Answer in JSON.",
                    "Reply in JSON only.",
                    "You answer with a JSON object.",
                    "Use JSON for all answers.",
                    "Respond with JSON.",
                    "Your output must be JSON.",
                    "Every answer is a JSON object.",
                ],
                &["Always answer in JSON.", "Respond in JSON only."],
            ),
            Self::Begin => (
                &[
                    "Begin every answer with {x}.",
                    "Start each answer with the word {x}.",
                    "Your answers start with {x}.",
                    "Always begin with {x}.",
                    "Start all replies with {x}.",
                    "Put {x} before every answer.",
                ],
                &["Begin each answer with the word {x}.", "Start every reply with {x}."],
            ),
            Self::End => (
                &[
                    "End every answer with {x}.",
                    "Finish each answer with the word {x}.",
                    "Your answers end with {x}.",
                    "Always end with {x}.",
                    "Finish all replies with {x}.",
                    "Put {x} after every answer.",
                ],
                &["End each answer with the word {x}.", "Finish every reply with {x}."],
            ),
            Self::Named => (
                &[
                    "You are {x}.",
                    "Your name is {x}.",
                    "You are {x}, a helpful assistant.",
                    "You are called {x}.",
                    "You are an assistant named {x}.",
                    "Act as {x}.",
                    "You are {x}. Be friendly.",
                ],
                &["You are a friendly assistant called {x}.", "You are {x}, an assistant."],
            ),
        };
        Wordings { trained, held_out }
    }
}

impl Source {
    /// A task under a manner, or nothing where it cannot be answered so.
    pub fn mannered(&mut self, manner: Manner, task: Task) -> Option<Mannered> {
        let demand = self.wording(&manner.wordings());
        let mut task = task;
        let mut demand = demand.to_owned();
        match manner {
            Manner::Upper => task.said = task.said.to_uppercase(),
            Manner::Lower => task.said = task.said.to_lowercase(),
            Manner::OneWord => task.said = task.word.clone()?,
            Manner::Sentence => task.said = task.sentence.clone().unwrap_or(task.said),
            Manner::Json => task.said = json!({"answer": task.value}).to_string_spaced(),
            Manner::Begin | Manner::End => {
                let word = self.known_or_invented(WORDS, 60);
                let word = if self.rng.chance(40) { capital(&word) } else { word };
                demand = demand.replace("{x}", &word);
                task.said = match manner {
                    Manner::Begin => format!("{word} {}", task.said),
                    _ => format!("{} {word}", task.said),
                };
            }
            Manner::Named => {
                let name = capital(&self.known_or_invented(NAMES, 40));
                demand = demand.replace("{x}", &name);
                // Other questions are answered as always.
                if self.is_held_out() || self.rng.chance(75) {
                    let who = self.wording(&WHO);
                    let user = self.soften(who.to_owned());
                    let said = format!("I am {name}.");
                    task = Task { user, thought: String::new(), word: Some(name), said, ..task };
                }
            }
        }
        Some(Mannered { demand, task })
    }
}

/// JSON as Python writes it, with a space after colons and commas: what models of this family are used to,
/// and what the chat template writes.
pub trait Spaced {
    /// The text.
    fn to_string_spaced(&self) -> String;
}

impl Spaced for serde_json::Value {
    fn to_string_spaced(&self) -> String {
        match self {
            Self::Object(fields) => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(name, value)| format!("{}: {}", json!(name), value.to_string_spaced()))
                    .collect();
                format!("{{{}}}", fields.join(", "))
            }
            Self::Array(items) => {
                let items: Vec<String> = items.iter().map(Spaced::to_string_spaced).collect();
                format!("[{}]", items.join(", "))
            }
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::{Rng, Split};
    use super::*;

    #[test]
    fn no_held_out_wording_is_trained() {
        for manner in Manner::ALL {
            let Wordings { trained, held_out } = manner.wordings();
            assert!(trained.len() >= 5 && held_out.len() >= 2, "{manner:?}");
            assert!(held_out.iter().all(|wording| !trained.contains(wording)), "{manner:?}");
        }
    }

    #[test]
    fn a_manner_changes_what_is_said_only() {
        let mut source = Source { rng: Rng::new(1), split: Split::Trained };
        for _ in 0..200 {
            let task = source.arithmetic();
            let upper = source.mannered(Manner::OneWord, task.clone()).unwrap().task;
            assert_eq!((&upper.user, &upper.thought, &upper.said), (&task.user, &task.thought, &task.said));
            let json = source.mannered(Manner::Json, task.clone()).unwrap().task;
            assert_eq!(json.said, format!("{{\"answer\": {}}}", task.said));
            let fact = source.fact();
            let upper = source.mannered(Manner::Upper, fact.clone()).unwrap().task;
            assert_eq!(upper.said, fact.said.to_uppercase());
        }
    }
}
