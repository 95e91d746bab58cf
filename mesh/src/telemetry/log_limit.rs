//! Limits for log lines that a peer can cause as often as it likes. Without a limit they would fill a disk and hide
//! other lines.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::limits;

const SECOND: Duration = Duration::from_secs(1);

/// A limit for lines of one kind: [`limits::LOG_LINES`] a second.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Option<Count>>);

/// The lines of one second.
#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// A limit that no line has used yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// `Some` if a line may be written now, with the number of lines that were left out before and not reported yet.
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

/// A limit for lines that many identities can cause, where none can take the room of the others:
/// [`limits::LOG_LINES_OF_IDENTITY`] a second for each, and [`limits::LOG_LINES_OF_ALL`] for all.
#[derive(Debug)]
pub struct SharedLogLimit<K>(Mutex<Option<Counts<K>>>);

/// Lines that were not written.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut<K> {
    /// How many.
    pub lines: u64,
    /// The identity that caused the last of them.
    pub last: K,
}

#[derive(Debug)]
struct Counts<K> {
    since: Instant,
    lines: u32,
    /// How many of `lines` each identity has caused.
    of: BTreeMap<K, u32>,
    left_out: Option<LeftOut<K>>,
}

impl<K: Ord + Clone> SharedLogLimit<K> {
    /// A limit that no line has used yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// `Some` if a line that `who` has caused may be written now, with what was left out before and is not reported
    /// yet.
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
    async fn lines_are_limited_per_second() {
        let limit = LogLimit::new();
        for left_out in [0, 980] {
            assert_eq!(limit.take(), Some(left_out));
            let written = (1..1_000).filter(|_| limit.take().is_some()).count();
            assert_eq!(written, limits::LOG_LINES as usize - 1);
            tokio::time::advance(SECOND).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_with_many_lines_leaves_others_theirs() {
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
        assert_eq!(limit.take(&1), Some(None), "it is reported once");
    }
}
