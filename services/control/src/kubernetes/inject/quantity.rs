//! Amounts of CPU and memory as Kubernetes writes them: `10m`, `0.5`, `256Mi`, `1e9`.

use std::{cmp::Ordering, fmt, str::FromStr};

use weft_mesh::names::shown;

/// More digits than anybody needs, and few enough that no multiplication overflows.
const DIGITS: usize = 15;

/// An amount. Two are equal if they are as much, however they are written.
#[derive(Debug, Clone)]
pub struct Quantity {
    text: String,
    /// In thousandths, rounded up, as Kubernetes does.
    milli: u128,
}

/// A text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found the text {0:?}; allowed: an amount such as 500m, 2, 256Mi or 1.5Gi")]
pub struct BadQuantity(String);

impl Quantity {
    /// An amount of bytes: `64Mi` if it is that.
    pub fn of_bytes(bytes: u64) -> Self {
        const MI: u64 = 1 << 20;
        let text = if bytes > 0 && bytes.is_multiple_of(MI) { format!("{}Mi", bytes / MI) } else { bytes.to_string() };
        Self { text, milli: u128::from(bytes) * 1_000 }
    }

    /// An amount in thousandths: `10m`, and `1` for 1,000.
    pub fn of_milli(count: u16) -> Self {
        let text = if count.is_multiple_of(1_000) { (count / 1_000).to_string() } else { format!("{count}m") };
        Self { text, milli: u128::from(count) }
    }

    /// In whole units: bytes of memory.
    pub fn units(&self) -> u64 {
        u64::try_from(self.milli.div_ceil(1_000)).unwrap_or(u64::MAX)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Quantity {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let milli = read(text).ok_or_else(|| BadQuantity(shown(text)))?;
        Ok(Self { text: text.to_owned(), milli })
    }
}

fn read(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    // The fraction may not have a dot of its own.
    if digits.is_empty() || digits.len() > DIGITS {
        return None;
    }
    let (times, parts) = factor(suffix)?;
    let parts = parts * 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some((digits.parse::<u128>().ok()? * times * 1_000).div_ceil(parts))
}

/// What a suffix multiplies by, and what it divides by.
fn factor(suffix: &str) -> Option<(u128, u128)> {
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const PARTS: [&str; 3] = ["m", "u", "n"];
    let place = |of: &[&str]| of.iter().position(|unit| *unit == suffix).map(|at| at as u32 + 1);
    if suffix.is_empty() {
        return Some((1, 1));
    }
    if let Some(power) = place(&DECIMAL) {
        return Some((1_000_u128.pow(power), 1));
    }
    if let Some(power) = place(&BINARY) {
        return Some((1_024_u128.pow(power), 1));
    }
    if let Some(power) = place(&PARTS) {
        return Some((1, 1_000_u128.pow(power)));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.unsigned_abs() <= 18)?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.milli.cmp(&other.milli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_number_with_a_unit() {
        for (text, milli) in [
            ("0", 0),
            ("2", 2_000),
            ("10m", 10),
            ("0.5", 500),
            (".5", 500),
            ("5.", 5_000),
            ("1k", 1_000_000),
            ("256Mi", (256 << 20) * 1_000),
            ("1.5Gi", (3 << 29) * 1_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("5e-1", 500),
            ("1E", 10_u128.pow(21)),
            ("100u", 1),
            ("999999999999999Ei", 999_999_999_999_999 * (1 << 60) * 1_000),
        ] {
            assert_eq!(text.parse::<Quantity>().map(|read| read.milli), Ok(milli), "{text}");
        }
        for wrong in [
            "",
            ".",
            "Mi",
            "-1",
            "+1",
            "1.2.3",
            "1 Mi",
            "1mi",
            "1MB",
            "1e",
            "1e99",
            "1e-99",
            "0x10",
            "1_000",
            "1234567890123456",
            "①",
            "1é",
        ] {
            assert!(wrong.parse::<Quantity>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn amounts_compare_by_what_they_are() {
        let read = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(read("1Gi"), read("1024Mi"));
        assert!(read("1G") < read("1Gi"));
        assert_eq!((Quantity::of_bytes(64 << 20).as_str(), Quantity::of_bytes(1).as_str()), ("64Mi", "1"));
        assert_eq!((read("64Mi").units(), read("1m").units()), (64 << 20, 1));
    }
}
