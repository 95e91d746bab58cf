//! Splits bytes into frames, and handles the frames that carry no part of a message.

use std::time::Instant;

use super::event::{Bound, Cause, ConnectionError, Event, Taken};
use super::{Connection, shutdown};
use crate::code::Code;
use crate::frame::{self, HEAD_BYTES, Head, PREFACE, flag, kind};
use crate::stream::{Closed, NO_QUEUE};

/// The result of taking a frame off the input.
pub(super) enum FrameTaken<'a, T> {
    /// The frame makes an event.
    Event(Event<'a, T>),
    /// It makes none: continue with the next frame.
    Done,
    /// More bytes are needed.
    More,
}

impl<T: Clone> Connection<T> {
    /// Takes frames off the front of `input` until one makes an event. `None`: more bytes are needed; the bytes that
    /// are left in `input` must be passed again, in front of the new ones.
    ///
    /// A DATA frame is passed on in parts, as they arrive. So `input` never needs to hold more than one frame of
    /// another type: 9 bytes and `Limits::frame_bytes`.
    ///
    /// # Errors
    /// A connection error: the peer broke a rule of the connection, or exceeded a limit. GOAWAY with the code is in the
    /// output: write it and close.
    #[inline]
    pub fn receive<'a>(&mut self, input: &mut &'a [u8], now: Instant) -> Taken<'a, T> {
        if self.ending.is_closed {
            *input = &[];
            return self.ending.error.map_or(Ok(None), Err);
        }
        if !input.is_empty() {
            self.timers.note_received(now);
        }
        let taken = self.next_event(input, now);
        if let Err(error) = taken {
            self.fail(error);
        }
        taken
    }

    fn next_event<'a>(&mut self, input: &mut &'a [u8], now: Instant) -> Taken<'a, T> {
        if self.preface_left > 0 && !self.take_preface(input)? {
            return Ok(None);
        }
        loop {
            if self.partial.is_open() {
                match self.take_data(input) {
                    FrameTaken::Event(event) => return Ok(Some(event)),
                    FrameTaken::Done => {}
                    FrameTaken::More => return Ok(None),
                }
            }
            let Some(head) = Head::parse(input) else { return Ok(None) };
            if head.length > self.frame_bytes() {
                return Err(ConnectionError::frame_size("a frame is longer than SETTINGS_MAX_FRAME_SIZE allows"));
            }
            if head.kind == kind::DATA && self.peer.has_settings && !self.block.is_open() {
                match self.begin_data(head, input, now)? {
                    FrameTaken::Event(event) => return Ok(Some(event)),
                    FrameTaken::Done => continue,
                    FrameTaken::More => return Ok(None),
                }
            }
            let end = HEAD_BYTES + head.length;
            let Some(payload) = input.get(HEAD_BYTES..end) else { return Ok(None) };
            *input = &input[end..];
            let taken = self.take_frame(head, payload, now);
            if !matches!(taken, Ok(None)) {
                return taken;
            }
        }
    }

    /// Section 3.4. Returns whether the preface is complete.
    fn take_preface(&mut self, input: &mut &[u8]) -> Result<bool, ConnectionError> {
        let expected = &PREFACE[PREFACE.len() - self.preface_left..];
        let bytes = expected.len().min(input.len());
        if input[..bytes] != expected[..bytes] {
            return Err(ConnectionError::protocol("the connection does not start with the HTTP/2 preface"));
        }
        *input = &input[bytes..];
        self.preface_left -= bytes;
        Ok(self.preface_left == 0)
    }

    #[inline]
    fn take_frame<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if self.block.is_open() && (head.kind != kind::CONTINUATION || head.stream != self.block.stream) {
            return Err(ConnectionError::protocol("another frame came inside a field block"));
        }
        if !self.peer.has_settings && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(ConnectionError::protocol("the first frame is not SETTINGS"));
        }
        match head.kind {
            kind::HEADERS => self.take_headers(head, payload, now),
            kind::WINDOW_UPDATE => self.take_window_update(head, payload, now),
            kind::RST_STREAM => self.take_reset(head, payload, now),
            kind::CONTINUATION => self.take_continuation(head, payload, now),
            kind::SETTINGS => self.take_settings(head, payload, now),
            kind::PING => self.take_ping(head, payload, now).map(|()| None),
            kind::GOAWAY => self.take_goaway(head, payload, now),
            kind::PRIORITY => self.take_priority(head, payload, now),
            // Our clients disable push, and a client cannot push (section 8.4).
            kind::PUSH_PROMISE => Err(ConnectionError::protocol("PUSH_PROMISE came, but push is disabled")),
            _ => self.count(Bound::EmptyFrames, now).map(|()| None),
        }
    }

    fn take_window_update<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if payload.len() != 4 {
            return Err(ConnectionError::frame_size("WINDOW_UPDATE is not 4 bytes long"));
        }
        self.count(Bound::EmptyFrames, now)?;
        let increment = frame::number(payload) & frame::MAX_STREAM;
        if head.stream == 0 {
            if increment == 0 {
                return Err(ConnectionError::protocol("WINDOW_UPDATE of the connection has increment 0"));
            }
            if !self.send_window.add(i64::from(increment)) {
                return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, "the connection's window exceeds 2^31-1"));
            }
            self.send_window_most = self.send_window_most.max(self.send_window.open());
            self.send_window_opened = now;
        } else if let Some(slot) = self.streams.find(head.stream) {
            if increment == 0 {
                return self.stream_error(slot, Code::PROTOCOL_ERROR, now);
            }
            let stream = self.streams.at(slot);
            if !stream.send_window.add(i64::from(increment)) {
                return self.stream_error(slot, Code::FLOW_CONTROL_ERROR, now);
            }
            if stream.queue != NO_QUEUE {
                self.make_ready(slot);
            }
        } else {
            self.check_not_idle(head.stream)?;
            // An increment of 0 is an error on a closed stream, too, so that the reply does not depend on the stream's
            // state.
            if increment == 0 && self.closed.find(head.stream) != Some(Closed::ByUs) {
                self.refuse_closed(head.stream, Code::PROTOCOL_ERROR, now)?;
            }
        }
        if !self.ready.is_empty() {
            self.send_queued();
        }
        Ok(None)
    }

    fn take_reset<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if payload.len() != 4 {
            return Err(ConnectionError::frame_size("RST_STREAM is not 4 bytes long"));
        }
        let Some(slot) = self.streams.find(head.stream) else {
            self.check_not_idle(head.stream)?;
            self.count(Bound::EmptyFrames, now)?;
            return Ok(None);
        };
        let is_answered = self.streams.at(slot).is_head_sent;
        if self.is_server && !is_answered {
            self.count(Bound::Cancels, now)?;
        }
        let stream = self.streams.id(slot);
        let code = Code(frame::number(payload));
        let call = self.remove(slot, Closed::ByPeer);
        Ok(call.map(|call| Event::Reset { stream, call, code, cause: Cause::Peer }))
    }

    fn take_ping(&mut self, head: Head, payload: &[u8], now: Instant) -> Result<(), ConnectionError> {
        if head.stream != 0 {
            return Err(ConnectionError::protocol("PING on a stream"));
        }
        if payload.len() != 8 {
            return Err(ConnectionError::frame_size("PING is not 8 bytes long"));
        }
        if head.has(flag::ACK) {
            if payload == shutdown::DRAIN_PING {
                self.finish_drain();
            }
            return Ok(());
        }
        self.count(Bound::Pings, now)?;
        Head::write(kind::PING, flag::ACK, 0, payload, &mut self.output.bytes);
        self.count_answer(HEAD_BYTES + payload.len())
    }

    /// Priorities have no effect (section 5.3.2), but a PRIORITY frame can still be an error.
    fn take_priority<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if head.stream == 0 {
            return Err(ConnectionError::protocol("PRIORITY on stream 0"));
        }
        let error = if payload.len() != 5 {
            ConnectionError::frame_size("PRIORITY is not 5 bytes long")
        } else if frame::number(payload) & frame::MAX_STREAM == head.stream {
            ConnectionError::protocol("a stream depends on itself")
        } else {
            return self.count(Bound::EmptyFrames, now).map(|()| None);
        };
        // A stream that does not exist cannot be reset.
        self.streams.find(head.stream).map_or(Err(error), |slot| self.stream_error(slot, error.code, now))
    }

    /// Resets a stream because the peer broke a rule on it.
    #[cold]
    pub(super) fn stream_error<'a>(&mut self, slot: usize, code: Code, now: Instant) -> Taken<'a, T> {
        self.end_stream(slot, code, Cause::Rule, now)
    }

    /// Resets a stream because of what the peer sent on it.
    #[cold]
    pub(super) fn end_stream<'a>(&mut self, slot: usize, code: Code, cause: Cause, now: Instant) -> Taken<'a, T> {
        let stream = self.streams.id(slot);
        let call = self.remove(slot, Closed::ByUs);
        self.refuse(stream.get(), code, now)?;
        Ok(call.map(|call| Event::Reset { stream, call, code, cause }))
    }

    /// Replies with RST_STREAM to the peer's error on a stream that does not exist (any more).
    #[cold]
    pub(super) fn refuse(&mut self, id: u32, code: Code, now: Instant) -> Result<(), ConnectionError> {
        self.count(Bound::StreamErrors, now)?;
        self.write_reset(id, code);
        self.count_answer(HEAD_BYTES + 4)
    }

    /// The same as [`refuse`](Self::refuse), but also ignores later frames on that stream.
    #[cold]
    pub(super) fn refuse_closed(&mut self, id: u32, code: Code, now: Instant) -> Result<(), ConnectionError> {
        self.closed.add(id, Closed::ByUs, self.limits.closed_streams);
        self.refuse(id, code, now)
    }

    /// Handles DATA or a field block on a stream that has ended (section 5.1).
    #[cold]
    pub(super) fn take_late(&mut self, id: u32, is_headers: bool, now: Instant) -> Result<(), ConnectionError> {
        self.check_not_idle(id)?;
        if id > self.ending.last_taken {
            return Ok(());
        }
        match self.closed.find(id) {
            Some(Closed::ByUs) => Ok(()),
            Some(Closed::Ended) => Err(ConnectionError::new(Code::STREAM_CLOSED, "a frame came after END_STREAM")),
            // A client has opened all streams up to the last, so it knows that this one is closed.
            None if !self.is_server => Ok(()),
            None if is_headers => {
                Err(ConnectionError::protocol("a new stream's identifier is not above those before it"))
            }
            Some(Closed::ByPeer) | None => self.refuse_closed(id, Code::STREAM_CLOSED, now),
        }
    }

    /// Only HEADERS and PRIORITY may come on a stream that is idle (section 5.1).
    pub(super) fn check_not_idle(&self, id: u32) -> Result<(), ConnectionError> {
        let is_idle = if self.is_server { id > self.last_peer_stream } else { id >= self.next_stream };
        // Only clients open streams, since there is no push, and their identifiers are odd.
        if is_idle || id.is_multiple_of(2) {
            return Err(ConnectionError::protocol("a frame came on an idle stream"));
        }
        Ok(())
    }

    /// Counts bytes of a reply that the peer provoked. The driver should stop reading long before this becomes an error
    /// ([`is_read_held`](Connection::is_read_held)).
    pub(super) fn count_answer(&mut self, bytes: usize) -> Result<(), ConnectionError> {
        self.output.provoke(bytes);
        if self.output.provoked() > self.limits.control_output_bytes * 4 {
            return Err(ConnectionError::calm(
                Bound::ControlOutputBytes,
                "the peer sends frames that need a reply but does not read the replies",
            ));
        }
        Ok(())
    }
}
