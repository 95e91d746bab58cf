//! Whether a connection of the gRPC port has calls, and how long it may stay open without one. See
//! [`super::connection`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use weft_mesh::limits;

/// The calls of a connection.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    is_known: AtomicBool,
    calls: AtomicUsize,
    /// When the last call ended, in milliseconds after `began`.
    idle_since: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            is_known: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
        }
    }
}

/// A running call. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Call(Arc<Activity>);

impl Activity {
    /// The peer makes a call with its SVID.
    pub(crate) fn note_known(&self) {
        self.is_known.store(true, Relaxed);
    }

    /// Starts a call.
    pub(crate) fn begin(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Relaxed);
        Call(Arc::clone(self))
    }

    /// When the connection ends unless it gets a call; `None` while a known peer has calls.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !self.is_known.load(Relaxed) {
            return Some(self.began + limits::CONTROL_PROOF_WAIT);
        }
        let idle_since = self.began + Duration::from_millis(self.idle_since.load(Relaxed));
        (self.calls.load(Relaxed) == 0).then(|| idle_since + limits::CONTROL_IDLE)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(since, Relaxed);
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unknown_peer_has_little_time_and_a_call_keeps_a_known_one() {
        let (activity, began) = (Arc::new(Activity::default()), Instant::now());
        let unproven = activity.begin();
        assert_eq!(activity.deadline(), Some(began + limits::CONTROL_PROOF_WAIT), "a call alone proves nothing");
        drop(unproven);
        activity.note_known();
        let (one, two) = (activity.begin(), activity.begin());
        assert_eq!(activity.deadline(), None);
        drop(one);
        advance(Duration::from_secs(3_600)).await;
        assert_eq!(activity.deadline(), None);
        drop(two);
        assert_eq!(activity.deadline(), Some(Instant::now() + limits::CONTROL_IDLE));
    }
}
