//! What each peer uses of a worker. A peer is an identity: all replicas of a service are one peer.
//!
//! A peer may use as much of a resource as all peers together leave free ([`may_have_more`]), so there is always room
//! for one more peer.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
};

pub(crate) use weft_mesh::shares::may_have_more;
use weft_mesh::{identity::SpiffeId, limits};

use crate::policy::hedge::Budget;

/// What one peer uses now: a caller on the inbound side, a callee on the outbound side. The local service has a load of
/// its own, for the calls that it makes.
#[derive(Debug, Default)]
pub(crate) struct Load {
    share: Share,
    /// What connections hold for it, as [`crate::shared::budget`] counts it.
    bytes: Cell<usize>,
    connections: Cell<usize>,
    calls: Cell<usize>,
    /// Bytes of its calls' requests that are kept for another try.
    kept: Cell<usize>,
    /// For calls to it that are hedged.
    pub(crate) hedges: Budget,
}

/// How much of its side's memory a load may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Share {
    /// As much as all loads leave free.
    #[default]
    Part,
    /// All of it, because it takes nothing from others.
    WholeSide,
    /// What its connections hold is charged to others.
    OfNobody,
}

impl Load {
    pub(crate) fn with_share(share: Share) -> Rc<Self> {
        Rc::new(Self { share, ..Self::default() })
    }

    pub(crate) fn share(&self) -> Share {
        self.share
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// A holder of bytes for this load now holds `now` bytes instead of `before`.
    #[inline]
    pub(crate) fn change(&self, before: usize, now: usize) {
        self.bytes.set(self.bytes.get() + now - before);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.get()
    }

    pub(crate) fn kept(&self) -> usize {
        self.kept.get()
    }

    /// One of its calls now keeps `now` bytes of its request instead of `before`.
    #[inline]
    pub(crate) fn change_kept(&self, before: usize, now: usize) {
        self.kept.set(self.kept.get() + now - before);
    }

    pub(crate) fn begin_call(&self) {
        self.calls.set(self.calls.get() + 1);
    }

    pub(crate) fn end_call(&self) {
        self.calls.set(self.calls.get() - 1);
    }
}

/// The peers that have connections to a worker. Their number is bounded by that of the connections.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    known: RefCell<HashMap<SpiffeId, Rc<Load>>>,
    connections: Cell<usize>,
}

impl Peers {
    /// Counts a connection of a peer; `None` if it may have no more.
    pub(crate) fn enter(self: &Rc<Self>, id: &SpiffeId) -> Option<Member> {
        let mut known = self.known.borrow_mut();
        let own = known.get(id).map_or(0, |load| load.connections.get());
        if !may_have_more(own, self.connections.get(), limits::CONNECTIONS_PER_SIDE) {
            return None;
        }
        let load = Rc::clone(known.entry(id.clone()).or_default());
        load.connections.set(own + 1);
        self.connections.set(self.connections.get() + 1);
        Some(Member { peers: Rc::clone(self), id: id.clone(), load })
    }

    /// The bytes that each holds, by service.
    pub(crate) fn bytes(&self) -> Vec<(String, usize)> {
        self.known.borrow().iter().map(|(id, load)| (id.service().to_string(), load.bytes())).collect()
    }
}

/// The services that a worker has connections to. A service that nothing refers to any more is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Callees {
    known: RefCell<HashMap<SpiffeId, Weak<Load>>>,
}

impl Callees {
    pub(crate) fn of(&self, id: &SpiffeId) -> Rc<Load> {
        let mut known = self.known.borrow_mut();
        if let Some(load) = known.get(id).and_then(Weak::upgrade) {
            return load;
        }
        known.retain(|_, load| load.strong_count() > 0);
        let load = Rc::default();
        known.insert(id.clone(), Rc::downgrade(&load));
        load
    }

    /// The bytes that each holds, by service.
    pub(crate) fn bytes(&self) -> Vec<(String, usize)> {
        let known = self.known.borrow();
        known.iter().filter_map(|(id, load)| Some((id.service().to_string(), load.upgrade()?.bytes()))).collect()
    }
}

/// A connection of a peer, which counts until this is dropped.
pub(crate) struct Member {
    peers: Rc<Peers>,
    id: SpiffeId,
    pub(crate) load: Rc<Load>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.peers.connections.set(self.peers.connections.get() - 1);
        self.load.connections.set(self.load.connections.get() - 1);
        if self.load.connections.get() == 0 {
            self.peers.known.borrow_mut().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_room_for_one_more_peer() {
        let peers: Rc<Peers> = Rc::default();
        let id = |number: usize| -> SpiffeId { format!("spiffe://weft.local/ns/a/sa/p{number}").parse().unwrap() };
        let mut open: Vec<Vec<Member>> = Vec::new();
        for number in 0..9 {
            open.push(std::iter::from_fn(|| peers.enter(&id(number))).collect());
            assert!(!open[number].is_empty(), "the others have all: {}", peers.connections.get());
            assert!(peers.enter(&id(number)).is_none());
        }
        assert_eq!(open[0].len(), limits::CONNECTIONS_PER_SIDE / 2, "a single peer has half");
        assert!(peers.connections.get() < limits::CONNECTIONS_PER_SIDE);
        // Connections that one peer gives back are free for all.
        let before = open[1].len();
        open[0].clear();
        open[1].extend(std::iter::from_fn(|| peers.enter(&id(1))));
        assert!(open[1].len() > before);
        open.clear();
        assert_eq!((peers.connections.get(), peers.known.borrow().len()), (0, 0), "nothing is kept of peers that left");
    }
}
