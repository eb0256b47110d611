//! JSON (RFC 8259) byte by byte: tells where a value ends without keeping it.

/// Deepest nesting of what is scanned; arguments are flat things.
const MAX_DEPTH: usize = 64;

/// What a byte was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of the value, which goes on.
    More,
    /// The last byte of the value.
    End,
    /// Not part of the value, which ended before it. Numbers are the only values that end so.
    Past,
    /// Not JSON.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value comes; `]` may come instead.
    Value {
        or_end: bool,
    },
    /// A key comes; `}` may come instead.
    Key {
        or_end: bool,
    },
    Colon,
    /// After a value within an array or object.
    Next,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// Hexadecimal digits left of an escape.
    Unicode {
        key: bool,
        left: u8,
    },
    /// What is left of `true`, `false` or `null`.
    Word(&'static [u8]),
    Number(Number),
}

/// Where in a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

/// A value being read.
#[derive(Debug, Clone)]
pub(super) struct Scanner {
    state: State,
    /// Open arrays (false) and objects (true).
    open: Vec<bool>,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { state: State::Value { or_end: false }, open: Vec::new() }
    }

    /// Takes the value's next byte; space before the value is part of it.
    pub(super) fn push(&mut self, byte: u8) -> Step {
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.state {
            State::Value { .. } | State::Key { .. } | State::Colon | State::Next if space => Step::More,
            State::Value { or_end: true } if byte == b']' => self.close(false),
            State::Value { .. } => self.begin(byte),
            State::Key { or_end: true } if byte == b'}' => self.close(true),
            State::Key { .. } if byte == b'"' => self.go(State::Text { key: true }),
            State::Colon if byte == b':' => self.go(State::Value { or_end: false }),
            State::Next => match (byte, self.open.last()) {
                (b',', Some(true)) => self.go(State::Key { or_end: false }),
                (b',', Some(false)) => self.go(State::Value { or_end: false }),
                (b'}', _) => self.close(true),
                (b']', _) => self.close(false),
                _ => Step::Wrong,
            },
            State::Text { key } => match byte {
                b'"' if key => self.go(State::Colon),
                b'"' => self.end(),
                b'\\' => self.go(State::Escape { key }),
                0..0x20 => Step::Wrong,
                _ => Step::More,
            },
            State::Escape { key } => match byte {
                b'u' => self.go(State::Unicode { key, left: 4 }),
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.go(State::Text { key }),
                _ => Step::Wrong,
            },
            State::Unicode { key, left } if byte.is_ascii_hexdigit() => match left {
                1 => self.go(State::Text { key }),
                _ => self.go(State::Unicode { key, left: left - 1 }),
            },
            State::Word([first, rest @ ..]) if *first == byte => match rest {
                [] => self.end(),
                _ => self.go(State::Word(rest)),
            },
            State::Number(number) => self.number(number, byte),
            _ => Step::Wrong,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::More
    }

    fn begin(&mut self, byte: u8) -> Step {
        let number = |number| State::Number(number);
        let state = match byte {
            b'{' | b'[' if self.open.len() < MAX_DEPTH => {
                self.open.push(byte == b'{');
                match byte {
                    b'{' => State::Key { or_end: true },
                    _ => State::Value { or_end: true },
                }
            }
            b'"' => State::Text { key: false },
            b't' => State::Word(b"rue"),
            b'f' => State::Word(b"alse"),
            b'n' => State::Word(b"ull"),
            b'-' => number(Number::Minus),
            b'0' => number(Number::Zero),
            b'1'..=b'9' => number(Number::Whole),
            _ => return Step::Wrong,
        };
        self.go(state)
    }

    /// A value is complete.
    fn end(&mut self) -> Step {
        self.state = State::Next;
        if self.open.is_empty() { Step::End } else { Step::More }
    }

    fn close(&mut self, object: bool) -> Step {
        match self.open.pop() {
            Some(open) if open == object => self.end(),
            _ => Step::Wrong,
        }
    }

    fn number(&mut self, at: Number, byte: u8) -> Step {
        use Number::{Exponent, Fraction, Minus, Point, Power, Sign, Whole, Zero};
        let next = match (at, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Whole, b'0'..=b'9') => Whole,
            (Zero | Whole, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Whole | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => Sign,
            (Exponent | Sign | Power, b'0'..=b'9') => Power,
            (Zero | Whole | Fraction | Power, _) => {
                return match self.end() {
                    Step::End => Step::Past,
                    // Within an array or object, the byte is what comes after the number.
                    _ => self.push(byte),
                };
            }
            _ => return Step::Wrong,
        };
        self.go(State::Number(next))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the whole text is one value, and how many bytes of it that value has.
    fn scan(text: &str) -> Option<usize> {
        let mut scanner = Scanner::new();
        for (i, byte) in text.bytes().enumerate() {
            match scanner.push(byte) {
                Step::More => {}
                Step::End => return Some(i + 1),
                Step::Past => return Some(i),
                Step::Wrong => return None,
            }
        }
        None
    }

    #[test]
    fn values_end_where_they_end() {
        for (text, end) in [
            (r#"{"a": [1, -2.5e+3, true, null, {}], "b\u00e9\"": ""} x"#, Some(52)),
            ("[]]", Some(2)),
            (r#" "x""#, Some(4)),
            ("12,", Some(2)),
            ("01", Some(1)),
            ("tru,", None),
            ("[1,]", None),
            ("{,}", None),
            (r#"{"a" 1}"#, None),
            (r#"{"a":1]"#, None),
            ("\"\n\"", None),
            (r#""\x""#, None),
            ("-a", None),
            ("1.e", None),
        ] {
            assert_eq!(scan(text), end, "{text}");
        }
        assert_eq!(scan(&"[".repeat(MAX_DEPTH + 1)), None);
    }

    proptest! {
        #[test]
        fn it_agrees_with_serde_json(text in r#"[\[\]{}:,"a0-9.eE+ \\utrl-]{0,12}"#) {
            // A space ends numbers.
            let text = text + " ";
            let whole = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            let end = scan(&text);
            let scanned = end.is_some_and(|end| text[end..].trim().is_empty());
            // Escapes of lone surrogates are JSON, but no text.
            prop_assert!(whole == scanned || text.contains("\\u"), "{text}: {end:?}");
        }
    }
}
