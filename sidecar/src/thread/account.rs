//! One budget for what all connections hold (`--memory`): bytes that were received and not yet forwarded, and bytes
//! that wait to be written. Windows bound each call, but there may be very many calls; the budget bounds them all
//! together.
//!
//! Each side of the sidecar has half of the budget, which the other side cannot take. On a side, each [`Load`] has a
//! part: it may hold as many bytes as all loads of that side together leave free ([`crate::thread::loads`]). So a
//! single load gets half, and there is always room for one more. Charges:
//!
//! | bytes | held by | charged to |
//! | --- | --- | --- |
//! | of requests that the local service has not taken from a peer | the peer's connections | the peer |
//! | of answers that a peer has not read | the peer's connections, and those to the local service | the peer |
//! | of requests that a callee has not read | the connections to it, and those of the local application | the callee |
//! | of answers that the local application has not read | the connections to the callee | the callee, so that other callees' answers still have room |
//! | of partial frames and header blocks | the connection | the peer, the callee or the local application |
//! | of large header lists of requests | the calls | the peer, or the local application |
//! | the rest, on the connections of the local application | these | the local application, which may use all of its side |
//! | the rest, on the connections to the local service | these: 256 KiB each, and a caller has few | nobody |
//!
//! A request's header list is kept until its call ends, so that the call can be retried, and its trailers are kept
//! until they are sent. HPACK lets a peer send a list of maximum length in some 20 bytes, so lists longer than
//! [`UNCOUNTED_LIST_BYTES`](weft_mesh::limits::UNCOUNTED_LIST_BYTES) count for the caller. Shorter ones are not
//! counted, because that would cost every call: [`CALLS_IN_FLIGHT`](weft_mesh::limits::CALLS_IN_FLIGHT) bounds them, to
//! 40 MiB for a single peer. The buffers that a connection keeps for the next calls are not counted either: they are at
//! most 1 MiB, after heavy traffic, and are freed within seconds, whether or not calls run on it
//! ([`crate::thread::worker::Worker::shrink`]).
//!
//! A part is never less than one stream's window, nor less than a 64th of its side. So a load that holds little is
//! never refused because of what another holds.
//!
//! A load past its part gets no new calls, and its connections are not read as long as they hold bytes. A connection
//! that holds nothing is read a little ([`LITTLE_BYTES`]), until it holds something. There is one exception: a
//! connection with unsent output needs its peer's window updates, and it gets them only if it is read. Such a
//! connection is read while its load has less than four times its part, if the connection holds no more than one
//! stream's window ([`limits::STREAM_WINDOW_BYTES`]), or if none of what its load holds has been forwarded for a while.
//! Otherwise two sidecars could wait for each other, when a service reads no more of its requests until its answers are
//! sent. At four times its part, the calls whose bytes wait for that load are aborted. Nothing else stops them: their
//! flow-control windows are already granted to other peers, who share the connection that holds the bytes.
//!
//! While a connection is not read, the sidecar does not notice that its calls were cancelled or that its peer has gone.
//! So a connection to another sidecar ends if none of its bytes is forwarded for
//! [`PAUSED_TIME`](weft_mesh::limits::PAUSED_TIME).
//!
//! A connection counts its bytes at the end of each turn. A worker adds them up by itself and reports to the process in
//! steps, so a turn costs two additions and hardly ever touches what workers share. A load belongs to one worker: with
//! more workers, a peer has a part on each, and each part is smaller as the others fill.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use weft_mesh::limits;

use crate::{
    shared::budget::{Budget, Part},
    telemetry::metrics::Metrics,
    thread::loads::{Load, Share},
};

/// A worker reports to the process when its sum has changed by this many bytes.
const STEP: usize = 256 * 1024;
/// How often paused connections are checked for room.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What one side of a worker holds.
#[derive(Debug)]
pub(crate) struct Account {
    part: Arc<Part>,
    metrics: Arc<Metrics>,
    held: Cell<usize>,
    /// The sum that was last reported to the process.
    reported: Cell<usize>,
    /// Connections that are not read.
    paused: RefCell<Vec<Paused>>,
    has_paused: Notify,
}

/// The accounts of a worker.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) outbound: Rc<Account>,
    pub(crate) inbound: Rc<Account>,
}

/// A connection that is not read.
#[derive(Debug)]
struct Paused {
    load: Rc<Load>,
    state: Rc<PauseState>,
    driver: Waker,
    /// The least that its load has held since it was paused or made progress.
    least: usize,
    since: Instant,
}

/// What a paused connection shares with the account's list of paused connections.
#[derive(Debug, Default)]
struct PauseState {
    /// It is in that list.
    is_listed: Cell<bool>,
    has_unsent: Cell<bool>,
    /// It holds no more than one stream's window.
    is_small: Cell<bool>,
    /// None of what its load holds was forwarded for [`STUCK_TIME`]. Reset when there is room.
    is_stuck: Cell<bool>,
}

impl PauseState {
    /// The connection is read while its load has less than this many times its part.
    fn parts(&self) -> usize {
        let is_awaited = self.has_unsent.get() && (self.is_small.get() || self.is_stuck.get());
        if is_awaited { PARTS_AT_MOST } else { 1 }
    }
}

/// How much of a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    All,
    /// [`LITTLE_BYTES`] at a time.
    Little,
    Nothing,
}

/// The least that can be read from a TLS connection: a whole record.
pub(crate) const LITTLE_BYTES: usize = 21 << 10;

/// What one connection has on its worker's account.
#[derive(Debug)]
pub(crate) struct Counted {
    account: Rc<Account>,
    load: RefCell<Rc<Load>>,
    held: Cell<usize>,
    state: Rc<PauseState>,
}

impl Counted {
    pub(crate) fn new(account: &Rc<Account>, load: &Rc<Load>) -> Self {
        Self {
            account: Rc::clone(account),
            load: RefCell::new(Rc::clone(load)),
            held: Cell::new(0),
            state: Rc::default(),
        }
    }

    /// Counts that the connection holds `held` bytes now.
    #[inline]
    pub(crate) fn set(&self, held: usize) {
        let before = self.held.replace(held);
        if before != held {
            self.account.change(before, held);
            self.load.borrow().change(before, held);
        }
    }

    /// The bytes that it held at the last count.
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// The load that it counts for.
    pub(crate) fn load(&self) -> Rc<Load> {
        Rc::clone(&self.load.borrow())
    }

    /// Counts it for another load from now on.
    pub(crate) fn belongs_to(&self, load: &Rc<Load>) {
        let held = self.held.get();
        load.change(0, held);
        self.load.replace(Rc::clone(load)).change(held, 0);
    }

    /// Whether it is paused although it holds nothing any more (`held` is 0): its driver must be woken.
    #[inline]
    pub(crate) fn is_relieved(&self, held: usize) -> bool {
        held == 0 && self.state.is_listed.get()
    }

    /// How much to read from the connection for now. `tell` returns the bytes that it holds and whether output is
    /// unsent; it is called only when memory is tight. After [`Reads::Nothing`], the driver is woken when there is
    /// room.
    #[inline]
    pub(crate) fn reads(&self, tell: impl FnOnce() -> (usize, bool), driver: &RefCell<Waker>) -> Reads {
        if !self.account.is_tight() {
            return Reads::All;
        }
        let (held, has_unsent) = tell();
        self.reads_little(held, has_unsent, driver)
    }

    #[cold]
    fn reads_little(&self, held: usize, has_unsent: bool, driver: &RefCell<Waker>) -> Reads {
        let (account, load, state) = (&self.account, &*self.load.borrow(), &self.state);
        state.has_unsent.set(has_unsent);
        state.is_small.set(held <= limits::STREAM_WINDOW_BYTES as usize);
        if account.has_room(load, 1) {
            state.is_stuck.set(false);
            return Reads::All;
        }
        if held == 0 || account.has_room(load, state.parts()) {
            return Reads::Little;
        }
        if !state.is_listed.replace(true) {
            account.paused.borrow_mut().push(Paused {
                load: Rc::clone(load),
                state: Rc::clone(state),
                driver: driver.borrow().clone(),
                least: load.bytes(),
                since: Instant::now(),
            });
            account.has_paused.notify_one();
        }
        Reads::Nothing
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
        self.state.is_listed.set(false);
    }
}

/// If none of what a load holds was forwarded for this long, its connections probably wait for the peer's window
/// updates.
const STUCK_TIME: Duration = Duration::from_millis(200);
/// A part is never less than this, nor than this share of its side.
const LEAST_PART: usize = limits::STREAM_WINDOW_BYTES as usize;
const LEAST_PART_OF_SIDE: usize = 64;
/// At this many parts, calls whose bytes wait for a load are aborted.
const PARTS_AT_MOST: usize = 4;

impl Account {
    fn new(part: &Arc<Part>, metrics: &Arc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            part: Arc::clone(part),
            metrics: Arc::clone(metrics),
            held: Cell::new(0),
            reported: Cell::new(0),
            paused: RefCell::default(),
            has_paused: Notify::new(),
        })
    }

    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// What this side of the process holds.
    pub(crate) fn used(&self) -> usize {
        self.part.used()
    }

    /// Whether any load can be past its part: none is as long as all together have less than half.
    #[inline]
    pub(crate) fn is_tight(&self) -> bool {
        2 * self.part.used() >= self.part.bytes
    }

    /// Whether a load may have a new call.
    #[inline]
    pub(crate) fn takes_calls(&self, load: &Load) -> bool {
        let takes = !self.is_tight() || self.has_room(load, 1);
        if !takes {
            self.metrics.limit_reached("MEMORY_BYTES");
        }
        takes
    }

    /// Whether calls whose bytes wait for a load must be aborted.
    pub(crate) fn is_overdrawn(&self, load: &Load) -> bool {
        self.is_tight() && !self.has_room(load, PARTS_AT_MOST)
    }

    /// See [`LEAST_PART`].
    fn least_part(&self) -> usize {
        LEAST_PART.max(self.part.bytes / LEAST_PART_OF_SIDE)
    }

    /// Whether a load holds less than `parts` times its part.
    fn has_room(&self, load: &Load, parts: usize) -> bool {
        let left = self.part.bytes.saturating_sub(self.part.used());
        match load.share() {
            // A minimum, however little is left: otherwise one load that holds too much would stop everyone's calls.
            Share::Part => load.bytes() < parts * left.max(self.least_part()),
            Share::WholeSide => left > 0,
            Share::OfNobody => true,
        }
    }

    /// A connection holds `now` bytes instead of `before`.
    #[inline]
    fn change(&self, before: usize, now: usize) {
        let held = self.held.get() + now - before;
        self.held.set(held);
        if held.abs_diff(self.reported.get()) >= STEP {
            self.tell(held);
        }
    }

    #[cold]
    fn tell(&self, held: usize) {
        // Addition wraps around, so the difference may be negative.
        self.part.used.fetch_add(held.wrapping_sub(self.reported.replace(held)), Relaxed);
    }

    /// Wakes the paused connections whose load has room. Returns whether some are still paused.
    fn resume(&self) -> bool {
        let (mut woken, now) = (Vec::new(), Instant::now());
        self.paused.borrow_mut().retain_mut(|paused| {
            let (state, bytes) = (&paused.state, paused.load.bytes());
            if bytes < paused.least {
                (paused.least, paused.since) = (bytes, now);
            }
            if now.saturating_duration_since(paused.since) >= STUCK_TIME {
                state.is_stuck.set(true);
            }
            let stays = state.is_listed.get() && !self.has_room(&paused.load, state.parts());
            if !stays && state.is_listed.replace(false) {
                woken.push(paused.driver.clone());
            }
            stays
        });
        woken.into_iter().for_each(Waker::wake);
        !self.paused.borrow().is_empty()
    }

    /// Resumes paused connections once there is room. Runs for as long as it is polled.
    async fn attend(&self) {
        loop {
            self.has_paused.notified().await;
            self.metrics.limit_reached("MEMORY_BYTES");
            while self.resume() {
                sleep(LOOK_INTERVAL).await;
            }
        }
    }
}

impl Accounts {
    pub(crate) fn new(Budget { outbound, inbound, .. }: &Budget, metrics: &Arc<Metrics>) -> Self {
        Self { outbound: Account::new(outbound, metrics), inbound: Account::new(inbound, metrics) }
    }

    /// The bytes that both sides hold.
    pub(crate) fn held(&self) -> usize {
        self.outbound.held() + self.inbound.held()
    }

    /// Resumes paused connections once there is room. Runs for as long as it is polled.
    pub(crate) async fn attend(&self) {
        tokio::join!(self.outbound.attend(), self.inbound.attend());
    }
}

/// Bytes that wait for one load, in a connection of another: charged to the load that they wait for, until they are
/// sent or this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    load: Rc<Load>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(load: Rc<Load>) -> Self {
        Self { load, bytes: 0 }
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.set(self.bytes + bytes);
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.set(self.bytes.saturating_sub(bytes));
    }

    fn set(&mut self, bytes: usize) {
        self.load.change(self.bytes, bytes);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests;
