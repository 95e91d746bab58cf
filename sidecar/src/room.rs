//! Calls that wait until a connection to their destination takes one more.
//!
//! They wait because each connection is at its peer's stream limit (SETTINGS_MAX_CONCURRENT_STREAMS) and there are as
//! many connections as may be. The driver of a connection says when it has room again ([`Room::has_come`]), and the
//! next call takes it. On the way to the local service it is the peers who take turns ([`Fair`]), and each may have so many
//! streams there at once that some are left for others: see [`Room::takes`].

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use weft_mesh::limits;

use crate::{fair::Fair, peers::Load};

/// The queue of one pool.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: RefCell<Fair<oneshot::Sender<()>>>,
    /// Calls that have a place, those whose turn has just come among them.
    places: Cell<usize>,
    /// Of those in the queue, how many have left.
    left: Cell<usize>,
    /// That to the local service, which several peers call.
    shared: Option<Shared>,
}

/// How the streams to the local service are shared.
#[derive(Debug, Default)]
struct Shared {
    /// Streams on one connection, as the service has said last.
    on_each: Cell<usize>,
    /// Calls that have one.
    taken: Cell<usize>,
}

impl Room {
    /// One that peers share.
    pub(crate) fn shared() -> Self {
        Self { shared: Some(Shared::default()), ..Self::default() }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether nobody waits. While somebody does, who comes later waits, too.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.places.get() == 0
    }

    /// Whether a peer may have one more stream. One alone comes to those of [`limits::CONNECTIONS_PER_ENDPOINT`]
    /// connections, and what [`limits::CONNECTIONS_FOR_OTHERS`] add is left for the others; several peers that take what
    /// they get come to equal parts, and some are left as well.
    #[inline]
    pub(crate) fn takes(&self, peer: &Load) -> bool {
        const FOR_OTHERS: usize = limits::CONNECTIONS_FOR_OTHERS;
        const ALL: usize = limits::CONNECTIONS_PER_ENDPOINT + FOR_OTHERS;
        let Some(Shared { on_each, taken }) = &self.shared else { return true };
        let left = (ALL * on_each.get()).saturating_sub(taken.get());
        peer.seats() * FOR_OTHERS < limits::CONNECTIONS_PER_ENDPOINT * left
    }

    /// How many connections there may be for a peer's call. Those for others are made when there are others.
    pub(crate) fn connections(&self, peer: &Load) -> usize {
        let has_others = self.shared.as_ref().is_some_and(|shared| shared.taken.get() > peer.seats());
        limits::CONNECTIONS_PER_ENDPOINT + if has_others { limits::CONNECTIONS_FOR_OTHERS } else { 0 }
    }

    /// The destination takes so many streams on one connection.
    pub(crate) fn streams_on_each(&self, count: usize) {
        if let Some(shared) = &self.shared {
            shared.on_each.set(count);
        }
    }

    /// A call of a peer has a stream.
    pub(crate) fn sit_down(&self, peer: &Load) {
        if let Some(shared) = &self.shared {
            shared.taken.set(shared.taken.get() + 1);
            peer.take_seat();
        }
    }

    /// It has ended.
    pub(crate) fn stand_up(&self, peer: &Load) {
        if let Some(shared) = &self.shared {
            shared.taken.set(shared.taken.get() - 1);
            peer.leave_seat();
        }
    }

    /// A connection has room, or is gone, which is for the first who waits to see.
    #[inline]
    pub(crate) fn has_come(&self) {
        if !self.is_free() {
            self.wake();
        }
    }

    fn wake(&self) {
        let next = || self.waiting.borrow_mut().pop(|peer| self.takes(peer));
        for waiting in std::iter::from_fn(next) {
            if waiting.send(()).is_ok() {
                return;
            }
            self.left.set(self.left.get() - 1);
        }
    }

    /// A place at the end of the peer's queue; `None` when there are too many.
    pub(crate) fn queue(&self, peer: &Rc<Load>) -> Option<Place<'_>> {
        if !self.has_place_for(peer) {
            self.tidy();
            if !self.has_place_for(peer) {
                return None;
            }
        }
        self.places.set(self.places.get() + 1);
        Some(Place { room: self, peer: Rc::clone(peer), turn: Some(self.wait(peer, false)) })
    }

    fn has_place_for(&self, peer: &Rc<Load>) -> bool {
        let waiting = self.waiting.borrow();
        match &self.shared {
            Some(_) => waiting.has_room_for(peer, limits::CALLS_QUEUED),
            None => waiting.len() < limits::CALLS_QUEUED,
        }
    }

    /// Takes out of the queue those that have left.
    fn tidy(&self) {
        if self.left.replace(0) > 0 {
            self.waiting.borrow_mut().retain(|waiting| !waiting.is_closed());
        }
    }

    fn wait(&self, peer: &Rc<Load>, is_first: bool) -> oneshot::Receiver<()> {
        let (sender, turn) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        if is_first {
            waiting.push_first(peer, sender)
        } else {
            waiting.push(peer, sender)
        }
        turn
    }
}

/// A place in the queue, left when it is dropped.
pub(crate) struct Place<'r> {
    room: &'r Room,
    peer: Rc<Load>,
    /// `None` once its turn has come.
    turn: Option<oneshot::Receiver<()>>,
}

impl Place<'_> {
    /// Waits for its turn, which may come again. `false`: it did not come before the end.
    pub(crate) async fn turn(&mut self, end: Instant) -> bool {
        // There was nothing for it when its turn had come: it is the peer's next.
        let turn = self.turn.get_or_insert_with(|| self.room.wait(&self.peer, true));
        let has_come = timeout_at(end, turn).await.is_ok();
        if has_come {
            self.turn = None;
        }
        has_come
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let room = self.room;
        room.places.set(room.places.get() - 1);
        let Some(mut turn) = self.turn.take() else { return };
        if turn.try_recv().is_ok() {
            // Its turn has just come, and goes to the next.
            return room.has_come();
        }
        drop(turn);
        room.left.set(room.left.get() + 1);
        // Not each time: many may leave at once.
        if room.is_free() || 2 * room.left.get() > room.waiting.borrow().len() {
            room.tidy();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    type Order = Rc<RefCell<Vec<(char, usize)>>>;

    /// A call that writes down when its turn comes.
    fn wait(room: &Rc<Room>, peer: &Rc<Load>, name: (char, usize), order: &Order) -> tokio::task::JoinHandle<()> {
        let (room, peer, order) = (Rc::clone(room), Rc::clone(peer), Rc::clone(order));
        spawn_local(async move {
            let mut place = room.queue(&peer).expect("it is not full");
            if place.turn(Instant::now() + Duration::from_secs(60)).await {
                order.borrow_mut().push(name);
                room.sit_down(&peer);
            }
        })
    }

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_order_and_those_of_who_has_left_go_on() {
        LocalSet::new()
            .run_until(async {
                let (room, peer, order) = (Rc::new(Room::default()), Rc::default(), Order::default());
                let tasks: Vec<_> = (0..4).map(|number| wait(&room, &peer, ('a', number), &order)).collect();
                settle().await;
                room.has_come();
                settle().await;
                assert_eq!(*order.borrow(), [('a', 0)]);
                room.has_come();
                tasks[1].abort();
                settle().await;
                assert_eq!(*order.borrow(), [('a', 0), ('a', 2)], "the turn of 1 went to 2");
                tokio::time::sleep(Duration::from_secs(61)).await;
                assert_eq!(order.borrow().len(), 2, "3 has waited in vain");
                assert!(room.is_free() && room.waiting.borrow().len() == 0);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_all_streams_leaves_some_to_others_and_waits_for_itself() {
        LocalSet::new()
            .run_until(async {
                let (room, order) = (Rc::new(Room::shared()), Order::default());
                let (greedy, modest): (Rc<Load>, Rc<Load>) = Default::default();
                room.streams_on_each(10);
                let mut taken = 0;
                while room.takes(&greedy) {
                    room.sit_down(&greedy);
                    taken += 1;
                }
                assert_eq!(taken, 10 * limits::CONNECTIONS_PER_ENDPOINT, "as many as if it were alone");
                assert!(room.takes(&modest), "the others have theirs");
                assert_eq!(room.connections(&greedy), limits::CONNECTIONS_PER_ENDPOINT);
                assert!(room.connections(&modest) > limits::CONNECTIONS_PER_ENDPOINT);

                let waiting: Vec<_> = (0..3).map(|number| wait(&room, &greedy, ('g', number), &order)).collect();
                settle().await;
                room.has_come();
                settle().await;
                assert!(order.borrow().is_empty(), "what is left is not for the one who has so much");
                let others = (0..2).map(|number| wait(&room, &modest, ('m', number), &order));
                let others: Vec<_> = others.collect();
                settle().await;
                for _ in 0..2 {
                    room.has_come();
                    settle().await;
                }
                assert_eq!(*order.borrow(), [('m', 0), ('m', 1)]);
                // Some of the first's have ended: its others go on.
                (0..10).for_each(|_| room.stand_up(&greedy));
                room.has_come();
                settle().await;
                assert_eq!(order.borrow().last(), Some(&('g', 0)));
                waiting.into_iter().chain(others).for_each(|task| task.abort());
                settle().await;
                assert!(room.is_free());
            })
            .await;
    }

    #[test]
    fn the_queue_is_bounded() {
        let (room, peer) = (Room::default(), Rc::default());
        let mut places: Vec<_> = std::iter::from_fn(|| room.queue(&peer)).take(limits::CALLS_QUEUED + 1).collect();
        assert_eq!(places.len(), limits::CALLS_QUEUED);
        places.truncate(1);
        assert!(room.waiting.borrow().len() <= 2, "those who have left are not kept");
        assert!(room.queue(&peer).is_some());

        let (room, other) = (Room::shared(), Rc::default());
        let own: Vec<_> = std::iter::from_fn(|| room.queue(&peer)).collect();
        assert_eq!(own.len(), limits::CALLS_QUEUED / 2, "one peer leaves room to others");
        assert!(room.queue(&other).is_some());
    }
}
