//! How a connection ends: GOAWAY in both directions, drain, errors, and what has taken too long.

use std::time::{Duration, Instant};

use super::Connection;
use super::event::{Bound, ConnectionError, Event, Notice, Taken};
use crate::code::Code;
use crate::frame::{self, Head, MAX_STREAM, kind};
use crate::limits::Limits;
use crate::stream::Closed;

/// The PING between the two GOAWAYs of a drain: its answer shows that the peer has seen the first.
pub(super) const DRAIN_PING: [u8; 8] = *b"draining";

/// The PING that asks whether the peer is there.
const KEEP_ALIVE_PING: [u8; 8] = *b"is there";

/// How long the answer to a drain's PING is waited for.
const DRAIN_STEP: Duration = Duration::from_secs(1);

/// How far the connection is with its end.
#[derive(Debug)]
pub(super) struct Ending {
    /// We open no more streams, and take none once `is_drained`.
    is_draining: bool,
    /// Our last GOAWAY was sent.
    is_drained: bool,
    /// The highest stream that our GOAWAY takes.
    pub(super) last_taken: u32,
    /// The highest stream that the peer's GOAWAY takes.
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

/// What is waited for.
#[derive(Debug)]
pub(super) struct Timers {
    /// The acknowledgement of our SETTINGS.
    pub(super) settings: Option<Instant>,
    /// The rest of a header block.
    pub(super) block: Option<Instant>,
    /// The answer to a drain's PING.
    drain: Option<Instant>,
    last_received: Instant,
    /// When the keep-alive is to be looked at: not later than something is due for it. What is received puts that off, which
    /// is reckoned only then.
    keep_alive_at: Option<Instant>,
    /// When the PING was sent that asks whether the peer is there.
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
    /// Ends the connection gracefully. A server says so, takes the streams that are under way, and then tells the last
    /// one (section 6.8: two GOAWAYs). A client opens no more. See [`is_finished`](Connection::is_finished).
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

    /// Whether there is nothing more to do than to write the output and close: it is drained or the peer goes away, and
    /// all streams have ended; or it was closed.
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

    /// Ends the connection for the peer's error.
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
            return Err(ConnectionError::frame_size("GOAWAY has less than 8 bytes"));
        }
        let last = frame::number(payload) & MAX_STREAM;
        if self.ending.peer_last_taken.is_some_and(|earlier| last > earlier) {
            return Err(ConnectionError::protocol("GOAWAY takes more streams than the one before"));
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

    /// When [`on_timeout`](Connection::on_timeout) is to be called at the latest. To be asked again after each turn;
    /// a call that comes too early does nothing.
    #[inline]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.ending.is_closed {
            return None;
        }
        let timers = &self.timers;
        let others = [timers.settings, timers.block, timers.drain, self.rates.paused_until];
        // Nearly always, and this is asked in every turn.
        if others.iter().all(Option::is_none) {
            return timers.keep_alive_at;
        }
        others.into_iter().flatten().chain(timers.keep_alive_at).min()
    }

    /// Does what was due by `now`.
    ///
    /// # Errors
    /// The peer has not answered in time. GOAWAY is in the output: write what can be written and close.
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
                self.fail(ConnectionError::calm(Bound::SettingsTimeout, "a header block was not ended in time"))
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

    /// Says before [`on_timeout`](Connection::on_timeout) that the driver reads nothing of the peer at present. What the
    /// peer may have sent long ago is then not judged: neither that it has not answered, nor that a part is missing. It is
    /// sent a PING all the same when one is due, so that it hears of us.
    pub fn note_unread(&mut self) {
        self.timers.is_unread = true;
    }

    /// Waits anew for what the peer may have sent already.
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
            return Err(self.fail(ConnectionError::new(Code::NO_ERROR, "the peer has not answered a PING in time")));
        }
        Head::write(kind::PING, 0, 0, &KEEP_ALIVE_PING, &mut self.output.bytes);
        timers.asked = Some(now);
        // Whichever is sooner, as the answer may come at once.
        timers.keep_alive_at = Some(now + keep_alive.timeout.min(keep_alive.interval));
        Ok(())
    }
}
