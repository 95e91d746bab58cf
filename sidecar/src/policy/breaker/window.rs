//! The calls of a rolling window: ten buckets, each a tenth of it. A bucket is one word: which tenth it counts, the calls
//! in it, the failures in it. So workers count without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::time::moment::Moment;

const BUCKETS: u64 = 10;
/// Bits of each of the two counts in a bucket's word.
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    tenth_ms: u64,
    calls: [AtomicU64; BUCKETS as usize],
    /// The slow calls of each bucket, with the tenth that they are of. Written only when a call was slow.
    slow: [AtomicU64; BUCKETS as usize],
}

impl Window {
    /// An empty window of this length.
    pub(super) fn new(length: Duration) -> Self {
        let tenth_ms = (length.as_millis() as u64 / BUCKETS).max(1);
        Self { tenth_ms, calls: Default::default(), slow: Default::default() }
    }

    /// The number of the tenth that `now` is in, counted from the sidecar's start. It begins at 1, so that 0 marks an
    /// empty bucket.
    fn tenth(&self, now: Moment) -> u64 {
        now.millis() / self.tenth_ms + 1
    }

    /// Counts a call.
    pub(super) fn count(&self, is_failure: bool, now: Moment) {
        let tenth = self.tenth(now) & (u64::MAX >> (2 * COUNT_BITS));
        let bucket = &self.calls[(tenth % BUCKETS) as usize];
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let (of, calls, failures) = unpack(word);
            let (calls, failures) = if of == tenth { (calls, failures) } else { (0, 0) };
            let calls = (calls + 1).min(COUNT_MAX);
            let failures = (failures + u64::from(is_failure)).min(COUNT_MAX);
            Some(tenth << (2 * COUNT_BITS) | calls << COUNT_BITS | failures)
        });
    }

    /// Counts a call as slow, besides [`count`](Self::count).
    pub(super) fn count_slow(&self, now: Moment) {
        let tenth = self.tenth(now) & (u64::MAX >> (2 * COUNT_BITS));
        let bucket = &self.slow[(tenth % BUCKETS) as usize];
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let (of, slow) = (word >> (2 * COUNT_BITS), word & COUNT_MAX);
            let slow = if of == tenth { (slow + 1).min(COUNT_MAX) } else { 1 };
            Some(tenth << (2 * COUNT_BITS) | slow)
        });
    }

    /// The calls in the window, and how many of them failed.
    pub(super) fn totals(&self, now: Moment) -> (u32, u32) {
        let tenth = self.tenth(now);
        let mut sums = (0, 0);
        for bucket in &self.calls {
            let (of, calls, failures) = unpack(bucket.load(Relaxed));
            if of + BUCKETS > tenth && of > 0 {
                sums = (sums.0 + calls as u32, sums.1 + failures as u32);
            }
        }
        sums
    }

    /// The slow calls in the window.
    pub(super) fn total_slow(&self, now: Moment) -> u32 {
        let tenth = self.tenth(now);
        let words = self.slow.iter().map(|bucket| bucket.load(Relaxed));
        let in_window = words.filter(|word| *word != 0 && (word >> (2 * COUNT_BITS)) + BUCKETS > tenth);
        in_window.map(|word| (word & COUNT_MAX) as u32).sum()
    }

    /// Forgets all calls.
    pub(super) fn clear(&self) {
        self.calls.iter().chain(&self.slow).for_each(|bucket| bucket.store(0, Relaxed));
    }
}

fn unpack(word: u64) -> (u64, u64, u64) {
    (word >> (2 * COUNT_BITS), word >> COUNT_BITS & COUNT_MAX, word & COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Moment, ms: u64) -> Moment {
        start.checked_add(Duration::from_millis(ms)).unwrap()
    }

    #[test]
    fn calls_leave_the_window_a_tenth_at_a_time() {
        let (window, start) = (Window::new(Duration::from_secs(10)), Moment::from_nanos(0));
        for second in 0..10 {
            window.count(second % 2 == 0, at(start, second * 1_000));
            window.count_slow(at(start, second * 1_000));
        }
        let totals = |ms| (window.totals(at(start, ms)), window.total_slow(at(start, ms)));
        assert_eq!(totals(9_999), ((10, 5), 10));
        assert_eq!(totals(10_000), ((9, 4), 9));
        assert_eq!(totals(18_999), ((1, 0), 1));
        assert_eq!(totals(19_000), ((0, 0), 0));
        // A bucket that is used again counts from zero.
        window.count(true, at(start, 19_000));
        window.count_slow(at(start, 19_000));
        assert_eq!(totals(19_000), ((1, 1), 1));
        window.clear();
        assert_eq!(totals(19_000), ((0, 0), 0));
    }

    #[test]
    fn a_count_stops_at_its_most() {
        let (window, now) = (Window::new(Duration::from_secs(1)), Moment::from_nanos(0));
        let tenth = 1 << (2 * COUNT_BITS);
        window.calls[1].store(tenth | COUNT_MAX << COUNT_BITS | COUNT_MAX, Relaxed);
        window.slow[1].store(tenth | COUNT_MAX, Relaxed);
        window.count(true, now);
        window.count_slow(now);
        let most = COUNT_MAX as u32;
        assert_eq!((window.totals(now), window.total_slow(now)), ((most, most), most));
    }
}
