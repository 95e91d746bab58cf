//! Connections to the inbound port whose peer is not known yet, because their TLS handshake is not done.
//!
//! They have a budget of their own, so that strangers take nothing from peers. If it is full, the next connection is
//! still accepted, and another makes room: the oldest one of the network with the most connections; if several networks
//! have equally many, the oldest one of those. A handshake takes milliseconds, so the connections that make room are
//! those that make no progress, and a flood from one network costs other networks nothing.

use std::{cell::RefCell, net::IpAddr, rc::Rc};

use tokio::sync::Notify;
use weft_mesh::{
    limits,
    networks::{ByNetwork, Ticket},
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    /// Each with the notification that tells it to make room.
    waiting: RefCell<ByNetwork<Rc<Notify>>>,
}

impl Strangers {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.waiting.borrow().count()
    }

    /// Counts one more. Also returns whether another had to make room for it.
    pub(crate) fn enter(self: &Rc<Self>, from: IpAddr) -> (Stranger, bool) {
        let mut waiting = self.waiting.borrow_mut();
        let is_full = waiting.count() >= limits::HANDSHAKES;
        if is_full {
            make_room(&mut waiting);
        }
        let makes_room = Rc::default();
        let ticket = waiting.enter(from, Rc::clone(&makes_room));
        (Stranger { all: Rc::clone(self), ticket, makes_room }, is_full)
    }
}

fn make_room(waiting: &mut ByNetwork<Rc<Notify>>) {
    let first = waiting.largest().and_then(|network| waiting.first_of(network));
    if let Some((ticket, _)) = first
        && let Some(makes_room) = waiting.leave(ticket)
    {
        makes_room.notify_one();
    }
}

/// A stranger's connection, which counts until this is dropped.
pub(crate) struct Stranger {
    all: Rc<Strangers>,
    ticket: Ticket,
    makes_room: Rc<Notify>,
}

impl Stranger {
    /// Ready when it has to make room for another.
    pub(crate) async fn makes_room(&self) {
        self.makes_room.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Does nothing if it has made room: then it was removed already.
        self.all.waiting.borrow_mut().leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_go(stranger: &Stranger) -> bool {
        use futures_util::FutureExt;
        stranger.makes_room().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_of_the_largest_network_makes_room_for_a_new_connection() {
        let all: Rc<Strangers> = Rc::default();
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let (few, many) = (address("192.0.2.1"), address("192.0.2.2"));
        let patient: Vec<_> = (0..10).map(|_| all.enter(few).0).collect();
        let mut hoard: Vec<_> = (10..limits::HANDSHAKES).map(|_| all.enter(many).0).collect();
        assert_eq!(all.count(), limits::HANDSHAKES);
        for _ in 0..100 {
            let (new, made_room) = all.enter(address("192.0.2.3"));
            assert!(made_room && all.count() == limits::HANDSHAKES, "there are no more than allowed");
            hoard.push(new);
        }
        assert!(hoard[..100].iter().all(must_go), "the first of the network with the most");
        assert!(!hoard[100..].iter().chain(&patient).any(must_go));
        drop(hoard);
        assert_eq!(all.count(), 10);
        drop(patient);
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn many_networks_of_one_connection_each_do_not_close_a_new_connection() {
        let all: Rc<Strangers> = Rc::default();
        let patient: Vec<_> = (0..limits::HANDSHAKES as u32)
            .map(|number| all.enter(IpAddr::from((0x0a00_0000 + number).to_be_bytes())).0)
            .collect();
        let mut others = Vec::new();
        // First an address that is higher than all the others, then a lower one.
        for address in [[192, 0, 2, 1], [9, 0, 0, 1]] {
            let (honest, made_room) = all.enter(IpAddr::from(address));
            assert!(made_room && must_go(&patient[others.len()]), "the one that has waited longest");
            others.push(honest);
            let (next, made_room) = all.enter(IpAddr::from([10, 1, 0, others.len() as u8]));
            assert!(made_room && must_go(&patient[others.len()]));
            others.push(next);
            assert!(!others.iter().any(must_go));
        }
    }
}
