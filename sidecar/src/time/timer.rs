//! Deadlines of a worker's calls: a timer wheel. To set a deadline and remove it again, which nearly every call does,
//! costs a few steps and no search.

use std::{
    cell::{Cell, RefCell},
    num::NonZeroU64,
    rc::Rc,
};

use tokio::{sync::Notify, time::sleep_until};

use crate::time::moment::Moment;

/// Something that a wheel wakes at a given time.
pub(crate) trait Timed {
    /// Its place in the wheel, for the wheel's use only.
    fn place(&self) -> &Cell<Option<Place>>;
    /// Its time has come. It is no longer in the wheel.
    fn expired(self: Rc<Self>);
}

/// A place in a wheel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    tick: NonZeroU64,
    index: u32,
}

/// The length of one slot, in nanoseconds: a deadline fires at most this much late, and never early.
const TICK_NANOS: u64 = 2_000_000;
/// A deadline that is further away than all slots stays in its slot for another turn of the wheel.
const SLOTS: usize = 2048;
const WORD_BITS: usize = u64::BITS as usize;

/// See the module.
pub(crate) struct Wheel<T: ?Sized> {
    slots: RefCell<Vec<Vec<Rc<T>>>>,
    /// One bit per slot: whether the slot is not empty.
    filled: RefCell<[u64; SLOTS / WORD_BITS]>,
    /// The tick for which [`Self::run`] sleeps, [`NEVER`] while the wheel is empty.
    awake_at: Cell<u64>,
    /// The last tick whose slot was checked.
    seen: Cell<u64>,
    sooner: Notify,
}

const NEVER: u64 = u64::MAX;

fn slot_of(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

impl<T: Timed + ?Sized> Wheel<T> {
    pub(crate) fn new() -> Self {
        Self {
            slots: RefCell::default(),
            filled: RefCell::new([0; SLOTS / WORD_BITS]),
            awake_at: Cell::new(NEVER),
            seen: Cell::new(Moment::now().nanos() / TICK_NANOS),
            sooner: Notify::new(),
        }
    }

    /// Wakes `what` at `at`. It must not be in the wheel yet.
    pub(crate) fn set(&self, what: Rc<T>, at: Moment) {
        // A time in the past goes to the next tick: its own slot would have to wait for another turn of the wheel.
        let next = NonZeroU64::MIN.saturating_add(self.seen.get());
        let tick = NonZeroU64::new(at.nanos().div_ceil(TICK_NANOS)).map_or(next, |tick| tick.max(next));
        let slot = slot_of(tick.get());
        let mut slots = self.slots.borrow_mut();
        // Allocated at the first deadline: a worker without calls needs no wheel.
        if slots.is_empty() {
            slots.resize_with(SLOTS, Vec::new);
        }
        let index = slots[slot].len();
        what.place().set(Some(Place { tick, index: index as u32 }));
        slots[slot].push(what);
        self.filled.borrow_mut()[slot / WORD_BITS] |= 1 << (slot % WORD_BITS);
        if tick.get() < self.awake_at.get() {
            self.awake_at.set(tick.get());
            self.sooner.notify_one();
        }
    }

    /// Takes `what` out of the wheel, if it is in it.
    pub(crate) fn remove(&self, what: &T) {
        let Some(place) = what.place().take() else { return };
        let mut slots = self.slots.borrow_mut();
        let (number, index) = (slot_of(place.tick.get()), place.index as usize);
        let slot = &mut slots[number];
        // This can't drop the last reference: the caller holds one.
        slot.swap_remove(index);
        if let Some(moved) = slot.get(index) {
            let at = moved.place();
            at.set(at.get().map(|at| Place { index: place.index, ..at }));
        }
        if slot.is_empty() {
            self.filled.borrow_mut()[number / WORD_BITS] &= !(1 << (number % WORD_BITS));
        }
    }

    /// Wakes what is due, for as long as it is polled.
    pub(crate) async fn run(&self) {
        loop {
            let seen = self.seen.get();
            let next = self.next_filled(seen);
            self.awake_at.set(next.unwrap_or(NEVER));
            match next {
                None => self.sooner.notified().await,
                Some(tick) => tokio::select! {
                    () = sleep_until(Moment::from_nanos(TICK_NANOS * tick).instant()) => {}
                    () = self.sooner.notified() => continue,
                },
            }
            let now = Moment::now().nanos() / TICK_NANOS;
            // Set before anything expires, so that deadlines that are set meanwhile go to later ticks.
            self.seen.set(now);
            self.expire(seen, now);
        }
    }

    /// The tick, after `seen`, at which the next filled slot is passed.
    fn next_filled(&self, seen: u64) -> Option<u64> {
        let filled = self.filled.borrow();
        let first = seen + 1;
        let start = slot_of(first);
        // All words from the first slot's on, around the wheel; the first word again at the end, for its earlier slots.
        for step in 0..=filled.len() {
            let word = (start / WORD_BITS + step) % filled.len();
            let mut bits = filled[word];
            if step == 0 {
                bits &= u64::MAX << (start % WORD_BITS);
            }
            if bits != 0 {
                let slot = word * WORD_BITS + bits.trailing_zeros() as usize;
                return Some(first + ((slot + SLOTS - start) % SLOTS) as u64);
            }
        }
        None
    }

    fn expire(&self, seen: u64, now: u64) {
        // After a long sleep, each slot is checked once.
        for tick in (seen + 1..=now).take(SLOTS) {
            let slot = slot_of(tick);
            let mut index = 0;
            loop {
                let due = self.slots.borrow().get(slot).and_then(|slot| slot.get(index)).map(Rc::clone);
                let Some(due) = due else { break };
                if due.place().get().is_some_and(|place| place.tick.get() <= now) {
                    self.remove(&due);
                    due.expired();
                } else {
                    index += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Alarm {
        at: Moment,
        place: Cell<Option<Place>>,
        rang: Cell<Option<Moment>>,
    }

    impl Timed for Alarm {
        fn place(&self) -> &Cell<Option<Place>> {
            &self.place
        }

        fn expired(self: Rc<Self>) {
            assert!(self.rang.replace(Some(Moment::now())).is_none(), "rang twice");
        }
    }

    fn alarm(wheel: &Wheel<Alarm>, after_ms: u64) -> Rc<Alarm> {
        let at = Moment::now().checked_add(Duration::from_millis(after_ms)).unwrap();
        let alarm = Rc::new(Alarm { at, place: Cell::default(), rang: Cell::default() });
        wheel.set(Rc::clone(&alarm), at);
        alarm
    }

    #[tokio::test(start_paused = true)]
    async fn each_deadline_fires_once_in_time_and_a_removed_one_does_not() {
        let wheel = Wheel::new();
        fastrand::seed(7);
        let scenario = async {
            let mut alarms = Vec::new();
            let mut removed = Vec::new();
            for _ in 0..2_000 {
                // Some are due immediately.
                alarms.push(alarm(&wheel, fastrand::u64(0..20_000).saturating_sub(1_000)));
                if fastrand::bool() {
                    let gone = alarms.swap_remove(fastrand::usize(..alarms.len()));
                    wheel.remove(&gone);
                    removed.push(gone);
                }
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
            for alarm in &alarms {
                let rang = alarm.rang.get().expect("rang");
                // Tokio's own timer is exact to a millisecond.
                assert!(rang >= alarm.at, "early");
                let late = rang.since(alarm.at);
                assert!(late <= Duration::from_nanos(TICK_NANOS) + Duration::from_millis(1), "{late:?}");
            }
            // An alarm that had already rung when it was removed may have rung, but not early.
            for alarm in removed.iter().filter(|alarm| alarm.rang.get().is_some()) {
                assert!(alarm.rang.get() >= Some(alarm.at));
            }
            assert!(wheel.slots.borrow().iter().all(Vec::is_empty));
        };
        tokio::select! { () = wheel.run() => unreachable!("runs for ever"), () = scenario => {} }
    }
}
