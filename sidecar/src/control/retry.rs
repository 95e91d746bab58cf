//! How failures are retried, and how they are logged: once per change, not once per try.

use std::{fmt, time::Duration};

use tokio::time::Instant;
use tracing::Level;

/// Waits that double from try to try. Each is randomly shortened by up to a half, so that sidecars that lost the same
/// control plane do not all come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long to wait now.
    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(1.0 - fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.longest);
        wait
    }

    /// A try succeeded: the next failure counts as the first.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// The current failure of one activity.
#[derive(Debug)]
pub(crate) struct Trouble {
    with: &'static str,
    /// The error that was logged last, and its level.
    now: Option<(Level, String)>,
    /// Until then it may be starting, so failures are expected; `None` once it has worked.
    starts_until: Option<Instant>,
}

impl Trouble {
    pub(crate) fn new(with: &'static str) -> Self {
        Self { with, now: None, starts_until: None }
    }

    /// For something that may need `time` from now until it works for the first time.
    pub(crate) fn of_starting(with: &'static str, time: Duration) -> Self {
        Self { starts_until: Some(Instant::now() + time), ..Self::new(with) }
    }

    /// It failed; logged if it did not fail the same way before.
    pub(crate) fn is(&mut self, error: &dyn fmt::Display) {
        let error = error.to_string();
        match self.note(&error) {
            None => {}
            Some(Level::DEBUG) => {
                tracing::debug!(%error, "{} failed, perhaps because it is still starting; trying again", self.with)
            }
            Some(_) => tracing::warn!(%error, "{} failed; trying again", self.with),
        }
    }

    /// The level at which to log an error, if it is to be logged.
    fn note(&mut self, error: &str) -> Option<Level> {
        let is_starting = self.starts_until.is_some_and(|until| Instant::now() < until);
        let level = if is_starting { Level::DEBUG } else { Level::WARN };
        let is_said = self.now.as_ref().is_some_and(|(said, before)| *said == level && before == error);
        (!is_said).then(|| {
            self.now = Some((level, error.to_owned()));
            level
        })
    }

    /// It works; logged if it did not before.
    pub(crate) fn is_over(&mut self) {
        self.starts_until = None;
        match self.now.take() {
            None => {}
            Some((Level::DEBUG, _)) => tracing::debug!("{} works", self.with),
            Some(_) => tracing::info!("{} works again", self.with),
        }
    }
}

/// An error with its causes, on one line: the outermost alone often says no more than `transport error`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// The text of a status for a log line.
pub(crate) fn status(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => format!("{:?}: {}", status.code(), chain(cause)),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let waits: Vec<_> = (0..10).map(|_| backoff.wait()).collect();
        assert!(waits[0] >= Duration::from_millis(25) && waits[0] <= Duration::from_millis(50), "{waits:?}");
        assert!(waits[9] >= Duration::from_secs(1) && waits[9] <= Duration::from_secs(2), "{waits:?}");
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_while_starting_do_not_warn_until_the_time_is_over() {
        let time = Duration::from_secs(20);
        let mut trouble = Trouble::of_starting("the health check", time);
        assert_eq!(trouble.note("refused"), Some(Level::DEBUG));
        assert_eq!(trouble.note("refused"), None, "said once");
        tokio::time::sleep(time).await;
        assert_eq!(trouble.note("refused"), Some(Level::WARN), "the start takes too long");
        assert_eq!(trouble.note("refused"), None);
        trouble.is_over();

        let mut trouble = Trouble::of_starting("the health check", time);
        assert_eq!(trouble.note("refused"), Some(Level::DEBUG));
        trouble.is_over();
        assert_eq!(trouble.note("refused"), Some(Level::WARN), "it has worked, so it is not starting any more");
        assert_eq!(Trouble::new("the stream").note("refused"), Some(Level::WARN));
    }
}
