//! Places of a worker: one for each connection that it has taken, and one for each call. Whoever has one counts, for whom it
//! is, until it is dropped.

use std::{net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed};

use weft_mesh::{identity::SpiffeId, limits};

use crate::{
    budget::Counted,
    inbound::LocalService,
    peers::{Load, Member, may_have_more},
    room::Room,
    strangers::Stranger,
    worker::Worker,
};

/// One of a worker's calls.
pub(crate) struct CallSlot {
    worker: Rc<Worker>,
    /// Of an inbound one: whose it is.
    peer: Option<Rc<Load>>,
    /// It has a stream to the local service.
    has_seat: bool,
}

impl CallSlot {
    /// Whose an inbound call is.
    pub(crate) fn peer(&self) -> Option<&Rc<Load>> {
        self.peer.as_ref()
    }

    /// Counts bytes of the call: for its peer, or for the local service whose call it is.
    pub(crate) fn counted(&self) -> Counted {
        match &self.peer {
            None => Counted::new(&self.worker.accounts.outbound, &self.worker.own),
            Some(peer) => Counted::new(&self.worker.accounts.inbound, peer),
        }
    }

    /// An inbound call has a stream to the local service, from now on until it ends.
    pub(crate) fn sit_down(&mut self, room: &Room) {
        if let Some(peer) = self.peer.as_ref().filter(|_| !self.has_seat) {
            room.sit_down(peer);
            self.has_seat = true;
        }
    }
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        match &self.peer {
            None => self.worker.calls.outbound.take(1),
            Some(peer) => {
                self.worker.calls.inbound.take(1);
                peer.end_call();
                if self.has_seat
                    && let Some(room) = self.worker.local.as_ref().and_then(LocalService::room)
                {
                    room.stand_up(peer);
                }
            }
        }
        self.worker.note_panic("a call");
    }
}

/// One of a worker's connections.
pub(crate) struct ConnectionSlot {
    worker: Rc<Worker>,
    whose: Whose,
}

/// Whom a connection counts for.
enum Whose {
    /// The local service.
    Own,
    Stranger(Stranger),
    Peer {
        _member: Member,
    },
}

impl ConnectionSlot {
    /// One on the outbound side; `None` when there are too many.
    pub(crate) fn outbound(worker: &Rc<Worker>) -> Option<Self> {
        if worker.connections.outbound.get() >= limits::CONNECTIONS_PER_SIDE {
            worker.shared.metrics.limit_reached("CONNECTIONS_PER_SIDE");
            return None;
        }
        worker.connections.outbound.add(1);
        Some(Self::new(worker, Whose::Own))
    }

    /// One on the inbound side, of which nobody knows yet whose it is.
    pub(crate) fn inbound(worker: &Rc<Worker>, from: SocketAddr) -> Self {
        let (stranger, has_made_room) = worker.strangers.enter(from.ip());
        if has_made_room {
            worker.shared.metrics.limit_reached("HANDSHAKES");
            worker.shared.metrics.counters.connections_refused.fetch_add(1, Relaxed);
        }
        Self::new(worker, Whose::Stranger(stranger))
    }

    fn new(worker: &Rc<Worker>, whose: Whose) -> Self {
        worker.shared.metrics.open_accepted.fetch_add(1, Relaxed);
        Self { worker: Rc::clone(worker), whose }
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// Ready when it has to make room for another stranger's.
    pub(crate) async fn makes_room(&self) {
        match &self.whose {
            Whose::Stranger(stranger) => stranger.makes_room().await,
            Whose::Own | Whose::Peer { .. } => std::future::pending().await,
        }
    }

    /// It is a peer's from now on, if that may have one more.
    pub(crate) fn is_of(&mut self, id: &SpiffeId) -> Option<Rc<Load>> {
        let Some(member) = self.worker.peers.enter(id) else {
            self.worker.shared.metrics.limit_reached("CONNECTIONS_PER_SIDE");
            self.worker.shared.metrics.counters.connections_refused.fetch_add(1, Relaxed);
            return None;
        };
        let load = Rc::clone(&member.load);
        self.worker.connections.inbound.add(1);
        self.whose = Whose::Peer { _member: member };
        Some(load)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        match self.whose {
            Whose::Own => self.worker.connections.outbound.take(1),
            Whose::Peer { .. } => self.worker.connections.inbound.take(1),
            Whose::Stranger(_) => {}
        }
        self.worker.shared.metrics.open_accepted.fetch_sub(1, Relaxed);
        self.worker.connection_ended.notify_one();
        self.worker.note_panic("a connection");
    }
}

impl Worker {
    /// A place for one more call of the local service, if there is one.
    pub(crate) fn call_slot(self: &Rc<Self>) -> Option<CallSlot> {
        if !self.accounts.outbound.takes_calls(&self.own) {
            return None;
        }
        if self.calls.outbound.get() >= limits::CALLS_IN_FLIGHT {
            self.shared.metrics.limit_reached("CALLS_IN_FLIGHT");
            return None;
        }
        self.calls.outbound.add(1);
        Some(CallSlot { worker: Rc::clone(self), peer: None, has_seat: false })
    }

    /// A place for one more call of a peer, if it may have one.
    pub(crate) fn inbound_slot(self: &Rc<Self>, peer: &Rc<Load>) -> Option<CallSlot> {
        if !self.accounts.inbound.takes_calls(peer) {
            return None;
        }
        if !may_have_more(peer.calls(), self.calls.inbound.get(), limits::CALLS_IN_FLIGHT) {
            self.shared.metrics.limit_reached("CALLS_IN_FLIGHT");
            return None;
        }
        self.calls.inbound.add(1);
        peer.begin_call();
        Some(CallSlot { worker: Rc::clone(self), peer: Some(Rc::clone(peer)), has_seat: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial;

    #[tokio::test]
    async fn no_peer_takes_what_others_or_the_local_service_need() {
        let worker = trial::worker();
        let (greedy, modest): (Rc<Load>, Rc<Load>) = Default::default();
        let all: Vec<_> = std::iter::from_fn(|| worker.inbound_slot(&greedy)).collect();
        assert_eq!(all.len(), limits::CALLS_IN_FLIGHT / 2);
        assert!(worker.inbound_slot(&modest).is_some(), "another peer's call");
        assert!(worker.call_slot().is_some(), "one of the local service's own");
        let own: Vec<_> = std::iter::from_fn(|| worker.call_slot()).collect();
        assert_eq!(own.len(), limits::CALLS_IN_FLIGHT);
        assert!(worker.inbound_slot(&modest).is_some(), "nor does that take from its callers");
        drop((all, own));
        assert_eq!((worker.calls.sum(), greedy.calls(), modest.calls()), (0, 0, 0));
    }

    #[tokio::test]
    async fn strangers_take_nothing_from_peers_and_these_nothing_from_the_local_service() {
        let worker = trial::worker();
        let from: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/greedy".parse().unwrap();
        let strangers: Vec<_> = (0..2 * limits::HANDSHAKES).map(|_| ConnectionSlot::inbound(&worker, from)).collect();
        assert_eq!(worker.strangers.count(), limits::HANDSHAKES);
        let mut peers = Vec::new();
        loop {
            let mut slot = ConnectionSlot::inbound(&worker, from);
            if slot.is_of(&id).is_none() {
                break;
            }
            peers.push(slot);
        }
        assert_eq!(peers.len(), limits::CONNECTIONS_PER_SIDE / 2, "with as many strangers as may be");
        let other = "spiffe://weft.local/ns/shop/sa/modest".parse().unwrap();
        assert!(ConnectionSlot::inbound(&worker, from).is_of(&other).is_some());
        assert!(ConnectionSlot::outbound(&worker).is_some());
        drop((strangers, peers));
        assert_eq!(worker.accepted_connections(), 0);
    }
}
