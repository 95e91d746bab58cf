//! Rates: how often a peer may do something, and what happens when it exceeds a rate.
//!
//! The peer is slowed down first: nothing is read from it until it is within the rate again. If it goes on for
//! [`Limits::flood_time`], the connection is drained. A server closes the connection after the same time again. A
//! client never closes its connection because of a rate, since the calls on it belong to others.

use std::time::{Duration, Instant};

use super::Connection;
use super::event::{Bound, ConnectionError};
use crate::limits::{Bucket, Limits, Rate};

/// A flood that stops for this long is over; what follows is another one. It is longer than the longest pause that we
/// impose.
const QUIET: Duration = Duration::from_secs(3);

/// How much of each rate the peer has used.
#[derive(Debug)]
pub(super) struct Rates {
    cancels: Bucket,
    stream_errors: Bucket,
    pings: Bucket,
    settings: Bucket,
    empty_frames: Bucket,
    small_data: Bucket,
    table_changes: Bucket,
    /// Useful frames, in either direction. A DATA frame of ours counts twice, because the peer may answer it with two
    /// WINDOW_UPDATEs.
    pub(super) useful_frames: u64,
    /// Responses that were sent. On a server, these and not useful frames earn tokens for cancels and stream errors.
    pub(super) answers: u64,
    flood: Option<Flood>,
    /// Nothing should be read until then.
    pub(super) paused_until: Option<Instant>,
    /// The rate that was exceeded last, until the user asks for it.
    exceeded: Option<Bound>,
}

/// A period in which the peer exceeds rates repeatedly.
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
    /// Counts something that a rate bounds.
    ///
    /// # Errors
    /// The peer still floods although it was slowed down and the connection drained.
    #[inline]
    pub(super) fn count(&mut self, bound: Bound, now: Instant) -> Result<(), ConnectionError> {
        // A request that the client cancels, or makes fail, is not useful work: only responses count.
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
            return Err(ConnectionError::calm(bound, "the peer exceeded a rate for too long"));
        }
        Ok(())
    }

    /// Whether the driver should read nothing for now, because the peer exceeded a rate.
    /// [`next_timeout`](Connection::next_timeout) says until when.
    #[inline]
    pub fn is_paused(&self, now: Instant) -> bool {
        self.rates.paused_until.is_some_and(|until| now < until)
    }

    /// The rate that the peer exceeded last, if it exceeded one since the last call of this method.
    #[inline]
    pub fn take_exceeded(&mut self) -> Option<Bound> {
        self.rates.exceeded.take()
    }
}
