//! Log lines that a peer can cause at will: some a second. Else they would fill a disk, and what else is said would be lost
//! among them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::limits;

const SECOND: Duration = Duration::from_secs(1);

/// Lines of one kind: [`limits::LOG_LINES`] a second.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Option<Count>>);

/// Those of one second.
#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// One that has let no line through yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line may be written now: then, how many were left out since the last time that some were.
    pub fn take(&self) -> Option<u64> {
        let now = Instant::now();
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = guard.get_or_insert(Count { since: now, lines: 0, left_out: 0 });
        let mut left_out = 0;
        if now.saturating_duration_since(count.since) >= SECOND {
            left_out = count.left_out;
            *count = Count { since: now, lines: 0, left_out: 0 };
        }
        if count.lines < limits::LOG_LINES {
            count.lines += 1;
            return Some(left_out);
        }
        count.left_out += 1;
        None
    }
}

/// Lines that many can cause, of whom none takes the room of the others: [`limits::LOG_LINES_OF_IDENTITY`] of each and
/// [`limits::LOG_LINES_OF_ALL`] of all in a second.
#[derive(Debug)]
pub struct SharedLogLimit<K>(Mutex<Option<Counts<K>>>);

/// Lines that were not written.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut<K> {
    /// How many.
    pub lines: u64,
    /// Who caused the last of them.
    pub last: K,
}

#[derive(Debug)]
struct Counts<K> {
    since: Instant,
    lines: u32,
    /// Of those who have caused some of `lines`.
    of: BTreeMap<K, u32>,
    left_out: Option<LeftOut<K>>,
}

impl<K: Ord + Clone> SharedLogLimit<K> {
    /// One that has let no line through yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line that `who` has caused may be written now: then, what was left out in the second before, if anything
    /// was.
    pub fn take(&self, who: &K) -> Option<Option<LeftOut<K>>> {
        let now = Instant::now();
        let anew = || Counts { since: now, lines: 0, of: BTreeMap::new(), left_out: None };
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = guard.get_or_insert_with(anew);
        let mut left_out = None;
        if now.saturating_duration_since(counts.since) >= SECOND {
            left_out = std::mem::replace(counts, anew()).left_out;
        }
        let own = counts.of.get(who).copied().unwrap_or(0);
        if own < limits::LOG_LINES_OF_IDENTITY && counts.lines < limits::LOG_LINES_OF_ALL {
            counts.lines += 1;
            counts.of.insert(who.clone(), own + 1);
            return Some(left_out);
        }
        let lines = counts.left_out.as_ref().map_or(0, |left_out| left_out.lines) + 1;
        counts.left_out = Some(LeftOut { lines, last: who.clone() });
        None
    }
}

impl<K: Ord + Clone> Default for SharedLogLimit<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_are_written_a_second() {
        let limit = LogLimit::new();
        for left_out in [0, 980] {
            assert_eq!(limit.take(), Some(left_out));
            let written = (1..1_000).filter(|_| limit.take().is_some()).count();
            assert_eq!(written, limits::LOG_LINES as usize - 1);
            tokio::time::advance(SECOND).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_causes_many_lines_takes_nobody_elses() {
        let limit = SharedLogLimit::new();
        let written = |who: u32| (0..1_000).filter(|_| limit.take(&who).is_some()).count();
        for second in 0..2 {
            assert_eq!((written(1), written(2)), (20, 20), "in second {second}");
            let all: usize = 40 + (3..100).map(written).sum::<usize>();
            assert_eq!(all, limits::LOG_LINES_OF_ALL as usize);
            tokio::time::advance(SECOND).await;
        }
        let told = limit.take(&1).flatten();
        assert_eq!(told, Some(LeftOut { lines: 98_800, last: 99 }));
        assert_eq!(limit.take(&1), Some(None), "it is told once");
    }
}
