//! Numbers, times and links as the pages show them.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// A duration in a readable unit: `870 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`, `2 min 3 s`.
pub(super) fn duration(nano: u64) -> String {
    let three = |value: f64, unit: &str| match value {
        ..9.995 => format!("{value:.2} {unit}"),
        ..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    };
    match nano {
        0..1_000 => format!("{nano} ns"),
        1_000..1_000_000 => three(nano as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => three(nano as f64 / 1e6, "ms"),
        1_000_000_000..60_000_000_000 => three(nano as f64 / 1e9, "s"),
        _ => format!("{} min {} s", nano / 60_000_000_000, nano / 1_000_000_000 % 60),
    }
}

/// A configured duration, with no more digits than it was configured with: `10 s`, `250 ms`.
pub(super) fn setting(nano: u64) -> String {
    match nano {
        0 => "0 s".to_owned(),
        _ if nano.is_multiple_of(60_000_000_000) => format!("{} min", nano / 60_000_000_000),
        _ if nano.is_multiple_of(1_000_000_000) => format!("{} s", nano / 1_000_000_000),
        _ if nano.is_multiple_of(1_000_000) => format!("{} ms", nano / 1_000_000),
        _ => duration(nano),
    }
}

/// A moment as ISO 8601 in UTC, to the millisecond.
pub(super) fn time(unix_nano: u64) -> String {
    // A `u64` of nanoseconds ends in the year 2554, which `time` supports.
    let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_nano)) else { return String::new() };
    let (date, month) = (at.date(), u8::from(at.month()));
    let (hour, minute, second) = at.to_hms();
    let (year, day, milli) = (date.year(), date.day(), at.millisecond());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// How long ago a moment was: `now`, `12 s ago`, `3 min ago`, `5 h ago`, `2 d ago`.
pub(super) fn ago(unix_nano: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    match now.saturating_sub(unix_nano / 1_000_000_000) {
        0 => "now".to_owned(),
        seconds @ ..60 => format!("{seconds} s ago"),
        seconds @ ..3_600 => format!("{} min ago", seconds / 60),
        seconds @ ..86_400 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// A size: `870 B`, `12.3 KiB`, `4.5 MiB`.
pub(super) fn bytes(bytes: usize) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A number with its noun: `1 span`, `3 spans`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A part of a whole in percent, for SVG; 0 if the whole is 0.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// The name of a gRPC method without its package: `Users/Create` for `shop.users.v1.Users/Create`. Other names are
/// unchanged.
pub(super) fn short(name: &str) -> &str {
    let is_method = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
    match name.strip_prefix('/').unwrap_or(name).split_once('/') {
        Some((service, method)) if is_method(service) && is_method(method) => {
            let package = service.rfind('.').map_or(0, |dot| dot + 1);
            &name[name.len() - method.len() - 1 - (service.len() - package)..]
        }
        _ => name,
    }
}

/// A text as a value in a URL's query.
pub(super) fn query(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let cases = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 µs"),
            (12_345_678, "12.3 ms"),
            (123_456_789, "123 ms"),
            (9_999_000, "10.0 ms"),
            (59_000_000_000, "59.0 s"),
            (123_000_000_000, "2 min 3 s"),
        ];
        for (nano, text) in cases {
            assert_eq!(duration(nano), text);
        }
        for (nano, text) in [(10_000_000_000, "10 s"), (1_500_000_000, "1500 ms"), (120_000_000_000, "2 min")] {
            assert_eq!(setting(nano), text);
        }
    }

    #[test]
    fn times_are_iso_utc() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_795_461_807_123_999_999), "2026-11-23T19:23:27.123Z");
        assert!(time(u64::MAX).starts_with("2554-"));
    }

    #[test]
    fn method_names_lose_their_packages_and_others_stay() {
        assert_eq!(short("shop.users.v1.Users/Create"), "Users/Create");
        assert_eq!(short("/shop.users.v1.Users/Create"), "Users/Create");
        assert_eq!(short("Users/Create"), "Users/Create");
        for name in ["GET /a.b/c", "", "/", "SELECT 1/2 é.x", "a.b"] {
            assert_eq!(short(name), name);
        }
    }

    #[test]
    fn queries_carry_any_text() {
        assert_eq!(query("a b&c=é\"<"), "a%20b%26c%3D%C3%A9%22%3C");
    }
}
