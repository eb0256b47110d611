//! Takes calls out of generated text, byte by byte.
//!
//! Text goes on at once. What could become a call is held back until it is one for sure: until its name is
//! known and its arguments have begun, or until it turns out to be none and is text after all. From then on
//! arguments go on as they come. A call that breaks off after that is ended as not whole, and what follows
//! it is text; nothing that the model wrote is lost but the marks around calls and the space between them.

use std::collections::BTreeSet;

use super::ToolFormat;
use super::envelope::{Envelope, Outcome};

/// Most that is held back; a longer beginning of a call is text.
pub const MAX_HELD_BYTES: usize = 64 * 1024;
/// Most calls of one answer; further ones are text.
pub const MAX_CALLS: u32 = 128;

/// What a piece of text turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text of the answer.
    Text(String),
    /// A call began.
    CallStarted {
        /// Its number, from 0.
        index: u32,
        /// The function.
        name: String,
    },
    /// Some more of a call's arguments: part of the text of a JSON object.
    ArgumentsDelta {
        /// The call.
        index: u32,
        /// The part.
        text: String,
    },
    /// A call ended.
    CallEnded {
        /// The call.
        index: u32,
        /// Whether its arguments came to their end. Otherwise they are cut off.
        whole: bool,
    },
}

#[derive(Debug, Clone)]
enum State {
    /// Nothing but space so far.
    Start,
    Text,
    /// Within the mark before a call; this many bytes of it are there.
    Open(usize),
    /// Within a call, which may be announced already.
    Call {
        envelope: Box<Envelope>,
        announced: bool,
    },
    /// Within the mark after a call.
    Close(usize),
    /// After a call, nothing but space since.
    Between,
    /// After a call and what separates it from the next.
    Separated,
}

/// Reads the calls of one answer.
#[derive(Debug, Clone)]
pub struct ToolParser {
    format: ToolFormat,
    /// What may be called; anything else is text.
    names: BTreeSet<String>,
    state: State,
    /// Of the next call.
    index: u32,
    /// Whether a call came to its end.
    whole: bool,
    /// What could become a call.
    held: Vec<u8>,
    /// Text that is to go on.
    plain: Vec<u8>,
    events: Vec<ToolEvent>,
}

impl ToolParser {
    /// For an answer in this format, of a model that was offered these functions.
    pub fn new<'a>(format: ToolFormat, names: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            format,
            names: names.into_iter().map(str::to_owned).collect(),
            state: State::Start,
            index: 0,
            whole: false,
            held: Vec::new(),
            plain: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<ToolEvent> {
        piece.bytes().for_each(|byte| self.byte(byte));
        self.flush();
        std::mem::take(&mut self.events)
    }

    /// Ends the answer.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Call { envelope, announced: true } => self.end_call(*envelope),
            // Space after the last call, or what is there of the mark after it.
            State::Close(_) | State::Between => self.held.clear(),
            _ => self.release(),
        }
        self.flush();
        std::mem::take(&mut self.events)
    }

    /// Whether the answer has a whole call so far: then its `finish_reason` is `tool_calls`.
    pub fn has_calls(&self) -> bool {
        self.whole
    }

    fn marks(&self) -> (&'static [u8], &'static [u8]) {
        match self.format {
            ToolFormat::Hermes => (b"<tool_call>", b"</tool_call>"),
            ToolFormat::Llama3 => (b"<|python_tag|>", b""),
        }
    }

    fn byte(&mut self, byte: u8) {
        let (open, close) = self.marks();
        let hermes = self.format == ToolFormat::Hermes;
        let space = byte.is_ascii_whitespace();
        match &mut self.state {
            State::Text if byte == b'<' && hermes => self.hold(byte, State::Open(1)),
            State::Text => self.plain.push(byte),
            State::Start | State::Between | State::Separated if space => self.hold_on(byte),
            State::Start if byte == b'<' => self.hold(byte, State::Open(1)),
            State::Start | State::Separated if byte == b'{' && !hermes => {
                self.state = call();
                self.byte(byte);
            }
            State::Between if byte == b'<' && hermes => self.hold(byte, State::Open(1)),
            State::Between if byte == b';' && !hermes => self.hold(byte, State::Separated),
            State::Open(at) if open.get(*at) == Some(&byte) => {
                *at += 1;
                let done = *at == open.len();
                self.hold_on(byte);
                if done {
                    self.state = call();
                }
            }
            State::Close(0) if space => self.hold_on(byte),
            State::Close(at) if close.get(*at) == Some(&byte) => {
                *at += 1;
                let done = *at == close.len();
                self.hold_on(byte);
                if done {
                    self.held.clear();
                    self.state = State::Between;
                }
            }
            // The mark after a call was left out, and the next call begins.
            State::Close(1) if open.get(1) == Some(&byte) => self.hold(byte, State::Open(2)),
            State::Call { envelope, announced } => {
                let names = &self.names;
                let outcome = envelope.push(byte, |name| names.contains(name));
                let (ready, announced) = (envelope.ready(), *announced);
                self.in_call(byte, outcome, ready, announced);
            }
            _ => {
                self.release();
                self.state = State::Text;
                self.byte(byte);
            }
        }
    }

    fn in_call(&mut self, byte: u8, outcome: Outcome, ready: bool, announced: bool) {
        if outcome == Outcome::Broken || self.index >= MAX_CALLS {
            match std::mem::replace(&mut self.state, State::Text) {
                State::Call { envelope, announced: true } => self.end_call(*envelope),
                _ => self.release(),
            }
            return self.byte(byte);
        }
        if !announced {
            self.hold_on(byte);
            if ready {
                self.announce();
            }
        }
        if outcome == Outcome::Complete
            && let State::Call { envelope, .. } = std::mem::replace(&mut self.state, State::Text)
        {
            self.end_call(*envelope);
        }
    }

    /// The call is one.
    fn announce(&mut self) {
        self.flush_plain();
        if let State::Call { envelope, announced } = &mut self.state {
            *announced = true;
            self.held.clear();
            let name = envelope.name.clone().unwrap_or_default();
            self.events.push(ToolEvent::CallStarted { index: self.index, name });
        }
    }

    /// Ends the call. With all its arguments it is whole, even if its last brace is missing, which happens
    /// to small models; the mark after it may then still come.
    fn end_call(&mut self, mut envelope: Envelope) {
        let (index, whole) = (self.index, envelope.arguments_done);
        let text = text(&mut envelope.arguments);
        if !text.is_empty() {
            self.events.push(ToolEvent::ArgumentsDelta { index, text });
        }
        self.events.push(ToolEvent::CallEnded { index, whole });
        self.index += 1;
        self.whole |= whole;
        self.state = match self.format {
            _ if !whole => State::Text,
            ToolFormat::Hermes => State::Close(0),
            ToolFormat::Llama3 => State::Between,
        };
    }

    fn hold(&mut self, byte: u8, state: State) {
        self.state = state;
        self.hold_on(byte);
    }

    fn hold_on(&mut self, byte: u8) {
        self.held.push(byte);
        if self.held.len() > MAX_HELD_BYTES {
            self.release();
            self.state = State::Text;
        }
    }

    /// What was held back is text.
    fn release(&mut self) {
        self.plain.append(&mut self.held);
    }

    /// Hands on what is sure at the end of a piece.
    fn flush(&mut self) {
        self.flush_plain();
        if let State::Call { envelope, announced: true } = &mut self.state {
            let text = text(&mut envelope.arguments);
            if !text.is_empty() {
                self.events.push(ToolEvent::ArgumentsDelta { index: self.index, text });
            }
        }
    }

    fn flush_plain(&mut self) {
        if !self.plain.is_empty() {
            let text = text(&mut self.plain);
            self.events.push(ToolEvent::Text(text));
        }
    }
}

fn call() -> State {
    State::Call { envelope: Box::new(Envelope::new()), announced: false }
}

/// Takes bytes as text. They are whole characters: pieces are, and what ends within one is ASCII.
fn text(bytes: &mut Vec<u8>) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    bytes.clear();
    text
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
