//! Carries the bytes of an HTTP/2 connection, and hands every event to the call that it belongs to.
//!
//! A driver works in turns. In each turn it reads everything that is there, dispatches the events, and then writes all
//! output at once: its own connection's answers and what calls of other connections have sent over this one meanwhile.
//! So the busier a connection is, the more calls share a wake-up, a system call and a TLS record.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};
use weft_mesh::limits;
use weft_wire::{Code, ConnectionError, Event, Headers, Notice, StreamId};

use super::{Link, Role};
use crate::{
    thread::{
        account::{LITTLE_BYTES, Reads},
        give_way::{BYTES_A_TURN, give_way},
        wire_limits,
        worker::Worker,
    },
    transport::exchange::Exchange,
    watchdog::Work,
};

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ConnectionError),
    #[error("the certificate of one side has expired")]
    Expired,
    #[error("it was not read for lack of memory, and none of its bytes was forwarded for {:?}", limits::PAUSED_TIME)]
    Paused,
}

/// What a server's connection hands to its owner.
pub(crate) enum Incoming {
    /// A request's head, and whether the request ends with it.
    Request(StreamId, Headers, bool),
    /// The part of a head that is within the limit, and whether the request ends with it. No call is started for it.
    TooLarge(StreamId, Headers, bool),
    /// The whole read is processed, and so are its cancellations: calls may start.
    Read,
}

/// Carries the bytes of a connection and hands out its events.
pub(crate) struct LinkDriver<IO, F> {
    worker: Rc<Worker>,
    link: Rc<Link>,
    role: Role,
    io: IO,
    on: F,
    /// A partial frame.
    unread: Vec<u8>,
    has_ended: bool,
    /// Requests have come in this turn.
    has_requests: bool,
    /// How many heads that were refused for their size have been counted in the metrics.
    heads_refused: u64,
    /// Reading stopped before the socket was empty.
    is_held_back: bool,
    /// This turn deliberately read nothing.
    is_unread: bool,
    /// Since when it is not read for lack of memory, and the bytes that it has held since then.
    paused: Option<(Instant, usize)>,
    /// Something was written since the peer was last judged.
    has_written: bool,
    /// When the sleep ends. May be sooner than the next timeout: an extra turn costs less than to reset the sleep.
    wakes_at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// The least that a read counts for: a read that brings few bytes may have cost as much, in TLS records of one byte
/// each.
const LEAST_A_READ: usize = BYTES_A_TURN / 32;

impl<IO, F> LinkDriver<IO, F>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Incoming) + Unpin,
{
    pub(crate) fn new(worker: &Rc<Worker>, link: &Rc<Link>, role: Role, io: IO, on: F) -> Self {
        Self {
            worker: Rc::clone(worker),
            link: Rc::clone(link),
            role,
            io,
            on,
            unread: Vec::new(),
            has_ended: false,
            has_requests: false,
            heads_refused: 0,
            is_held_back: false,
            is_unread: false,
            paused: None,
            has_written: false,
            wakes_at: None,
            sleep: None,
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if !self.link.driver.borrow().will_wake(cx.waker()) {
            *self.link.driver.borrow_mut() = cx.waker().clone();
        }
        self.link.is_awake.set(true);
        self.worker.tick();
        if self.link.is_expired.get() {
            return Poll::Ready(Err(self.expired(cx)));
        }
        self.worker.pulse.is_at(Work::ReadsHttp2);
        let read = self.read(cx);
        if self.has_requests {
            self.has_requests = false;
            (self.on)(Incoming::Read);
        }
        self.take_notices();
        // Written even after an error: answers to what came before it, and the GOAWAY for the error itself.
        self.worker.pulse.is_at(Work::WritesHttp2);
        let written = self.write(cx);
        self.link.offer_room();
        read?;
        if self.is_paused_too_long() {
            return Poll::Ready(Err(LinkError::Paused));
        }
        let is_written = written?.is_ready();
        self.keep_time(cx)?;
        // There may be more to read, but the socket was not polled and wakes nobody. While a write waits for the peer,
        // that write gives the next turn.
        if self.is_held_back && is_written {
            give_way(cx);
        }
        let is_finished = self.has_ended || self.link.core.borrow().is_finished();
        if is_finished && (is_written || self.has_ended) {
            // A courtesy: the connection is over even if this fails.
            let _ = Pin::new(&mut self.io).poll_shutdown(cx);
            return Poll::Ready(Ok(()));
        }
        self.rest();
        Poll::Pending
    }

    /// Tells the peer that the connection ends, if it still reads.
    #[cold]
    fn expired(&mut self, cx: &mut Context<'_>) -> LinkError {
        self.worker.shared.metrics.counters.connections_expired.fetch_add(1, Relaxed);
        self.link.core.borrow_mut().close(Code::NO_ERROR);
        let _ = self.write(cx);
        let _ = Pin::new(&mut self.io).poll_shutdown(cx);
        LinkError::Expired
    }

    /// Whether nothing has moved for too long on a connection that is not read for lack of memory. PINGs give the turns
    /// in which this is checked. A partial header block has a shorter limit, which a pause does not extend: a peer that
    /// holds its part of the memory can have very many of them.
    fn is_paused_too_long(&self) -> bool {
        let Some((since, _)) = self.paused else { return false };
        let is_block_open = self.link.core.borrow().is_block_open();
        let most = if is_block_open { limits::HTTP2_TIMEOUT } else { limits::PAUSED_TIME };
        let is_over = self.worker.now().saturating_duration_since(since) >= most;
        if is_over {
            self.worker.shared.metrics.limit_reached("PAUSED_TIME");
        }
        is_over
    }

    /// Counts the limits that the peer has reached. Returns whether any heads were too large.
    fn count_limits(&mut self) -> bool {
        let (exceeded, refused) = {
            let mut core = self.link.core.borrow_mut();
            (core.take_exceeded(), core.heads_too_large())
        };
        if let Some(bound) = exceeded {
            let (row, peer) = (wire_limits::row(bound), if self.role == Role::Server { "client" } else { "service" });
            self.worker.shared.metrics.limit_reached(row);
            self.worker.log(|| format!("a {peer} is read more slowly because it exceeds the limit {row}"));
        }
        for _ in self.heads_refused..refused {
            self.worker.shared.metrics.limit_reached("HEADER_LIST_BYTES");
        }
        std::mem::replace(&mut self.heads_refused, refused) < refused
    }

    /// Reads until there is nothing more, and handles what came.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        let mut buffer = self.worker.read_buffer();
        let result = self.read_into(&mut buffer, cx);
        self.worker.give_back(buffer);
        result
    }

    fn read_into(&mut self, buffer: &mut [u8], cx: &mut Context<'_>) -> Result<(), LinkError> {
        let mut left = BYTES_A_TURN;
        let was_held_back = std::mem::take(&mut self.is_held_back);
        self.is_unread = false;
        while !self.has_ended {
            if left == 0 {
                self.is_held_back = true;
                break;
            }
            let most = match self.reads(was_held_back) {
                Reads::All => buffer.len(),
                Reads::Little => LITTLE_BYTES,
                Reads::Nothing => break,
            };
            let begin = self.unread.len();
            if begin > 0 {
                buffer[..begin].copy_from_slice(&self.unread);
            }
            let end = buffer.len().min(begin + most);
            let mut read = ReadBuf::new(&mut buffer[begin..end]);
            match Pin::new(&mut self.io).poll_read(cx, &mut read) {
                Poll::Pending => break,
                Poll::Ready(result) => result?,
            }
            let count = read.filled().len();
            if count == 0 {
                self.has_ended = true;
                break;
            }
            left = left.saturating_sub(count.max(LEAST_A_READ));
            let mut input = &buffer[..begin + count];
            let handled = self.handle(&mut input);
            // A few bytes may expand to a list of many megabytes (CVE-2016-6581), so they cost more than their size
            // says.
            if self.count_limits() {
                left = 0;
            }
            // Nearly always nothing is left, and then no buffer is kept either.
            self.unread = if input.is_empty() { Vec::new() } else { input.to_vec() };
            handled?;
        }
        Ok(())
    }

    /// How much of what the peer has sent to read for now: nothing if it was too fast or does not read its answers.
    #[inline]
    fn reads(&mut self, was_held_back: bool) -> Reads {
        let core = self.link.core.borrow();
        let reads = self.link.counted.reads(|| (core.held_bytes(), core.has_unsent()), &self.link.driver);
        if reads == Reads::Nothing {
            self.is_unread = true;
            let held = core.held_bytes();
            if self.paused.is_none_or(|(_, before)| before != held) {
                self.paused = Some((self.worker.now(), held));
            }
            return reads;
        }
        self.paused = None;
        // The core's timer gives the turn in which a flooding peer is read again.
        if core.is_paused(self.worker.now().into_std()) {
            self.is_unread = true;
            return Reads::Nothing;
        }
        if !core.is_read_held() {
            return reads;
        }
        if !was_held_back {
            let row = if core.is_congested() { "SEND_BUFFER_BYTES" } else { "CONTROL_OUTPUT_BYTES" };
            self.worker.shared.metrics.limit_reached(row);
        }
        self.is_held_back = true;
        Reads::Nothing
    }

    fn handle(&mut self, input: &mut &[u8]) -> Result<(), LinkError> {
        let now = self.worker.now().into_std();
        loop {
            let event = self.link.core.borrow_mut().receive(input, now)?;
            match event {
                Some(event) => self.dispatch(event),
                None => return Ok(()),
            }
        }
    }

    fn dispatch(&mut self, event: Event<'_, Rc<dyn Exchange>>) {
        match event {
            Event::Request { stream, headers, is_end } => {
                self.has_requests = true;
                (self.on)(Incoming::Request(stream, headers, is_end));
            }
            Event::RequestTooLarge { stream, headers, is_end } => {
                (self.on)(Incoming::TooLarge(stream, headers, is_end));
            }
            Event::Response { call, headers, is_end, .. } => {
                if let Some(headers) = call.response_head(headers, is_end) {
                    self.link.recycle(headers);
                }
            }
            Event::Data { call, data, is_end, .. } => match self.role {
                Role::Server => call.request_data(data, is_end),
                Role::Client => call.response_data(data, is_end),
            },
            Event::Trailers { call, headers, .. } => {
                match self.role {
                    Role::Server => call.request_trailers(&headers),
                    Role::Client => call.response_trailers(&headers),
                }
                self.link.recycle(headers);
            }
            Event::Reset { call, code, cause, .. } => match self.role {
                Role::Server => call.caller_gone(code),
                Role::Client => call.endpoint_reset(code, cause),
            },
            Event::Settings => self.link.wake_settling(),
            Event::GoAway { code: Code::ENHANCE_YOUR_CALM } => self.link.was_calmed.set(true),
            // Room and windows have changed within the core.
            _ => {}
        }
    }

    #[inline]
    fn take_notices(&mut self) {
        loop {
            // Not `while let`: the borrow must end before the call gets the notice, because the call may need the core.
            let Some(notice) = self.link.core.borrow_mut().next_notice() else { return };
            self.tell(notice);
        }
    }

    #[inline(never)]
    fn tell(&self, notice: Notice<Rc<dyn Exchange>>) {
        match (notice, self.role) {
            (Notice::Sent { call, bytes, .. }, Role::Server) => call.response_sent(bytes),
            (Notice::Sent { call, bytes, .. }, Role::Client) => call.request_sent(bytes),
            (Notice::Unseen { call, .. }, _) => call.endpoint_unseen(),
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            {
                let mut core = self.link.core.borrow_mut();
                if core.output().is_empty() {
                    break;
                }
                match Pin::new(&mut self.io).poll_write(cx, core.output())? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => {
                        core.wrote(written);
                        self.has_written = true;
                    }
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            // Bytes that waited have been sent: calls may send more.
            self.take_notices();
            self.link.wake_held_up();
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(result) => result.map(Poll::Ready),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Handles timeouts that are due, and sets the sleep for the next one.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        loop {
            let due = self.link.core.borrow().next_timeout().map(Instant::from_std);
            let now = self.worker.now();
            match due {
                None => return Ok(()),
                Some(due) if due <= now => {
                    // A peer that has output waiting is judged by whether it takes any of it, not by its PING answer:
                    // the PING may be last in the output, and we may not be reading a peer that does not read.
                    let has_written = std::mem::take(&mut self.has_written);
                    let mut core = self.link.core.borrow_mut();
                    if self.is_unread || (has_written && !core.output().is_empty()) {
                        core.note_unread();
                    }
                    drop(core);
                    self.link.core.borrow_mut().on_timeout(now.into_std())?;
                    cx.waker().wake_by_ref();
                    if self.link.core.borrow().next_timeout().map(Instant::from_std) == Some(due) {
                        return Ok(());
                    }
                }
                Some(due) if self.wakes_at.is_some_and(|at| now < at && at <= due) => return Ok(()),
                Some(due) => {
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
                    sleep.as_mut().reset(due);
                    self.wakes_at = Some(due);
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Ok(());
                    }
                    self.worker.tick();
                }
            }
        }
    }

    /// Nothing is left to do; from now on the link wakes the driver when there is.
    fn rest(&mut self) {
        let (core, now) = (self.link.core.borrow(), self.worker.now());
        self.link.counted.set(core.held_and_unsent_bytes() + self.unread.len());
        self.link.is_awake.set(false);
        self.link.last_turn.set(now);
        if core.streams() > 0 {
            self.link.last_busy.set(now);
        }
    }
}

impl<IO, F> LinkDriver<IO, F> {
    /// Tells the calls that still run that the connection has ended.
    fn end(&mut self, why: &dyn std::fmt::Display, is_cut_off: bool) {
        self.link.is_gone.set(true);
        self.link.wake_settling();
        self.link.wake_held_up();
        let calls = self.link.core.borrow_mut().take_all();
        if calls.is_empty() {
            return;
        }
        let why = why.to_string();
        for call in calls {
            match self.role {
                Role::Server => call.caller_gone(Code::CANCEL),
                Role::Client if is_cut_off => call.endpoint_cut_off(&why),
                Role::Client => call.endpoint_lost(&why),
            }
        }
    }
}

/// After a panic, calls must not be left without an owner. When a worker ends normally, its calls end with it.
impl<IO, F> Drop for LinkDriver<IO, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end(&"of a bug in Weft", false);
        }
    }
}

/// Ends with the connection, and with it every call on it.
impl<IO, F> Future for LinkDriver<IO, F>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Incoming) + Unpin,
{
    type Output = Result<(), LinkError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let turn = self.turn(cx);
        self.worker.pulse.is_at(Work::Others);
        if let Poll::Ready(result) = &turn {
            match result {
                Ok(()) => self.end(&"it was closed", false),
                Err(e) => self.end(e, matches!(e, LinkError::Protocol(why) if why.limit.is_some())),
            }
        }
        turn
    }
}

#[cfg(test)]
mod tests;
