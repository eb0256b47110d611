//! The training text, generated from a seed; nothing is downloaded.
//!
//! A [`Row`] is a conversation and the answer that is to follow. [`Corpus::row`] draws a kind of row, then a
//! task, a wording and operands: a plain [task](super::tasks), a task under a [system
//! message](super::manners), a task that wants [JSON](super::forms), or a question with
//! [functions](super::functions) on offer.
//!
//! Held out are operand pairs and invented words ([`super::source`]), and wordings of facts, of system
//! messages and of what is asked of functions. A corpus of the held-out split consists of just those.

use super::forms::Mention;
use super::functions::Ending;
use super::manners::Manner;
use super::source::Source;
pub use super::source::{Rng, Split};
use super::tasks::{Task, thinking};
use super::wordings::SYSTEM;
use crate::tools::ToolDefinition;
use crate::{ChatRole, Message};

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
    /// A system message that says how to answer.
    Manner,
    /// An answer in JSON.
    Form,
    /// Functions on offer.
    Function,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its text.
    pub text: String,
    /// Whether the model is to write it; else a grammar would.
    pub trained: bool,
}

impl Span {
    /// A part that the model is to write.
    pub fn trained(text: &str) -> Self {
        Self { text: text.to_owned(), trained: true }
    }

    /// The whole answer of a task.
    pub fn answer_of(task: &Task) -> Self {
        Self { text: thinking(&task.thought) + &task.said, trained: true }
    }
}

/// A conversation and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it practises.
    pub kind: Kind,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Functions on offer.
    pub tools: Vec<ToolDefinition>,
    /// The answer.
    pub answer: Vec<Span>,
}

impl Row {
    /// One question and its answer.
    pub fn of(task: &Task) -> Self {
        Self {
            kind: task.kind,
            messages: vec![Message::new(ChatRole::User, task.user.as_str())],
            tools: Vec::new(),
            answer: vec![Span::answer_of(task)],
        }
    }

    /// The answer's text.
    pub fn answer_text(&self) -> String {
        self.answer.iter().map(|span| span.text.as_str()).collect()
    }

    /// What was asked last.
    pub fn question(&self) -> &str {
        let asked = self.messages.iter().rev().find(|message| message.role == ChatRole::User);
        asked.map_or("", |message| message.content.as_str())
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
    /// Comparing.
    pub compare: usize,
    /// Under a system message.
    pub manner: usize,
    /// In JSON.
    pub form: usize,
    /// With functions on offer; small talk has the rest.
    pub function: usize,
}

impl Default for Mix {
    fn default() -> Self {
        Self { arithmetic: 24, fact: 23, word: 9, count: 2, compare: 4, manner: 12, form: 11, function: 13 }
    }
}

/// An endless stream of rows.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// Where its choices come from.
    pub source: Source,
    mix: Mix,
}

impl Corpus {
    /// The corpus of a seed.
    pub fn new(seed: u64, mix: Mix, split: Split) -> Self {
        Self { source: Source { rng: Rng::new(seed), split }, mix }
    }

    /// The next row.
    pub fn row(&mut self) -> Row {
        let Mix { arithmetic, fact, word, count, compare, manner, form, function } = self.mix;
        let mut at = self.source.rng.below(100);
        let mut falls_within = |share: usize| {
            let within = at < share;
            at = at.wrapping_sub(share);
            within
        };
        let source = &mut self.source;
        let task = if falls_within(arithmetic) {
            source.arithmetic()
        } else if falls_within(fact) {
            source.fact()
        } else if falls_within(word) {
            source.word()
        } else if falls_within(count) {
            source.count()
        } else if falls_within(compare) {
            source.compare()
        } else if falls_within(manner) {
            return source.manner_row();
        } else if falls_within(form) {
            return source.form_row();
        } else if falls_within(function) {
            return source.function_row();
        } else {
            source.talk()
        };
        let mut row = Row::of(&task);
        if source.rng.chance(3) {
            row.messages.insert(0, Message::new(ChatRole::System, source.rng.pick(SYSTEM)));
        } else if source.rng.chance(6) {
            source.precede(&mut row);
        }
        row
    }
}

impl Source {
    /// Any task.
    fn any_task(&mut self) -> Task {
        match self.rng.below(100) {
            0..35 => self.arithmetic(),
            35..60 => self.fact(),
            60..75 => self.word(),
            75..80 => self.count(),
            80..95 => self.compare(),
            _ => self.talk(),
        }
    }

    /// A row about a manner.
    pub fn manner_row(&mut self) -> Row {
        let manner = Manner::ALL[self.rng.below(Manner::ALL.len())];
        self.row_in(manner)
    }

    /// A row about this manner.
    pub fn row_in(&mut self, manner: Manner) -> Row {
        let mannered = loop {
            let task = match manner {
                // A number has no case.
                Manner::Upper | Manner::Lower => match self.rng.below(100) {
                    0..40 => self.fact(),
                    40..70 => self.compare(),
                    70..85 => self.word(),
                    _ => self.talk(),
                },
                Manner::Sentence => match self.rng.below(100) {
                    0..80 => self.arithmetic(),
                    _ => self.fact(),
                },
                _ => self.any_task(),
            };
            if let Some(mannered) = self.mannered(manner, task) {
                break mannered;
            }
        };
        let mut row = Row { kind: Kind::Manner, ..Row::of(&mannered.task) };
        // Now and then it is the question that asks for it.
        if !self.is_held_out() && manner != Manner::Named && self.rng.chance(20) {
            let question = format!("{} {}", mannered.task.user, mannered.demand);
            row.messages = vec![Message::new(ChatRole::User, question)];
        } else {
            row.messages.insert(0, Message::new(ChatRole::System, mannered.demand));
        }
        row
    }

    fn form_row(&mut self) -> Row {
        let mention = match self.rng.below(100) {
            0..45 => Mention::Keys,
            45..75 => Mention::Json,
            _ => Mention::Nothing,
        };
        let formed = match self.rng.chance(25) {
            true => self.extraction(mention),
            false => {
                let task = self.any_task();
                self.formed(mention, &task)
            }
        };
        formed.row()
    }

    fn function_row(&mut self) -> Row {
        let ending = match self.rng.below(100) {
            0..30 => Ending::Call,
            30..84 => Ending::Result,
            _ => Ending::Unneeded,
        };
        let mut row = self.offered(ending).row;
        if self.rng.chance(6) {
            self.precede(&mut row);
        }
        row
    }

    /// Puts an earlier question and its answer before the row's own. With functions on offer it is one that
    /// needs none.
    fn precede(&mut self, row: &mut Row) {
        let task = match (row.tools.is_empty(), self.rng.chance(70)) {
            (true, _) => self.any_task(),
            (false, true) => self.fact(),
            (false, false) => self.talk(),
        };
        let system = row.messages.iter().take_while(|message| message.role == ChatRole::System).count();
        let mut answer = Message::new(ChatRole::Assistant, task.said.as_str());
        answer.reasoning = (!task.thought.is_empty()).then(|| task.thought.clone());
        row.messages.splice(system..system, [Message::new(ChatRole::User, task.user), answer]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::chat::Chat;
    use super::super::questions::shows_held_out_pair;
    use super::super::tokenizer::Tokens;
    use super::*;
    use crate::train::model::Shape;

    #[test]
    fn no_held_out_pair_is_asked_in_any_row() {
        let mut corpus = Corpus::new(11, Mix::default(), Split::Trained);
        for _ in 0..40_000 {
            let row = corpus.row();
            for message in row.messages.iter().filter(|message| message.role == ChatRole::User) {
                // Decimals would be read as two numbers.
                let decimal = |part: &[u8]| part[0].is_ascii_digit() && part[1] == b'.';
                let digit_after = |part: &[u8]| part[2].is_ascii_digit();
                let decimals = |text: &str| text.as_bytes().windows(3).any(|p| decimal(p) && digit_after(p));
                if row.kind != Kind::Fact && !decimals(&message.content) {
                    assert!(!shows_held_out_pair(&message.content), "{}", message.content);
                }
            }
            if matches!(row.kind, Kind::Compare | Kind::Count) {
                assert!(!shows_held_out_pair(&row.answer_text()), "{}", row.answer_text());
            }
        }
    }

    #[test]
    fn a_seed_always_writes_the_same_text_and_every_row_fits() {
        let chat = Chat::new(Tokens::learn().unwrap()).unwrap();
        let corpus = || Corpus::new(9, Mix::default(), Split::Trained);
        let (mut one, mut two) = (corpus(), corpus());
        for _ in 0..5_000 {
            let row = one.row();
            assert_eq!(row, two.row());
            let tokens = chat.example(&row).unwrap().ids.len();
            assert!(tokens <= Shape::tiny().max_position_embeddings, "{tokens}: {}", row.question());
        }
    }

    #[test]
    fn every_kind_is_drawn() {
        let mut corpus = Corpus::new(1, Mix::default(), Split::Trained);
        let kinds: std::collections::BTreeSet<Kind> = (0..2_000).map(|_| corpus.row().kind).collect();
        assert_eq!(kinds.len(), 9);
    }
}
