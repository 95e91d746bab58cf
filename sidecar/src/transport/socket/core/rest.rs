//! What is left when a call has ended: the rest of a request that was answered early, and bytes that the peer has not
//! read yet. Decides whether the connection is kept for them, and for how long.

use std::time::Duration;

use weft_mesh::limits;

use super::{Core, Fate, Message};
use crate::transport::link::Role;

impl Core {
    /// Whether the connection may go on if the answer ends before the request. A client that waits for 100 and gets a
    /// final answer may send the body or not, and a body could not be distinguished from the next request (RFC 9110,
    /// section 10.1.1).
    pub(super) fn takes_rest(&self) -> bool {
        if self.incoming == Message::Between || self.wants_tunnel() {
            return true;
        }
        !self.request.expects_continue && self.decoder.left().is_none_or(|left| left <= limits::LINGER_BYTES)
    }

    /// The answer is complete and the rest of the request is not needed. It is read to keep the connection (RFC 9112,
    /// section 9.3); if that is not possible, the answer has announced that the connection closes.
    pub(super) fn discard_rest(&mut self) {
        self.held = 0;
        if self.fate == Fate::Open {
            (self.is_discarding, self.needs_turn) = (true, true);
        }
    }

    /// Whether the rest of a request that was answered early is being discarded.
    pub(in crate::transport::socket) fn is_discarding(&self) -> bool {
        self.is_discarding
    }

    /// Whether the rest of a request that was answered early has just ended.
    pub(in crate::transport::socket) fn take_discarded(&mut self) -> bool {
        let has_ended = std::mem::take(&mut self.has_discarded);
        if has_ended && self.is_draining && self.fate == Fate::Open {
            self.fate = Fate::Closing;
        }
        has_ended
    }

    /// Whether the unsent bytes are the last ones, and no call is left whose end would end the connection. While a call
    /// runs, a peer that reads slowly only holds back its own sender.
    pub(in crate::transport::socket) fn is_last_unsent(&self) -> bool {
        let is_last = match self.fate {
            Fate::Closing => true,
            Fate::HalfClosed => self.call.is_none(),
            Fate::Open | Fate::Aborted => false,
        };
        is_last && !self.unsent().is_empty()
    }

    /// How long the peer may take to close the connection once our side has ended.
    pub(in crate::transport::socket) fn linger_time(&self) -> Duration {
        let is_cut =
            self.role == Role::Server && self.incoming == Message::Begun && !self.is_raw && !self.is_discarding;
        if is_cut { limits::LINGER_TIME } else { limits::CLOSE_TIME }
    }
}
