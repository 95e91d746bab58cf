//! Rates: what a peer may do often, and what becomes of one that does it too often.
//!
//! It is slowed first: nothing is read from it until it is within the rate again. Only when that goes on for
//! [`Limits::flood_time`] is the connection drained, and, if it is a client's, ended after as long again. A client never
//! ends its connection for a rate, since the calls on it are others'.

use std::time::{Duration, Instant};

use super::Connection;
use super::event::{Bound, ConnectionError};
use crate::limits::{Bucket, Limits, Rate};

/// A flood that has paused for so long is another one when it goes on. Longer than the longest pause of ours.
const QUIET: Duration = Duration::from_secs(3);

/// How the peer stands with its rates.
#[derive(Debug)]
pub(super) struct Rates {
    cancels: Bucket,
    stream_errors: Bucket,
    pings: Bucket,
    settings: Bucket,
    empty_frames: Bucket,
    small_data: Bucket,
    table_changes: Bucket,
    /// Useful frames, of either side. A DATA frame of ours counts twice: it explains two WINDOW_UPDATEs.
    pub(super) useful_frames: u64,
    /// Answers that were given: what cancels and the errors of a client are judged against.
    pub(super) answers: u64,
    flood: Option<Flood>,
    /// Nothing is to be read until then.
    pub(super) paused_until: Option<Instant>,
    /// The rate that was exceeded last, until the user is told.
    exceeded: Option<Bound>,
}

/// A peer that goes past a rate, again and again.
#[derive(Clone, Copy, Debug)]
struct Flood {
    since: Instant,
    last: Instant,
}

impl Rates {
    pub(super) fn new(limits: &Limits, now: Instant) -> Rates {
        Rates {
            cancels: Bucket::new(&limits.cancels, now),
            stream_errors: Bucket::new(&limits.stream_errors, now),
            pings: Bucket::new(&limits.pings, now),
            settings: Bucket::new(&limits.settings, now),
            empty_frames: Bucket::new(&limits.empty_frames, now),
            small_data: Bucket::new(&limits.small_data, now),
            table_changes: Bucket::new(&limits.table_changes, now),
            useful_frames: 0,
            answers: 0,
            flood: None,
            paused_until: None,
            exceeded: None,
        }
    }

    fn rate<'a>(&mut self, bound: Bound, limits: &'a Limits) -> Option<(&mut Bucket, &'a Rate)> {
        Some(match bound {
            Bound::Cancels => (&mut self.cancels, &limits.cancels),
            Bound::StreamErrors => (&mut self.stream_errors, &limits.stream_errors),
            Bound::Pings => (&mut self.pings, &limits.pings),
            Bound::Settings => (&mut self.settings, &limits.settings),
            Bound::EmptyFrames => (&mut self.empty_frames, &limits.empty_frames),
            Bound::SmallData => (&mut self.small_data, &limits.small_data),
            Bound::TableChanges => (&mut self.table_changes, &limits.table_changes),
            Bound::HeaderBlockFrames | Bound::SettingsTimeout | Bound::ControlOutputBytes => return None,
        })
    }
}

impl<T: Clone> Connection<T> {
    /// Counts what is bounded by a rate.
    ///
    /// # Errors
    /// The peer floods, and slowing it was not enough.
    #[inline]
    pub(super) fn count(&mut self, bound: Bound, now: Instant) -> Result<(), ConnectionError> {
        // A request that is cancelled, or made to fail, is no work: only calls that were answered are.
        let is_by_calls = self.is_server && matches!(bound, Bound::Cancels | Bound::StreamErrors);
        let frames = if is_by_calls { self.rates.answers } else { self.rates.useful_frames };
        let Some((bucket, rate)) = self.rates.rate(bound, &self.limits) else { return Ok(()) };
        match bucket.take(rate, frames, now) {
            Ok(()) => Ok(()),
            Err(wait) => self.slow_down(bound, wait, now),
        }
    }

    #[cold]
    fn slow_down(&mut self, bound: Bound, wait: Duration, now: Instant) -> Result<(), ConnectionError> {
        self.rates.exceeded = Some(bound);
        let before = self.rates.flood.filter(|flood| now.saturating_duration_since(flood.last) < QUIET);
        let since = before.map_or(now, |flood| flood.since);
        self.rates.flood = Some(Flood { since, last: now });
        self.rates.paused_until = self.rates.paused_until.max(Some(now + wait));
        let lasts = now.saturating_duration_since(since);
        if lasts >= self.limits.flood_time {
            self.drain(now);
        }
        if self.is_server && lasts >= self.limits.flood_time * 2 {
            return Err(ConnectionError::calm(bound, "the peer has gone past a rate for too long"));
        }
        Ok(())
    }

    /// Whether nothing is to be read for now, as the peer was too fast. [`next_timeout`](Connection::next_timeout) says
    /// until when.
    #[inline]
    pub fn is_paused(&self, now: Instant) -> bool {
        self.rates.paused_until.is_some_and(|until| now < until)
    }

    /// The rate that the peer went past since the last time this was asked.
    #[inline]
    pub fn take_exceeded(&mut self) -> Option<Bound> {
        self.rates.exceeded.take()
    }
}
