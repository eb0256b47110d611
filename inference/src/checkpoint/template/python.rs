//! Where Python and the template engine differ: printed values, and methods of strings.
//!
//! Printing `none` gives `None`, `true` gives `True`, and lists and objects their `repr`, which templates
//! that write tools without `tojson` rely on. Values that become text by other ways (`~`, the filter
//! `join`) are still the engine's.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;

use super::MAX_OUTPUT_BYTES;

/// Deepest nesting of what is printed.
const MAX_DEPTH: usize = 128;
/// Bytes of strings that one unit of fuel pays for, as the engine counts.
const BYTES_PER_FUEL: u64 = 64;
/// Widest field that `format` is allowed.
const MAX_DIGITS: usize = 3;

/// Prints a value as Python's `str` would.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            repr(value, 0, &mut text)?;
            state.consume_fuel(text.len() as u64 / BYTES_PER_FUEL)?;
            Ok(out.write_str(&text)?)
        }
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => Ok(out.write_str(&float(number))?),
            Err(_) => minijinja::escape_formatter(out, state, value),
        },
        _ => minijinja::escape_formatter(out, state, value),
    }
}

fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH || out.len() > MAX_OUTPUT_BYTES {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is too large to be printed"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float));
        }
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Single quotes, unless the text has some and no double ones.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's `repr` of a float: the shortest digits, with an exponent outside 1e-4 to 1e16.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let short = format!("{number:e}");
    let Some((digits, exponent)) = short.split_once('e') else { return short };
    match exponent.parse::<i32>() {
        Ok(power) if (-4..16).contains(&power) => {
            let plain = number.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        Ok(power) => format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs()),
        Err(_) => short,
    }
}

/// Methods of Python's strings and objects. The engine charges fuel for what a method returns, after it did;
/// what could blow up within one call, or work through a long string for one unit of fuel, is seen to here.
pub(super) fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        state.consume_fuel(text.len() as u64 / BYTES_PER_FUEL)?;
        let length = |value: &Value| value.as_str().map_or(0, str::len);
        let result = match (method, args) {
            ("replace", [old, new, ..]) => {
                let old = old.as_str().unwrap_or_default();
                let times = if old.is_empty() { text.len() + 1 } else { text.len() / old.len() };
                times.saturating_mul(length(new)).saturating_add(text.len())
            }
            ("join", [items]) => {
                let mut bytes = 0usize;
                for item in items.try_iter()? {
                    state.consume_fuel(1)?;
                    bytes = bytes.saturating_add(text.len()).saturating_add(length(&item));
                    too_long(bytes)?;
                }
                bytes
            }
            ("format", args) => {
                let fields = text.matches('{').count();
                let widest = args.iter().map(length).max().unwrap_or(0).max(10usize.pow(MAX_DIGITS as u32));
                let digits = text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > MAX_DIGITS);
                if digits { usize::MAX } else { fields.saturating_mul(widest).saturating_add(text.len()) }
            }
            _ => 0,
        };
        too_long(result)?;
    }
    match (method, value.kind()) {
        // Newer than the engine's own list.
        ("removeprefix" | "removesuffix", ValueKind::String) => {
            let (text, affix) = (value.as_str().unwrap_or_default(), args.first().and_then(Value::as_str));
            let affix =
                affix.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "an affix must be a text"))?;
            let rest =
                if method == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Jinja's test: `tools is iterable` asks in some templates whether there are any, and `none` is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    )
}

fn too_long(bytes: usize) -> Result<(), Error> {
    // A template may well build a text twice before it writes it.
    match bytes <= 4 * MAX_OUTPUT_BYTES {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::InvalidOperation, "a string grows too long")),
    }
}
