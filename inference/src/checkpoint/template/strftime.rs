//! `strftime_now`, at a time that the caller says.
//!
//! `transformers` reads the clock. A prompt must not: the worker that resumes an answer would render
//! another one. Whoever wants a date in the prompt puts the time into the request.

use std::fmt::Write;

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Longest format.
const MAX_FORMAT: usize = 256;

/// Formats a time, in seconds since 1970 and UTC, as C's `strftime` does in the C locale.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    if format.len() > MAX_FORMAT {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is too long"));
    }
    let date = Date::of(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match c {
            '%' => {
                let code = chars.next();
                let plain = code == Some('-');
                let code = if plain { chars.next() } else { code };
                let field = code.and_then(|code| date.field(code)).ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidOperation,
                        format!("strftime_now: %{code:?} is not supported"),
                    )
                })?;
                let trimmed = field.trim_start_matches(['0', ' ']);
                out.push_str(match (plain, trimmed) {
                    (false, _) => &field,
                    (true, "") => "0",
                    (true, trimmed) => trimmed,
                });
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// A moment's parts.
struct Date {
    year: u64,
    /// From 0.
    month: usize,
    day: u64,
    /// From 0.
    day_of_year: u64,
    /// From Sunday, 0.
    weekday: usize,
    /// Of the day.
    second: u64,
}

impl Date {
    fn of(seconds: u64) -> Self {
        // Far beyond any calendar's use; keeps the loop short.
        let days = (seconds / 86_400).min(3_000_000);
        let leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut left) = (1970, days);
        while left >= 365 + u64::from(leap(year)) {
            left -= 365 + u64::from(leap(year));
            year += 1;
        }
        let (day_of_year, mut month) = (left, 0);
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        for length in lengths {
            if left < length {
                break;
            }
            left -= length;
            month += 1;
        }
        // 1970 began on a Thursday.
        let weekday = ((days + 4) % 7) as usize;
        Self { year, month, day: left + 1, day_of_year, weekday, second: seconds % 86_400 }
    }

    fn field(&self, code: char) -> Option<String> {
        let month = MONTHS.get(self.month)?;
        let day = DAYS.get(self.weekday)?;
        let hour = self.second / 3600;
        let twelve = (hour + 11) % 12 + 1;
        let two = |n: u64| format!("{n:02}");
        let mut out = String::new();
        let all = |codes: &str| -> Option<String> {
            codes.chars().try_fold(String::new(), |text, c| {
                Some(text + &if c.is_ascii_alphabetic() { self.field(c)? } else { c.into() })
            })
        };
        match code {
            'Y' => write!(out, "{}", self.year).ok()?,
            'm' => out = two(self.month as u64 + 1),
            'd' => out = two(self.day),
            'e' => write!(out, "{:2}", self.day).ok()?,
            'y' => out = two(self.year % 100),
            'j' => write!(out, "{:03}", self.day_of_year + 1).ok()?,
            'B' => out.push_str(month),
            'b' | 'h' => out.push_str(month.get(..3)?),
            'A' => out.push_str(day),
            'a' => out.push_str(day.get(..3)?),
            'w' => write!(out, "{}", self.weekday).ok()?,
            'H' => out = two(hour),
            'I' => out = two(twelve),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'M' => out = two(self.second / 60 % 60),
            'S' => out = two(self.second % 60),
            'F' => out = all("Y-m-d")?,
            'T' => out = all("H:M:S")?,
            'D' => out = all("m/d/y")?,
            'R' => out = all("H:M")?,
            'Z' => out.push_str("UTC"),
            'z' => out.push_str("+0000"),
            '%' => out.push('%'),
            _ => return None,
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendar_s() {
        let at = |format: &str, seconds| strftime(format, seconds).unwrap();
        assert_eq!(at("%d %b %Y", 1_721_952_000), "26 Jul 2024");
        assert_eq!(
            at("%A, %B %-d, %Y %H:%M:%S %p %j", 951_782_399),
            "Monday, February 28, 2000 23:59:59 PM 059"
        );
        assert_eq!(at("%F %a %y %I %e%%", 951_825_600), "2000-02-29 Tue 00 12 29%");
        assert_eq!(at("%Y-%m-%d", 0), "1970-01-01");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
        assert!(strftime("%Y", u64::MAX).is_ok());
    }
}
