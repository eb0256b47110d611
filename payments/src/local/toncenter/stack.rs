//! Arguments and results of get methods as toncenter writes them.
//!
//! Results are pairs of a kind and a value: `["num", "0x2a"]`, `["cell", {"bytes": "te6cc…"}]`,
//! `["tuple", {"@type": "tvm.tuple", "elements": […]}]`, and an empty `list` for null. Slices and
//! builders come as cells. Inside tuples and lists tonlib's own types appear instead of pairs.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use num_bigint::{BigInt, Sign};
use serde_json::{Value, json};
use tycho_types::prelude::{Boc, Cell};

use super::{
    super::{MAX_STACK_DEPTH, MAX_STACK_VALUES, StackValue},
    ToncenterError,
    params::decode_cell,
};

/// Bits of the largest TVM integer's magnitude.
const MAX_INT_BITS: u64 = 256;

/// Longest written integer that can be in range.
const MAX_INT_CHARS: usize = 80;

/// Reads the `stack` parameter.
pub(super) fn parse(stack: Option<&Value>) -> Result<Vec<StackValue>, ToncenterError> {
    let Some(stack) = stack else { return Ok(Vec::new()) };
    let items = stack.as_array().ok_or_else(|| bad("is not a list"))?;
    let mut room = MAX_STACK_VALUES;
    items.iter().map(|item| parse_pair(item, 0, &mut room)).collect()
}

fn parse_pair(item: &Value, depth: usize, room: &mut usize) -> Result<StackValue, ToncenterError> {
    *room = room.checked_sub(1).ok_or_else(|| bad("has too many values"))?;
    if depth > MAX_STACK_DEPTH {
        return Err(bad("is nested too deeply"));
    }
    let (kind, value) = match item.as_array().map(Vec::as_slice) {
        Some([kind]) => (kind, &Value::Null),
        Some([kind, value]) => (kind, value),
        _ => return Err(bad("holds something that is not a [kind, value] pair")),
    };
    match kind.as_str().unwrap_or_default() {
        "num" | "number" | "int" => parse_int(value).map(StackValue::Int),
        "cell" | "tvm.Cell" => parse_cell(value).map(StackValue::Cell),
        "slice" | "tvm.Slice" => parse_cell(value).map(StackValue::Slice),
        "builder" | "tvm.Builder" => parse_cell(value).map(StackValue::Builder),
        "null" => Ok(StackValue::Null),
        kind @ ("tuple" | "list") => {
            let items = value.as_array().ok_or_else(|| bad("holds a tuple that is not a list of pairs"))?;
            let items =
                items.iter().map(|item| parse_pair(item, depth + 1, room)).collect::<Result<_, _>>()?;
            Ok(if kind == "tuple" { StackValue::Tuple(items) } else { StackValue::List(items) })
        }
        kind => {
            let kind: String = kind.chars().take(32).collect();
            Err(bad(&format!("holds a {kind:?}; known are num, cell, slice, builder, tuple, list and null")))
        }
    }
}

fn parse_int(value: &Value) -> Result<BigInt, ToncenterError> {
    let number;
    let text = match value {
        Value::String(text) => text.as_str(),
        Value::Number(value) => {
            number = value.to_string();
            &number
        }
        _ => return Err(bad("holds a number that is neither number nor string")),
    };
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (radix, digits) = digits.strip_prefix("0x").map_or((10, digits), |digits| (16, digits));
    let in_range = |int: &BigInt| int.bits() <= MAX_INT_BITS;
    let signless = !digits.starts_with(['+', '-']) && digits.len() <= MAX_INT_CHARS;
    let int = signless.then(|| BigInt::parse_bytes(digits.as_bytes(), radix)).flatten().filter(in_range);
    let int = int.ok_or_else(|| bad("holds a number that is no 257-bit integer"))?;
    Ok(if negative { -int } else { int })
}

fn parse_cell(value: &Value) -> Result<Cell, ToncenterError> {
    let text = value.as_str().or_else(|| value.get("bytes")?.as_str());
    text.and_then(decode_cell).ok_or_else(|| bad("holds a cell that is not a bag of cells in base64"))
}

fn bad(what: &str) -> ToncenterError {
    ToncenterError::new(422, format!("parameter stack {what}"))
}

/// Writes a result, bottom of the stack first.
pub(super) fn render(stack: &[StackValue]) -> Value {
    stack.iter().map(render_pair).collect()
}

fn render_pair(value: &StackValue) -> Value {
    match value {
        StackValue::Null => json!(["list", list(&[])]),
        StackValue::Int(int) => json!(["num", hex(int)]),
        StackValue::NotANumber => json!(["num", "NaN"]),
        StackValue::Cell(cell) | StackValue::Slice(cell) | StackValue::Builder(cell) => {
            json!(["cell", { "bytes": bytes(cell) }])
        }
        StackValue::Tuple(items) => json!(["tuple", tuple(items)]),
        StackValue::List(items) => json!(["list", list(items)]),
    }
}

fn render_entry(value: &StackValue) -> Value {
    match value {
        StackValue::Null => json!({ "@type": "tvm.stackEntryList", "list": list(&[]) }),
        StackValue::Int(int) => number(&int.to_string()),
        StackValue::NotANumber => number("NaN"),
        StackValue::Cell(cell) | StackValue::Builder(cell) => {
            json!({ "@type": "tvm.stackEntryCell", "cell": { "@type": "tvm.cell", "bytes": bytes(cell) } })
        }
        StackValue::Slice(cell) => {
            json!({ "@type": "tvm.stackEntrySlice", "slice": { "@type": "tvm.slice", "bytes": bytes(cell) } })
        }
        StackValue::Tuple(items) => json!({ "@type": "tvm.stackEntryTuple", "tuple": tuple(items) }),
        StackValue::List(items) => json!({ "@type": "tvm.stackEntryList", "list": list(items) }),
    }
}

fn number(decimal: &str) -> Value {
    json!({ "@type": "tvm.stackEntryNumber", "number": { "@type": "tvm.numberDecimal", "number": decimal } })
}

fn tuple(items: &[StackValue]) -> Value {
    json!({ "@type": "tvm.tuple", "elements": items.iter().map(render_entry).collect::<Value>() })
}

fn list(items: &[StackValue]) -> Value {
    json!({ "@type": "tvm.list", "elements": items.iter().map(render_entry).collect::<Value>() })
}

fn hex(int: &BigInt) -> String {
    let sign = if int.sign() == Sign::Minus { "-" } else { "" };
    format!("{sign}0x{}", int.magnitude().to_str_radix(16))
}

fn bytes(cell: &Cell) -> String {
    BASE64_STANDARD.encode(Boc::encode(cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(text: &str) -> Option<String> {
        parse_int(&Value::String(text.into())).ok().map(|int| hex(&int))
    }

    #[test]
    fn integers_are_read_in_both_bases_and_written_in_hex() {
        assert_eq!(int("42").as_deref(), Some("0x2a"));
        assert_eq!(int("-0xff").as_deref(), Some("-0xff"));
        assert_eq!(parse_int(&json!(-7)).map(|int| hex(&int)), Ok("-0x7".into()));
        assert!(int(&format!("0x{}", "f".repeat(64))).is_some());
    }

    #[test]
    fn what_is_no_257_bit_integer_is_refused() {
        for text in [
            "",
            "-",
            "--1",
            "+1",
            "-+1",
            "0x",
            "1e3",
            "1.5",
            &format!("0x1{}", "0".repeat(64)),
            &"9".repeat(9999),
        ] {
            assert_eq!(int(text), None, "{text}");
        }
        assert!(parse_int(&json!(1.5)).is_err());
    }

    #[test]
    fn a_result_can_be_sent_back_as_an_argument() {
        let cell = Cell::default();
        let stack =
            vec![StackValue::Int(BigInt::from(-5)), StackValue::Cell(cell.clone()), StackValue::Slice(cell)];
        let back = parse(Some(&render(&stack))).unwrap();
        assert_eq!(back[0], stack[0]);
        assert_eq!(back[1], stack[1]);
        assert_eq!(back[2], StackValue::Cell(Cell::default()), "slices come back as cells, as at toncenter");
    }

    #[test]
    fn nesting_is_bounded() {
        let mut nested = json!(["num", "1"]);
        for _ in 0..100 {
            nested = json!(["tuple", [nested]]);
        }
        assert_eq!(parse(Some(&json!([nested]))).unwrap_err().code, 422);
        let many: Value = (0..=MAX_STACK_VALUES).map(|_| json!(["null"])).collect();
        assert_eq!(parse(Some(&many)).unwrap_err().code, 422);
    }
}
