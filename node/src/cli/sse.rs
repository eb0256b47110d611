//! A reader of server-sent events, as far as OpenAI's API uses them: `data:` lines with JSON or `[DONE]`.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Longest event that is waited for.
const MAX_EVENT: usize = 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A JSON value.
    Data(Value),
    /// The end of the stream.
    Done,
}

/// Collects bytes and cuts them into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    /// Adds what came in and returns the events that are whole now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Event>> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some(length) = self.buffer[start..].iter().position(|&byte| byte == b'\n') {
            let line = self.buffer[start..start + length].trim_ascii_end();
            start += length + 1;
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii_start();
            events.push(if data == b"[DONE]" {
                Event::Done
            } else {
                Event::Data(
                    serde_json::from_slice(data).context("the gateway sent an event that is not JSON")?,
                )
            });
        }
        self.buffer.drain(..start);
        if self.buffer.len() > MAX_EVENT {
            bail!("the gateway sent an event of more than {MAX_EVENT} bytes");
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_may_be_cut_anywhere() {
        let text = b"data: {\"a\":1}\n\n: comment\ndata: [DONE]\r\n\r\n";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let mut events = parser.push(&text[..cut]).unwrap();
            events.extend(parser.push(&text[cut..]).unwrap());
            assert_eq!(events, [Event::Data(json!({"a": 1})), Event::Done]);
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.push(&vec![b'x'; MAX_EVENT + 1]).is_err());
        assert!(Parser::default().push(b"data: {\n").is_err());
    }
}
