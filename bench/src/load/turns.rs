//! When a caller may begin its next call.
//!
//! Without a pace, that is at once: a closed loop. With a pace, calls become due at even intervals, however long
//! earlier calls take, and any free caller makes the next one. Latency counts from the moment when a call was due. So a
//! way that can't keep up gains nothing from calls that were not made (Gil Tene's "coordinated omission").

use std::{
    num::NonZeroU64,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

/// See the module.
pub(super) struct Turns {
    calls: u64,
    at_most: Duration,
    per_second: Option<f64>,
    /// Calls that have begun.
    begun: AtomicU64,
    start: OnceLock<Instant>,
    /// A permit for each call that is due; closed at the end.
    due: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new(calls: u64, at_most: Duration, per_second: Option<f64>) -> Self {
        let due = Arc::new(Semaphore::new(0));
        Self { calls, at_most, per_second, begun: AtomicU64::new(0), start: OnceLock::new(), due }
    }

    /// Starts the turns.
    pub(super) fn begin(&self) -> Instant {
        let start = *self.start.get_or_init(Instant::now);
        if let Some(per_second) = self.per_second {
            let (due, calls, until) = (Arc::clone(&self.due), self.calls, self.at_most);
            thread::spawn(move || set_pace(&due, per_second, calls, start, until));
        }
        start
    }

    /// Waits until a call may begin. Returns when it was due, or `None` if there are no further calls.
    pub(super) async fn next(&self) -> Option<Instant> {
        let start = *self.start.get()?;
        match self.per_second {
            None => {
                let now = Instant::now();
                let is_one = self.begun.fetch_add(1, Relaxed) < self.calls && now - start < self.at_most;
                is_one.then_some(now)
            }
            Some(per_second) => {
                self.due.acquire().await.ok()?.forget();
                Some(start + due_after(self.begun.fetch_add(1, Relaxed), per_second))
            }
        }
    }
}

/// When the call with this number is due, counted from the start.
fn due_after(call: u64, per_second: f64) -> Duration {
    Duration::from_secs_f64(call as f64 / per_second)
}

/// Adds permits when calls are due. It has a thread of its own, as the runtime's timers have a resolution of a
/// millisecond, in which ten calls would be due together.
fn set_pace(due: &Semaphore, per_second: f64, calls: u64, start: Instant, at_most: Duration) {
    // Otherwise the kernel wakes the thread up to 50 µs late. If this fails, the pace is a bit less even.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut released = 0;
    while released < calls {
        let elapsed = start.elapsed();
        if elapsed >= at_most {
            break;
        }
        let until_now = (elapsed.as_secs_f64() * per_second) as u64 + 1;
        let now_due = until_now.min(calls).saturating_sub(released);
        due.add_permits(usize::try_from(now_due).unwrap_or(0));
        released += now_due;
        thread::sleep((start + due_after(released, per_second)).saturating_duration_since(Instant::now()));
    }
    // A permit that is still free belongs to a call that would begin after the end.
    due.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_pace_only_the_number_of_calls_is_the_limit() {
        let turns = Turns::new(2, Duration::from_secs(60), None);
        assert!(turns.next().await.is_none(), "not before it begins");
        let start = turns.begin();
        assert!(turns.next().await.unwrap() >= start);
        assert!(turns.next().await.is_some());
        assert!(turns.next().await.is_none());
    }

    #[tokio::test]
    async fn no_call_begins_after_the_end() {
        let turns = Turns::new(2, Duration::ZERO, None);
        turns.begin();
        assert!(turns.next().await.is_none());
    }

    #[tokio::test]
    async fn paced_calls_are_due_at_even_times_and_none_before_its_time() {
        let turns = Turns::new(u64::MAX, Duration::from_millis(95), Some(100.0));
        let start = turns.begin();
        let mut due = Vec::new();
        while let Some(at) = turns.next().await {
            assert!(Instant::now() >= at);
            due.push((at - start).as_millis());
        }
        // On a busy machine, the turns may end before the last permits are taken.
        assert!(!due.is_empty() && due.len() <= 10, "{due:?}");
        assert!(due.iter().enumerate().all(|(index, at)| *at == index as u128 * 10), "{due:?}");
    }
}
