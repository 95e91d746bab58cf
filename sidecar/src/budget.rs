//! One budget for what all connections hold (`--memory`): bytes that have come in and have not gone out, and what waits to be
//! written. Each call has its windows, and there may be very many calls; this bounds them all together.
//!
//! A connection counts what it holds at the end of each turn. A worker adds that up on its own and tells the process in
//! steps, so a turn costs an addition, and hardly ever touches what workers share.
//!
//! Past the budget the sidecar sheds. New calls are refused, and a connection whose bytes have not gone on is not read until
//! they have. One that has something to write is read on for a while, as its peer's windows come that way and what waits
//! could never go; it has [`limits::STREAM_WINDOW_BYTES`] for that. A connection that is not read for longer than sidecars
//! wait for a sign of life ends, and what it holds is free.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};
use weft_mesh::limits;

use crate::worker::Worker;

/// The budget of a process.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    /// As the workers have told.
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, used: AtomicUsize::new(0) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    #[inline]
    pub(crate) fn is_exceeded(&self) -> bool {
        self.used() > self.bytes
    }
}

/// A worker tells the process when so much has changed.
const STEP: usize = 256 * 1024;
/// How often it is looked whether there is room again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What one worker holds.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) budget: Arc<Budget>,
    held: Cell<usize>,
    told: Cell<usize>,
    /// Connections that are not read.
    paused: RefCell<Vec<Waker>>,
    /// How often those that were paused have been woken.
    rounds: Cell<u64>,
    has_paused: Notify,
}

/// What one connection has on its worker's account.
#[derive(Debug)]
pub(crate) struct Counted {
    account: Rc<Account>,
    held: Cell<usize>,
    /// The round in which it was paused, plus one.
    paused_in: Cell<u64>,
}

impl Counted {
    pub(crate) fn new(account: &Rc<Account>) -> Self {
        Self { account: Rc::clone(account), held: Cell::new(0), paused_in: Cell::new(0) }
    }

    /// It holds so much now.
    #[inline]
    pub(crate) fn set(&self, held: usize) {
        let before = self.held.replace(held);
        if before != held {
            self.account.change(before, held);
        }
    }

    /// Whether the connection is not to be read for now, which tells how much it holds and whether something is unsent. Then
    /// its driver is woken when there is room.
    #[inline]
    pub(crate) fn is_paused(&self, tell: impl FnOnce() -> (usize, bool), driver: &RefCell<Waker>) -> bool {
        if !self.account.budget.is_exceeded() {
            return false;
        }
        let (held, has_unsent) = tell();
        self.pauses(held, has_unsent, driver)
    }

    #[cold]
    fn pauses(&self, held: usize, has_unsent: bool, driver: &RefCell<Waker>) -> bool {
        let may_hold = if has_unsent { limits::STREAM_WINDOW_BYTES as usize } else { 0 };
        if held <= may_hold {
            return false;
        }
        let account = &self.account;
        let round = account.rounds.get() + 1;
        if self.paused_in.replace(round) != round {
            account.paused.borrow_mut().push(driver.borrow().clone());
            account.has_paused.notify_one();
        }
        true
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Account {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            held: Cell::new(0),
            told: Cell::new(0),
            paused: RefCell::default(),
            rounds: Cell::new(0),
            has_paused: Notify::new(),
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.held.get()
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
        self.budget.used.fetch_add(held.wrapping_sub(self.told.replace(held)), Relaxed);
    }

    /// Has those that were paused read again.
    fn resume(&self) {
        self.rounds.set(self.rounds.get() + 1);
        self.paused.take().into_iter().for_each(Waker::wake);
    }
}

/// Has connections read again once there is room. Runs for as long as it is polled.
pub(crate) async fn attend(worker: Rc<Worker>) {
    loop {
        worker.account.has_paused.notified().await;
        worker.shared.metrics.limit_reached("MEMORY_BYTES");
        while worker.shared.budget.is_exceeded() {
            sleep(LOOK_INTERVAL).await;
        }
        worker.account.resume();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_tell_in_steps_what_they_hold() {
        let budget = Arc::new(Budget::new(4 * STEP));
        let (one, other) = (Rc::new(Account::new(&budget)), Rc::new(Account::new(&budget)));
        let [first, second, third] = [&one, &one, &other].map(Counted::new);
        first.set(STEP - 1);
        assert_eq!(budget.used(), 0);
        second.set(1);
        assert_eq!(budget.used(), STEP);
        third.set(4 * STEP);
        assert!(budget.is_exceeded());
        third.set(3 * STEP);
        assert!(!budget.is_exceeded());
        drop((first, second, third));
        assert_eq!((budget.used(), one.held(), other.held()), (0, 0, 0));
    }

    #[test]
    fn a_connection_whose_bytes_have_not_gone_on_is_not_read() {
        let budget = Arc::new(Budget::new(STEP));
        let account = Rc::new(Account::new(&budget));
        let (rest, one) = (Counted::new(&account), Counted::new(&account));
        let driver = RefCell::new(Waker::noop().clone());
        assert!(!one.is_paused(|| (1, false), &driver), "there is room");
        rest.set(2 * STEP);
        assert!(!one.is_paused(|| (0, false), &driver), "nothing is gained");
        for _ in 0..2 {
            assert!(one.is_paused(|| (1, false), &driver));
            assert_eq!(account.paused.borrow().len(), 1, "woken once");
        }
        let window = limits::STREAM_WINDOW_BYTES as usize;
        assert!(!one.is_paused(|| (window, true), &driver), "its peer's windows come that way");
        assert!(one.is_paused(|| (window + 1, true), &driver), "but not without bound");
        account.resume();
        assert!(account.paused.borrow().is_empty());
        assert!(one.is_paused(|| (1, false), &driver) && account.paused.borrow().len() == 1);
    }
}
