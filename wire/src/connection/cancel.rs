//! Cancels that wait until the server has looked at their streams.
//!
//! Whether it has is asked with empty SETTINGS, which every server acknowledges in the order of its frames; a PING would
//! do as well, but servers of gRPC count those of their clients. One is under way at most, so cancels in great number
//! cost a frame and an answer a round trip.

use super::Connection;
use crate::code::Code;
use crate::frame::{Head, kind};
use crate::stream::{NO_QUEUE, StreamId};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    /// The highest stream of which the server was asked, and whether it has been looked at.
    asked: Option<u32>,
    /// All streams up to this one have been looked at.
    seen: u32,
    waiting: Vec<(StreamId, Code)>,
}

impl<T: Clone> Connection<T> {
    /// Whether the stream's cancel has to wait.
    #[inline]
    pub(super) fn is_cancel_early(&mut self, slot: usize) -> bool {
        let stream = self.streams.at(slot);
        self.limits.are_cancels_paced && !stream.is_head_received && stream.id > self.cancels.seen && !self.is_server
    }

    /// Silences a stream until it can be cancelled.
    #[cold]
    pub(super) fn hold_cancel(&mut self, slot: usize, code: Code) {
        if self.streams.at(slot).queue != NO_QUEUE {
            self.drop_queue(slot);
        }
        let stream = self.streams.at(slot);
        // Nothing more is sent on it.
        stream.is_ending = true;
        stream.call = None;
        let stream = self.streams.id(slot);
        self.cancels.waiting.push((stream, code));
        if self.cancels.asked.is_none() {
            self.ask_what_was_seen();
        }
    }

    fn ask_what_was_seen(&mut self) {
        Head::write(kind::SETTINGS, 0, 0, &[], &mut self.output.bytes);
        self.cancels.asked = Some(self.next_stream.saturating_sub(2));
    }

    /// SETTINGS were acknowledged. `false`: not those of here.
    pub(super) fn release_cancels(&mut self) -> bool {
        let Some(seen) = self.cancels.asked.take() else { return false };
        self.cancels.seen = seen;
        let mut waiting = std::mem::take(&mut self.cancels.waiting);
        waiting.retain(|(stream, code)| {
            let is_seen = stream.get() <= seen;
            if is_seen {
                self.reset(*stream, *code);
            }
            !is_seen
        });
        self.cancels.waiting = waiting;
        if !self.cancels.waiting.is_empty() {
            self.ask_what_was_seen();
        }
        true
    }
}
