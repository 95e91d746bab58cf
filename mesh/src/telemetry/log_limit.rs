//! Log lines that a peer can cause at will: some a second. Else they would fill a disk, and what else is said would be lost
//! among them.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Lines a second.
const LINES: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);

/// Lines of one kind.
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
        if count.lines < LINES {
            count.lines += 1;
            return Some(left_out);
        }
        count.left_out += 1;
        None
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
            assert_eq!(written, LINES as usize - 1);
            tokio::time::advance(SECOND).await;
        }
    }
}
