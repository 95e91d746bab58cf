//! Sending: header sections, DATA, trailers and RST_STREAM.

use super::event::{CannotOpen, Notice};
use super::{Connection, StreamId};
use crate::code::Code;
use crate::frame::{HEAD_BYTES, Head, MAX_STREAM, flag, kind};
use crate::headers::Headers;
use crate::stream::{Body, Closed, NO_QUEUE, Stream};

impl<T: Clone> Connection<T> {
    /// Whether [`open`](Connection::open) would open a stream now.
    #[inline]
    pub fn can_open(&self) -> bool {
        self.check_open().is_ok()
    }

    #[inline]
    fn check_open(&self) -> Result<(), CannotOpen> {
        if self.ending.is_going() || self.next_stream > MAX_STREAM || self.is_server {
            Err(CannotOpen::Going)
        } else if self.streams.len() >= self.peer.streams as usize {
            Err(CannotOpen::Full)
        } else if self.is_congested() {
            Err(CannotOpen::Congested)
        } else {
            Ok(())
        }
    }

    /// Client: opens a stream with a request's header section.
    ///
    /// # Errors
    /// See [`CannotOpen`]. Nothing was sent.
    #[inline]
    pub fn open(&mut self, headers: &Headers, is_end: bool, call: T) -> Result<StreamId, CannotOpen> {
        self.check_open()?;
        let id = self.next_stream;
        self.next_stream += 2;
        let mut stream = Stream::new(id, self.peer.stream_window, self.stream_window, Some(call));
        stream.is_head_sent = true;
        stream.is_ending = is_end;
        stream.is_send_closed = is_end;
        stream.body = match headers.method() {
            Some(b"HEAD") => Body::None,
            Some(b"CONNECT") => Body::Tunnel,
            _ => Body::Any,
        };
        let slot = self.streams.insert(stream);
        self.write_headers(id, headers, is_end);
        Ok(self.streams.id(slot))
    }

    /// Server: sends a response's header section: the final one or an interim one, which has a `:status` below 200 and
    /// never ends the stream.
    #[inline]
    pub fn respond(&mut self, stream: StreamId, headers: &Headers, is_end: bool) {
        let Some(slot) = self.streams.slot(stream) else { return };
        let entry = self.streams.at(slot);
        if entry.is_head_sent {
            return;
        }
        let is_final = headers.status().is_none_or(|status| status >= 200);
        entry.is_head_sent = is_final;
        self.rates.answers += u64::from(is_final);
        self.write_headers(stream.get(), headers, is_end && is_final);
        if is_end && is_final {
            self.end_send(slot);
        }
    }

    /// Sends a part of the content, after the header section. Returns how many bytes were queued instead of going into
    /// the output, because they wait for the peer's window or for the output to be written. [`Notice::Sent`] reports
    /// them as they are sent. Never fails: for a stream that is gone, or whose end was sent, it does nothing.
    #[inline]
    pub fn send_data(&mut self, stream: StreamId, data: &[u8], is_end: bool) -> usize {
        let Some(slot) = self.streams.slot(stream) else { return 0 };
        let entry = self.streams.at(slot);
        if entry.is_ending || !entry.is_head_sent || (data.is_empty() && !is_end) {
            return 0;
        }
        if entry.queue != NO_QUEUE {
            return self.queue_data(slot, data, is_end);
        }
        let mut rest = data;
        while !rest.is_empty() {
            let bytes = self.sendable(slot, rest.len());
            if bytes == 0 {
                return self.queue_data(slot, rest, is_end);
            }
            let (now, later) = rest.split_at(bytes);
            let is_last = is_end && later.is_empty();
            let is_new = self.output.data(stream.get(), now, is_last, self.peer.frame_bytes);
            self.count_sent(slot, bytes, is_new && later.is_empty());
            rest = later;
        }
        if is_end {
            if data.is_empty() {
                self.output.data(stream.get(), &[], true, self.peer.frame_bytes);
            }
            self.end_send(slot);
        }
        0
    }

    /// Sends the trailers, after the queued data. They end our half of the stream.
    #[inline]
    pub fn send_trailers(&mut self, stream: StreamId, headers: &Headers) {
        let Some(slot) = self.streams.slot(stream) else { return };
        let entry = self.streams.at(slot);
        if entry.is_ending || !entry.is_head_sent {
            return;
        }
        entry.is_ending = true;
        let queue = entry.queue;
        if queue != NO_QUEUE {
            let mut copy = self.spare.take();
            copy.copy_from(headers);
            self.queues.get(queue).trailers = Some(copy);
            return;
        }
        self.write_headers(stream.get(), headers, true);
        self.end_send(slot);
    }

    /// Ends the stream with RST_STREAM. Its queued data is dropped, and it makes no more events and notices.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        let Some(slot) = self.streams.slot(stream) else { return };
        if self.is_cancel_early(slot) {
            return self.hold_cancel(slot, code);
        }
        self.remove(slot, Closed::ByUs);
        self.write_reset(stream.get(), code);
    }

    pub(super) fn write_reset(&mut self, id: u32, code: Code) {
        Head::write(kind::RST_STREAM, 0, id, &code.0.to_be_bytes(), &mut self.output.bytes);
    }

    /// Encodes a field block into the output, and fills in the frame header in front of it once its length is known.
    #[inline]
    pub(super) fn write_headers(&mut self, id: u32, headers: &Headers, is_end: bool) {
        let out = &mut self.output.bytes;
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        self.encoder.encode(headers, out);
        let length = out.len() - start - HEAD_BYTES;
        let flags = end_flag(is_end);
        if length > self.peer.frame_bytes {
            return self.split_headers(id, start, flags);
        }
        let head = Head { length, kind: kind::HEADERS, flags: flags | flag::END_HEADERS, stream: id };
        out[start..start + HEAD_BYTES].copy_from_slice(&head.bytes());
    }

    /// Splits a block that is larger than the peer's frames into HEADERS and CONTINUATION frames.
    #[cold]
    fn split_headers(&mut self, id: u32, start: usize, flags: u8) {
        let out = &mut self.output.bytes;
        let block = out.split_off(start + HEAD_BYTES);
        out.truncate(start);
        let mut rest = &block[..];
        let (mut kind, mut flags) = (kind::HEADERS, flags);
        while !rest.is_empty() {
            let (fragment, later) = rest.split_at(rest.len().min(self.peer.frame_bytes));
            let end = if later.is_empty() { flag::END_HEADERS } else { 0 };
            Head::write(kind, flags | end, id, fragment, out);
            (kind, flags, rest) = (kind::CONTINUATION, 0, later);
        }
    }

    /// How many of this many bytes may go into the stream's next frame.
    #[inline]
    fn sendable(&mut self, slot: usize, bytes: usize) -> usize {
        if self.is_congested() {
            return 0;
        }
        let window = self.streams.at(slot).send_window.open().min(self.send_window.open());
        bytes.min(window).min(self.peer.frame_bytes)
    }

    /// Counts a DATA frame on both windows. A peer answers DATA with WINDOW_UPDATEs, so a frame counts as useful,
    /// unless the peer made it small by opening its windows a few bytes at a time.
    #[inline]
    fn count_sent(&mut self, slot: usize, bytes: usize, is_whole: bool) {
        self.streams.at(slot).send_window.take(bytes);
        self.send_window.take(bytes);
        if is_whole || bytes == self.peer.frame_bytes {
            self.rates.useful_frames += 2;
        }
    }

    fn queue_data(&mut self, slot: usize, data: &[u8], is_end: bool) -> usize {
        let stream = self.streams.at(slot);
        stream.is_ending = is_end;
        if stream.queue == NO_QUEUE {
            stream.queue = self.queues.add();
        }
        let queue = self.queues.get(stream.queue);
        queue.push(data);
        queue.is_end = is_end;
        self.make_ready(slot);
        data.len()
    }

    /// Puts a stream with queued data into the queue of those that send in turn, if its own window is open.
    pub(super) fn make_ready(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        if !stream.is_ready && stream.send_window.open() > 0 {
            stream.is_ready = true;
            self.ready.push_back(slot as u32);
        }
    }

    /// Sends queued data, one frame of each stream in turn, as far as the connection's window and the output allow.
    pub(super) fn send_queued(&mut self) {
        while let Some(slot) = self.ready.front().map(|slot| *slot as usize) {
            let stream = self.streams.id(slot);
            let entry = self.streams.at(slot);
            let (queue_at, call) = (entry.queue, entry.call.clone());
            let is_open = entry.send_window.open() > 0;
            let waiting = self.queues.get(queue_at).len();
            let bytes = self.sendable(slot, waiting);
            // If only the stream's window is closed, SETTINGS have closed it since the stream became ready.
            if bytes == 0 && is_open {
                return;
            }
            self.ready.pop_front();
            self.streams.at(slot).is_ready = false;
            if bytes == 0 {
                continue;
            }
            let queue = self.queues.get(queue_at);
            let is_whole = bytes == waiting;
            let is_last = is_whole && queue.is_end;
            Head::write(kind::DATA, end_flag(is_last), stream.get(), queue.front(bytes), &mut self.output.bytes);
            queue.advance(bytes);
            self.count_sent(slot, bytes, is_whole);
            if is_whole {
                self.end_queue(slot, is_last);
            } else {
                self.make_ready(slot);
            }
            if let Some(call) = call {
                self.note_sent(stream, call, bytes);
            }
        }
    }

    /// All queued data was sent: sends the queued trailers and the end of the stream, if there are any.
    fn end_queue(&mut self, slot: usize, is_end: bool) {
        let stream = self.streams.at(slot);
        let id = stream.id;
        let queue = std::mem::replace(&mut stream.queue, NO_QUEUE);
        let trailers = self.queues.remove(queue);
        let has_trailers = trailers.is_some();
        if let Some(trailers) = trailers {
            self.write_headers(id, &trailers, true);
            self.recycle(trailers);
        }
        if is_end || has_trailers {
            self.end_send(slot);
        }
    }

    fn note_sent(&mut self, stream: StreamId, call: T, more: usize) {
        if let Some(Notice::Sent { stream: last, bytes, .. }) = self.notices.back_mut()
            && *last == stream
        {
            *bytes += more;
            return;
        }
        self.notices.push_back(Notice::Sent { stream, call, bytes: more });
    }
}

#[inline]
fn end_flag(is_end: bool) -> u8 {
    if is_end { flag::END_STREAM } else { 0 }
}
