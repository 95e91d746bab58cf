//! From bytes to frames, and the frames that carry no message.

use std::time::Instant;

use super::event::{Bound, Cause, ConnectionError, Event, Taken};
use super::{Connection, shutdown};
use crate::code::Code;
use crate::frame::{self, HEAD_BYTES, Head, PREFACE, flag, kind};
use crate::stream::{Closed, NO_QUEUE};

/// What taking a frame off the input has come to.
pub(super) enum Step<'a, T> {
    /// The frame says something.
    Event(Event<'a, T>),
    /// It says nothing: on to the next.
    Done,
    /// More bytes are needed.
    More,
}

impl<T: Clone> Connection<T> {
    /// Takes frames off the front of `input` until one says something. `None`: more bytes are needed; what is left in
    /// `input` must come again in front of them.
    ///
    /// DATA of a frame that is not whole yet is handed out as far as it is there, so `input` never needs to hold more
    /// than one other frame: 9 bytes and `Limits::frame_bytes`.
    ///
    /// # Errors
    /// The peer broke a rule that concerns the whole connection, or went past a limit. GOAWAY with the code is in the
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
                    Step::Event(event) => return Ok(Some(event)),
                    Step::Done => {}
                    Step::More => return Ok(None),
                }
            }
            let Some(head) = Head::parse(input) else { return Ok(None) };
            if head.length > self.frame_bytes() {
                return Err(ConnectionError::frame_size("a frame is longer than SETTINGS_MAX_FRAME_SIZE allows"));
            }
            if head.kind == kind::DATA && self.peer.has_settings && !self.block.is_open() {
                match self.begin_data(head, input, now)? {
                    Step::Event(event) => return Ok(Some(event)),
                    Step::Done => continue,
                    Step::More => return Ok(None),
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

    /// Section 3.4. Returns whether all of it has come.
    fn take_preface(&mut self, input: &mut &[u8]) -> Result<bool, ConnectionError> {
        let expected = &PREFACE[PREFACE.len() - self.preface_left..];
        let bytes = expected.len().min(input.len());
        if input[..bytes] != expected[..bytes] {
            return Err(ConnectionError::protocol("the connection does not begin with the preface of HTTP/2"));
        }
        *input = &input[bytes..];
        self.preface_left -= bytes;
        Ok(self.preface_left == 0)
    }

    #[inline]
    fn take_frame<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if self.block.is_open() && (head.kind != kind::CONTINUATION || head.stream != self.block.stream) {
            return Err(ConnectionError::protocol("another frame came within a header block"));
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
            // Clients turn push off, and servers never may be pushed to (section 8.4).
            kind::PUSH_PROMISE => Err(ConnectionError::protocol("PUSH_PROMISE came, which is turned off")),
            _ => self.count(Bound::EmptyFrames, now).map(|()| None),
        }
    }

    fn take_window_update<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if payload.len() != 4 {
            return Err(ConnectionError::frame_size("WINDOW_UPDATE has not 4 bytes"));
        }
        self.count(Bound::EmptyFrames, now)?;
        let increment = frame::number(payload) & frame::MAX_STREAM;
        if head.stream == 0 {
            if increment == 0 {
                return Err(ConnectionError::protocol("WINDOW_UPDATE of the connection by 0"));
            }
            if !self.send_window.add(i64::from(increment)) {
                return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, "the connection's window is over 2^31-1"));
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
            // An error whenever it comes, and so its answer does not depend on how far the stream has got.
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
            return Err(ConnectionError::frame_size("RST_STREAM has not 4 bytes"));
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
            return Err(ConnectionError::frame_size("PING has not 8 bytes"));
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

    /// Priorities have no effect (section 5.3.2), but a frame of them can be wrong.
    fn take_priority<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if head.stream == 0 {
            return Err(ConnectionError::protocol("PRIORITY of the connection"));
        }
        let error = if payload.len() != 5 {
            ConnectionError::frame_size("PRIORITY has not 5 bytes")
        } else if frame::number(payload) & frame::MAX_STREAM == head.stream {
            ConnectionError::protocol("a stream depends on itself")
        } else {
            return self.count(Bound::EmptyFrames, now).map(|()| None);
        };
        // Only what exists can be reset.
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

    /// Answers the peer's error on a stream that is not (or no longer) there with RST_STREAM.
    #[cold]
    pub(super) fn refuse(&mut self, id: u32, code: Code, now: Instant) -> Result<(), ConnectionError> {
        self.count(Bound::StreamErrors, now)?;
        self.write_reset(id, code);
        self.count_answer(HEAD_BYTES + 4)
    }

    /// The same, and ignores what else is under way on that stream.
    #[cold]
    pub(super) fn refuse_closed(&mut self, id: u32, code: Code, now: Instant) -> Result<(), ConnectionError> {
        self.closed.add(id, Closed::ByUs, self.limits.closed_streams);
        self.refuse(id, code, now)
    }

    /// What a frame that ends or fills a message is on a stream that has ended (section 5.1).
    #[cold]
    pub(super) fn take_late(&mut self, id: u32, is_headers: bool, now: Instant) -> Result<(), ConnectionError> {
        self.check_not_idle(id)?;
        if id > self.ending.last_taken {
            return Ok(());
        }
        match self.closed.find(id) {
            Some(Closed::ByUs) => Ok(()),
            Some(Closed::Ended) => Err(ConnectionError::new(Code::STREAM_CLOSED, "a frame came after END_STREAM")),
            // A client knows that it has opened all streams up to the last.
            None if !self.is_server => Ok(()),
            None if is_headers => Err(ConnectionError::protocol("a new stream is not above those before it")),
            Some(Closed::ByPeer) | None => self.refuse_closed(id, Code::STREAM_CLOSED, now),
        }
    }

    /// Only HEADERS and PRIORITY may come on a stream that is idle (section 5.1).
    pub(super) fn check_not_idle(&self, id: u32) -> Result<(), ConnectionError> {
        let is_idle = if self.is_server { id > self.last_peer_stream } else { id >= self.next_stream };
        // Only clients open streams, since nothing is pushed, and theirs are odd.
        if is_idle || id.is_multiple_of(2) {
            return Err(ConnectionError::protocol("a frame came on a stream that was never opened"));
        }
        Ok(())
    }

    /// Counts bytes of the output that the peer provoked. Its driver stops reading long before this is an error
    /// ([`is_read_held`](Connection::is_read_held)).
    pub(super) fn count_answer(&mut self, bytes: usize) -> Result<(), ConnectionError> {
        self.output.provoke(bytes);
        if self.output.provoked() > self.limits.control_output_bytes * 4 {
            return Err(ConnectionError::calm(
                Bound::ControlOutputBytes,
                "the peer asks but does not read the answers",
            ));
        }
        Ok(())
    }
}
