//! DATA that is received, and the WINDOW_UPDATEs for it.

use std::time::Instant;

use super::Connection;
use super::event::{Bound, ConnectionError, Event};
use super::receive::FrameTaken;
use crate::code::Code;
use crate::flow::{INITIAL_WINDOW, MAX_WINDOW};
use crate::frame::{HEAD_BYTES, Head, flag, kind};
use crate::limits::Limits;
use crate::stream::{ANY_LENGTH, StreamId};

/// The rest of a DATA frame that is being received. The whole frame was counted when its frame header came.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// Its stream; `None`: the data is discarded.
    stream: Option<StreamId>,
    left: usize,
    padding: usize,
    /// The frame has END_STREAM.
    is_end: bool,
    /// Its bytes are in `held_bytes`.
    is_held: bool,
}

impl Partial {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.left | self.padding != 0 || self.is_end
    }
}

impl<T: Clone> Connection<T> {
    /// Starts a DATA frame: counts it, and returns the part that has arrived.
    #[inline]
    pub(super) fn begin_data<'a>(
        &mut self,
        head: Head,
        input: &mut &'a [u8],
        now: Instant,
    ) -> Result<FrameTaken<'a, T>, ConnectionError> {
        if head.stream == 0 {
            return Err(ConnectionError::protocol("DATA on stream 0"));
        }
        let mut padding = 0;
        let mut start = HEAD_BYTES;
        if head.has(flag::PADDED) {
            if head.length == 0 {
                return Err(ConnectionError::frame_size("DATA has no room for its pad length"));
            }
            let Some(bytes) = input.get(HEAD_BYTES) else { return Ok(FrameTaken::More) };
            padding = usize::from(*bytes);
            start += 1;
            if padding >= head.length {
                return Err(ConnectionError::protocol("the padding of DATA is as long as the frame, or longer"));
            }
        }
        *input = &input[start..];
        if !self.receive_window.take(head.length) {
            return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, "DATA exceeds the connection's window"));
        }
        let left = head.length - (start - HEAD_BYTES) - padding;
        self.partial = Partial { stream: None, left, padding, is_end: false, is_held: false };
        let event = match self.streams.find(head.stream) {
            Some(slot) => self.accept_data(slot, head, now)?,
            None => {
                self.take_late(head.stream, false, now)?;
                None
            }
        };
        self.return_connection_window();
        match event {
            Some(event) => Ok(FrameTaken::Event(event)),
            None if self.partial.is_open() => Ok(self.take_data(input)),
            None => Ok(FrameTaken::Done),
        }
    }

    /// Counts a DATA frame on its stream. If it returns an event, the stream was reset and the frame is discarded.
    #[inline]
    fn accept_data<'a>(
        &mut self,
        slot: usize,
        head: Head,
        now: Instant,
    ) -> Result<Option<Event<'a, T>>, ConnectionError> {
        let bytes = self.partial.left;
        let is_end = head.has(flag::END_STREAM);
        let stream = self.streams.at(slot);
        if stream.is_receive_closed {
            return self.stream_error(slot, Code::STREAM_CLOSED, now);
        }
        if !stream.is_head_received {
            return self.stream_error(slot, Code::PROTOCOL_ERROR, now);
        }
        if !stream.receive_window.take(head.length) {
            return self.stream_error(slot, Code::FLOW_CONTROL_ERROR, now);
        }
        if stream.content_left != ANY_LENGTH {
            match stream.content_left.checked_sub(bytes as u64) {
                Some(left) if !is_end || left == 0 => stream.content_left = left,
                _ => return self.stream_error(slot, Code::PROTOCOL_ERROR, now),
            }
        }
        // Padding, and data of a stream without an attached value, is released at once.
        stream.released += (head.length - bytes) as u32;
        let is_held = stream.call.is_some();
        if is_held {
            self.held_bytes += bytes;
        } else {
            stream.released += bytes as u32;
        }
        self.partial.stream = Some(self.streams.id(slot));
        self.partial.is_end = is_end;
        self.partial.is_held = is_held;
        if !is_held || head.length > bytes {
            self.return_stream_window(slot);
        }
        if bytes >= Limits::SMALL_DATA_BYTES || is_end {
            self.rates.useful_frames += 1;
        } else if bytes == 0 {
            self.count(Bound::EmptyFrames, now)?;
        } else if self.is_server {
            self.count(Bound::SmallData, now)?;
        }
        Ok(None)
    }

    /// Continues with the DATA frame that is being received.
    #[inline]
    pub(super) fn take_data<'a>(&mut self, input: &mut &'a [u8]) -> FrameTaken<'a, T> {
        let partial = &mut self.partial;
        if partial.left > 0 || partial.is_end {
            let bytes = partial.left.min(input.len());
            if bytes == 0 && partial.left > 0 {
                return FrameTaken::More;
            }
            let (data, rest) = input.split_at(bytes);
            *input = rest;
            partial.left -= bytes;
            let is_end = partial.is_end && partial.left == 0;
            partial.is_end &= !is_end;
            if let Some(stream) = partial.stream
                && let Some(event) = self.deliver(stream, data, is_end)
            {
                return FrameTaken::Event(event);
            }
            if self.partial.left > 0 {
                return FrameTaken::More;
            }
        }
        let padding = self.partial.padding.min(input.len());
        *input = &input[padding..];
        self.partial.padding -= padding;
        if self.partial.padding > 0 { FrameTaken::More } else { FrameTaken::Done }
    }

    /// Passes a slice to the user, or drops it if the user has detached from the stream.
    #[inline]
    fn deliver<'a>(&mut self, stream: StreamId, data: &'a [u8], is_end: bool) -> Option<Event<'a, T>> {
        let slot = self.streams.slot(stream);
        let call = match slot {
            Some(slot) if is_end => self.end_receive(slot),
            Some(slot) => self.streams.at(slot).call.clone(),
            None => None,
        };
        match call {
            Some(call) => return Some(Event::Data { stream, call, data, is_end }),
            None if self.partial.is_held => self.release(stream, data.len()),
            None => {}
        }
        None
    }

    /// Returns flow-control credit for received DATA that was passed on. To be called for every byte of [`Event::Data`]
    /// exactly once, even when the stream is gone.
    #[inline]
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        self.return_connection_window();
        if let Some(slot) = self.streams.slot(stream) {
            let stream = self.streams.at(slot);
            stream.released = stream.released.saturating_add(bytes as u32);
            self.return_stream_window(slot);
        }
    }

    /// Replenishes a stream's window once half of it was released: one WINDOW_UPDATE for many frames.
    #[inline]
    fn return_stream_window(&mut self, slot: usize) {
        let whole = i64::from(self.stream_window);
        let stream = self.streams.at(slot);
        if stream.is_receive_closed || i64::from(stream.released) < (whole / 2).max(1) {
            return;
        }
        let bytes = i64::from(stream.released).min(whole - i64::from(stream.receive_window.get()));
        stream.released = 0;
        let id = stream.id;
        if bytes > 0 && stream.receive_window.add(bytes) {
            self.write_window_update(id, bytes as u32);
        }
    }

    /// Replenishes the connection's window with everything that was received, except what is held beyond the limit on
    /// buffered bytes. It does so once half of the rest of the window is due. Half of the whole window would be wrong:
    /// a stalled stream that holds half of it would stop all others.
    #[inline]
    pub(super) fn return_connection_window(&mut self) {
        if self.ending.is_closed {
            return;
        }
        let whole = i64::from(self.limits.connection_window_bytes.clamp(INITIAL_WINDOW as u32, MAX_WINDOW));
        let kept = self.held_bytes.saturating_sub(self.limits.buffered_bytes) as i64;
        let bytes = whole - i64::from(self.receive_window.get()) - kept;
        if bytes >= ((whole - kept) / 2).max(1) && self.receive_window.add(bytes) {
            self.write_window_update(0, bytes as u32);
        }
    }

    pub(super) fn write_window_update(&mut self, id: u32, bytes: u32) {
        Head::write(kind::WINDOW_UPDATE, 0, id, &bytes.to_be_bytes(), &mut self.output.bytes);
    }
}
