//! The bytes that wait to be written.

use std::ops::Range;

use crate::frame::{HEAD_BYTES, Head, flag, kind};

/// A larger buffer than this is freed while the connection is idle.
const KEPT_BYTES: usize = 4 << 10;

/// A larger buffer than this is freed as soon as everything was written, unless the connection has needed one
/// [`USES_TO_KEEP`] times since [`Output::shrink`]. So a busy connection does not allocate in each turn, and a peer
/// cannot make many connections keep large buffers by sending a little on each.
const LARGE_BYTES: usize = 64 << 10;
const USES_TO_KEEP: u8 = 64;

/// The bytes that the driver writes once a turn.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    start: usize,
    /// How many bytes were written since the connection started.
    written: u64,
    /// Where the last DATA frame starts and ends, counted from the start of the connection.
    data: Range<u64>,
    /// Bytes of unsent replies that the peer provoked: those that were appended before `mark`, and after it. Those
    /// before it are dropped from the count together, once everything up to `mark` was written, so that their positions
    /// need no list.
    provoked_before: usize,
    provoked_after: usize,
    mark: u64,
    /// How often everything was written while the buffer was large, up to [`USES_TO_KEEP`].
    large_uses: u8,
}

impl Output {
    #[inline]
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Appends a DATA frame. If the last frame is DATA of the same stream and has room, that one grows instead, so that
    /// data which arrives in small pieces is forwarded in whole frames. Returns whether a frame was added.
    #[inline]
    pub(super) fn data(&mut self, stream: u32, data: &[u8], is_end: bool, frame_bytes: usize) -> bool {
        let flags = if is_end { flag::END_STREAM } else { 0 };
        let end = self.written + self.len() as u64;
        if self.data.end == end && self.data.start >= self.written && self.grow(stream, data, flags, frame_bytes) {
            self.data.end += data.len() as u64;
            return false;
        }
        Head::write(kind::DATA, flags, stream, data, &mut self.bytes);
        self.data = end..end + (HEAD_BYTES + data.len()) as u64;
        true
    }

    /// Appends to the last DATA frame, if it is of this stream and has room.
    fn grow(&mut self, stream: u32, data: &[u8], flags: u8, frame_bytes: usize) -> bool {
        let at = self.start + (self.data.start - self.written) as usize;
        let Some(head) = Head::parse(&self.bytes[at..]) else { return false };
        let length = head.length + data.len();
        if length > frame_bytes || head.stream != stream || head.flags != 0 {
            return false;
        }
        self.bytes[at..at + HEAD_BYTES].copy_from_slice(&Head { length, flags, ..head }.bytes());
        self.bytes.extend_from_slice(data);
        true
    }

    /// Counts this many of the bytes just appended as a reply that the peer provoked.
    pub(super) fn provoke(&mut self, bytes: usize) {
        self.provoked_after += bytes;
    }

    /// How many bytes of replies that the peer provoked are unsent.
    #[inline]
    pub(super) fn provoked(&self) -> usize {
        self.provoked_before + self.provoked_after
    }

    #[inline]
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.start += bytes.min(self.len());
        self.written += bytes as u64;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            self.provoked_before = 0;
            self.provoked_after = 0;
            self.mark = self.written;
            if self.bytes.capacity() > LARGE_BYTES {
                self.give_back_large();
            }
            return;
        }
        if self.written >= self.mark {
            self.provoked_before = std::mem::take(&mut self.provoked_after);
            self.mark = self.written + self.len() as u64;
        }
        if self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    #[cold]
    fn give_back_large(&mut self) {
        if self.large_uses < USES_TO_KEEP {
            self.large_uses += 1;
            self.bytes.shrink_to(LARGE_BYTES);
        }
    }

    /// Frees the buffer, now or as soon as everything is written.
    pub(super) fn shrink(&mut self) {
        self.large_uses = 0;
        if self.len() == 0 {
            self.bytes.shrink_to(KEPT_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_joins_the_last_frame_unless_part_of_it_was_written() {
        let mut output = Output::default();
        let frames = |output: &Output| -> Vec<(u32, usize, u8)> {
            let (mut rest, mut frames) = (output.unsent(), Vec::new());
            while let Some(head) = Head::parse(rest) {
                frames.push((head.stream, head.length, head.flags));
                rest = &rest[HEAD_BYTES + head.length..];
            }
            frames
        };
        assert!(output.data(1, b"a", false, 4));
        assert!(!output.data(1, b"bc", false, 4));
        assert!(output.data(1, b"de", false, 4), "the frame would be too long");
        assert!(output.data(3, b"f", false, 4), "another stream");
        output.wrote(2 * HEAD_BYTES + 5);
        assert!(!output.data(3, b"g", true, 4), "frames that were written before it do not matter");
        assert!(output.data(3, b"", false, 4), "nothing follows END_STREAM");
        assert_eq!(frames(&output), [(3, 2, flag::END_STREAM), (3, 0, 0)]);

        output.wrote(HEAD_BYTES + 2 + 1);
        assert!(output.data(3, b"h", false, 4), "its frame header was written");
        Head::write(kind::PING, 0, 0, &[0; 8], &mut output.bytes);
        assert!(output.data(3, b"i", false, 4), "it is no longer the last frame");
        let unsent = output.len();
        output.wrote(unsent);
        assert!(output.data(3, b"j", false, 4), "it was written");
        assert_eq!(frames(&output), [(3, 1, 0)]);
    }

    #[test]
    fn a_large_buffer_is_kept_only_if_it_is_needed_often() {
        let mut output = Output::default();
        let use_once = |output: &mut Output, bytes: usize| {
            output.bytes.extend_from_slice(&vec![0; bytes]);
            output.wrote(bytes);
            output.bytes.capacity()
        };
        for _ in 0..3 {
            for _ in 0..USES_TO_KEEP {
                assert!(use_once(&mut output, 4 * LARGE_BYTES) <= LARGE_BYTES, "it may never be needed again");
            }
            assert!(use_once(&mut output, 4 * LARGE_BYTES) >= 4 * LARGE_BYTES, "each turn would allocate");
            // Something is unsent, so the buffer cannot be freed yet.
            output.bytes.push(0);
            output.shrink();
            output.wrote(1);
            assert!(output.bytes.capacity() <= LARGE_BYTES);
            output.shrink();
            assert!(output.bytes.capacity() <= KEPT_BYTES);
        }
    }

    #[test]
    fn provoked_replies_count_until_they_are_written() {
        let mut output = Output::default();
        for _ in 0..1000 {
            output.bytes.extend_from_slice(&[0; 100]);
            output.provoke(10);
            assert!(output.provoked() <= 70, "replies that were written long ago do not count");
            output.wrote(if output.len() > 200 { 100 } else { 90 });
        }
        let unsent = output.len();
        output.wrote(unsent);
        assert_eq!((output.len(), output.provoked()), (0, 0));
    }
}
