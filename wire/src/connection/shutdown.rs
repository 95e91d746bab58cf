//! How a connection ends: GOAWAY in both directions, draining, errors and timeouts.

use std::time::{Duration, Instant};

use super::Connection;
use super::event::{Bound, ConnectionError, Event, Notice, Taken};
use crate::code::Code;
use crate::frame::{self, Head, MAX_STREAM, kind};
use crate::limits::Limits;
use crate::stream::Closed;

/// The PING between the two GOAWAYs of a drain: its acknowledgement shows that the peer has received the first.
pub(super) const DRAIN_PING: [u8; 8] = *b"draining";

/// The PING that asks whether the peer is there.
const KEEP_ALIVE_PING: [u8; 8] = *b"is there";

/// How long to wait for the acknowledgement of a drain's PING.
const DRAIN_STEP: Duration = Duration::from_secs(1);

/// How far the connection's shutdown has got.
#[derive(Debug)]
pub(super) struct Ending {
    /// We open no more streams; once `is_drained`, we accept none either.
    is_draining: bool,
    /// Our last GOAWAY was sent.
    is_drained: bool,
    /// The last stream identifier in our GOAWAY.
    pub(super) last_taken: u32,
    /// The last stream identifier in the peer's GOAWAY.
    peer_last_taken: Option<u32>,
    /// Nothing is sent or received any more.
    pub(super) is_closed: bool,
    pub(super) error: Option<ConnectionError>,
}

impl Default for Ending {
    fn default() -> Ending {
        Ending {
            is_draining: false,
            is_drained: false,
            last_taken: MAX_STREAM,
            peer_last_taken: None,
            is_closed: false,
            error: None,
        }
    }
}

impl Ending {
    /// No more streams can be opened.
    #[inline]
    pub(super) fn is_going(&self) -> bool {
        self.is_draining || self.is_closed || self.peer_last_taken.is_some()
    }
}

/// The connection's timeouts.
#[derive(Debug)]
pub(super) struct Timers {
    /// The acknowledgement of our SETTINGS.
    pub(super) settings: Option<Instant>,
    /// The rest of a field block.
    pub(super) block: Option<Instant>,
    /// The acknowledgement of a drain's PING.
    drain: Option<Instant>,
    last_received: Instant,
    /// When to check the keep-alive: never later than it is due. Received frames postpone it, but this is computed only
    /// at the check.
    keep_alive_at: Option<Instant>,
    /// When the keep-alive PING was sent.
    asked: Option<Instant>,
    /// See [`Connection::note_unread`].
    is_unread: bool,
}

impl Timers {
    pub(super) fn new(limits: &Limits, now: Instant) -> Timers {
        let settings = Some(now + limits.settings_timeout);
        let keep_alive_at = limits.keep_alive.as_ref().map(|keep_alive| now + keep_alive.interval);
        Timers { settings, block: None, drain: None, last_received: now, keep_alive_at, asked: None, is_unread: false }
    }

    #[inline]
    pub(super) fn note_received(&mut self, now: Instant) {
        self.last_received = now;
        self.asked = None;
    }
}

impl<T: Clone> Connection<T> {
    /// Ends the connection gracefully. A server sends two GOAWAYs (section 6.8): the first only announces the shutdown;
    /// the second names the last stream, once streams that were on their way have arrived. A client opens no more
    /// streams. See [`is_finished`](Connection::is_finished).
    pub fn drain(&mut self, now: Instant) {
        if self.ending.is_draining || self.ending.is_closed {
            return;
        }
        self.ending.is_draining = true;
        if !self.is_server {
            self.ending.is_drained = true;
            self.write_goaway(0, Code::NO_ERROR, "");
            return;
        }
        self.write_goaway(MAX_STREAM, Code::NO_ERROR, "");
        Head::write(kind::PING, 0, 0, &DRAIN_PING, &mut self.output.bytes);
        self.timers.drain = Some(now + DRAIN_STEP);
    }

    /// The second step of a server's drain.
    pub(super) fn finish_drain(&mut self) {
        if self.timers.drain.take().is_some() {
            self.ending.is_drained = true;
            self.ending.last_taken = self.last_peer_stream;
            self.write_goaway(self.last_peer_stream, Code::NO_ERROR, "");
        }
    }

    /// Whether the driver only has to write the output and close the transport: the connection is drained or the peer
    /// has sent GOAWAY, and all streams have ended; or it was closed.
    pub fn is_finished(&self) -> bool {
        let is_going = self.ending.is_drained || self.ending.peer_last_taken.is_some();
        self.ending.is_closed || (is_going && self.streams.is_empty())
    }

    /// Ends the connection at once, with GOAWAY.
    pub fn close(&mut self, code: Code) {
        if !self.ending.is_closed {
            self.write_goaway(self.last_peer_stream.min(self.ending.last_taken), code, "");
            self.abandon();
        }
    }

    /// Ends the connection because of the peer's error.
    #[cold]
    pub(super) fn fail(&mut self, error: ConnectionError) -> ConnectionError {
        if !self.ending.is_closed {
            self.write_goaway(self.last_peer_stream.min(self.ending.last_taken), error.code, error.why);
            self.ending.error = Some(error);
            self.abandon();
        }
        error
    }

    fn write_goaway(&mut self, last: u32, code: Code, why: &str) {
        let mut payload = Vec::with_capacity(8 + why.len());
        payload.extend_from_slice(&last.to_be_bytes());
        payload.extend_from_slice(&code.0.to_be_bytes());
        payload.extend_from_slice(why.as_bytes());
        Head::write(kind::GOAWAY, 0, 0, &payload, &mut self.output.bytes);
    }

    #[cold]
    pub(super) fn take_goaway<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if head.stream != 0 {
            return Err(ConnectionError::protocol("GOAWAY on a stream"));
        }
        if payload.len() < 8 {
            return Err(ConnectionError::frame_size("GOAWAY is shorter than 8 bytes"));
        }
        let last = frame::number(payload) & MAX_STREAM;
        if self.ending.peer_last_taken.is_some_and(|earlier| last > earlier) {
            return Err(ConnectionError::protocol("GOAWAY has a higher last stream identifier than the one before"));
        }
        if self.ending.peer_last_taken.replace(last).is_some() {
            self.count(Bound::EmptyFrames, now)?;
        }
        for slot in self.streams.slots() {
            let id = self.streams.at(slot).id;
            if self.is_server || id <= last {
                continue;
            }
            let stream = self.streams.id(slot);
            if let Some(call) = self.remove(slot, Closed::ByUs) {
                self.notices.push_back(Notice::Unseen { stream, call });
            }
        }
        Ok(Some(Event::GoAway { code: Code(frame::number(&payload[4..])) }))
    }

    /// The latest time to call [`on_timeout`](Connection::on_timeout). Ask again after each turn. A call of
    /// `on_timeout` that comes too early does nothing.
    #[inline]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.ending.is_closed {
            return None;
        }
        let timers = &self.timers;
        let others = [timers.settings, timers.block, timers.drain, self.rates.paused_until];
        // The usual case, and this runs in every turn.
        if others.iter().all(Option::is_none) {
            return timers.keep_alive_at;
        }
        others.into_iter().flatten().chain(timers.keep_alive_at).min()
    }

    /// Does everything that is due by `now`.
    ///
    /// # Errors
    /// The peer did not reply in time. GOAWAY is in the output: write what can be written and close.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.ending.is_closed {
            return self.ending.error.map_or(Ok(()), Err);
        }
        let is_due = |timer: Option<Instant>| timer.is_some_and(|due| due <= now);
        if std::mem::take(&mut self.timers.is_unread) {
            self.put_off(now);
        }
        if is_due(self.timers.settings) {
            let error = ConnectionError::new(Code::SETTINGS_TIMEOUT, "SETTINGS were not acknowledged in time");
            return Err(self.fail(ConnectionError { limit: Some(Bound::SettingsTimeout), ..error }));
        }
        if is_due(self.timers.block) {
            return Err(
                self.fail(ConnectionError::calm(Bound::SettingsTimeout, "a field block was not complete in time"))
            );
        }
        if is_due(self.timers.drain) {
            self.finish_drain();
        }
        if is_due(self.rates.paused_until) {
            self.rates.paused_until = None;
        }
        self.keep_alive(now)
    }

    /// To be called before [`on_timeout`](Connection::on_timeout) when the driver reads nothing from the peer at
    /// present. What the connection waits for may have arrived without being read, so timeouts that are due
    /// (acknowledgement of SETTINGS, rest of a field block, keep-alive) start again. A keep-alive PING is still sent
    /// when it is due, so that the peer receives something from us.
    pub fn note_unread(&mut self) {
        self.timers.is_unread = true;
    }

    /// Restarts the timeouts for what the peer may have sent already.
    #[cold]
    fn put_off(&mut self, now: Instant) {
        let anew = now + self.limits.settings_timeout;
        let timers = &mut self.timers;
        for timer in [&mut timers.settings, &mut timers.block] {
            *timer = timer.map(|due| if due <= now { anew } else { due });
        }
        let Some(keep_alive) = &self.limits.keep_alive else { return };
        if timers.asked.take().is_some() || timers.last_received + keep_alive.interval <= now {
            timers.last_received = now;
            Head::write(kind::PING, 0, 0, &KEEP_ALIVE_PING, &mut self.output.bytes);
        }
    }

    fn keep_alive(&mut self, now: Instant) -> Result<(), ConnectionError> {
        let Some(keep_alive) = &self.limits.keep_alive else { return Ok(()) };
        let timers = &mut self.timers;
        let due = match timers.asked {
            Some(asked) => asked + keep_alive.timeout,
            None => timers.last_received + keep_alive.interval,
        };
        if due > now {
            timers.keep_alive_at = Some(due.min(now + keep_alive.interval));
            return Ok(());
        }
        if timers.asked.is_some() {
            return Err(self.fail(ConnectionError::new(Code::NO_ERROR, "the peer did not acknowledge a PING in time")));
        }
        Head::write(kind::PING, 0, 0, &KEEP_ALIVE_PING, &mut self.output.bytes);
        timers.asked = Some(now);
        // The sooner of the two, as the acknowledgement may come at once.
        timers.keep_alive_at = Some(now + keep_alive.timeout.min(keep_alive.interval));
        Ok(())
    }
}
