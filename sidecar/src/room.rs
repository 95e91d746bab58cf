//! Calls that wait until a connection to their destination takes one more: first come, first served.
//!
//! They wait because each connection is at its peer's stream limit (SETTINGS_MAX_CONCURRENT_STREAMS) and there are as
//! many connections as may be. The driver of a connection says when it has room again ([`Room::has_come`]), and the
//! call that has waited longest takes it.

use std::cell::Cell;

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use weft_mesh::limits;

/// The queue of one pool.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: Cell<usize>,
    /// Wakes the first; one that is gone by then hands its turn on.
    freed: Notify,
}

impl Room {
    /// Whether nobody waits. While somebody does, who comes later waits, too.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.waiting.get() == 0
    }

    /// A connection has room, or is gone, which is for the first who waits to see.
    #[inline]
    pub(crate) fn has_come(&self) {
        if !self.is_free() {
            self.freed.notify_one();
        }
    }

    /// A place at the end of the queue; `None` when it is full.
    pub(crate) fn queue(&self) -> Option<Place<'_>> {
        if self.waiting.get() >= limits::CALLS_QUEUED {
            return None;
        }
        self.waiting.set(self.waiting.get() + 1);
        Some(Place(self))
    }
}

/// A place in the queue, left when it is dropped.
pub(crate) struct Place<'r>(&'r Room);

impl Place<'_> {
    /// Waits for its turn. `false`: it did not come before the end.
    pub(crate) async fn turn(&self, end: Instant) -> bool {
        timeout_at(end, self.0.freed.notified()).await.is_ok()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, time::Duration};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_order_and_those_of_who_has_left_go_on() {
        LocalSet::new()
            .run_until(async {
                let (room, order) = (Rc::new(Room::default()), Rc::new(RefCell::new(Vec::new())));
                let tasks: Vec<_> = (0..4)
                    .map(|number| {
                        let (room, order) = (Rc::clone(&room), Rc::clone(&order));
                        spawn_local(async move {
                            let place = room.queue().expect("it is not full");
                            if place.turn(Instant::now() + Duration::from_secs(60)).await {
                                order.borrow_mut().push(number);
                            }
                        })
                    })
                    .collect();
                yield_now().await;
                room.has_come();
                yield_now().await;
                assert_eq!(*order.borrow(), [0]);
                room.has_come();
                tasks[1].abort();
                while order.borrow().len() < 2 {
                    yield_now().await;
                }
                assert_eq!(*order.borrow(), [0, 2], "the turn of 1 went to 2");
                tokio::time::sleep(Duration::from_secs(61)).await;
                assert_eq!(*order.borrow(), [0, 2], "3 has waited in vain");
                assert!(room.is_free());
            })
            .await;
    }

    #[test]
    fn the_queue_is_bounded() {
        let room = Room::default();
        let places: Vec<_> = std::iter::from_fn(|| room.queue()).take(limits::CALLS_QUEUED + 1).collect();
        assert_eq!(places.len(), limits::CALLS_QUEUED);
        drop(places);
        assert!(room.queue().is_some());
    }
}
