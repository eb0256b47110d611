//! `tojson` as `transformers` defines it: Python's `json.dumps(…, ensure_ascii=False)`.
//!
//! The filter of the template engine writes other space and escapes HTML; models were trained on Python's.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::MAX_OUTPUT_BYTES;
use super::python::float;

/// Deepest nesting. Templates can nest values in a loop, and each level takes some stack.
const MAX_DEPTH: usize = 128;
/// Widest indentation.
const MAX_INDENT: usize = 16;

/// The filter. `indent` may come by position, as in Jinja.
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent.filter(|indent| !indent.is_undefined()) {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), i64::try_from(indent.clone())) {
            (Some(text), _) => text.to_owned(),
            (None, Ok(width)) => " ".repeat(usize::try_from(width).unwrap_or(0).min(MAX_INDENT + 1)),
            (None, Err(_)) => return Err(invalid("indent must be a number or a text")),
        }),
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > MAX_INDENT) {
        return Err(invalid("indent is too wide"));
    }
    let separators: Option<Vec<String>> =
        options.get::<Option<Value>>("separators")?.map_or(Ok(None), pair)?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators must be two texts")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut writer = Writer {
        out: String::new(),
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from_safe_string(writer.out))
}

fn pair(value: Value) -> Result<Option<Vec<String>>, Error> {
    if value.is_none() {
        return Ok(None);
    }
    let text =
        |part: Value| part.as_str().map(str::to_owned).ok_or_else(|| invalid("separators must be texts"));
    value.try_iter()?.take(3).map(text).collect::<Result<_, _>>().map(Some)
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {why}"))
}

struct Writer {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("nested too deeply"));
        }
        if self.out.len() > MAX_OUTPUT_BYTES {
            return Err(invalid("the text grows too long"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.all(items, ('[', ']'), depth, Self::value)?;
            }
            ValueKind::Map => {
                let keys: Vec<Value> = value.try_iter()?.collect();
                let mut entries = Vec::with_capacity(keys.len());
                for key in keys {
                    let entry = value.get_item(&key)?;
                    entries.push((name(&key)?, entry));
                }
                if self.sort {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.all(entries, ('{', '}'), depth, |writer, (name, value), depth| {
                    writer.text(name);
                    writer.out.push_str(&writer.key.clone());
                    writer.value(value, depth)
                })?;
            }
            kind => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {kind} is no JSON")));
            }
        }
        Ok(())
    }

    fn all<T>(
        &mut self,
        items: Vec<T>,
        (open, close): (char, char),
        depth: usize,
        write: impl Fn(&mut Self, &T, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item, depth + 1)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => match number {
            n if n.is_nan() => "NaN".into(),
            n if n.is_infinite() => if n > 0.0 { "Infinity" } else { "-Infinity" }.into(),
            n => float(n),
        },
        _ => value.to_string(),
    }
}

/// Keys that are no texts become texts.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a key must not be a {kind}"))),
    }
}
