//! Field blocks that are received: requests, responses and trailers.

use std::time::Instant;

use super::event::{Bound, Cause, ConnectionError, Event, Taken};
use super::{Connection, message};
use crate::code::Code;
use crate::frame::{self, Head, flag};
use crate::headers::Headers;
use crate::stream::{ANY_LENGTH, Body, Closed, Stream, StreamId};

/// The buffer for field blocks in several frames is freed when it has grown above this.
const KEPT_BLOCK_BYTES: usize = 32 << 10;

/// A field block that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Its stream; 0: there is no such block.
    pub(super) stream: u32,
    frames: u32,
    facts: Facts,
    bytes: Vec<u8>,
}

/// What is known about a field block besides its fields.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    /// The peer's half of the stream ends with it.
    is_end: bool,
    /// Its list exceeds the limit, and was not stored completely.
    is_too_large: bool,
    /// Its fields, or the priority in front of it, break a rule that holds for every message.
    is_malformed: bool,
}

impl Block {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.stream != 0
    }

    /// How many bytes of it have been received.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn shrink(&mut self) {
        if !self.is_open() {
            self.bytes = Vec::new();
        }
    }
}

impl<T: Clone> Connection<T> {
    #[inline]
    pub(super) fn take_headers<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if head.stream == 0 {
            return Err(ConnectionError::protocol("HEADERS on stream 0"));
        }
        let mut facts = Facts { is_end: head.has(flag::END_STREAM), ..Facts::default() };
        let mut fragment = payload;
        if head.has(flag::PADDED | flag::PRIORITY) {
            (fragment, facts.is_malformed) = strip(head, payload)?;
        }
        if head.has(flag::END_HEADERS) {
            return self.take_block(head.stream, facts, fragment, now);
        }
        self.block.stream = head.stream;
        self.block.facts = facts;
        self.block.frames = 0;
        self.block.bytes.clear();
        self.block.bytes.extend_from_slice(fragment);
        self.timers.block = Some(now + self.limits.settings_timeout);
        Ok(None)
    }

    pub(super) fn take_continuation<'a>(&mut self, head: Head, payload: &[u8], now: Instant) -> Taken<'a, T> {
        if !self.block.is_open() {
            return Err(ConnectionError::protocol("CONTINUATION without an open field block"));
        }
        self.block.frames += 1;
        if self.block.frames > self.limits.header_block_frames {
            return Err(ConnectionError::calm(
                Bound::HeaderBlockFrames,
                "a field block has too many CONTINUATION frames",
            ));
        }
        self.block.bytes.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.block.bytes);
        self.block.stream = 0;
        self.timers.block = None;
        let event = self.take_block(head.stream, self.block.facts, &bytes, now);
        if bytes.capacity() <= KEPT_BLOCK_BYTES {
            bytes.clear();
            self.block.bytes = bytes;
        }
        event
    }

    /// Takes a complete field block. It is decoded even if its stream is gone or refused, to keep the dynamic table up
    /// to date.
    #[inline]
    fn take_block<'a>(&mut self, id: u32, mut facts: Facts, block: &[u8], now: Instant) -> Taken<'a, T> {
        let mut headers = self.spare.take();
        let decoded = self
            .decoder
            .decode(block, self.limits.header_list_bytes as usize, &mut headers)
            .map_err(|_| ConnectionError::new(Code::COMPRESSION_ERROR, "a field block cannot be decoded"))?;
        for _ in 0..decoded.table_changes {
            self.count(Bound::TableChanges, now)?;
        }
        facts.is_too_large = decoded.is_too_large;
        facts.is_malformed |= decoded.malformed.is_some();
        if self.is_server && id > self.last_peer_stream {
            return self.take_request(id, facts, headers, now);
        }
        let Some(slot) = self.streams.find(id) else {
            self.recycle(headers);
            return self.take_late(id, true, now).map(|()| None);
        };
        match self.check_message(slot, facts, &headers) {
            Ok(part) => Ok(self.message_event(slot, facts.is_end, part, headers)),
            Err((code, cause)) => {
                self.recycle(headers);
                self.end_stream(slot, code, cause, now)
            }
        }
    }

    /// Handles the field block with which a client opens a stream.
    #[inline]
    fn take_request<'a>(&mut self, id: u32, facts: Facts, headers: Headers, now: Instant) -> Taken<'a, T> {
        if id.is_multiple_of(2) {
            return Err(ConnectionError::protocol("a client's stream has an even identifier"));
        }
        self.last_peer_stream = id;
        if id > self.ending.last_taken {
            self.recycle(headers);
            return Ok(None);
        }
        if self.streams.len() >= self.limits.streams as usize {
            return self.refuse_request(id, headers, now).map(|()| None);
        }
        let is_end = facts.is_end;
        if facts.is_too_large {
            self.heads_too_large += 1;
            let stream = self.add_request(id, is_end, ANY_LENGTH);
            return Ok(Some(Event::RequestTooLarge { stream, headers, is_end }));
        }
        let length = match message::check_request(&headers, self.limits.is_connect_protocol_enabled) {
            Ok(length) if !facts.is_malformed && (!is_end || length.is_none_or(|length| length == 0)) => length,
            _ => {
                self.recycle(headers);
                return self.refuse_closed(id, Code::PROTOCOL_ERROR, now).map(|()| None);
            }
        };
        self.rates.useful_frames += 1;
        let stream = self.add_request(id, is_end, length.unwrap_or(ANY_LENGTH));
        Ok(Some(Event::Request { stream, headers, is_end }))
    }

    #[inline]
    fn add_request(&mut self, id: u32, is_end: bool, content_left: u64) -> StreamId {
        let mut stream = Stream::new(id, self.peer.stream_window, self.stream_window, None);
        stream.is_head_received = true;
        stream.is_receive_closed = is_end;
        stream.content_left = content_left;
        let slot = self.streams.insert(stream);
        self.streams.id(slot)
    }

    /// Refuses a stream over our limit. It counts as the peer's error only once our SETTINGS were acknowledged: before
    /// that, the peer may not know the limit.
    #[cold]
    fn refuse_request(&mut self, id: u32, headers: Headers, now: Instant) -> Result<(), ConnectionError> {
        self.recycle(headers);
        self.closed.add(id, Closed::ByUs, self.limits.closed_streams);
        if self.timers.settings.is_none() {
            return self.refuse(id, Code::REFUSED_STREAM, now);
        }
        self.write_reset(id, Code::REFUSED_STREAM);
        self.count_answer(frame::HEAD_BYTES + 4)
    }

    /// Which part of a message the block is, by the stream's state. The error says how to reset the stream if the block
    /// is not allowed.
    #[inline]
    fn check_message(&mut self, slot: usize, facts: Facts, headers: &Headers) -> Result<Part, (Code, Cause)> {
        const MALFORMED: (Code, Cause) = (Code::PROTOCOL_ERROR, Cause::Rule);
        let stream = self.streams.at(slot);
        if stream.is_receive_closed {
            return Err((Code::STREAM_CLOSED, Cause::Rule));
        }
        if facts.is_too_large {
            self.heads_too_large += 1;
            return Err((Code::ENHANCE_YOUR_CALM, Cause::TooLarge));
        }
        if facts.is_malformed {
            return Err(MALFORMED);
        }
        let part = if stream.is_head_received {
            message::check_trailers(headers).map_err(|_| MALFORMED)?;
            Part::Trailers
        } else {
            let (status, length) = message::check_response(headers).map_err(|_| MALFORMED)?;
            if status < 200 {
                // An interim response does not end the stream (section 8.1).
                return if facts.is_end { Err(MALFORMED) } else { Ok(Part::Interim) };
            }
            stream.is_head_received = true;
            stream.content_left = match stream.body {
                Body::Any if status != 204 && status != 304 => length.unwrap_or(ANY_LENGTH),
                // No content, even if there is a content-length (RFC 9110 section 6.4.1).
                Body::Any | Body::None => 0,
                Body::Tunnel => ANY_LENGTH,
            };
            Part::Head
        };
        let is_end_missing = part == Part::Trailers && !facts.is_end;
        let is_body_missing = facts.is_end && !matches!(stream.content_left, 0 | ANY_LENGTH);
        if is_end_missing || is_body_missing { Err(MALFORMED) } else { Ok(part) }
    }

    /// The event for a well-formed block.
    #[inline]
    fn message_event<'a>(&mut self, slot: usize, is_end: bool, part: Part, headers: Headers) -> Option<Event<'a, T>> {
        // The peer may send any number of interim responses, so they are not useful frames.
        self.rates.useful_frames += u64::from(part != Part::Interim);
        let stream = self.streams.id(slot);
        let call = if is_end { self.end_receive(slot) } else { self.streams.at(slot).call.clone() };
        match (call, part) {
            (Some(call), Part::Head | Part::Interim) => Some(Event::Response { stream, call, headers, is_end }),
            (Some(call), Part::Trailers) => Some(Event::Trailers { stream, call, headers }),
            (None, _) => {
                self.recycle(headers);
                None
            }
        }
    }
}

/// The parts of a message that are field blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The header section of an interim response.
    Interim,
    Head,
    Trailers,
}

/// The payload of HEADERS without padding and priority, and whether the stream depends on itself.
fn strip(head: Head, payload: &[u8]) -> Result<(&[u8], bool), ConnectionError> {
    const SHORT: ConnectionError = ConnectionError::frame_size("HEADERS is too short for its flags");
    let mut fragment = payload;
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (bytes, rest) = fragment.split_first().ok_or(SHORT)?;
        (padding, fragment) = (usize::from(*bytes), rest);
    }
    let mut is_self_dependent = false;
    if head.has(flag::PRIORITY) {
        let (priority, rest) = fragment.split_at_checked(5).ok_or(SHORT)?;
        is_self_dependent = frame::number(priority) & frame::MAX_STREAM == head.stream;
        fragment = rest;
    }
    let bytes =
        fragment.len().checked_sub(padding).ok_or(ConnectionError::protocol("HEADERS is shorter than its padding"))?;
    Ok((&fragment[..bytes], is_self_dependent))
}
