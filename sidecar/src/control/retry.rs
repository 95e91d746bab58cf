//! How what fails is tried again, and how that is logged: once per change, not once per try.

use std::{fmt, time::Duration};

/// Waits that double from try to try, each shortened by up to a half at random, so that sidecars that lost the same
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

    /// It worked: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// What is wrong with one thing at present.
#[derive(Debug)]
pub(crate) struct Trouble {
    with: &'static str,
    now: Option<String>,
}

impl Trouble {
    pub(crate) fn new(with: &'static str) -> Self {
        Self { with, now: None }
    }

    /// It failed; said if it did not fail that way before.
    pub(crate) fn is(&mut self, error: &dyn fmt::Display) {
        let error = error.to_string();
        if self.now.as_ref() != Some(&error) {
            tracing::warn!(%error, "{} failed; trying on", self.with);
            self.now = Some(error);
        }
    }

    /// It works; said if it did not before.
    pub(crate) fn is_over(&mut self) {
        if self.now.take().is_some() {
            tracing::info!("{} works again", self.with);
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

/// A status as a log line should say it.
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
    fn waits_grow_to_the_longest_and_start_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let waits: Vec<_> = (0..10).map(|_| backoff.wait()).collect();
        assert!(waits[0] >= Duration::from_millis(25) && waits[0] <= Duration::from_millis(50), "{waits:?}");
        assert!(waits[9] >= Duration::from_secs(1) && waits[9] <= Duration::from_secs(2), "{waits:?}");
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(50));
    }
}
