//! Cancels that wait until the server has processed the requests that they cancel.
//!
//! An empty SETTINGS frame finds out: servers process frames in order, so its acknowledgement shows that the server has
//! processed the requests before it. A PING would do as well, but gRPC servers limit the PINGs of their clients. At
//! most one such frame is unacknowledged, so even many cancels cost one frame and one acknowledgement per round trip.

use super::Connection;
use crate::code::Code;
use crate::frame::{Head, kind};
use crate::stream::{NO_QUEUE, StreamId};

/// The cancels that wait, and how far the server has got.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    /// The last stream that was opened before the SETTINGS frame that is unacknowledged.
    asked: Option<u32>,
    /// The server has processed the requests of all streams up to this one.
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

    /// Stops a stream without resetting it yet: nothing is sent on it, and it makes no events.
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

    /// SETTINGS were acknowledged. Returns `false` if they were not from this module.
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
