//! Splits what a model thinks from what it says.
//!
//! Models that reason write their thoughts first, between `<think>` and `</think>`, and then the answer.
//! Some templates write the opening mark at the end of the prompt, so that generated text begins within the
//! thoughts; some write both, to keep the model from thinking. [`ReasoningMarks::opened_by`] tells.
//!
//! The split depends on the text alone, not on how it was cut into pieces. Space around the marks belongs
//! to neither part.

/// The marks around thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningMarks {
    /// Before them.
    pub open: &'static str,
    /// After them.
    pub close: &'static str,
}

impl ReasoningMarks {
    /// Those of Qwen 3, QwQ and DeepSeek R1, and of most that came after.
    pub const THINK: Self = Self { open: "<think>", close: "</think>" };

    /// Reads off a chat template whether its model reasons: it then cuts thoughts out of earlier answers,
    /// or opens them.
    pub fn of_template(source: &str) -> Option<Self> {
        let marks = Self::THINK;
        (source.contains(marks.open) || source.contains(marks.close)).then_some(marks)
    }

    /// Whether a rendered prompt ends within thoughts.
    pub fn opened_by(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

/// A part of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReasoningEvent {
    /// Thoughts.
    Reasoning(String),
    /// What is said.
    Content(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but space and the beginning of the opening mark.
    Start,
    /// Within thoughts, of which nothing but space came yet.
    ReasoningBegins,
    Reasoning,
    /// After thoughts, nothing but space.
    ContentBegins,
    Content,
}

/// Splits one answer.
#[derive(Debug, Clone)]
pub struct ReasoningSplit {
    marks: ReasoningMarks,
    state: State,
    /// What may be a mark or the space around one. Space is not bounded by a mark's length, but by
    /// [`MAX_HELD_BYTES`].
    held: String,
    tokens: u32,
    /// Pushed while it was open whether there are thoughts.
    undecided: u32,
}

/// Most space that is held back.
const MAX_HELD_BYTES: usize = 4 * 1024;

impl ReasoningSplit {
    /// For an answer to a prompt that ends within thoughts or does not.
    pub fn new(marks: ReasoningMarks, opened: bool) -> Self {
        let state = if opened { State::ReasoningBegins } else { State::Start };
        Self { marks, state, held: String::new(), tokens: 0, undecided: 0 }
    }

    /// Takes the next piece of text: for [`reasoning_tokens`](Self::reasoning_tokens) to be right, what one
    /// token released, even if that is nothing.
    pub fn push(&mut self, piece: &str) -> Vec<ReasoningEvent> {
        let mut events = Vec::new();
        let before = self.state;
        for c in piece.chars() {
            self.char(c, &mut events);
        }
        match (before, self.state) {
            (State::Start, State::Start) => self.undecided += 1,
            (State::Start, State::Content) => self.undecided = 0,
            (State::Content | State::ContentBegins, _) => {}
            _ => {
                self.tokens += 1 + std::mem::take(&mut self.undecided);
            }
        }
        events
    }

    /// Ends the answer. Thoughts that were not closed remain thoughts.
    pub fn finish(&mut self) -> Vec<ReasoningEvent> {
        let mut events = Vec::new();
        match self.state {
            State::Start | State::Content => self.release(State::Content, &mut events),
            State::ReasoningBegins | State::Reasoning => {
                // Space at the end is dropped as it is before the mark.
                self.held.truncate(self.held.trim_end().len());
                self.release(State::Reasoning, &mut events);
            }
            State::ContentBegins => self.held.clear(),
        }
        events
    }

    /// Tokens of thoughts so far, marks included.
    pub fn reasoning_tokens(&self) -> u32 {
        self.tokens
    }

    fn char(&mut self, c: char, events: &mut Vec<ReasoningEvent>) {
        let space = c.is_whitespace();
        match self.state {
            State::Content => emit(events, false, c),
            State::ReasoningBegins | State::ContentBegins if space && self.held.is_empty() => {}
            State::ContentBegins => {
                self.state = State::Content;
                emit(events, false, c);
            }
            State::Start => {
                self.held.push(c);
                let mark = self.held.trim_start();
                if mark == self.marks.open {
                    self.held.clear();
                    self.state = State::ReasoningBegins;
                } else if !self.marks.open.starts_with(mark) || self.held.len() > MAX_HELD_BYTES {
                    self.release(State::Content, events);
                }
            }
            State::ReasoningBegins | State::Reasoning => self.thought(c, events),
        }
    }

    /// Holds space and the closing mark back; both may come in any mixture.
    fn thought(&mut self, c: char, events: &mut Vec<ReasoningEvent>) {
        self.held.push(c);
        loop {
            let mark = self.held.trim_start();
            if mark == self.marks.close {
                self.held.clear();
                self.state = State::ContentBegins;
                return;
            }
            if self.marks.close.starts_with(mark) && self.held.len() <= MAX_HELD_BYTES {
                return;
            }
            // Not the mark: all up to the last character is thoughts; that one may begin the mark.
            let last = self.held.pop();
            let had_more = !self.held.is_empty();
            self.release(State::Reasoning, events);
            let Some(last) = last else { return };
            if had_more {
                self.held.push(last);
            } else {
                emit(events, true, last);
                self.state = State::Reasoning;
                return;
            }
        }
    }

    fn release(&mut self, state: State, events: &mut Vec<ReasoningEvent>) {
        self.state = state;
        for c in std::mem::take(&mut self.held).chars() {
            emit(events, state == State::Reasoning, c);
        }
    }
}

/// Appends to the last event where that is of the same kind.
fn emit(events: &mut Vec<ReasoningEvent>, reasoning: bool, c: char) {
    match (events.last_mut(), reasoning) {
        (Some(ReasoningEvent::Reasoning(text)), true) | (Some(ReasoningEvent::Content(text)), false) => {
            text.push(c);
        }
        (_, true) => events.push(ReasoningEvent::Reasoning(c.into())),
        (_, false) => events.push(ReasoningEvent::Content(c.into())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(opened: bool, pieces: &[&str]) -> (String, String, u32) {
        let mut split = ReasoningSplit::new(ReasoningMarks::THINK, opened);
        let (mut reasoning, mut content) = (String::new(), String::new());
        let mut add = |events: Vec<ReasoningEvent>| {
            for event in events {
                match event {
                    ReasoningEvent::Reasoning(text) => {
                        assert!(content.is_empty(), "thoughts come first");
                        reasoning += &text;
                    }
                    ReasoningEvent::Content(text) => content += &text,
                }
            }
        };
        pieces.iter().for_each(|piece| add(split.push(piece)));
        add(split.finish());
        (reasoning, content, split.reasoning_tokens())
    }

    fn texts(opened: bool, text: &str) -> (String, String) {
        let (reasoning, content, _) = split(opened, &[text]);
        (reasoning, content)
    }

    #[test]
    fn thoughts_come_before_content() {
        let parts = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        for (opened, text, expected) in [
            (false, "<think>\nHm, so.\n</think>\n\nYes.\n", parts("Hm, so.", "Yes.\n")),
            (true, "\nHm.\n</think>\n\nYes.", parts("Hm.", "Yes.")),
            (true, "</think>\n\nYes.", parts("", "Yes.")),
            (false, "<think>\n\n</think>\n\nYes.", parts("", "Yes.")),
            (false, "\n <think>a", parts("a", "")),
            (true, "a </thi nk> <</think>b</think>", parts("a </thi nk> <", "b</think>")),
            (true, "never closed </th", parts("never closed </th", "")),
            (false, "Yes <think>no</think>", parts("", "Yes <think>no</think>")),
            (false, " \nYes", parts("", " \nYes")),
            (false, "<thin", parts("", "<thin")),
            (false, " ", parts("", " ")),
            (true, "a  \n b\n\n</think>", parts("a  \n b", "")),
        ] {
            assert_eq!(texts(opened, text), expected, "{text:?}");
        }
    }

    #[test]
    fn tokens_of_thoughts_are_counted_with_their_marks() {
        let pieces = ["\n", "<thi", "nk>", "a", "", "</think>", "\n\n", "Yes", "."];
        assert_eq!(split(false, &pieces), ("a".into(), "Yes.".into(), 6));
        assert_eq!(split(true, &["a", "b</", "think>c", "d"]).2, 3);
        assert_eq!(split(false, &["\n", "Yes"]).2, 0);
    }

    #[test]
    fn marks_are_found_in_templates_and_prompts() {
        assert_eq!(
            ReasoningMarks::of_template("{{ m.content.split('</think>')[-1] }}"),
            Some(ReasoningMarks::THINK)
        );
        assert_eq!(ReasoningMarks::of_template("{{ m.content }}"), None);
        assert!(ReasoningMarks::THINK.opened_by("<|im_start|>assistant\n<think>\n"));
        assert!(!ReasoningMarks::THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
        assert!(!ReasoningMarks::THINK.opened_by("<|im_start|>assistant\n"));
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let space = " ".repeat(3 * MAX_HELD_BYTES);
        assert_eq!(texts(false, &format!("{space}x")).1.len(), space.len() + 1);
        assert_eq!(texts(true, &format!("a{space}b")).0.len(), space.len() + 2);
    }

    const PARTS: [&str; 12] =
        ["<think>", "</think>", "<", "</", "think>", "\n", " ", "a", "é", "</thin", "k>", "<<"];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn the_split_does_not_depend_on_the_pieces(
            parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..12), opened: bool,
        ) {
            let text = parts.concat();
            let single: Vec<String> = text.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            let (reasoning, content, _) = split(opened, &parts);
            prop_assert_eq!((reasoning.clone(), content.clone()), texts(opened, &text));
            let (r, c, _) = split(opened, &single);
            prop_assert_eq!((reasoning.clone(), content.clone()), (r, c));
            // The oracle.
            let after = if opened { Some(text.as_str()) } else { text.trim_start().strip_prefix("<think>") };
            let expected = match after.map(|after| after.split_once("</think>").unwrap_or((after, ""))) {
                Some((thoughts, said)) => (thoughts.trim(), said.trim_start()),
                None => ("", text.as_str()),
            };
            prop_assert_eq!((reasoning.as_str(), content.as_str()), expected);
        }
    }
}
