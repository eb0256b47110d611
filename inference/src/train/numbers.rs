//! Sums and differences, worked out column by column.
//!
//! The working-out stands inside `<think>`, units first, one column at a time, so that each token is a copy
//! or a look-up in a table of single digits:
//!
//! ```text
//! 347+589      7+9=16 4+8+1=13 3+5+1=9
//! 523-178      5>1 3-8=5b 2-7-1=4b 5-1-1=3          b: borrowed ten
//! 532-523      5=5 3>2 2-3=9b 3-2-1=0 5-5=0
//! 178-523      1<5 swap 3-8=5b 2-7-1=4b 5-1-1=3
//! ```
//!
//! A difference first compares its operands from the highest column down, until one column decides.

use std::cmp::Ordering;

/// Plus or minus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// `a + b`
    Add,
    /// `a - b`
    Subtract,
}

/// Puts numbers into a wording.
pub fn fill(wording: &str, a: u32, b: u32) -> String {
    wording.replace("{a}", &a.to_string()).replace("{b}", &b.to_string())
}

/// The columns of a sum or difference.
pub fn work_out(op: Op, a: u32, b: u32) -> String {
    let mut text = String::new();
    let columns = a.max(b).max(1).ilog10() + 1;
    let digit = |number: u32, column: u32| number / 10u32.pow(column) % 10;
    let (mut top, mut bottom) = (a, b);
    if op == Op::Subtract {
        for column in (0..columns).rev() {
            let (x, y) = (digit(a, column), digit(b, column));
            let relation = match x.cmp(&y) {
                Ordering::Less => '<',
                Ordering::Equal => '=',
                Ordering::Greater => '>',
            };
            text.push_str(&format!("{x}{relation}{y} "));
            if x != y {
                break;
            }
        }
        if a < b {
            text.push_str("swap ");
            (top, bottom) = (b, a);
        }
    }
    let mut carry = 0;
    for column in 0..columns {
        let (x, y) = (digit(top, column), digit(bottom, column));
        if column > 0 {
            text.push(' ');
        }
        let (sign, extra) = if op == Op::Add { ('+', "+1") } else { ('-', "-1") };
        text.push_str(&format!("{x}{sign}{y}{}=", if carry == 1 { extra } else { "" }));
        match op {
            Op::Add => {
                let sum = x + y + carry;
                text.push_str(&sum.to_string());
                carry = sum / 10;
            }
            Op::Subtract => {
                let short = x < y + carry;
                text.push_str(&(x + if short { 10 } else { 0 } - y - carry).to_string());
                if short {
                    text.push('b');
                }
                carry = u32::from(short);
            }
        }
    }
    text
}

/// The number that must come out.
pub fn result(op: Op, a: u32, b: u32) -> i64 {
    match op {
        Op::Add => i64::from(a) + i64::from(b),
        Op::Subtract => i64::from(a) - i64::from(b),
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::Rng;
    use super::*;

    #[test]
    fn every_column_and_every_result_is_true() {
        assert_eq!(work_out(Op::Add, 347, 589), "7+9=16 4+8+1=13 3+5+1=9");
        assert_eq!(work_out(Op::Subtract, 523, 178), "5>1 3-8=5b 2-7-1=4b 5-1-1=3");
        assert_eq!(work_out(Op::Subtract, 178, 523), "1<5 swap 3-8=5b 2-7-1=4b 5-1-1=3");
        assert_eq!(work_out(Op::Subtract, 532, 523), "5=5 3>2 2-3=9b 3-2-1=0 5-5=0");
        assert_eq!(work_out(Op::Subtract, 7, 23), "0<2 swap 3-7=6b 2-0-1=1");
        assert_eq!(work_out(Op::Subtract, 8, 8), "8=8 8-8=0");
        assert_eq!(work_out(Op::Add, 0, 0), "0+0=0");
        let mut rng = Rng::new(5);
        for _ in 0..5_000 {
            let (a, b) = (rng.between(0, 999), rng.between(0, 999));
            let sum = work_out(Op::Add, a, b);
            // The last digits of the partial sums, units first, are the result's.
            let parts: Vec<u32> =
                sum.split(' ').map(|c| c.rsplit('=').next().unwrap().parse().unwrap()).collect();
            let last = parts.len() - 1;
            let value: u32 = (0..)
                .zip(&parts)
                .map(|(i, part)| if i == last as u32 { *part } else { part % 10 } * 10u32.pow(i))
                .sum();
            assert_eq!(value, a + b, "{sum}");
        }
    }
}
