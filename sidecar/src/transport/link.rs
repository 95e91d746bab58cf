//! One HTTP/2 connection: the protocol's core, which does no I/O, and the handle that calls hold. [`driver`] carries
//! its bytes.
//!
//! Each method of a [`Link`] borrows the core briefly and never calls back, so two relaying connections cannot borrow
//! each other re-entrantly.

pub(crate) mod driver;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;
use weft_wire::{CannotOpen, Code, Headers, Limits, StreamId, Usage};

use crate::{
    shared::survey::Accepts,
    thread::{
        account::Counted,
        expiry::Expiring,
        loads::Load,
        worker::{Accepting, Worker, is_quiet},
    },
    transport::{exchange::Exchange, room::Room},
};

/// A window that stays low for this long counts as blocked: a server that reads opens its window much sooner.
const BLOCKED_TIME: Duration = Duration::from_millis(20);

type Core = weft_wire::Connection<Rc<dyn Exchange>>;

/// See the module.
pub(crate) struct Link {
    core: RefCell<Core>,
    driver: RefCell<Waker>,
    /// The driver has its turn, or was woken for one.
    is_awake: Cell<bool>,
    is_gone: Cell<bool>,
    /// When its driver had its last turn, and the last turn after which a call was still running.
    last_turn: Cell<Instant>,
    last_busy: Cell<Instant>,
    /// The task that waits for the peer's settings.
    settling: RefCell<Option<Waker>>,
    /// Calls that wait for room on this connection, or on another one to the same destination.
    room: Option<Rc<Room>>,
    /// Tasks that wait until the peer has read some of what was sent.
    held_up: RefCell<Vec<Waker>>,
    /// How many calls may be cancelled on it until another is preferred.
    resets_left: Cell<u32>,
    was_calmed: Cell<bool>,
    counted: Counted,
    /// The certificate of one side has expired.
    is_expired: Cell<bool>,
}

impl Link {
    /// A connection on which calls come in.
    pub(crate) fn server(worker: &Worker, limits: &Arc<Limits>, counted: Counted) -> Rc<Self> {
        Self::new(worker, Core::server(limits, worker.now().into_std()), None, counted)
    }

    /// A connection on which calls go out; `room` is notified when it takes another.
    pub(crate) fn client(worker: &Worker, limits: &Arc<Limits>, room: &Rc<Room>, counted: Counted) -> Rc<Self> {
        Self::new(worker, Core::client(limits, worker.now().into_std()), Some(Rc::clone(room)), counted)
    }

    fn new(worker: &Worker, core: Core, room: Option<Rc<Room>>, counted: Counted) -> Rc<Self> {
        Rc::new(Self {
            core: RefCell::new(core),
            driver: RefCell::new(Waker::noop().clone()),
            is_awake: Cell::new(false),
            is_gone: Cell::new(false),
            last_turn: Cell::new(worker.now()),
            last_busy: Cell::new(worker.now()),
            settling: RefCell::default(),
            room,
            held_up: RefCell::default(),
            resets_left: Cell::new(u32::MAX),
            was_calmed: Cell::new(false),
            counted,
            is_expired: Cell::new(false),
        })
    }

    /// Whether a call can be opened now.
    pub(crate) fn has_room(&self) -> bool {
        !self.is_gone.get() && self.core.borrow().can_open()
    }

    /// Whether most of the peer's window for the whole connection is used up.
    pub(crate) fn is_low(&self) -> bool {
        self.core.borrow().low_window_since().is_some()
    }

    /// Whether calls on it may have to wait for one whose body the peer does not read: most of the connection's window
    /// is used up, and the peer has opened none of it for [`BLOCKED_TIME`].
    pub(crate) fn is_blocked(&self, now: Instant) -> bool {
        let since = self.core.borrow().low_window_since();
        since.is_some_and(|since| now.into_std().saturating_duration_since(since) >= BLOCKED_TIME)
    }

    /// How many calls can be opened now.
    pub(crate) fn room(&self) -> usize {
        if !self.has_room() {
            return 0;
        }
        let core = self.core.borrow();
        core.peer_stream_limit() - core.streams()
    }

    /// The longest header list that the peer takes.
    pub(crate) fn header_list_bytes(&self) -> u32 {
        self.core.borrow().peer_header_list_bytes()
    }

    /// Wakes a call that waits for room, if there is room.
    #[inline]
    fn offer_room(&self) {
        if let Some(room) = &self.room
            && !room.is_free()
            && self.has_room()
        {
            room.has_come();
        }
    }

    /// Whether the peer takes extended CONNECT, which an HTTP/1.1 upgrade becomes (RFC 8441).
    pub(crate) fn takes_upgrades(&self) -> bool {
        self.core.borrow().is_connect_protocol_enabled()
    }

    /// Whether it will never take a call again.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.get()
    }

    /// Prefers another connection once `count` calls were cancelled on this one.
    pub(crate) fn allow_resets(&self, count: u32) {
        self.resets_left.set(count);
    }

    /// Prefers another connection as soon as there is one.
    pub(crate) fn wear_out(&self) {
        self.allow_resets(0);
    }

    /// Whether another connection is preferred.
    pub(crate) fn is_worn(&self) -> bool {
        self.resets_left.get() == 0
    }

    /// Whether the peer has ended it with ENHANCE_YOUR_CALM.
    pub(crate) fn was_calmed(&self) -> bool {
        self.was_calmed.get()
    }

    /// Waits for the peer's SETTINGS.
    pub(crate) async fn settled(&self) -> Result<(), &'static str> {
        poll_fn(|cx| {
            if self.is_gone.get() {
                return Poll::Ready(Err("the connection ended before HTTP/2 began"));
            }
            if self.core.borrow().has_settings() {
                return Poll::Ready(Ok(()));
            }
            *self.settling.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether it takes no call only because the peer has not read yet what was sent.
    pub(crate) fn is_congested(&self) -> bool {
        !self.is_gone.get() && self.core.borrow().is_congested()
    }

    /// Waits until the peer has read some of what was sent, or the connection is gone.
    pub(crate) async fn relieved(&self) {
        poll_fn(|cx| {
            if !self.is_congested() {
                return Poll::Ready(());
            }
            self.held_up.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    #[inline]
    fn wake_held_up(&self) {
        if !self.held_up.borrow().is_empty() && !self.is_congested() {
            self.held_up.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Since when nothing runs on it; `None` while something does.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.core.borrow().streams() == 0).then(|| self.last_busy.get())
    }

    /// The load that its bytes are charged to.
    pub(crate) fn load(&self) -> Rc<Load> {
        self.counted.load()
    }

    /// Whether it held anything after its last turn.
    pub(crate) fn is_behind(&self) -> bool {
        self.counted.held() > 0
    }

    /// The calls on it.
    pub(crate) fn calls(&self) -> Vec<Rc<dyn Exchange>> {
        self.core.borrow().attached().map(Rc::clone).collect()
    }

    /// What it holds now.
    pub(crate) fn usage(&self) -> Usage {
        self.core.borrow().usage()
    }

    /// Opens a call. If it fails, nothing was sent.
    pub(crate) fn open(&self, head: &Headers, is_end: bool, call: Rc<dyn Exchange>) -> Result<StreamId, CannotOpen> {
        self.act(|core| core.open(head, is_end, call))
    }

    /// Directs a stream's events to a call.
    #[inline]
    pub(crate) fn attach(&self, stream: StreamId, call: Rc<dyn Exchange>) {
        self.core.borrow_mut().attach(stream, call);
    }

    pub(crate) fn respond(&self, stream: StreamId, head: &Headers, is_end: bool) {
        self.act(|core| core.respond(stream, head, is_end));
    }

    /// Sends a part of a body; returns how many bytes have to wait for the peer's window.
    pub(crate) fn send_data(&self, stream: StreamId, data: &[u8], is_end: bool) -> usize {
        self.act(|core| core.send_data(stream, data, is_end))
    }

    pub(crate) fn send_trailers(&self, stream: StreamId, trailers: &Headers) {
        self.act(|core| core.send_trailers(stream, trailers));
    }

    pub(crate) fn reset(&self, stream: StreamId, code: Code) {
        self.resets_left.set(self.resets_left.get().saturating_sub(1));
        self.act(|core| core.reset(stream, code));
    }

    /// Lets a stream end by itself, with no more events for its call.
    pub(crate) fn detach(&self, stream: StreamId) {
        self.act(|core| core.detach(stream));
    }

    /// Returns flow-control credit to the peer for `bytes` that were forwarded.
    pub(crate) fn release(&self, stream: StreamId, bytes: usize) {
        self.act(|core| core.release(stream, bytes));
    }

    /// Takes back the header list of an event, to reuse it for the next one.
    pub(crate) fn recycle(&self, headers: Headers) {
        self.core.borrow_mut().recycle(headers);
    }

    /// Frees buffers that are not in use: all of them if nothing has moved for a while, otherwise only large ones.
    pub(crate) fn shrink(&self, now: Instant) {
        let mut core = self.core.borrow_mut();
        if is_quiet(self.last_turn.get(), now) { core.shrink() } else { core.trim() }
    }

    /// Sends GOAWAY; the connection ends when its last call has ended.
    pub(crate) fn drain(&self, now: Instant) {
        self.act(|core| core.drain(now.into_std()));
    }

    /// Ends the connection in its next turn, because the certificate of one side has expired.
    pub(crate) fn expire(&self) {
        self.is_expired.set(true);
        self.driver.borrow().wake_by_ref();
    }

    fn wake_settling(&self) {
        if let Some(waker) = self.settling.borrow_mut().take() {
            waker.wake();
        }
    }

    fn act<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.borrow_mut();
        let result = act(&mut core);
        if !self.is_awake.get() {
            if core.output().is_empty() {
                // No turn follows that would count it.
                self.counted.set(core.held_and_unsent_bytes());
                if self.counted.is_relieved(core.held_bytes()) {
                    self.is_awake.set(true);
                    self.driver.borrow().wake_by_ref();
                }
            } else {
                self.is_awake.set(true);
                self.driver.borrow().wake_by_ref();
            }
        }
        result
    }
}

/// On a connection where calls come in, GOAWAY tells the peer to make another one.
impl Expiring for Link {
    fn renew(&self) {
        self.drain(Instant::now());
    }

    fn expire(&self) {
        self.expire();
    }
}

impl Accepting for Link {
    fn drain(&self, now: Instant) {
        self.drain(now);
    }

    fn shrink(&self, now: Instant) {
        self.shrink(now);
    }

    fn survey(&self, to: &mut Accepts) {
        to.links.push(self.usage());
        to.calls.extend(self.calls().into_iter().map(|call| call as _));
    }
}

/// Which end of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}
