//! Where an endpoint may be: on the host that announces it, or where a join token allows its identity to be.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, UdpSocket},
    str::FromStr,
};

use weft_mesh::names::{ServiceName, shown};

/// An IP address, or a network: `10.1.2.3`, `10.1.0.0/16`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` is neither an IP address nor a network as 10.1.0.0/16", shown(text));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(whole), |prefix| prefix.parse().map_err(|_| wrong()))?;
        if prefix > whole {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let differs = bits(self.address) ^ bits(address);
        // A shift by all 128 bits is no shift that Rust knows.
        let rest = 128 - u32::from(self.prefix);
        self.address.is_ipv4() == address.is_ipv4() && differs.checked_shr(rest).unwrap_or(0) == 0
    }
}

/// The networks, besides its own host, in which an identity's endpoints may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hosts(BTreeMap<ServiceName, Vec<Network>>);

impl Hosts {
    /// Allows these networks, in place of what was allowed before. True when that is another.
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

/// Whether an address is the host's from which a connection came: the very same one, or, for a connection from this
/// host, one of this host's.
pub(crate) fn is_own(peer: IpAddr, address: IpAddr) -> bool {
    let (peer, address) = (peer.to_canonical(), address.to_canonical());
    // An address that can be bound is an address of this host.
    let is_here = || UdpSocket::bind((address, 0)).is_ok();
    peer == address || peer.is_loopback() && !address.is_unspecified() && (address.is_loopback() || is_here())
}

/// Whether two addresses are the same host's, as far as they show it: equal, or both of loopback.
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
    fn an_address_is_the_peer_s_own_or_it_is_not() {
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

    #[test]
    fn a_network_holds_the_addresses_that_begin_as_it_does() {
        let holds = |network: &str, address: &str| network.parse::<Network>().unwrap().contains(ip(address));
        assert!(holds("10.1.0.0/16", "10.1.255.3") && !holds("10.1.0.0/16", "10.2.0.0"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "fd00::1"));
        assert!(holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "fe00::1"));
        for wrong in ["", "10.1.0.0/33", "10.1.0.0/", "10.1.0.0/-1", "shop", "::1/129"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
