//! `grpc-timeout`, as [gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) writes it:
//! at most eight digits and a unit.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header's name.
pub(crate) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

const MAX_VALUE: u128 = 99_999_999;

/// The caller's timeout; a value that can't be read counts as none.
pub(crate) fn read(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The header's value in the finest unit that can hold it, rounded down: it never claims more time than is left.
pub(crate) fn write(left: Duration) -> HeaderValue {
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')];
    let (amount, unit) = units
        .into_iter()
        .find(|(amount, _)| *amount <= MAX_VALUE)
        .unwrap_or((u128::from(left.as_secs()).min(MAX_VALUE), 'S'));
    HeaderValue::try_from(format!("{amount}{unit}")).expect("digits and a letter are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Option<Duration> {
        read(&HeaderMap::from_iter([(GRPC_TIMEOUT.clone(), HeaderValue::from_str(value).unwrap())]))
    }

    #[test]
    fn every_unit_is_read_and_malformed_values_are_ignored() {
        assert_eq!(parsed("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parsed("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parsed("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(parsed("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parsed("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parsed("7n"), Some(Duration::from_nanos(7)));
        for nonsense in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1.5S"] {
            assert_eq!(parsed(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn what_is_written_is_never_more_than_what_is_left() {
        for nanos in [0, 1, 99_999_999, 100_000_000, 2_000_000_001, 123_456_789_012_345, 90_000_000_000_000_000] {
            let left = Duration::from_nanos(nanos);
            let said = parsed(write(left).to_str().unwrap()).unwrap();
            assert!(said <= left, "{left:?} became {said:?}");
            assert!(left - said <= left / 10_000, "{left:?} became {said:?}");
        }
    }
}
