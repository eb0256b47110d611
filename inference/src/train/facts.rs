//! What the model knows about this network.
//!
//! Each [`Fact`] has one answer and a key term that stands in no other answer, so an evaluation can
//! tell a right answer from a fluent wrong one. Questions are made from topics put into frames, and
//! from whole sentences; four further wordings of each fact are never trained (a test compares them
//! with everything the generator can say). The table itself is `facts.txt`.

use std::sync::LazyLock;

use super::source::Rng;

/// One thing to know.
#[derive(Debug, Default)]
pub struct Fact {
    /// A term of this answer that no other answer contains.
    pub key: &'static str,
    /// The answer.
    pub answer: &'static str,
    /// Noun phrases that ask for it when put into a frame.
    pub topics: Vec<&'static str>,
    /// Whole questions.
    pub asks: Vec<&'static str>,
    /// Wordings kept for the evaluation.
    pub held_out: Vec<&'static str>,
}

const FRAMES: &[&str] = &[
    "What is {t}?",
    "What's {t}?",
    "Tell me about {t}.",
    "Explain {t}.",
    "Can you explain {t}?",
    "Describe {t}.",
    "{t}?",
    "{t}",
    "What do you know about {t}?",
    "I have a question about {t}.",
    "What can you say about {t}?",
    "Say something about {t}.",
    "What about {t}?",
    "Please explain {t} to me.",
    "Give me a short description of {t}.",
    "How does {t} work?",
    "I want to know about {t}.",
    "Could you describe {t}?",
    "What does Cocoon say about {t}?",
    "In Cocoon, what is {t}?",
];

const OPENERS: &[&str] = &[
    "Please tell me: ",
    "Hi, ",
    "Hello! ",
    "So, ",
    "Quick question: ",
    "I wonder, ",
    "Hey, ",
    "OK, ",
    "Tell me, ",
    "And ",
    "Now, ",
];

const CLOSERS: &[&str] =
    &[" Thanks.", " please", " in Cocoon?", " in this network?", " here?", " in short", " exactly?"];

const FILLERS: &[&str] = &[
    "actually", "really", "exactly", "then", "just", "the", "a", "of", "in", "this", "network", "peer",
    "you", "it",
];

/// A clean trained wording of a fact.
pub fn trained_wording(fact: &Fact, rng: &mut Rng) -> String {
    if rng.chance(55) {
        rng.pick(&fact.asks).to_owned()
    } else {
        rng.pick(FRAMES).replace("{t}", rng.pick(&fact.topics))
    }
}

/// Every clean trained wording of a fact.
pub fn trained_wordings(fact: &Fact) -> impl Iterator<Item = String> {
    let framed =
        fact.topics.iter().flat_map(|topic| FRAMES.iter().map(move |frame| frame.replace("{t}", topic)));
    fact.asks.iter().map(|ask| (*ask).to_owned()).chain(framed)
}

/// A wording without case, punctuation and spacing: two wordings that agree in this are the same.
pub fn bare(wording: &str) -> String {
    wording.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

/// Disturbs a wording as people do: case, punctuation, an opener, a lost or added word, a slip of the
/// finger. Never turns a wording into a held-out one.
pub fn disturb(wording: &str, rng: &mut Rng) -> String {
    let mut words: Vec<String> = wording.split(' ').map(str::to_owned).collect();
    if rng.chance(25) && words.len() > 3 {
        words.remove(rng.below(words.len()));
    }
    if rng.chance(8) && words.len() > 4 {
        words.remove(rng.below(words.len()));
    }
    if rng.chance(15) {
        words.insert(rng.below(words.len() + 1), rng.pick(FILLERS).to_owned());
    }
    if rng.chance(8) && words.len() > 2 {
        let at = rng.below(words.len() - 1);
        words.swap(at, at + 1);
    }
    let mut text = words.join(" ");
    if rng.chance(20) {
        text = text.to_lowercase();
    }
    if rng.chance(20) {
        text = text.trim_end_matches(['.', '?', '!']).to_owned();
    }
    if rng.chance(10) {
        text.push_str(rng.pick(CLOSERS));
    }
    if rng.chance(15) {
        text.insert_str(0, rng.pick(OPENERS));
    }
    if rng.chance(12) && text.is_ascii() && text.len() > 4 {
        let at = rng.below(text.len() - 1);
        let mut letters = text.into_bytes();
        match rng.below(3) {
            0 => letters.swap(at, at + 1),
            1 => {
                letters.remove(at);
            }
            _ => letters[at] = b'a' + rng.below(26) as u8,
        }
        text = String::from_utf8_lossy(&letters).into_owned();
    }
    let said = bare(&text);
    if facts().iter().any(|fact| fact.held_out.iter().any(|held| bare(held) == said)) {
        wording.to_owned()
    } else {
        text
    }
}

/// Whether an answer says this fact and no other.
pub fn is_right(fact: &Fact, answer: &str) -> bool {
    says(answer, fact.key) && facts().iter().all(|other| other.key == fact.key || !says(answer, other.key))
}

/// Whether a text contains a term as whole words, whatever the case.
pub fn says(text: &str, term: &str) -> bool {
    let (text, term) = (text.to_lowercase(), term.to_lowercase());
    text.match_indices(&term).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + term.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

/// All of them, in the order of the file.
pub fn facts() -> &'static [Fact] {
    static FACTS: LazyLock<Vec<Fact>> = LazyLock::new(|| parse(include_str!("facts.txt")));
    &FACTS
}

/// Reads the table; lines that are empty or begin with `#` are for people. The tests check that every
/// fact came out whole.
fn parse(table: &'static str) -> Vec<Fact> {
    let mut facts: Vec<Fact> = Vec::new();
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (field, text) = line.split_once(' ').unwrap_or((line, ""));
        let text = text.trim_start();
        if field == "key" {
            facts.push(Fact { key: text, ..Fact::default() });
            continue;
        }
        let Some(fact) = facts.last_mut() else { continue };
        match field {
            "answer" => fact.answer = text,
            "topic" => fact.topics.push(text),
            "ask" => fact.asks.push(text),
            "held" => fact.held_out.push(text),
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_answer_says_its_own_key_and_no_other() {
        assert!(facts().len() >= 40);
        assert!(
            facts()
                .iter()
                .all(|fact| fact.held_out.len() == 4 && !fact.topics.is_empty() && !fact.asks.is_empty())
        );
        for fact in facts() {
            for other in facts() {
                assert_eq!(
                    says(fact.answer, other.key),
                    fact.key == other.key,
                    "{:?} in {:?}",
                    other.key,
                    fact.answer
                );
            }
        }
    }

    #[test]
    fn no_held_out_wording_can_be_generated() {
        let trained: BTreeSet<String> =
            facts().iter().flat_map(trained_wordings).map(|wording| bare(&wording)).collect();
        let mut held = BTreeSet::new();
        for fact in facts() {
            for wording in &fact.held_out {
                assert!(!trained.contains(&bare(wording)), "trained: {wording}");
                assert!(held.insert(bare(wording)), "held out twice: {wording}");
            }
        }
        let mut rng = Rng::new(3);
        for _ in 0..50_000 {
            let fact = &facts()[rng.below(facts().len())];
            let plain = trained_wording(fact, &mut rng);
            assert!(!held.contains(&bare(&disturb(&plain, &mut rng))));
        }
    }

    #[test]
    fn no_wording_asks_for_two_facts() {
        let mut seen = BTreeSet::new();
        for fact in facts() {
            let own: BTreeSet<String> = trained_wordings(fact).map(|wording| bare(&wording)).collect();
            for wording in own {
                assert!(seen.insert(wording.clone()), "{wording} asks for two facts");
            }
        }
    }

    #[test]
    fn a_right_answer_says_nothing_else() {
        let fact = &facts()[1];
        assert!(is_right(fact, fact.answer));
        assert!(!is_right(fact, &format!("{} {}", fact.answer, facts()[2].answer)));
        assert!(!is_right(fact, "trusted"));
    }
}
