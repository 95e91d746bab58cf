//! Carries the bytes of a connection with one call at a time, and dispatches what comes over it.

mod clock;
mod read;

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep},
};
use weft_mesh::{errors::Reason, limits};
use weft_wire::{Cause, Code, Headers, Name, http1};

use super::{Socket, core::Fate};
use crate::{
    message::failure::Failure,
    thread::{give_way::give_way, worker::Worker},
    transport::{exchange::Exchange, link::Role},
    watchdog::Work,
};

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] http1::Error),
    #[error("the head of its request was not complete within {:?}", limits::DETECT_TIMEOUT)]
    SlowHead,
    #[error("its client has ended its side, and nothing could be sent to it for {:?}", limits::HALF_CLOSED_TIME)]
    HalfClosed,
    #[error("it sent something without a request")]
    Unasked,
}

/// What the owner of the connection has to handle.
pub(crate) enum Occasion {
    /// A client's request: its head, and whether the request ends with it.
    Request(Headers, bool),
    /// The service has answered, and takes another call.
    Free,
}

/// A stream of bytes whose end can be a reset.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// From now on the stream ends with a reset when it is dropped, so that the peer does not take a message that was cut
    /// off for a complete one.
    fn break_off(&self);
}

impl Stream for TcpStream {
    fn break_off(&self) {
        // If this fails, the peer sees a plain end, and most messages show that something is missing.
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

/// See the module.
pub(crate) struct SocketDriver<IO, F> {
    worker: Rc<Worker>,
    socket: Rc<Socket>,
    io: IO,
    on: F,
    /// Bytes that have come and can't be handled yet: a partial head, or a request while the one before it runs.
    unread: Vec<u8>,
    /// Since when a partial head waits for its rest.
    head_since: Option<Instant>,
    /// More must come before what is unread can be handled.
    needs_more: bool,
    /// The peer has ended its side.
    has_ended: bool,
    /// That end has been handled.
    is_end_handled: bool,
    /// Since when nothing was sent to a client that has ended its side.
    ended_since: Option<Instant>,
    /// Since when the peer has read none of the last bytes that are sent to it.
    unread_since: Option<Instant>,
    /// Since when the rest of an answered request is discarded.
    discarding_since: Option<Instant>,
    is_shut: bool,
    /// A call has ended, and the connection may be free for another.
    is_free_due: bool,
    /// Since when the peer should close the connection, and how long it may take.
    closing: Option<(Instant, Duration)>,
    /// The error that the client got as an answer. The driver returns it when the connection is closed.
    failure: Option<SocketError>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<IO: Stream, F: FnMut(Occasion) + Unpin> SocketDriver<IO, F> {
    pub(crate) fn new(worker: &Rc<Worker>, socket: &Rc<Socket>, io: IO, on: F) -> Self {
        Self {
            worker: Rc::clone(worker),
            socket: Rc::clone(socket),
            io,
            on,
            unread: Vec::new(),
            head_since: None,
            needs_more: false,
            has_ended: false,
            is_end_handled: false,
            ended_since: None,
            unread_since: None,
            discarding_since: None,
            is_shut: false,
            is_free_due: false,
            closing: None,
            failure: None,
            sleep: None,
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        if !self.socket.driver.borrow().will_wake(cx.waker()) {
            *self.socket.driver.borrow_mut() = cx.waker().clone();
        }
        self.socket.is_awake.set(true);
        self.socket.core.borrow_mut().began_turn();
        self.worker.tick();
        if let Err(error) = self.read(cx).and_then(|()| self.keep_time(cx)) {
            self.failed(error)?;
        }
        let is_written = self.write(cx)?.is_ready();
        if self.is_over(cx, is_written) {
            return Poll::Ready(self.failure.take().map_or(Ok(()), Err));
        }
        self.give_back();
        self.rest(cx);
        Poll::Pending
    }

    /// Answers a client's faulty request with an error, if an answer is still possible.
    fn failed(&mut self, error: SocketError) -> Result<(), SocketError> {
        let status = match &error {
            SocketError::Protocol(e) => e.status(),
            SocketError::SlowHead => 408,
            SocketError::Io(_) | SocketError::Unasked | SocketError::HalfClosed => return Err(error),
        };
        if self.socket.core.borrow().is_discarding() {
            // The client has its answer, and would take a second one for the answer to its next request.
            self.socket.core.borrow_mut().close();
            self.failure = Some(error);
            return Ok(());
        }
        if self.socket.role == Role::Client || self.failure.is_some() {
            return Err(error);
        }
        let call = self.socket.core.borrow_mut().call.take();
        if let Some(call) = call {
            call.caller_gone(Code::PROTOCOL_ERROR);
        }
        let (mut head, text) = Failure::new(Reason::Malformed, error.to_string()).to_http();
        head.set(Name::STATUS, status.to_string().as_bytes());
        self.socket.core.borrow_mut().refuse(&head, &text);
        self.failure = Some(error);
        Ok(())
    }

    fn handle(&mut self, input: &mut &[u8]) -> Result<(), SocketError> {
        loop {
            let event = {
                let mut core = self.socket.core.borrow_mut();
                if core.fate == Fate::Closing || core.fate == Fate::Aborted {
                    *input = &[];
                    return Ok(());
                }
                if input.is_empty() || !core.takes_input() {
                    return Ok(());
                }
                core.receive(input)?
            };
            let Some(event) = event else {
                self.needs_more = true;
                // Empty lines between requests are consumed and start no head.
                if !input.is_empty() {
                    self.note_head();
                }
                return Ok(());
            };
            self.head_since = None;
            self.dispatch(event);
            self.finish();
        }
    }

    /// Starts the time limit for a partial head.
    fn note_head(&mut self) {
        let core = self.socket.core.borrow();
        if self.socket.role == Role::Server && core.call.is_none() && !core.is_discarding() {
            self.head_since.get_or_insert(self.worker.now());
        }
    }

    /// Whether it waits for the rest of a head.
    #[cfg(test)]
    pub(super) fn awaits_head(&self) -> bool {
        self.head_since.is_some()
    }

    fn dispatch(&mut self, event: http1::Event<'_>) {
        match event {
            http1::Event::Request { headers, is_end, .. } => (self.on)(Occasion::Request(headers, is_end)),
            event => {
                let call = self.socket.core.borrow().call.clone();
                // Without a call, the event has no receiver any more.
                if let Some(call) = call {
                    give(&self.socket, call, event);
                }
            }
        }
    }

    /// Releases a call whose request and answer have both ended.
    fn finish(&mut self) {
        let finished = self.socket.core.borrow_mut().take_finished();
        if finished.is_none() && !self.socket.core.borrow_mut().take_discarded() {
            return;
        }
        self.needs_more = false;
        if let Some(call) = finished.filter(|_| self.socket.role == Role::Server) {
            call.caller_has_all();
        }
        self.socket.was_used.set(true);
        self.socket.idle_since.set(self.worker.now());
        if self.socket.role == Role::Client {
            self.is_free_due = true;
        }
    }

    /// Gives the connection back after a call, if it takes another. Not before everything that came is handled: only then
    /// is it known that nothing came after the answer.
    fn give_back(&mut self) {
        if !std::mem::take(&mut self.is_free_due) {
            return;
        }
        let is_reusable = self.socket.core.borrow().is_reusable() && !self.has_ended;
        if is_reusable { (self.on)(Occasion::Free) } else { self.socket.close() }
    }

    /// Handles the end of the peer's side, once everything that came before it was handled as far as possible.
    fn ended(&mut self) -> Result<(), SocketError> {
        let (is_answered, is_discarding, takes_end) = {
            let core = self.socket.core.borrow();
            (core.fate == Fate::Closing, core.is_discarding(), core.takes_end())
        };
        if !is_answered && !takes_end {
            return Ok(());
        }
        self.is_end_handled = true;
        if is_answered || is_discarding {
            self.socket.core.borrow_mut().close();
            return Ok(());
        }
        let call = self.socket.core.borrow().call.clone();
        let event = self.socket.core.borrow_mut().end()?;
        if let (Some(event), Some(call)) = (event, call) {
            give(&self.socket, call, event);
            self.finish();
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            {
                let mut core = self.socket.core.borrow_mut();
                if core.unsent().is_empty() {
                    break;
                }
                match Pin::new(&mut self.io).poll_write(cx, core.unsent())? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => {
                        core.wrote(written);
                        self.unread_since = None;
                        self.ended_since = self.ended_since.map(|_| self.worker.now());
                    }
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            self.tell_sent();
        }
        Ok(Poll::Ready(()))
    }

    /// Bytes that waited have been sent: tells the call that it may send more.
    fn tell_sent(&self) {
        if let Some((call, sent)) = self.socket.take_sent() {
            match self.socket.role {
                Role::Server => call.response_sent(sent.0),
                Role::Client => call.request_sent(sent.0),
            }
        }
    }

    /// Whether the connection is finished. Ends our side when it is time.
    fn is_over(&mut self, cx: &mut Context<'_>, is_written: bool) -> bool {
        self.finish();
        let (fate, is_running, is_raw) = {
            let core = self.socket.core.borrow();
            (core.fate, core.call.is_some(), core.is_raw())
        };
        match fate {
            Fate::Aborted => {
                self.io.break_off();
                true
            }
            Fate::Open if is_raw => self.has_ended && !is_running && is_written,
            // A client that has sent its request and ended its side still waits for the answer.
            Fate::Open if self.socket.role == Role::Server => self.is_end_handled && !is_running && is_written,
            Fate::Open => self.has_ended && (is_running || is_written),
            Fate::HalfClosed | Fate::Closing if !is_written => self.is_close_overdue(),
            Fate::HalfClosed => {
                self.shut(cx);
                self.has_ended && !is_running
            }
            Fate::Closing => {
                self.shut(cx);
                self.has_ended || self.is_close_overdue()
            }
        }
    }

    fn shut(&mut self, cx: &mut Context<'_>) {
        if !self.is_shut {
            // It fails if the peer has already gone, which the next read shows too.
            self.is_shut = Pin::new(&mut self.io).poll_shutdown(cx).is_ready();
            self.closing = Some((self.worker.now(), self.socket.core.borrow().linger_time()));
            cx.waker().wake_by_ref();
        }
    }

    /// Nothing is left to do; from now on the socket wakes the driver when there is.
    fn rest(&mut self, cx: &mut Context<'_>) {
        self.socket.is_awake.set(false);
        let core = self.socket.core.borrow();
        self.socket.counted.set(core.held_and_unsent_bytes());
        let is_unread_due = !self.unread.is_empty() && core.takes_input() && !self.needs_more;
        let is_end_due = self.has_ended && !self.is_end_handled && core.takes_end();
        // As long as something is unsent, the peer's reading wakes the driver.
        let is_end_of_ours_due = core.fate != Fate::Open && !self.is_shut && core.unsent().is_empty();
        // The time limit for the last bytes is set in the next turn, so this gives only one extra turn.
        let is_clock_due = core.is_last_unsent() && self.unread_since.is_none();
        if is_unread_due || is_end_due || is_end_of_ours_due || is_clock_due {
            give_way(cx);
        }
    }
}

/// Hands a part of a message to its call.
fn give(socket: &Socket, call: Rc<dyn Exchange>, event: http1::Event<'_>) {
    match (event, socket.role) {
        (http1::Event::Response { headers, is_end, .. }, _) => {
            if let Some(headers) = call.response_head(headers, is_end) {
                socket.recycle(headers);
            }
        }
        (http1::Event::Data { data, is_end }, Role::Server) => call.request_data(data, is_end),
        (http1::Event::Data { data, is_end }, Role::Client) => call.response_data(data, is_end),
        (http1::Event::Trailers(trailers), Role::Server) => call.request_trailers(&trailers),
        (http1::Event::Trailers(trailers), Role::Client) => call.response_trailers(&trailers),
        (http1::Event::Request { .. }, _) => {}
    }
}

impl<IO, F> SocketDriver<IO, F> {
    /// Tells the call that still runs that the connection has ended.
    fn end(&self, why: &dyn std::fmt::Display, is_too_large: bool) {
        self.socket.is_gone.set(true);
        let mut core = self.socket.core.borrow_mut();
        let Some(call) = core.call.take() else { return };
        let is_stale = self.socket.was_used.get() && core.may_be_unseen();
        drop(core);
        match self.socket.role {
            Role::Server => call.caller_gone(Code::CANCEL),
            Role::Client if is_too_large => call.endpoint_reset(Code::ENHANCE_YOUR_CALM, Cause::TooLarge),
            Role::Client if is_stale && Rc::clone(&call).endpoint_stale() => {}
            Role::Client => call.endpoint_lost(&why.to_string()),
        }
    }
}

/// After a panic, a call must not be left without an owner.
impl<IO, F> Drop for SocketDriver<IO, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end(&"of a bug in Weft", false);
        }
    }
}

/// Ends with the connection, and with it the call on it.
impl<IO: Stream, F: FnMut(Occasion) + Unpin> Future for SocketDriver<IO, F> {
    type Output = Result<(), SocketError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.worker.pulse.is_at(Work::Socket);
        let turn = self.turn(cx);
        self.worker.pulse.is_at(Work::Others);
        if let Poll::Ready(result) = &turn {
            match result {
                Ok(()) => self.end(&"it was closed", false),
                Err(e) => self.end(e, matches!(e, SocketError::Protocol(http1::Error::HeadTooLarge))),
            }
        }
        turn
    }
}
