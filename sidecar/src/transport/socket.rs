//! A connection that carries one call at a time: HTTP/1.1, or raw bytes.
//!
//! A call holds a [`Socket`], as it holds a [`crate::transport::link::Link`] for HTTP/2; [`driver`] carries its bytes.
//! On the outbound port its peer is a client, on the inbound port the local service. Bytes that the peer can't take yet
//! wait in the output, and the call is told how many. No more is read until the call has forwarded what it has.

mod core;
mod driver;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Waker,
};

use tokio::time::Instant;
use weft_wire::{Code, Headers, Usage, http1};

use self::core::{Core, Sent};
#[cfg(test)]
use self::driver::Stream;
pub(crate) use self::driver::{Occasion, SocketDriver, SocketError};
use crate::{
    shared::survey::Accepts,
    thread::{
        account::Counted,
        loads::Load,
        worker::{Accepting, Worker, is_quiet},
    },
    transport::{exchange::Exchange, link::Role},
};

/// See the module.
pub(crate) struct Socket {
    core: RefCell<Core>,
    pub(crate) role: Role,
    driver: RefCell<Waker>,
    /// The driver has its turn, or was woken for one.
    is_awake: Cell<bool>,
    is_gone: Cell<bool>,
    /// It has carried a whole call before.
    was_used: Cell<bool>,
    idle_since: Cell<Instant>,
    drained_since: Cell<Option<Instant>>,
    counted: Counted,
}

impl Socket {
    /// A client's HTTP/1.1 connection.
    pub(crate) fn http1_server(worker: &Worker) -> Rc<Self> {
        Self::new(worker, Role::Server, Core::http1(Role::Server, worker.shared.args.header_list_bytes))
    }

    /// A connection to a service that speaks HTTP/1.1.
    pub(crate) fn http1_client(worker: &Worker) -> Rc<Self> {
        Self::new(worker, Role::Client, Core::http1(Role::Client, worker.shared.args.header_list_bytes))
    }

    /// A connection whose bytes are the body of one call.
    pub(crate) fn raw(worker: &Worker, role: Role) -> Rc<Self> {
        Self::new(worker, role, Core::raw(role))
    }

    fn new(worker: &Worker, role: Role, core: Core) -> Rc<Self> {
        let counted = match role {
            Role::Server => Counted::new(&worker.accounts.outbound, &worker.local_load),
            Role::Client => Counted::new(&worker.accounts.inbound, &worker.to_local),
        };
        Rc::new(Self {
            core: RefCell::new(core),
            role,
            driver: RefCell::new(Waker::noop().clone()),
            is_awake: Cell::new(false),
            is_gone: Cell::new(false),
            was_used: Cell::new(false),
            idle_since: Cell::new(worker.now()),
            drained_since: Cell::new(None),
            counted,
        })
    }

    /// Whether it will never take a call again.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.get()
    }

    /// Whether its bytes are the body of a call.
    pub(crate) fn is_raw(&self) -> bool {
        self.core.borrow().is_raw()
    }

    /// Since when nothing runs on it; `None` while something does.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        self.core.borrow().is_idle().then(|| self.idle_since.get())
    }

    /// The call on it.
    pub(crate) fn call(&self) -> Option<Rc<dyn Exchange>> {
        self.core.borrow().call.clone()
    }

    /// Whether its peer does not read what it is sent.
    pub(crate) fn is_congested(&self) -> bool {
        self.core.borrow().is_congested()
    }

    /// What it holds now.
    pub(crate) fn usage(&self) -> Usage {
        self.core.borrow().usage()
    }

    /// Directs the events on it to a call.
    pub(crate) fn attach(&self, call: Rc<dyn Exchange>) {
        self.core.borrow_mut().call = Some(call);
    }

    /// Charges what it holds to the peer whose call it carries.
    pub(crate) fn belongs_to(&self, load: &Rc<Load>) {
        self.counted.belongs_to(load);
    }

    /// Opens a call over an idle connection to a service.
    pub(crate) fn open(&self, head: &Headers, is_end: bool, call: Rc<dyn Exchange>) -> Result<(), http1::Error> {
        self.act(|core| core.open(head, is_end, call))
    }

    /// Answers in place of a call, and closes the connection.
    pub(crate) fn refuse(&self, head: &Headers, text: &str) {
        self.act(|core| core.refuse(head, text));
    }

    pub(crate) fn respond(&self, head: &Headers, is_end: bool) {
        self.act(|core| core.respond(head, is_end));
    }

    /// Sends a part of a body; returns how many bytes have to wait until the peer has taken others.
    pub(crate) fn send_data(&self, data: &[u8], is_end: bool) -> usize {
        self.act(|core| core.send_data(data, is_end))
    }

    pub(crate) fn send_trailers(&self, trailers: &Headers) {
        self.act(|core| core.send_trailers(trailers));
    }

    /// Ends the running call early, and the connection with it. If the answer is complete, the connection goes on once
    /// the rest of the request has been read.
    pub(crate) fn reset(&self, code: Code) {
        self.act(|core| core.reset(code));
    }

    /// Detaches the call; what is on its way to the peer is still sent.
    pub(crate) fn detach(&self) {
        self.act(Core::detach);
    }

    /// Lets the peer send `bytes` more, because as many were forwarded.
    pub(crate) fn release(&self, bytes: usize) {
        self.act(|core| core.release(bytes));
    }

    /// Takes back the header list of an event, to reuse it for the next one.
    pub(crate) fn recycle(&self, headers: Headers) {
        self.core.borrow_mut().recycle(headers);
    }

    /// Frees the output buffer if nothing has run on it for a while. A large buffer was freed as soon as it was empty.
    pub(crate) fn shrink(&self, now: Instant) {
        if self.idle_since().is_some_and(|since| is_quiet(since, now)) {
            self.core.borrow_mut().shrink();
        }
    }

    /// Closes it when the running call is over. If none runs it stays open for a moment: the client may be sending a
    /// request just now, and the answer tells it that the connection closes.
    pub(crate) fn drain(&self, now: Instant) {
        self.core.borrow_mut().drain();
        self.drained_since.set(Some(now));
        self.driver.borrow().wake_by_ref();
    }

    /// Closes it; no call may run on it.
    pub(crate) fn close(&self) {
        self.act(Core::close);
    }

    fn act<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.borrow_mut();
        let fate = core.fate;
        let result = act(&mut core);
        if !self.is_awake.get() {
            if core.has_work() || core.fate != fate {
                self.is_awake.set(true);
                self.driver.borrow().wake_by_ref();
            } else {
                // No turn follows that would count it.
                self.counted.set(core.held_and_unsent_bytes());
                if self.counted.is_relieved(core.held_bytes()) {
                    self.is_awake.set(true);
                    self.driver.borrow().wake_by_ref();
                }
            }
        }
        result
    }

    /// How many of the waiting bytes were sent, and the call to notify.
    fn take_sent(&self) -> Option<(Rc<dyn Exchange>, Sent)> {
        self.core.borrow_mut().take_sent()
    }
}

impl Accepting for Socket {
    fn drain(&self, now: Instant) {
        self.drain(now);
    }

    fn shrink(&self, now: Instant) {
        self.shrink(now);
    }

    fn survey(&self, to: &mut Accepts) {
        to.sockets.push(self.usage());
        to.calls.extend(self.call().map(|call| call as _));
    }
}
