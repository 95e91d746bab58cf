//! Where an endpoint may be: on the host that announces it, or in the networks that a join token allows.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
};

use weft_mesh::names::ServiceName;

use crate::authority::network::Network;

/// The networks where an identity's endpoints may be, besides the host that announces them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hosts(BTreeMap<ServiceName, Vec<Network>>);

impl Hosts {
    /// Allows these networks instead of those that were allowed before. False if nothing changes.
    pub(crate) fn allow(&mut self, service: &ServiceName, networks: Vec<Network>) -> bool {
        self.0.get(service) != Some(&networks) && {
            self.0.insert(service.clone(), networks);
            true
        }
    }

    pub(crate) fn allows(&self, service: &ServiceName, address: IpAddr) -> bool {
        self.0.get(service).is_some_and(|networks| networks.iter().any(|network| network.contains(address)))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&ServiceName, &[Network])> {
        self.0.iter().map(|(service, networks)| (service, networks.as_slice()))
    }
}

/// Whether an address is on the host that a connection came from: it is the same address or, for a connection from this
/// host, another address of this host.
pub(crate) fn is_own(peer: IpAddr, address: IpAddr) -> bool {
    let (peer, address) = (peer.to_canonical(), address.to_canonical());
    // If an address can be bound, it is an address of this host.
    let is_here = || UdpSocket::bind((address, 0)).is_ok();
    peer == address || peer.is_loopback() && !address.is_unspecified() && (address.is_loopback() || is_here())
}

/// Whether two addresses are certainly on the same host: they are equal, or both are loopback addresses.
pub(crate) fn are_one_host(a: IpAddr, b: IpAddr) -> bool {
    let (a, b) = (a.to_canonical(), b.to_canonical());
    a == b || a.is_loopback() && b.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_own_only_on_the_peers_host() {
        for (peer, address) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "127.9.9.9"),
            ("127.0.0.1", "::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert!(is_own(ip(peer), ip(address)), "{peer} {address}");
        }
        for (peer, address) in [
            ("10.0.0.1", "10.0.0.2"),
            ("10.0.0.1", "127.0.0.1"),
            ("10.0.0.1", "0.0.0.0"),
            // Networks for documentation (RFC 5737): no host has an address of them.
            ("127.0.0.1", "192.0.2.1"),
            ("127.0.0.1", "0.0.0.0"),
            ("127.0.0.1", "::"),
        ] {
            assert!(!is_own(ip(peer), ip(address)), "{peer} {address}");
        }
    }
}
