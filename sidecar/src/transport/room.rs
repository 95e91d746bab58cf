//! Calls that wait until a connection to their destination takes one more.
//!
//! They wait because each connection is at its peer's stream limit (SETTINGS_MAX_CONCURRENT_STREAMS) and the pool has
//! as many connections as allowed. A connection's driver calls [`Room::has_come`] when it has room again, and the next
//! call takes it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use weft_mesh::limits;

/// The queue of one pool.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: RefCell<VecDeque<oneshot::Sender<()>>>,
    /// Calls that have a place, including those whose turn has just come.
    places: Cell<usize>,
    /// Entries of the queue whose calls have given up.
    left: Cell<usize>,
}

impl Room {
    /// Whether no call waits. While one does, calls that come later wait, too.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.places.get() == 0
    }

    /// A connection has room, or is gone. Wakes the first call that waits, which finds out which of the two it is.
    #[inline]
    pub(crate) fn has_come(&self) {
        if !self.is_free() {
            self.wake();
        }
    }

    fn wake(&self) {
        let next = || self.waiting.borrow_mut().pop_front();
        for waiting in std::iter::from_fn(next) {
            if waiting.send(()).is_ok() {
                return;
            }
            self.left.set(self.left.get() - 1);
        }
    }

    /// A place at the end of the queue; `None` when it is full.
    pub(crate) fn queue(&self) -> Option<Place<'_>> {
        if self.waiting.borrow().len() >= limits::CALLS_QUEUED {
            self.tidy();
            if self.waiting.borrow().len() >= limits::CALLS_QUEUED {
                return None;
            }
        }
        self.places.set(self.places.get() + 1);
        let (sender, turn) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        Some(Place { room: self, turn: Some(turn), is_served: false })
    }

    /// Removes the calls that have given up from the queue.
    fn tidy(&self) {
        if self.left.replace(0) > 0 {
            self.waiting.borrow_mut().retain(|waiting| !waiting.is_closed());
        }
    }

    fn wait_first(&self) -> oneshot::Receiver<()> {
        let (sender, turn) = oneshot::channel();
        self.waiting.borrow_mut().push_front(sender);
        turn
    }
}

/// A place in the queue, left when it is dropped.
pub(crate) struct Place<'r> {
    room: &'r Room,
    /// `None` once its turn has come.
    turn: Option<oneshot::Receiver<()>>,
    is_served: bool,
}

impl Place<'_> {
    /// Waits for its turn; may be called again after a turn. `false` if the turn did not come before `end`.
    pub(crate) async fn turn(&mut self, end: Instant) -> bool {
        // If its last turn brought no connection, it goes to the front of the queue.
        let turn = self.turn.get_or_insert_with(|| self.room.wait_first());
        let has_come = timeout_at(end, turn).await.is_ok();
        if has_come {
            self.turn = None;
        }
        has_come
    }

    /// The call has its connection. If there is room for others, the caller must call [`Room::has_come`].
    pub(crate) fn served(mut self) {
        self.is_served = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let room = self.room;
        room.places.set(room.places.get() - 1);
        let Some(mut turn) = self.turn.take() else {
            // Its turn had come. If it was dropped before it was served, the next call looks.
            if !self.is_served {
                room.has_come();
            }
            return;
        };
        if turn.try_recv().is_ok() {
            // Its turn has just come, and goes to the next call.
            return room.has_come();
        }
        drop(turn);
        room.left.set(room.left.get() + 1);
        // Not each time, because many may leave at once.
        if room.is_free() || 2 * room.left.get() > room.waiting.borrow().len() {
            room.tidy();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, time::Duration};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    type Order = Rc<RefCell<Vec<usize>>>;

    /// A call that writes down when its turn comes.
    fn wait(room: &Rc<Room>, number: usize, order: &Order) -> tokio::task::JoinHandle<()> {
        let (room, order) = (Rc::clone(room), Rc::clone(order));
        spawn_local(async move {
            let mut place = room.queue().expect("it is not full");
            if place.turn(Instant::now() + Duration::from_secs(60)).await {
                order.borrow_mut().push(number);
                place.served();
            }
        })
    }

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_order_and_skip_calls_that_gave_up() {
        LocalSet::new()
            .run_until(async {
                let (room, order) = (Rc::new(Room::default()), Order::default());
                let tasks: Vec<_> = (0..4).map(|number| wait(&room, number, &order)).collect();
                settle().await;
                room.has_come();
                settle().await;
                assert_eq!(*order.borrow(), [0]);
                room.has_come();
                tasks[1].abort();
                settle().await;
                assert_eq!(*order.borrow(), [0, 2], "the turn of 1 went to 2");
                tokio::time::sleep(Duration::from_secs(61)).await;
                assert_eq!(order.borrow().len(), 2, "3 gave up without a turn");
                assert!(room.is_free() && room.waiting.borrow().is_empty());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_of_a_dropped_call_goes_to_the_next() {
        LocalSet::new()
            .run_until(async {
                let (room, order) = (Rc::new(Room::default()), Order::default());
                // Its turn comes, and it is dropped while it makes a connection.
                let first = spawn_local({
                    let room = Rc::clone(&room);
                    async move {
                        let mut place = room.queue().expect("it is not full");
                        place.turn(Instant::now() + Duration::from_secs(60)).await;
                        std::future::pending::<()>().await;
                    }
                });
                settle().await;
                let _others: Vec<_> = (0..2).map(|number| wait(&room, number, &order)).collect();
                settle().await;
                room.has_come();
                settle().await;
                assert!(order.borrow().is_empty());
                first.abort();
                settle().await;
                assert_eq!(*order.borrow(), [0]);
            })
            .await;
    }

    #[test]
    fn the_queue_is_bounded() {
        let room = Room::default();
        let mut places: Vec<_> = std::iter::from_fn(|| room.queue()).take(limits::CALLS_QUEUED + 1).collect();
        assert_eq!(places.len(), limits::CALLS_QUEUED);
        places.truncate(1);
        assert!(room.waiting.borrow().len() <= 2, "calls that have left are not kept");
        assert!(room.queue().is_some());
    }
}
