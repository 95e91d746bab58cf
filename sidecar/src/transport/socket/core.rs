//! The state of a connection that carries one call at a time, with no I/O.

mod rest;
mod send;

use std::rc::Rc;

use weft_mesh::{errors::Reason, limits};
use weft_wire::{Code, Headers, Usage, http1};

use crate::{
    message::{failure::Failure, tunnel},
    transport::{exchange::Exchange, link::Role},
};

/// How many bytes may be on their way into a call, or wait for the peer, before the other side is held back.
const BUFFER_BYTES: usize = limits::SOCKET_BUFFER_BYTES;
/// A larger output buffer is freed once it is empty.
const KEPT_OUTPUT_BYTES: usize = 16 * 1024;

/// See the module.
pub(super) struct Core {
    role: Role,
    decoder: http1::Decoder,
    encoder: http1::Encoder,
    /// Bytes are sent and received as they are.
    is_raw: bool,
    /// The call that runs.
    pub(super) call: Option<Rc<dyn Exchange>>,
    /// The parts of the last request that its answer depends on.
    request: http1::Request,
    /// The protocol that the request wants to change to.
    upgrade: Vec<u8>,
    /// The state of the incoming message.
    incoming: Message,
    /// The state of the outgoing message.
    outgoing: Message,
    output: Vec<u8>,
    written: usize,
    /// Bytes for a service in another protocol than HTTP, sent before the service has agreed to that protocol.
    early: Vec<u8>,
    /// Nothing more follows `early`.
    is_early_all: bool,
    /// Bytes of the body in the output that were reported to the call as waiting.
    waiting: usize,
    /// Bytes of the body that the call has received and not forwarded.
    held: usize,
    /// The answer is complete and the request is not. The rest of the request is read and discarded, and the connection
    /// goes on.
    is_discarding: bool,
    /// That rest has ended, and the driver has not seen it yet.
    has_discarded: bool,
    /// A turn is due though there may be nothing to write.
    needs_turn: bool,
    is_draining: bool,
    /// Some of the answer has come.
    is_answered: bool,
    /// The request's method is idempotent (RFC 9110, section 9.2.2).
    is_idempotent: bool,
    /// Some of the outgoing message has been written.
    is_written: bool,
    /// The driver reads no more until the call has forwarded some bytes.
    pub(super) is_read_held: bool,
    pub(super) fate: Fate,
}

/// The state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// None has begun, or the last one has ended.
    Between,
    /// Its head has passed.
    Begun,
}

/// What happens to the connection next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays open.
    Open,
    /// No more is accepted for writing; what the peer sends is still read.
    HalfClosed,
    /// It is closed when all is written; what still comes meanwhile is discarded.
    Closing,
    /// It is closed at once, in a way that shows the peer that something is missing.
    Aborted,
}

/// How many waiting bytes were sent.
pub(super) struct Sent(pub(super) usize);

/// The state before the first request.
const NO_REQUEST: http1::Request =
    http1::Request { method: http1::MethodKind::Other, is_http10: false, is_keep_alive: true, expects_continue: false };

impl Core {
    /// `head_bytes`: the longest head, in bytes.
    pub(super) fn http1(role: Role, head_bytes: u32) -> Self {
        let limits = http1::Limits {
            head_bytes: head_bytes as usize,
            list_bytes: head_bytes as usize,
            chunk_line_bytes: limits::HTTP1_CHUNK_LINE_BYTES,
            trailer_bytes: limits::HTTP1_TRAILER_BYTES,
        };
        let decoder = match role {
            Role::Server => http1::Decoder::requests(limits),
            Role::Client => http1::Decoder::responses(limits),
        };
        Self {
            role,
            decoder,
            encoder: http1::Encoder::new(),
            is_raw: false,
            call: None,
            request: NO_REQUEST,
            upgrade: Vec::new(),
            incoming: Message::Between,
            outgoing: Message::Between,
            output: Vec::new(),
            written: 0,
            early: Vec::new(),
            is_early_all: false,
            waiting: 0,
            held: 0,
            is_discarding: false,
            has_discarded: false,
            needs_turn: false,
            is_draining: false,
            is_answered: false,
            is_idempotent: false,
            is_written: false,
            is_read_held: false,
            fate: Fate::Open,
        }
    }

    pub(super) fn raw(role: Role) -> Self {
        let mut core = Self::http1(role, 0);
        core.decoder.switch_to_raw();
        core.is_raw = true;
        (core.incoming, core.outgoing) = (Message::Begun, Message::Begun);
        core
    }

    pub(super) fn is_idle(&self) -> bool {
        self.call.is_none() && self.output.is_empty() && self.incoming == Message::Between
    }

    /// Whether the driver has work that no event of the socket would wake it for.
    pub(super) fn has_work(&self) -> bool {
        !self.output.is_empty() || self.needs_turn || (self.is_read_held && !self.is_full())
    }

    /// Whether what the peer sends may be handled: not while the previous call's answer is incomplete, nor while the
    /// call holds too much of the incoming message.
    pub(super) fn takes_input(&self) -> bool {
        let is_free = match self.role {
            Role::Server => self.call.is_none() || self.incoming == Message::Begun,
            // What comes after the answer belongs to no call.
            Role::Client => self.call.is_some() && self.incoming == Message::Begun,
        };
        is_free && !self.is_full()
    }

    /// Whether to read no more: the call holds too much of the incoming message, or the peer does not read what it is
    /// sent.
    pub(super) fn is_full(&self) -> bool {
        // A client may send its whole request before it reads the answer, so the rest is read in any case.
        if self.is_discarding {
            return false;
        }
        self.held >= BUFFER_BYTES || (self.call.is_none() && self.unsent().len() >= BUFFER_BYTES)
    }

    /// Whether the end of the peer's side can be handled now. A client may end its side and still wait: for its answer,
    /// for a tunnel, or for the answers to requests that it has already sent.
    pub(super) fn takes_end(&self) -> bool {
        let awaits_tunnel = self.call.is_some() && self.incoming == Message::Begun && self.wants_tunnel();
        self.role == Role::Client || self.is_raw || (self.takes_input() && !awaits_tunnel)
    }

    /// The driver has its turn.
    pub(super) fn began_turn(&mut self) {
        self.needs_turn = false;
    }

    pub(super) fn is_congested(&self) -> bool {
        self.unsent().len() >= BUFFER_BYTES
    }

    pub(super) fn is_raw(&self) -> bool {
        self.is_raw
    }

    pub(super) fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<http1::Event<'a>>, http1::Error> {
        let event = self.decoder.receive(input)?;
        if let Some(event) = &event {
            self.note(event);
        }
        Ok(event)
    }

    /// The peer has ended its side.
    pub(super) fn end(&mut self) -> Result<Option<http1::Event<'static>>, http1::Error> {
        if self.is_raw {
            self.incoming = Message::Between;
            return Ok(Some(http1::Event::Data { data: &[], is_end: true }));
        }
        let event = self.decoder.end()?;
        if let Some(event) = &event {
            self.note(event);
        }
        Ok(event)
    }

    fn note(&mut self, event: &http1::Event<'_>) {
        let (is_end, bytes) = match event {
            http1::Event::Request { headers, request, is_end } => {
                self.request = *request;
                self.upgrade.clear();
                self.upgrade.extend_from_slice(headers.protocol().unwrap_or_default());
                self.outgoing = Message::Begun;
                (*is_end, 0)
            }
            http1::Event::Response { headers, is_end, response } => {
                self.is_answered = true;
                let is_final = headers.status().is_none_or(|status| status >= 200);
                if !is_final {
                    return;
                }
                self.request.is_keep_alive &= response.is_keep_alive;
                if self.wants_tunnel() {
                    self.tunnel_answered(tunnel::is_accepted(headers));
                }
                (*is_end, 0)
            }
            http1::Event::Data { data, is_end } => {
                self.request.expects_continue = false;
                (*is_end, data.len())
            }
            http1::Event::Trailers(_) => (true, 0),
        };
        self.incoming = if is_end { Message::Between } else { Message::Begun };
        if self.is_discarding {
            // No call holds these bytes, so none releases them.
            (self.is_discarding, self.has_discarded) = (!is_end, is_end);
        } else {
            self.held += bytes;
        }
    }

    fn wants_tunnel(&self) -> bool {
        self.request.method.wants_tunnel()
    }

    /// The service has answered a request for a tunnel.
    fn tunnel_answered(&mut self, is_accepted: bool) {
        if is_accepted {
            self.is_raw = true;
            // Bytes of the other protocol that came before this answer.
            self.output.append(&mut self.early);
            if std::mem::take(&mut self.is_early_all) {
                self.sent_whole();
            }
        } else {
            // The service got the request's head only. Bytes that followed may be meant as a body or as another
            // request, so this connection carries no other request.
            (self.early, self.is_early_all) = (Vec::new(), false);
            self.outgoing = Message::Between;
            self.request.is_keep_alive = false;
        }
    }

    pub(super) fn reset(&mut self, code: Code) {
        let Some(_) = self.call.take() else { return };
        if self.incoming == Message::Between && self.outgoing == Message::Between && !self.is_raw {
            // Both messages are complete, even if the call still counts a declined tunnel as open.
            self.held = 0;
            if self.role == Role::Client {
                self.close();
            }
        } else if self.role == Role::Server && self.outgoing == Message::Between && !self.is_raw {
            self.discard_rest();
        } else if self.role == Role::Server && !self.is_raw && self.encoder.is_between_messages() {
            self.answer_reset(code);
        } else if self.is_raw && code == Code::NO_ERROR {
            self.fate = Fate::Closing;
        } else {
            self.abort();
        }
    }

    /// HTTP/1.1 has no resets, so an error answer says that the service gave none.
    fn answer_reset(&mut self, code: Code) {
        let message = format!("the service ended the request without an answer: {code}");
        let (head, text) = Failure::new(Reason::ConnectionBroke, message).to_http();
        self.refuse(&head, &text);
    }

    /// Answers in place of a call, and closes the connection.
    pub(super) fn refuse(&mut self, head: &Headers, text: &str) {
        if !self.encoder.is_between_messages() || self.is_raw {
            return self.abort();
        }
        let is_written = self.encoder.response(&mut self.output, head, false, self.request, false).is_ok()
            && self.encoder.data(&mut self.output, text.as_bytes(), true).is_ok();
        self.outgoing = Message::Between;
        self.fate = if is_written { Fate::Closing } else { Fate::Aborted };
    }

    pub(super) fn detach(&mut self) {
        self.call = None;
        self.held = 0;
        if self.role == Role::Server && self.outgoing == Message::Between && !self.is_raw {
            if self.incoming == Message::Begun {
                self.discard_rest();
            }
        } else if matches!(self.fate, Fate::Open | Fate::HalfClosed) {
            self.fate = Fate::Closing;
        }
    }

    pub(super) fn release(&mut self, bytes: usize) {
        self.held -= bytes.min(self.held);
    }

    fn abort(&mut self) {
        self.fate = Fate::Aborted;
    }

    /// Makes the running call the last one, or the next one if none runs.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    pub(super) fn close(&mut self) {
        if self.fate == Fate::Open {
            self.fate = Fate::Closing;
        }
    }

    /// Takes the call if its request and its answer have both ended; then another may come.
    pub(super) fn take_finished(&mut self) -> Option<Rc<dyn Exchange>> {
        let is_over = self.incoming == Message::Between && self.outgoing == Message::Between;
        if !is_over {
            return None;
        }
        let call = self.call.take()?;
        self.held = 0;
        if self.is_draining && self.fate == Fate::Open {
            self.fate = Fate::Closing;
        }
        Some(call)
    }

    /// Whether the service takes another call on it.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_idle() && self.request.is_keep_alive && !self.is_raw && self.fate == Fate::Open
    }

    /// Whether a call runs of whose request nothing was written yet.
    pub(super) fn is_request_unsent(&self) -> bool {
        self.call.is_some() && !self.is_written && !self.is_raw
    }

    /// Whether the request can safely be sent again on another connection: none of it was sent or it is idempotent, and
    /// no part of an answer has come.
    pub(super) fn may_be_unseen(&self) -> bool {
        !self.is_raw && !self.is_answered && (self.is_idempotent || !self.is_written)
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.output[self.written..]
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        self.is_written = true;
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            if self.output.capacity() > KEPT_OUTPUT_BYTES {
                self.output = Vec::new();
            }
        }
    }

    /// All waiting bytes count as sent once so few are left that the call may send more.
    pub(super) fn take_sent(&mut self) -> Option<(Rc<dyn Exchange>, Sent)> {
        if self.waiting == 0 || self.unsent().len() > BUFFER_BYTES / 2 {
            return None;
        }
        let sent = Sent(std::mem::take(&mut self.waiting));
        Some((Rc::clone(self.call.as_ref()?), sent))
    }

    pub(super) fn recycle(&mut self, headers: Headers) {
        self.decoder.recycle(headers);
    }

    /// Bytes that it holds now: those that the call has not forwarded yet, and those that wait to be written.
    pub(super) fn held_and_unsent_bytes(&self) -> usize {
        self.held + self.unsent().len() + self.early.len()
    }

    /// Bytes that the call has received and not forwarded.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            streams: usize::from(self.call.is_some()),
            held_bytes: self.held,
            output_bytes: self.unsent().len(),
            buffer_bytes: self.output.capacity() + self.early.capacity(),
        }
    }

    pub(super) fn shrink(&mut self) {
        if self.output.is_empty() {
            self.output = Vec::new();
        }
    }
}
