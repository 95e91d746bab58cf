//! A queue in which peers take turns: each turn is another peer's, and a peer's own items keep their order. So a peer
//! that puts in very many items delays only itself.

use std::{collections::VecDeque, rc::Rc};

use crate::thread::loads::{Load, may_have_more};

/// See the module.
#[derive(Debug)]
pub(crate) struct Fair<T> {
    /// The first lane has the next turn. No lane is empty.
    lanes: VecDeque<Lane<T>>,
    len: usize,
}

#[derive(Debug)]
struct Lane<T> {
    peer: Rc<Load>,
    waiting: VecDeque<T>,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self { lanes: VecDeque::new(), len: 0 }
    }
}

impl<T> Fair<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().flat_map(|lane| &lane.waiting)
    }

    /// Whether a peer may put in one more, if all peers together may have `limit`.
    pub(crate) fn has_room_for(&self, peer: &Rc<Load>, limit: usize) -> bool {
        may_have_more(self.place(peer).map_or(0, |place| self.lanes[place].waiting.len()), self.len, limit)
    }

    fn place(&self, peer: &Rc<Load>) -> Option<usize> {
        self.lanes.iter().position(|lane| Rc::ptr_eq(&lane.peer, peer))
    }

    fn lane(&mut self, peer: &Rc<Load>) -> &mut VecDeque<T> {
        self.len += 1;
        let place = self.place(peer).unwrap_or_else(|| {
            self.lanes.push_back(Lane { peer: Rc::clone(peer), waiting: VecDeque::new() });
            self.lanes.len() - 1
        });
        &mut self.lanes[place].waiting
    }

    /// Puts an item after the peer's others.
    pub(crate) fn push(&mut self, peer: &Rc<Load>, item: T) {
        self.lane(peer).push_back(item);
    }

    /// Puts an item before the peer's others.
    pub(crate) fn push_first(&mut self, peer: &Rc<Load>, item: T) {
        self.lane(peer).push_front(item);
    }

    /// Takes out the next item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let mut lane = self.lanes.pop_front()?;
        let item = lane.waiting.pop_front();
        self.len -= 1;
        if !lane.waiting.is_empty() {
            self.lanes.push_back(lane);
        }
        item
    }

    /// Removes the items that are no longer wanted.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&T) -> bool) {
        self.lanes.retain_mut(|lane| {
            lane.waiting.retain(&is_wanted);
            !lane.waiting.is_empty()
        });
        self.len = self.lanes.iter().map(|lane| lane.waiting.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_take_turns_and_a_peers_items_keep_their_order() {
        let (mut queue, [a, b, c]) = (Fair::default(), [(); 3].map(|()| Rc::new(Load::default())));
        for number in 0..5 {
            queue.push(&a, ('a', number));
        }
        queue.push(&b, ('b', 0));
        queue.push(&b, ('b', 1));
        queue.push(&c, ('c', 0));
        queue.push_first(&a, ('a', 9));
        assert_eq!((queue.len(), queue.iter().count()), (9, 9));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let expected = [('a', 9), ('b', 0), ('c', 0), ('a', 0), ('b', 1), ('a', 1), ('a', 2), ('a', 3), ('a', 4)];
        assert_eq!(order, expected);
        assert!(queue.len() == 0 && queue.lanes.is_empty());
    }

    #[test]
    fn one_peer_does_not_fill_the_queue() {
        let (mut queue, [a, b]) = (Fair::default(), [(); 2].map(|()| Rc::new(Load::default())));
        while queue.has_room_for(&a, 100) {
            queue.push(&a, true);
        }
        assert_eq!(queue.len(), 50);
        while queue.has_room_for(&b, 100) {
            queue.push(&b, false);
        }
        assert_eq!(queue.len(), 75);
        queue.retain(|is_of_a| !is_of_a);
        assert_eq!((queue.len(), queue.lanes.len()), (25, 1));
    }
}
