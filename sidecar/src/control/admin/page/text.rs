//! Numbers and times as the page shows them.

use std::{fmt::Display, time::Duration};

/// `3 h 20 min`, `45 s`, `12 ms`
pub(super) fn readable(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ 3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A duration from a message, if it is set and not negative.
pub(super) fn of_message(duration: Option<prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(duration?).ok()
}

/// `640 B`, `1.5 KB`, `64 MB`
pub(super) fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut units = ["KB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while amount >= 1024.0
        && let Some(next) = units.next()
    {
        (amount, unit) = (amount / 1024.0, next);
    }
    let digits = if amount < 10.0 { 1 } else { 0 };
    format!("{amount:.digits$} {unit}")
}

/// `1 call`, `3 calls`
pub(super) fn count(number: impl Into<u64> + Display + Copy, what: &str) -> String {
    let plural = if number.into() == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        let read = |seconds| readable(Duration::from_secs(seconds));
        assert_eq!([read(7), read(61), read(3600 + 60), read(90_000)], ["7 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!(readable(Duration::from_micros(12_900)), "12 ms");
    }

    #[test]
    fn bytes_have_a_unit() {
        let shown = [0, 1023, 1536, 16 << 20, 10 << 30, 5000 << 40].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KB", "16 MB", "10 GB", "5000 TB"]);
    }
}
