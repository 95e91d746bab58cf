//! What the connection sends: the head of a request or an answer, its body, and its end.

use std::rc::Rc;

use weft_wire::{Headers, http1};

use super::{BUFFER_BYTES, Core, Fate, Message};
use crate::{
    message::tunnel,
    transport::{exchange::Exchange, link::Role},
};

impl Core {
    pub(in crate::transport::socket) fn open(
        &mut self,
        head: &Headers,
        is_end: bool,
        call: Rc<dyn Exchange>,
    ) -> Result<(), http1::Error> {
        self.request = self.encoder.request(&mut self.output, head, is_end)?;
        self.decoder.expect(self.request);
        self.call = Some(call);
        (self.is_answered, self.is_written) = (false, false);
        self.is_idempotent = head.is_idempotent();
        self.outgoing = if is_end { Message::Between } else { Message::Begun };
        self.incoming = Message::Begun;
        Ok(())
    }

    pub(in crate::transport::socket) fn respond(&mut self, head: &Headers, is_end: bool) {
        let is_final = head.status().is_none_or(|status| status >= 200);
        if self.call.is_none() && is_final {
            return;
        }
        if self.is_raw {
            // The client knows no HTTP answers: only a broken connection shows it a failure.
            if is_final && !tunnel::is_accepted(head) {
                self.abort();
            }
            return;
        }
        if head.status() == Some(100) {
            self.request.expects_continue = false;
        }
        let is_kept = self.request.is_keep_alive && !self.is_draining && self.takes_rest();
        self.encoder.upgrade_to(&self.upgrade);
        if self.encoder.response(&mut self.output, head, is_end, self.request, is_kept).is_err() {
            return self.abort();
        }
        let is_tunnel = self.wants_tunnel();
        if is_final && is_tunnel {
            self.answer_tunnel(tunnel::is_accepted(head));
        }
        if is_final && is_end {
            self.sent_whole();
        }
    }

    /// Answers a client's request for a tunnel.
    fn answer_tunnel(&mut self, is_accepted: bool) {
        if is_accepted {
            self.is_raw = true;
            self.decoder.switch_to_raw();
        } else {
            self.decoder.stay();
            self.incoming = Message::Between;
        }
    }

    pub(in crate::transport::socket) fn send_data(&mut self, data: &[u8], is_end: bool) -> usize {
        if self.outgoing == Message::Between || self.fate != Fate::Open {
            return 0;
        }
        let before = self.unsent().len() + self.early.len();
        if self.is_raw {
            self.output.extend_from_slice(data);
        } else if self.wants_tunnel() && self.role == Role::Client {
            self.early.extend_from_slice(data);
            self.is_early_all |= is_end;
        } else if self.encoder.data(&mut self.output, data, is_end).is_err() {
            // The body is longer or shorter than its Content-Length, and the peer has to notice that.
            self.abort();
            return 0;
        }
        let waits = if before + data.len() > BUFFER_BYTES && before > 0 { data.len() } else { 0 };
        self.waiting += waits;
        if is_end && !self.is_early_all {
            self.sent_whole();
        }
        waits
    }

    pub(in crate::transport::socket) fn send_trailers(&mut self, trailers: &Headers) {
        if self.outgoing == Message::Between || self.fate != Fate::Open {
            return;
        }
        if self.is_raw {
            return self.sent_whole();
        }
        match self.encoder.trailers(&mut self.output, trailers) {
            Ok(()) => self.sent_whole(),
            Err(_) => self.abort(),
        }
    }

    /// The outgoing message is complete.
    pub(super) fn sent_whole(&mut self) {
        self.outgoing = Message::Between;
        if self.is_raw {
            if self.fate == Fate::Open {
                self.fate = Fate::HalfClosed;
            }
            return;
        }
        if self.role == Role::Server && (self.encoder.must_close() || self.is_draining) && self.fate == Fate::Open {
            self.fate = Fate::Closing;
        }
    }
}
