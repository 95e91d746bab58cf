//! Times on the request path.

use std::{sync::LazyLock, time::Duration};

use tokio::time::Instant;

/// A time of the monotonic clock, in nanoseconds since the sidecar started. To compare or subtract two moments takes
/// one instruction; with [`Instant`] it takes some fifty, and a call does it six times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

/// Read from the real clock, also in tests that pause tokio's clock: that one starts from the real clock's time.
static START: LazyLock<std::time::Instant> = LazyLock::new(|| {
    let now = std::time::Instant::now();
    // In a test, tokio's clock may have been paused before this first read. Its times would all lie before the start.
    if cfg!(test) { now.checked_sub(Duration::from_secs(3600)).unwrap_or(now) } else { now }
});

const NANOS_A_SECOND: u64 = 1_000_000_000;
const NANOS_A_MILLISECOND: u64 = 1_000_000;

impl Moment {
    /// The start itself if `at` is before it.
    pub(crate) fn of(at: Instant) -> Self {
        let since = at.into_std().saturating_duration_since(*START);
        Self(nanos(since).unwrap_or(u64::MAX))
    }

    pub(crate) fn now() -> Self {
        Self::of(Instant::now())
    }

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn millis(self) -> u64 {
        self.0 / NANOS_A_MILLISECOND
    }

    pub(crate) fn since_start(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `None` on overflow, some 580 years after the start.
    pub(crate) fn checked_add(self, time: Duration) -> Option<Self> {
        self.0.checked_add(nanos(time)?).map(Self)
    }

    pub(crate) fn instant(self) -> Instant {
        Instant::from_std(*START + self.since_start())
    }
}

fn nanos(time: Duration) -> Option<u64> {
    time.as_secs().checked_mul(NANOS_A_SECOND)?.checked_add(u64::from(time.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moment_follows_the_clock_of_a_test() {
        let (before, instant) = (Moment::now(), Instant::now());
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(Moment::now().since(before), Duration::from_millis(1_500));
        assert_eq!(Moment::of(instant), before);
        assert_eq!(before.instant(), instant);
        assert_eq!(before.since(Moment::now()), Duration::ZERO);
    }

    #[test]
    fn a_sum_past_the_largest_moment_is_none() {
        let late = Moment::from_nanos(u64::MAX - 1_000_000);
        assert_eq!(late.checked_add(Duration::from_millis(1)), Some(Moment::from_nanos(u64::MAX)));
        assert_eq!(late.checked_add(Duration::from_millis(2)), None);
        assert_eq!(late.checked_add(Duration::MAX), None);
    }
}
