//! Connections to the inbound port of which it is not known yet whose they are: their TLS handshake is not done.
//!
//! They have a budget of their own, so that no stranger takes what peers have. When it is full the next one is taken all the
//! same, and one makes room: the one that has taken longest, of the network with the most. A handshake takes milliseconds, so
//! those who make room are those who do not go on; and one network costs the others nothing.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
};

use tokio::sync::Notify;
use weft_mesh::limits;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    /// By network, those that have come first in front.
    waiting: RefCell<HashMap<IpAddr, VecDeque<Waiting>>>,
    count: Cell<usize>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    makes_room: Rc<Notify>,
}

impl Strangers {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    /// Counts one more. Whether another had to make room for it.
    pub(crate) fn enter(self: &Rc<Self>, from: IpAddr) -> (Stranger, bool) {
        let is_full = self.count.get() >= limits::HANDSHAKES;
        if is_full {
            self.make_room();
        }
        let (network, number, makes_room) = (network(from), self.next.get(), Rc::default());
        self.next.set(number + 1);
        self.count.set(self.count.get() + 1);
        let waiting = Waiting { number, makes_room: Rc::clone(&makes_room) };
        self.waiting.borrow_mut().entry(network).or_default().push_back(waiting);
        (Stranger { all: Rc::clone(self), network, number, makes_room }, is_full)
    }

    fn make_room(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let Some((network, first)) = waiting
            .iter_mut()
            .max_by_key(|(_, of_network)| of_network.len())
            .and_then(|(network, of_network)| Some((*network, of_network.pop_front()?)))
        else {
            return;
        };
        first.makes_room.notify_one();
        self.count.set(self.count.get() - 1);
        if waiting.get(&network).is_some_and(VecDeque::is_empty) {
            waiting.remove(&network);
        }
    }

    fn remove(&self, network: IpAddr, number: u64) {
        let mut waiting = self.waiting.borrow_mut();
        let Some(of_network) = waiting.get_mut(&network) else { return };
        // In the order of their numbers. One that has made room is not there any more.
        let Ok(place) = of_network.binary_search_by_key(&number, |waiting| waiting.number) else { return };
        of_network.remove(place);
        self.count.set(self.count.get() - 1);
        if of_network.is_empty() {
            waiting.remove(&network);
        }
    }
}

/// Who can be told apart by address: in IPv6 a host has 64 bits of its own choice (RFC 4291, section 2.5.1).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// One of them, which counts until this is dropped.
pub(crate) struct Stranger {
    all: Rc<Strangers>,
    network: IpAddr,
    number: u64,
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
        self.all.remove(self.network, self.number);
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
    fn who_does_not_go_on_makes_room_for_who_comes() {
        let all: Rc<Strangers> = Rc::default();
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let (few, many) = (address("192.0.2.1"), address("192.0.2.2"));
        let patient: Vec<_> = (0..10).map(|_| all.enter(few).0).collect();
        let mut hoard: Vec<_> = (10..limits::HANDSHAKES).map(|_| all.enter(many).0).collect();
        assert_eq!(all.count(), limits::HANDSHAKES);
        for _ in 0..100 {
            let (new, made_room) = all.enter(address("192.0.2.3"));
            assert!(made_room && all.count() == limits::HANDSHAKES, "and there are no more");
            hoard.push(new);
        }
        assert!(hoard[..100].iter().all(must_go), "the first of the network with the most");
        assert!(!hoard[100..].iter().chain(&patient).any(must_go));
        drop(hoard);
        assert_eq!(all.count(), 10);
        drop(patient);
        assert!(all.count() == 0 && all.waiting.borrow().is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn a_host_of_ipv6_has_one_network() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
    }
}
