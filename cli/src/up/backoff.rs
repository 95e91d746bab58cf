//! How long to wait before something that died is started again.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// Whoever lived so long was well: its next death is a new story.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Doubles with each death in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// The time to wait after the death, just now, of something that was started at `started`.
    pub(crate) fn after_death(&mut self, started: Instant) -> Duration {
        if started.elapsed() >= WELL_AFTER {
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

    #[tokio::test(start_paused = true)]
    async fn waits_double_to_a_limit_and_start_over_after_a_good_life() {
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let started = Instant::now();
            tokio::time::advance(Duration::from_secs(1)).await;
            waits.push(backoff.after_death(started).as_millis());
        }
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.deaths(), 9);

        let started = Instant::now();
        tokio::time::advance(WELL_AFTER).await;
        assert_eq!(backoff.after_death(started), FIRST);
        assert_eq!(backoff.deaths(), 1);
    }
}
