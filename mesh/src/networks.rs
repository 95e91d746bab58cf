//! Waiting peers, by the network that they come from.
//!
//! On ports that strangers can reach only the address of a peer is known. So room is divided by network, and one
//! network cannot take the room of others. [`ByNetwork`] is a plain state machine. Each step takes time logarithmic in
//! the number of waiting peers.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

/// The network of an address: for IPv4 the address itself, for IPv6 its first 64 bits, as a host may choose the others
/// (RFC 4291, section 2.5.1). An IPv4 address mapped to IPv6 counts as the IPv4 address.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// The place of a waiting peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    network: IpAddr,
    number: u64,
}

impl Ticket {
    /// The network that the peer is counted for.
    pub fn network(&self) -> IpAddr {
        self.network
    }
}

/// See the module. `T` is the data of a waiting peer.
#[derive(Debug)]
pub struct ByNetwork<T> {
    /// By the order in which they came.
    waiting: HashMap<IpAddr, BTreeMap<u64, T>>,
    sizes: BTreeSet<Size>,
    /// All peers in the order in which they came.
    order: BTreeMap<u64, IpAddr>,
    entered: u64,
}

impl<T> Default for ByNetwork<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), sizes: BTreeSet::new(), order: BTreeMap::new(), entered: 0 }
    }
}

impl<T> ByNetwork<T> {
    /// How many peers wait.
    pub fn count(&self) -> usize {
        self.order.len()
    }

    /// How many peers of a network wait.
    pub fn of(&self, network: IpAddr) -> usize {
        self.waiting.get(&network).map_or(0, BTreeMap::len)
    }

    /// The network with the most waiting peers, if any wait. Of networks with equally many, the one whose first peer
    /// has waited longest: addresses must not decide, as peers may choose theirs.
    pub fn largest(&self) -> Option<IpAddr> {
        let (_, Reverse(first)) = self.sizes.last()?;
        self.order.get(first).copied()
    }

    /// Adds a waiting peer from an address.
    pub fn enter(&mut self, from: IpAddr, what: T) -> Ticket {
        self.entered += 1;
        let ticket = Ticket { network: network(from), number: self.entered };
        let of_network = self.waiting.entry(ticket.network).or_default();
        let before = size_of(of_network);
        of_network.insert(ticket.number, what);
        let now = size_of(of_network);
        self.resize(before, now);
        self.order.insert(ticket.number, ticket.network);
        ticket
    }

    /// Removes a waiting peer. `None` if it is gone already.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let of_network = self.waiting.get_mut(&ticket.network)?;
        let before = size_of(of_network);
        let what = of_network.remove(&ticket.number)?;
        let now = size_of(of_network);
        if now.is_none() {
            self.waiting.remove(&ticket.network);
        }
        self.resize(before, now);
        self.order.remove(&ticket.number);
        Some(what)
    }

    /// The first peer of a network.
    pub fn first_of(&self, network: IpAddr) -> Option<(Ticket, &T)> {
        let (number, what) = self.waiting.get(&network)?.first_key_value()?;
        Some((Ticket { network, number: *number }, what))
    }

    /// The first peer of all.
    pub fn first(&self) -> Option<(Ticket, &T)> {
        let (_, network) = self.order.first_key_value()?;
        self.first_of(*network)
    }

    fn resize(&mut self, before: Option<Size>, now: Option<Size>) {
        if let Some(before) = before {
            self.sizes.remove(&before);
        }
        self.sizes.extend(now);
    }
}

/// How many peers a network has, and the number of its first.
type Size = (usize, Reverse<u64>);

/// `None` for a network without waiting peers.
fn size_of<T>(of_network: &BTreeMap<u64, T>) -> Option<Size> {
    of_network.first_key_value().map(|(first, _)| (of_network.len(), Reverse(*first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_host_has_one_network() {
        let same = |a: &str, b: &str| network(address(a)) == network(address(b));
        assert!(same("2001:db8::1", "2001:db8::ffff:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn the_first_peer_of_the_largest_network_is_found() {
        let mut all = ByNetwork::default();
        let few = all.enter(address("192.0.2.1"), "few");
        let first = all.enter(address("2001:db8::1"), "first");
        let second = all.enter(address("2001:db8::2"), "second");
        assert_eq!((all.count(), all.of(second.network()), all.largest()), (3, 2, Some(first.network())));
        assert_eq!(all.first_of(first.network()), Some((first, &"first")));
        assert_eq!(all.first(), Some((few, &"few")));
        assert_eq!(all.leave(first), Some("first"));
        assert_eq!(all.leave(first), None, "it is gone already");
        assert_eq!(all.first_of(first.network()), Some((second, &"second")));
        assert!(all.leave(second).is_some() && all.largest() == Some(few.network()));
        assert!(all.leave(few).is_some());
        assert!(
            all.count() == 0 && all.first().is_none() && all.waiting.is_empty() && all.sizes.is_empty(),
            "peers that left leave nothing behind"
        );
    }

    #[test]
    fn of_equally_large_networks_the_one_with_the_longest_wait_counts_as_largest() {
        let hosts = ["192.0.2.5", "192.0.2.9", "192.0.2.1", "2001:db8::1", "192.0.2.7"].map(address);
        let mut all = ByNetwork::default();
        let mut tickets: Vec<_> = hosts.iter().map(|host| all.enter(*host, ())).collect();
        tickets.extend(hosts.iter().rev().map(|host| all.enter(*host, ())));
        for host in hosts {
            assert_eq!(all.largest(), Some(network(host)));
            let (first, ()) = all.first_of(network(host)).expect("two peers of it wait");
            all.leave(first);
        }
        // Each has its second now, and those came in the opposite order.
        for host in hosts.into_iter().rev() {
            assert_eq!(all.largest(), Some(network(host)));
            let (second, ()) = all.first_of(network(host)).expect("it has one");
            all.leave(second);
        }
        assert!(all.largest().is_none() && all.sizes.is_empty());
        assert!(tickets.into_iter().all(|ticket| all.leave(ticket).is_none()));
    }
}
