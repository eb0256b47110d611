//! The JSON object in which a call comes: a name and its arguments, which are handed on as they come.

use super::json::{Scanner, Step};

/// What a byte did to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    More,
    /// The last byte of a call.
    Complete,
    /// The byte cannot be part of a call.
    Broken,
}

#[derive(Debug, Clone)]
enum At {
    Begin,
    Key { or_end: bool },
    KeyText(Scanner),
    Colon(Slot),
    Value(Slot, Scanner),
    Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Name,
    Arguments,
    /// Some models add an id or a type.
    Other,
}

/// A call being read.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    at: At,
    /// Of the key or name being read.
    raw: Vec<u8>,
    pub(super) name: Option<String>,
    arguments_begun: bool,
    /// Whether all arguments are there, so that the call is whole even if the object is not.
    pub(super) arguments_done: bool,
    /// Arguments that nobody took yet.
    pub(super) arguments: Vec<u8>,
}

impl Envelope {
    pub(super) fn new() -> Self {
        Self {
            at: At::Begin,
            raw: Vec::new(),
            name: None,
            arguments_begun: false,
            arguments_done: false,
            arguments: Vec::new(),
        }
    }

    /// Whether this is a call for sure, as far as can be told before its end.
    pub(super) fn ready(&self) -> bool {
        self.name.is_some() && self.arguments_begun
    }

    /// Takes the next byte. `known` says which names there are.
    pub(super) fn push(&mut self, byte: u8, known: impl Fn(&str) -> bool) -> Outcome {
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match &mut self.at {
            At::Begin | At::Key { .. } | At::Colon(_) | At::Next if space => Outcome::More,
            At::Begin if byte == b'{' => self.go(At::Key { or_end: true }),
            At::Key { .. } if byte == b'"' => {
                let mut scanner = Scanner::new();
                scanner.push(byte);
                self.raw = vec![byte];
                self.go(At::KeyText(scanner))
            }
            At::Key { or_end: true } if byte == b'}' => self.close(),
            At::KeyText(scanner) => {
                self.raw.push(byte);
                match scanner.push(byte) {
                    Step::More => Outcome::More,
                    Step::End => match self.slot() {
                        Some(slot) => self.go(At::Colon(slot)),
                        None => Outcome::Broken,
                    },
                    Step::Past | Step::Wrong => Outcome::Broken,
                }
            }
            At::Colon(slot) if byte == b':' => {
                let slot = *slot;
                self.raw.clear();
                self.go(At::Value(slot, Scanner::new()))
            }
            At::Value(slot, scanner) => {
                let (slot, step) = (*slot, scanner.push(byte));
                self.value(slot, step, byte, known)
            }
            At::Next if byte == b',' => self.go(At::Key { or_end: false }),
            At::Next if byte == b'}' => self.close(),
            _ => Outcome::Broken,
        }
    }

    fn go(&mut self, at: At) -> Outcome {
        self.at = at;
        Outcome::More
    }

    /// What the key just read stands for; none if it came before.
    fn slot(&self) -> Option<Slot> {
        let key: String = serde_json::from_slice(&self.raw).ok()?;
        match key.as_str() {
            "name" => self.name.is_none().then_some(Slot::Name),
            "arguments" | "parameters" => (!self.arguments_begun).then_some(Slot::Arguments),
            _ => Some(Slot::Other),
        }
    }

    fn value(&mut self, slot: Slot, step: Step, byte: u8, known: impl Fn(&str) -> bool) -> Outcome {
        if step == Step::Wrong {
            return Outcome::Broken;
        }
        if step == Step::Past {
            // Only of a value that is passed over: names and arguments are no numbers.
            self.at = At::Next;
            return self.push(byte, known);
        }
        match slot {
            Slot::Name => {
                self.raw.push(byte);
                let first = self.raw.iter().find(|b| !b.is_ascii_whitespace());
                if first.is_some_and(|first| *first != b'"') {
                    return Outcome::Broken;
                }
                if step == Step::End {
                    let name: Option<String> = serde_json::from_slice(&self.raw).ok();
                    let Some(name) = name.filter(|name| known(name)) else { return Outcome::Broken };
                    self.name = Some(name);
                }
            }
            Slot::Arguments if self.arguments_begun => self.arguments.push(byte),
            Slot::Arguments if byte == b'{' => {
                self.arguments_begun = true;
                self.arguments.push(byte);
            }
            Slot::Arguments if !byte.is_ascii_whitespace() => return Outcome::Broken,
            Slot::Arguments | Slot::Other => {}
        }
        match step {
            Step::End => {
                self.arguments_done |= slot == Slot::Arguments;
                self.go(At::Next)
            }
            _ => Outcome::More,
        }
    }

    fn close(&mut self) -> Outcome {
        if self.name.is_none() {
            return Outcome::Broken;
        }
        if !self.arguments_begun {
            // A call without arguments, as models write it for functions that have none.
            self.arguments_begun = true;
            self.arguments_done = true;
            self.arguments.extend_from_slice(b"{}");
        }
        Outcome::Complete
    }
}
