//! The level of a line of Weft's own log.

/// Whether a line of a sidecar or of the control plane is below WARN. A line without a level is not: it may be the
/// reason why the process ends, or part of a backtrace.
pub(super) fn is_below_warn(line: &str) -> bool {
    let mut words = line.split_whitespace();
    // 2026-01-31T12:00:00.123456Z  INFO weft_sidecar: …
    let is_time =
        |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('T') && word.ends_with('Z');
    words.next().is_some_and(is_time) && matches!(words.next(), Some("INFO" | "DEBUG" | "TRACE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_with_a_time_and_a_low_level_is_below_warn() {
        for line in [
            "2026-01-31T12:00:00.123456Z  INFO weft_control::run: ready trust_domain=weft.local",
            "2026-01-31T12:00:00.123456Z DEBUG weft_sidecar::pool: connected",
        ] {
            assert!(is_below_warn(line), "{line}");
        }
        for line in [
            "2026-01-31T12:00:00.123456Z  WARN weft_sidecar: open files are limited",
            "2026-01-31T12:00:00.123456Z ERROR weft_sidecar: a task panicked",
            "weft: can't listen on 127.0.0.1:15010 (--listen)",
            "INFO without a time",
            "   3: core::panicking::panic",
            "",
        ] {
            assert!(!is_below_warn(line), "{line}");
        }
    }
}
