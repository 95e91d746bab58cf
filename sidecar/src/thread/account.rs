//! One budget for what all connections hold (`--memory`): bytes that have come in and have not gone out, and what waits to be
//! written. Each call has its windows, and there may be very many calls; this bounds them all together.
//!
//! Each side of the sidecar has half of the budget, which the other side cannot take. On a side, each [`Load`] has a part:
//! it may hold as many bytes as all loads of that side together leave free ([`crate::thread::loads`]). One load alone comes to half,
//! and there is always room for one more. Who is charged for what:
//!
//! | bytes | held by | charged to |
//! | --- | --- | --- |
//! | of requests that a peer sends and the local service has not taken | the peer's connections | the peer |
//! | of answers that a peer has not read | the peer's connections, and those to the local service | the peer |
//! | of requests that a callee has not read | the connections to it, and those of the local application | the callee |
//! | of answers that the local application has not read | the connections to the callee | the callee, so that other callees' answers still have room |
//! | of frames and header blocks of which more is to come | the connection | the peer, the callee or the local application |
//! | of large header lists of requests | the calls | the peer, or the local application |
//! | the rest, on the connections of the local application | these | the local application, which may use all of its side |
//! | the rest, on the connections to the local service | these: 256 KiB each, and a caller has few | nobody |
//!
//! A request's header list is kept until its call ends, so that the call can be sent again, and so are its trailers until they
//! have gone: HPACK lets a peer send the longest of lists in some 20 bytes. They count for the caller if they are longer than
//! [`UNCOUNTED_LIST_BYTES`](weft_mesh::limits::UNCOUNTED_LIST_BYTES). Shorter ones are not counted, as that would cost every
//! call: [`CALLS_IN_FLIGHT`](weft_mesh::limits::CALLS_IN_FLIGHT)
//! bounds them, to 40 MiB for one peer alone. Nor are the buffers counted that a connection keeps for the next calls: they are
//! 1 MiB at most, if it has just carried much, and are given back within seconds, whether or not calls run on it
//! ([`crate::thread::worker::Worker::shrink`]).
//!
//! A part is never less than one stream's window, nor than a 64th of its side, so who holds little is never refused for what
//! another holds.
//!
//! A load past its part gets no new calls, and its connections are not read as long as they hold something. Of one that holds
//! nothing, little is read ([`LITTLE_BYTES`]) before it holds something. A connection that has something to send needs its
//! peer's window updates, which come the same way. It is read as long as its load has less than four times its part if it
//! holds no more than one stream's window ([`limits::STREAM_WINDOW_BYTES`]), or if nothing of what its load holds has gone on
//! for a while. Else two sidecars would wait for each other: the service takes no more of the requests before its answers
//! have gone. From four times on the calls whose bytes wait for that load are broken off. That is the only way to stop them:
//! their windows were given to others, who share the connection that holds the bytes.
//!
//! While a connection is not read, nobody hears that its calls were given up, or that its peer has gone. So one of another
//! sidecar ends when nothing that it holds has gone on for [`PAUSED_TIME`](weft_mesh::limits::PAUSED_TIME).
//!
//! A connection counts its bytes at the end of each turn. A worker adds them up on its own and tells the process in steps,
//! so a turn costs two additions, and hardly ever touches what workers share. A load is one worker's: with more workers, a
//! peer has a part on each, and each part is smaller as the others fill.

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

/// A worker tells the process when so much has changed.
const STEP: usize = 256 * 1024;
/// How often it is looked whether there is room again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What one side of a worker holds.
#[derive(Debug)]
pub(crate) struct Account {
    part: Arc<Part>,
    metrics: Arc<Metrics>,
    held: Cell<usize>,
    told: Cell<usize>,
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
    /// The least that its load held since then.
    least: usize,
    since: Instant,
}

/// What a paused connection and the list of them share.
#[derive(Debug, Default)]
struct PauseState {
    /// It is among those that are paused.
    is_listed: Cell<bool>,
    has_unsent: Cell<bool>,
    /// It holds no more than one stream's window.
    is_small: Cell<bool>,
    /// Nothing that its load holds has gone on for [`STUCK_TIME`], until there is room.
    is_stuck: Cell<bool>,
}

impl PauseState {
    /// It is read while its load has less than so many times its part.
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

/// The least that can be read of a connection with TLS: a whole record.
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

    /// It holds so much now.
    #[inline]
    pub(crate) fn set(&self, held: usize) {
        let before = self.held.replace(held);
        if before != held {
            self.account.change(before, held);
            self.load.borrow().change(before, held);
        }
    }

    /// What it held when it was counted last.
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// Whom it counts for.
    pub(crate) fn load(&self) -> Rc<Load> {
        Rc::clone(&self.load.borrow())
    }

    /// It counts for another from now on.
    pub(crate) fn belongs_to(&self, load: &Rc<Load>) {
        let held = self.held.get();
        load.change(0, held);
        self.load.replace(Rc::clone(load)).change(held, 0);
    }

    /// Whether it is paused and has nothing left for which it is, where it holds so much: its driver is to be woken.
    #[inline]
    pub(crate) fn is_relieved(&self, held: usize) -> bool {
        held == 0 && self.state.is_listed.get()
    }

    /// How much of the connection is to be read for now, which tells how much it holds and whether something is unsent. Where
    /// it is nothing, its driver is woken when there is room.
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

/// When nothing that a load holds has gone on for so long, its connections wait for its peer's windows.
const STUCK_TIME: Duration = Duration::from_millis(200);
/// A part is never less than this, nor than this share of its side.
const LEAST_PART: usize = limits::STREAM_WINDOW_BYTES as usize;
const LEAST_PART_OF_SIDE: usize = 64;
/// From so many parts on, calls are broken off whose bytes wait for a load.
const PARTS_AT_MOST: usize = 4;

impl Account {
    fn new(part: &Arc<Part>, metrics: &Arc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            part: Arc::clone(part),
            metrics: Arc::clone(metrics),
            held: Cell::new(0),
            told: Cell::new(0),
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

    /// Whether any load may be past its part: as long as all together have less than half, none is.
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

    /// Whether calls whose bytes wait for a load are to be broken off.
    pub(crate) fn is_overdrawn(&self, load: &Load) -> bool {
        self.is_tight() && !self.has_room(load, PARTS_AT_MOST)
    }

    /// See [`LEAST_PART`].
    fn least_part(&self) -> usize {
        LEAST_PART.max(self.part.bytes / LEAST_PART_OF_SIDE)
    }

    /// Whether a load holds less than so many times its part.
    fn has_room(&self, load: &Load, parts: usize) -> bool {
        let left = self.part.bytes.saturating_sub(self.part.used());
        match load.share() {
            // However little is left: else nobody would have a call as long as one load holds too much.
            Share::Part => load.bytes() < parts * left.max(self.least_part()),
            Share::WholeSide => left > 0,
            Share::OfNobody => true,
        }
    }

    /// A connection holds `now` where it held `before`.
    #[inline]
    fn change(&self, before: usize, now: usize) {
        let held = self.held.get() + now - before;
        self.held.set(held);
        if held.abs_diff(self.told.get()) >= STEP {
            self.tell(held);
        }
    }

    #[cold]
    fn tell(&self, held: usize) {
        // Sums wrap around, so that the difference may be negative.
        self.part.used.fetch_add(held.wrapping_sub(self.told.replace(held)), Relaxed);
    }

    /// Has those that were paused read again for whose load there is room. Says whether some still are.
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

    /// Has connections read again once there is room. Runs for as long as it is polled.
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

    /// Of both sides.
    pub(crate) fn held(&self) -> usize {
        self.outbound.held() + self.inbound.held()
    }

    /// Has connections read again once there is room. Runs for as long as it is polled.
    pub(crate) async fn attend(&self) {
        tokio::join!(self.outbound.attend(), self.inbound.attend());
    }
}

/// Bytes that wait for a load to take them and that another's connection holds: charged to the load until they have gone,
/// or this is dropped.
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
