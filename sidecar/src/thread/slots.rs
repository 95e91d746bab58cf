//! Slots of a worker: one for each connection that it has accepted, and one for each call. A slot counts for its peer
//! until it is dropped.

use std::{net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed};

use weft_mesh::{identity::SpiffeId, limits};

use crate::thread::{
    account::Counted,
    loads::{Load, Member, may_have_more},
    strangers::Stranger,
    worker::Worker,
};

/// One of a worker's calls.
pub(crate) struct CallSlot {
    worker: Rc<Worker>,
    owner: Owner,
    /// Bytes of its request that are counted as kept for another try.
    kept: usize,
}

/// Whom a call counts for.
enum Owner {
    /// An inbound call: its caller.
    Peer(Rc<Load>),
    /// An outbound call: its callee, once an endpoint was picked.
    Callee(Option<Rc<Load>>),
}

impl CallSlot {
    fn new(worker: &Rc<Worker>, owner: Owner) -> Self {
        Self { worker: Rc::clone(worker), owner, kept: 0 }
    }

    /// The caller of an inbound call.
    pub(crate) fn peer(&self) -> Option<&Rc<Load>> {
        match &self.owner {
            Owner::Peer(peer) => Some(peer),
            Owner::Callee(_) => None,
        }
    }

    /// The callee of an outbound call, once an endpoint was picked.
    pub(crate) fn callee(&self) -> Option<&Rc<Load>> {
        match &self.owner {
            Owner::Callee(callee) => callee.as_ref(),
            Owner::Peer(_) => None,
        }
    }

    /// An account for bytes of the call: an inbound call's count for its peer, an outbound call's for the local
    /// service.
    pub(crate) fn counted(&self) -> Counted {
        match self.peer() {
            None => Counted::new(&self.worker.accounts.outbound, &self.worker.local_load),
            Some(peer) => Counted::new(&self.worker.accounts.inbound, peer),
        }
    }

    /// Counts an outbound call for this callee, until it ends or goes to another. False if the callee may have no more
    /// calls: so a callee that never answers leaves room for calls to others.
    #[inline]
    pub(crate) fn goes_to(&mut self, callee: &Rc<Load>) -> bool {
        match &self.owner {
            Owner::Callee(Some(before)) if Rc::ptr_eq(before, callee) => true,
            Owner::Callee(_) => self.moves_to(callee),
            Owner::Peer(_) => true,
        }
    }

    fn moves_to(&mut self, callee: &Rc<Load>) -> bool {
        // The side already counts this call.
        let others = self.worker.calls.outbound.get() - 1;
        if !may_have_more(callee.calls(), others, limits::CALLS_IN_FLIGHT) {
            self.worker.shared.metrics.limit_reached("CALLS_IN_FLIGHT");
            return false;
        }
        let kept = self.kept;
        if kept > 0 {
            self.keeps(0);
        }
        callee.begin_call();
        if let Owner::Callee(Some(before)) = std::mem::replace(&mut self.owner, Owner::Callee(Some(Rc::clone(callee))))
        {
            before.end_call();
        }
        if kept > 0 {
            // If the callee may keep no more, the request is still sent, but no longer kept for another try.
            self.keeps(kept);
        }
        true
    }

    /// Counts `bytes` of the call's request as kept for another try, in place of the earlier count. Returns false and
    /// changes nothing if that is more than its owner may keep.
    #[inline]
    pub(crate) fn keeps(&mut self, bytes: usize) -> bool {
        if bytes == self.kept {
            return true;
        }
        let (load, all) = match &self.owner {
            Owner::Peer(peer) => (peer, &self.worker.replay_bytes.inbound),
            // Until the callee is known, the bytes count for the local service.
            Owner::Callee(callee) => {
                (callee.as_ref().unwrap_or(&self.worker.local_load), &self.worker.replay_bytes.outbound)
            }
        };
        if bytes < self.kept {
            all.take(self.kept - bytes);
        } else {
            let more = bytes - self.kept;
            if !may_have_more(load.kept() + more - 1, all.get() + more - 1, limits::REPLAY_BYTES) {
                return false;
            }
            all.add(more);
        }
        load.change_kept(self.kept, bytes);
        self.kept = bytes;
        true
    }
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.keeps(0);
        match &self.owner {
            Owner::Callee(callee) => {
                self.worker.calls.outbound.take(1);
                if let Some(callee) = callee {
                    callee.end_call();
                }
            }
            Owner::Peer(peer) => {
                self.worker.calls.inbound.take(1);
                peer.end_call();
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
    /// A connection on the outbound side; `None` if there are too many.
    pub(crate) fn outbound(worker: &Rc<Worker>) -> Option<Self> {
        if worker.connections.outbound.get() >= limits::CONNECTIONS_PER_SIDE {
            worker.shared.metrics.limit_reached("CONNECTIONS_PER_SIDE");
            return None;
        }
        worker.connections.outbound.add(1);
        Some(Self::new(worker, Whose::Own))
    }

    /// A connection on the inbound side whose peer is not known yet.
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

    /// Ready when it has to make room for the connection of another stranger.
    pub(crate) async fn makes_room(&self) {
        match &self.whose {
            Whose::Stranger(stranger) => stranger.makes_room().await,
            Whose::Own | Whose::Peer { .. } => std::future::pending().await,
        }
    }

    /// Counts it for a peer from now on, if the peer may have one more.
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
    /// A slot for one more call of the local service, if there is one.
    pub(crate) fn call_slot(self: &Rc<Self>) -> Option<CallSlot> {
        if !self.accounts.outbound.takes_calls(&self.local_load) {
            return None;
        }
        if self.calls.outbound.get() >= limits::CALLS_IN_FLIGHT {
            self.shared.metrics.limit_reached("CALLS_IN_FLIGHT");
            return None;
        }
        self.calls.outbound.add(1);
        Some(CallSlot::new(self, Owner::Callee(None)))
    }

    /// A slot for one more call of a peer, if it may have one.
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
        Some(CallSlot::new(self, Owner::Peer(Rc::clone(peer))))
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
        assert!(worker.inbound_slot(&modest).is_some(), "its own calls take nothing from its callers");
        drop((all, own));
        assert_eq!((worker.calls.sum(), greedy.calls(), modest.calls()), (0, 0, 0));
    }

    #[tokio::test]
    async fn no_callee_takes_the_slots_of_calls_to_others() {
        let worker = trial::worker();
        let (silent, other): (Rc<Load>, Rc<Load>) = Default::default();
        let to = |callee: &Rc<Load>| {
            let mut slot = worker.call_slot().expect("there is room");
            slot.goes_to(callee).then_some(slot)
        };
        let mut stuck: Vec<_> = std::iter::from_fn(|| to(&silent)).collect();
        assert_eq!(stuck.len(), limits::CALLS_IN_FLIGHT / 2);
        let mut answered = to(&other).expect("a call to another service");
        assert!(answered.goes_to(&other), "a second try counts as the first did");
        assert_eq!((other.calls(), worker.calls.outbound.get()), (1, limits::CALLS_IN_FLIGHT / 2 + 1));
        assert!(!answered.goes_to(&silent), "it has as many as it may");
        stuck.truncate(10);
        assert!(answered.goes_to(&silent));
        assert_eq!((other.calls(), silent.calls()), (0, 11));
        drop((answered, stuck));
        assert_eq!((worker.calls.sum(), silent.calls(), other.calls()), (0, 0, 0));
    }

    #[tokio::test]
    async fn no_peer_or_callee_takes_the_replay_bytes_that_others_need() {
        let worker = trial::worker();
        let (greedy, modest, callee): (Rc<Load>, Rc<Load>, Rc<Load>) = Default::default();
        let keeps = |slot: Option<CallSlot>| {
            let mut slot = slot.expect("there is room for calls");
            slot.keeps(limits::REPLAY_BYTES_PER_CALL).then_some(slot)
        };
        let kept = || (worker.replay_bytes.inbound.get(), worker.replay_bytes.outbound.get());
        let all: Vec<_> = std::iter::from_fn(|| keeps(worker.inbound_slot(&greedy))).collect();
        assert_eq!(kept(), (limits::REPLAY_BYTES / 2, 0), "a single peer has half of its side");
        assert!(worker.inbound_slot(&greedy).unwrap().keeps(0), "a request without a body needs nothing");
        assert!(keeps(worker.inbound_slot(&modest)).is_some(), "another peer's");
        // Calls that first wait for a callee to be found, then for the callee.
        let mut own: Vec<_> = std::iter::from_fn(|| keeps(worker.call_slot())).collect();
        assert_eq!(kept().1, limits::REPLAY_BYTES / 2, "peers take nothing from the local service's own calls");
        assert!(own.iter_mut().all(|slot| slot.goes_to(&callee)));
        assert_eq!((worker.local_load.kept(), callee.kept()), (0, limits::REPLAY_BYTES / 2));
        assert!(keeps(worker.call_slot()).is_some());
        let mut more = worker.call_slot().unwrap();
        assert!(more.goes_to(&callee) && !more.keeps(1) && more.keeps(0));
        drop((all, own, more));
        assert_eq!((kept(), greedy.kept(), callee.kept(), worker.local_load.kept()), ((0, 0), 0, 0, 0));
    }

    #[tokio::test]
    async fn strangers_take_nothing_from_peers_and_peers_nothing_from_the_local_service() {
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
        assert_eq!(peers.len(), limits::CONNECTIONS_PER_SIDE / 2, "beside as many strangers as allowed");
        let other = "spiffe://weft.local/ns/shop/sa/modest".parse().unwrap();
        assert!(ConnectionSlot::inbound(&worker, from).is_of(&other).is_some());
        assert!(ConnectionSlot::outbound(&worker).is_some());
        drop((strangers, peers));
        assert_eq!(worker.accepted_connections(), 0);
    }
}
