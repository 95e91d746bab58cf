//! Who waits, by the network that they come from.
//!
//! Ports that strangers reach know nothing of a peer but its address, so room is shared out by network: what one network
//! takes costs the others nothing. [`ByNetwork`] is a plain state machine; each step takes time by the logarithm of how many
//! wait.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

/// What tells peers apart by address: of IPv4 the address, of IPv6 the first 64 bits, as a host may choose the others
/// (RFC 4291, section 2.5.1). An IPv4 address written as IPv6 is the IPv4 address.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// The place of one that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    network: IpAddr,
    number: u64,
}

impl Ticket {
    /// The network that it is counted for.
    pub fn network(&self) -> IpAddr {
        self.network
    }
}

/// See the module. `T` is what is known of each that waits.
#[derive(Debug)]
pub struct ByNetwork<T> {
    /// By the order in which they came.
    waiting: HashMap<IpAddr, BTreeMap<u64, T>>,
    /// How many each network has.
    sizes: BTreeSet<(usize, IpAddr)>,
    /// All in the order in which they came.
    order: BTreeMap<u64, IpAddr>,
    entered: u64,
}

impl<T> Default for ByNetwork<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), sizes: BTreeSet::new(), order: BTreeMap::new(), entered: 0 }
    }
}

impl<T> ByNetwork<T> {
    /// How many wait.
    pub fn count(&self) -> usize {
        self.order.len()
    }

    /// How many of a network wait.
    pub fn of(&self, network: IpAddr) -> usize {
        self.waiting.get(&network).map_or(0, BTreeMap::len)
    }

    /// The network with the most, if anybody waits.
    pub fn largest(&self) -> Option<IpAddr> {
        self.sizes.last().map(|(_, network)| *network)
    }

    /// One more waits, from an address.
    pub fn enter(&mut self, from: IpAddr, what: T) -> Ticket {
        self.entered += 1;
        let ticket = Ticket { network: network(from), number: self.entered };
        let of_network = self.waiting.entry(ticket.network).or_default();
        of_network.insert(ticket.number, what);
        let size = of_network.len();
        self.resize(ticket.network, size - 1, size);
        self.order.insert(ticket.number, ticket.network);
        ticket
    }

    /// One waits no longer. `None` when it had gone before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let of_network = self.waiting.get_mut(&ticket.network)?;
        let what = of_network.remove(&ticket.number)?;
        let size = of_network.len();
        if size == 0 {
            self.waiting.remove(&ticket.network);
        }
        self.resize(ticket.network, size + 1, size);
        self.order.remove(&ticket.number);
        Some(what)
    }

    /// Of a network, the one that came first.
    pub fn first_of(&self, network: IpAddr) -> Option<(Ticket, &T)> {
        let (number, what) = self.waiting.get(&network)?.first_key_value()?;
        Some((Ticket { network, number: *number }, what))
    }

    /// The one that came first of all.
    pub fn first(&self) -> Option<(Ticket, &T)> {
        let (_, network) = self.order.first_key_value()?;
        self.first_of(*network)
    }

    fn resize(&mut self, network: IpAddr, before: usize, now: usize) {
        self.sizes.remove(&(before, network));
        if now > 0 {
            self.sizes.insert((now, network));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_of_ipv6_has_one_network() {
        let same = |a: &str, b: &str| network(address(a)) == network(address(b));
        assert!(same("2001:db8::1", "2001:db8::ffff:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn who_came_first_of_the_network_with_the_most_is_found() {
        let mut all = ByNetwork::default();
        let few = all.enter(address("192.0.2.1"), "few");
        let first = all.enter(address("2001:db8::1"), "first");
        let second = all.enter(address("2001:db8::2"), "second");
        assert_eq!((all.count(), all.of(second.network()), all.largest()), (3, 2, Some(first.network())));
        assert_eq!(all.first_of(first.network()), Some((first, &"first")));
        assert_eq!(all.first(), Some((few, &"few")));
        assert_eq!(all.leave(first), Some("first"));
        assert_eq!(all.leave(first), None, "it had gone");
        assert_eq!(all.first_of(first.network()), Some((second, &"second")));
        assert!(all.leave(second).is_some() && all.largest() == Some(few.network()));
        assert!(all.leave(few).is_some());
        assert!(
            all.count() == 0 && all.first().is_none() && all.waiting.is_empty() && all.sizes.is_empty(),
            "nothing is kept of who has gone"
        );
    }
}
