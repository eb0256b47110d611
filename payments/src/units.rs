//! Amounts of money.
//!
//! TON counts in nanoTON (10⁻⁹ TON). Five billion TON exist, so a `u64` holds any real balance
//! (18.4 billion TON) and arithmetic that leaves that range is a bug or an attack: it is checked.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// NanoTON in one TON.
const PER_TON: u64 = 1_000_000_000;

/// An amount in nanoTON.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NanoTon(pub u64);

impl NanoTon {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// More than exists.
    pub const MAX: Self = Self(u64::MAX);

    /// An amount of whole TON; `None` beyond what a `u64` of nanoTON holds.
    pub const fn from_ton(ton: u64) -> Option<Self> {
        match ton.checked_mul(PER_TON) {
            Some(nano) => Some(Self(nano)),
            None => None,
        }
    }

    /// The sum, unless it overflows.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, unless it would be negative.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The product, unless it overflows.
    pub const fn checked_mul(self, factor: u64) -> Option<Self> {
        match self.0.checked_mul(factor) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// The sum, at most [`NanoTon::MAX`].
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum of many amounts, unless it overflows.
    pub fn checked_sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, |sum, amount| sum.checked_add(amount))
    }
}

/// Exact, without trailing zeros: `1.234567 TON`.
impl fmt::Display for NanoTon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nano) = (self.0 / PER_TON, self.0 % PER_TON);
        if nano == 0 {
            return f.pad(&format!("{whole} TON"));
        }
        let digits = format!("{nano:09}");
        f.pad(&format!("{whole}.{} TON", digits.trim_end_matches('0')))
    }
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not an amount of TON; write a number with at most 9 decimals, such as `1.5` or `0.25 TON`"
)]
pub struct ParseNanoTonError {
    text: String,
}

/// Reads `1.5` or `1.5 TON`.
impl FromStr for NanoTon {
    type Err = ParseNanoTonError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseNanoTonError { text: text.chars().take(40).collect() };
        let number = text.trim();
        let number = number.strip_suffix("TON").map_or(number, str::trim_end);
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let empty = whole.is_empty() || (decimals.is_empty() && number.contains('.'));
        if empty || decimals.len() > 9 || !is_number(whole) || !is_number(decimals) {
            return Err(fail());
        }
        let whole: u64 = whole.parse().map_err(|_| fail())?;
        let nano: u64 = format!("{decimals:0<9}").parse().map_err(|_| fail())?;
        Self::from_ton(whole).and_then(|whole| whole.checked_add(Self(nano))).ok_or_else(fail)
    }
}

/// What `tokens` cost at a price per million tokens, rounded up so that no token is free when the
/// price is not. An amount beyond [`NanoTon::MAX`] saturates: nobody can pay it, so it is refused
/// wherever it is compared with money that exists.
pub fn token_cost(tokens: u32, price_per_million: u64) -> NanoTon {
    let cost = (u128::from(tokens) * u128::from(price_per_million)).div_ceil(1_000_000);
    NanoTon(u64::try_from(cost).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_print_exactly_and_read_back() {
        for (nano, text) in [
            (0, "0 TON"),
            (1, "0.000000001 TON"),
            (1_234_567_000, "1.234567 TON"),
            (5_000_000_000, "5 TON"),
            (u64::MAX, "18446744073.709551615 TON"),
        ] {
            assert_eq!(NanoTon(nano).to_string(), text);
            assert_eq!(text.parse(), Ok(NanoTon(nano)));
        }
        assert_eq!(" 1.5 ".parse(), Ok(NanoTon(1_500_000_000)), "the unit is optional");
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in ["", ".", "1.", ".5", "-1", "1.0000000001", "1e3", "18446744073.709551616", "TON", "1,5"]
        {
            assert!(text.parse::<NanoTon>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn token_cost_rounds_up_and_saturates() {
        assert_eq!(token_cost(0, 1_000_000), NanoTon(0));
        assert_eq!(token_cost(1, 1), NanoTon(1));
        assert_eq!(token_cost(3, 1_000_000), NanoTon(3));
        assert_eq!(token_cost(1_000_001, 1_000_000), NanoTon(1_000_001));
        assert_eq!(token_cost(u32::MAX, u64::MAX), NanoTon::MAX);
    }
}
