//! How long to wait before something that died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A process that lived this long was healthy: after its next death the waits start over.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Doubles with each death in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// How long to wait after the death of a process that has lived for `lived`.
    pub(crate) fn after_death(&mut self, lived: Duration) -> Duration {
        if lived >= WELL_AFTER {
            self.deaths = 0;
        }
        let wait = FIRST.saturating_mul(1_u32.checked_shl(self.deaths).unwrap_or(u32::MAX)).min(LONGEST);
        self.deaths = self.deaths.saturating_add(1);
        wait
    }

    /// Deaths in a row.
    pub(crate) fn deaths(&self) -> u32 {
        self.deaths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_start_over_after_a_long_life() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.after_death(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.deaths(), 9);
        assert_eq!(backoff.after_death(WELL_AFTER), FIRST);
        assert_eq!(backoff.deaths(), 1);
    }
}
