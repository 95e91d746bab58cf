//! Log lines that a peer can cause at will: some a second, and how many more there were. Else they would fill a disk, and
//! what else is said would be lost among them.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Duration, Instant};

/// Lines a second of one kind.
const LINES: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);

/// Lines of one kind.
#[derive(Debug)]
pub(crate) struct LogLimit {
    what: &'static str,
    count: Mutex<Option<Count>>,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// Of those who have shown no SVID.
pub(crate) static STRANGERS: LogLimit = LogLimit::new("strangers");
/// Of those who have.
pub(crate) static MEMBERS: LogLimit = LogLimit::new("members");

impl LogLimit {
    const fn new(what: &'static str) -> Self {
        Self { what, count: Mutex::new(None) }
    }

    /// Whether a line may be written now.
    pub(crate) fn allows(&self) -> bool {
        let now = Instant::now();
        let mut guard = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let count = guard.get_or_insert(Count { since: now, lines: 0, left_out: 0 });
        if now.saturating_duration_since(count.since) >= SECOND {
            if count.left_out > 0 {
                tracing::warn!(
                    lines = count.left_out,
                    of = self.what,
                    "warnings were left out, as there were too many"
                );
            }
            *count = Count { since: now, lines: 0, left_out: 0 };
        }
        if count.lines < LINES {
            count.lines += 1;
            return true;
        }
        count.left_out += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_are_written_a_second() {
        let limit = LogLimit::new("tests");
        for _ in 0..2 {
            let written = (0..1_000).filter(|_| limit.allows()).count();
            assert_eq!(written, LINES as usize);
            tokio::time::advance(SECOND).await;
        }
    }
}
