//! Deadlines: read from `grpc-timeout`, bounded by the contract, and passed on as the time that is left.

use std::time::Duration;

use weft_wire::{Headers, Name};

use crate::time::moment::Moment;

/// Whose time limit a call's deadline is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The caller's, if it is shorter than the contract's or the contract has none. Also if there is no limit at all.
    #[default]
    Callers,
    Contracts,
}

/// The deadline of a call that started at `start`: the sooner of its caller's and its contract's; and whose it is.
pub(crate) fn of(headers: &Headers, contract: Option<Duration>, start: Moment) -> (Option<Moment>, Limit) {
    let caller = headers.get(Name::GRPC_TIMEOUT).and_then(parse);
    let (limit, whose) = match (caller, contract) {
        (Some(caller), Some(contract)) if caller < contract => (caller, Limit::Callers),
        (_, Some(contract)) => (contract, Limit::Contracts),
        (Some(caller), None) => (caller, Limit::Callers),
        (None, None) => return (None, Limit::Callers),
    };
    // A deadline that a `Moment` can't express is none.
    (start.checked_add(limit), whose)
}

/// Writes the time that is left into the headers.
pub(crate) fn pass_on(headers: &mut Headers, deadline: Option<Moment>, now: Moment) {
    if let Some(deadline) = deadline {
        let mut text = [0; TEXT_BYTES];
        headers.set(Name::GRPC_TIMEOUT, format(deadline.since(now), &mut text));
    }
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Eight digits and a unit.
const TEXT_BYTES: usize = 9;

/// Writes a time in the finest unit whose number fits eight digits.
fn format(left: Duration, text: &mut [u8; TEXT_BYTES]) -> &[u8] {
    const MOST: u128 = 99_999_999;
    let (n, unit) = match (left.as_micros(), left.as_millis(), u128::from(left.as_secs())) {
        (us, ..) if us <= MOST => (us, b'u'),
        (_, ms, _) if ms <= MOST => (ms, b'm'),
        (.., s) if s <= MOST => (s, b'S'),
        (.., s) => ((s / 3600).min(MOST), b'H'),
    };
    let mut at = text.len() - 1;
    text[at] = unit;
    let mut rest = n as u64;
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    &text[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_written_in_the_finest_unit_that_fits() {
        for (left, text) in [
            (Duration::ZERO, "0u"),
            (Duration::from_micros(1), "1u"),
            (Duration::from_secs(2), "2000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(99_999_999), "99999999S"),
            (Duration::from_secs(u64::MAX), "99999999H"),
        ] {
            assert_eq!(format(left, &mut [0; TEXT_BYTES]), text.as_bytes());
            assert!(parse(text.as_bytes()).is_some());
        }
    }

    #[test]
    fn invalid_timeouts_are_ignored() {
        for text in ["", "S", "1", "123456789S", "-1S", "1 S", "1x", "1.5S"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_of_caller_and_contract_wins() {
        let now = Moment::now();
        let mut headers = Headers::new();
        let after = |seconds| now.checked_add(Duration::from_secs(seconds));
        let contract = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(of(&headers, None, now), (None, Limit::Callers));
        assert_eq!(of(&headers, contract(5), now), (after(5), Limit::Contracts));
        headers.set(Name::GRPC_TIMEOUT, b"2S");
        assert_eq!(of(&headers, None, now), (after(2), Limit::Callers));
        assert_eq!(of(&headers, contract(5), now), (after(2), Limit::Callers));
        assert_eq!(of(&headers, contract(1), now), (after(1), Limit::Contracts));
        assert_eq!(of(&headers, contract(2), now), (after(2), Limit::Contracts), "they are the same");

        tokio::time::advance(Duration::from_millis(500)).await;
        pass_on(&mut headers, after(2), Moment::now());
        assert_eq!(headers.get(Name::GRPC_TIMEOUT), Some(&b"1500000u"[..]));
    }
}
