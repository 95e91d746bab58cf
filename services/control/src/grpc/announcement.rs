//! Checks announcements for the registry: they must be well-formed, and within the rights of the announcer.
//!
//! Lengths are checked before anything else: a message may have 8 MiB, and refusals quote what they refuse.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use tonic::Status;
use weft_contracts::weft::discovery::v1::{Announce, Endpoint, Health, Protocol};
use weft_mesh::{
    identity::SpiffeId,
    limits,
    names::{ServiceName, is_contract_name, shown},
};

use crate::{
    claims::hosts::is_own,
    directory::registry::{Announcement, Digest},
};

/// Who makes an announcement, and from which host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announcer<'a> {
    pub(crate) id: &'a SpiffeId,
    pub(crate) host: IpAddr,
}

/// The announcement as the registry takes it, if it passes all checks. `allows` says whether a service's endpoints may
/// be at an address that is not on the announcer's host.
pub(crate) fn check(
    announcer: Announcer<'_>,
    announce: Announce,
    allows: impl Fn(&ServiceName, IpAddr) -> bool,
) -> Result<Announcement, Status> {
    let protocol = announce.protocol();
    let service = ServiceName::parse(&announce.service).map_err(|e| invalid(e.to_string()))?;
    let id = announcer.id;
    if id.service() != &service {
        return Err(Status::permission_denied(format!("{id} may not announce {service}: its identity names another")));
    }
    if protocol == Protocol::Unspecified {
        return Err(invalid("the service's protocol is missing"));
    }
    let endpoint = announce.endpoint.ok_or_else(|| invalid("the endpoint is missing"))?;
    let endpoint = check_endpoint(announcer, endpoint, |address| allows(&service, address))?;
    if announce.contracts.len() > limits::CONTRACTS_PER_SERVICE {
        return Err(invalid(format!("a service implements {} contracts at most", limits::CONTRACTS_PER_SERVICE)));
    }
    if let Some(wrong) = announce.contracts.iter().find(|contract| !is_contract_name(contract)) {
        return Err(invalid(format!("`{}` is not the full name of a protobuf service", shown(wrong))));
    }
    if announce.addresses.len() > limits::ADDRESSES_PER_ENDPOINT {
        return Err(invalid(format!("an endpoint is called at {} addresses at most", limits::ADDRESSES_PER_ENDPOINT)));
    }
    let addresses = announce
        .addresses
        .iter()
        .map(|text| reachable(text).ok_or_else(|| invalid(format!("`{}` is not IP:PORT of a service", shown(text)))));
    let addresses = addresses.collect::<Result<Vec<SocketAddr>, Status>>()?;
    let descriptors = match announce.descriptors_sha256.len() {
        0 => None,
        _ => Some(
            Digest::try_from(&announce.descriptors_sha256[..])
                .map_err(|_| invalid(format!("a SHA-256 has 32 bytes, not {}", announce.descriptors_sha256.len())))?,
        ),
    };
    let contracts = announce.contracts.into_iter().collect();
    let allowed = addresses.iter().filter(|address| allows(&service, address.ip())).map(ToString::to_string).collect();
    // Written like callers' sidecars do, so that another spelling is not another claim.
    let addresses = addresses.iter().map(ToString::to_string).collect();
    let of_cluster = BTreeSet::new();
    Ok(Announcement {
        service,
        endpoint,
        protocol,
        contracts,
        addresses,
        allowed,
        of_cluster,
        descriptors,
        policy: None,
    })
}

fn check_endpoint(
    announcer: Announcer<'_>,
    endpoint: Endpoint,
    allows: impl Fn(IpAddr) -> bool,
) -> Result<Endpoint, Status> {
    let Announcer { id, host } = announcer;
    if endpoint.spiffe_id != id.to_string() {
        let other = shown(&endpoint.spiffe_id);
        return Err(Status::permission_denied(format!("{id} may not announce an endpoint of {other}")));
    }
    let is_id = (1..=limits::ENDPOINT_ID_BYTES).contains(&endpoint.id.len())
        && endpoint.id.bytes().all(|b| b.is_ascii_graphic());
    if !is_id {
        let most = limits::ENDPOINT_ID_BYTES;
        return Err(invalid(format!("an endpoint's id is 1 to {most} printable ASCII characters without spaces")));
    }
    if endpoint.health() == Health::Unspecified {
        return Err(invalid("the endpoint's health is missing"));
    }
    let Some(address) = reachable(&endpoint.address) else {
        return Err(invalid(format!("`{}` is not IP:PORT of a reachable sidecar", shown(&endpoint.address))));
    };
    // Calls are sent there: with any address allowed, a service could direct the whole mesh at a target.
    if !is_own(host, address.ip()) && !allows(address.ip()) {
        return Err(Status::permission_denied(format!(
            "{id} announces an endpoint at {address}, but its connection comes from {host}: an endpoint is on the host that \
             announces it, or where its join token allows it (weft-control token --address)"
        )));
    }
    // An endpoint that announces itself is not silent.
    Ok(Endpoint { address: address.to_string(), silent: false, ..endpoint })
}

/// An address that can be reached. An IPv4 address mapped to IPv6 becomes the IPv4 address.
fn reachable(text: &str) -> Option<SocketAddr> {
    /// The length of the longest possible one, `[IPV6%SCOPE]:PORT`, and some more.
    const LONGEST: usize = 64;
    if text.len() > LONGEST {
        return None;
    }
    let address: SocketAddr = text.parse().ok()?;
    let ip = address.ip().to_canonical();
    let is_reachable = !ip.is_unspecified() && !ip.is_multicast() && address.port() != 0;
    is_reachable.then(|| if ip.is_ipv4() { SocketAddr::new(ip, address.port()) } else { address })
}

fn invalid(what: impl Into<String>) -> Status {
    Status::invalid_argument(what)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tonic::Code;

    use super::*;

    fn users() -> SpiffeId {
        "spiffe://weft.test/ns/shop/sa/users".parse().unwrap()
    }

    fn good() -> Announce {
        Announce {
            service: "users.shop".into(),
            endpoint: Some(Endpoint {
                id: "u1".into(),
                address: "10.0.0.1:15006".into(),
                spiffe_id: users().to_string(),
                health: Health::Up.into(),
                silent: false,
            }),
            protocol: Protocol::Http2.into(),
            contracts: vec!["shop.Users".into()],
            addresses: vec!["10.96.0.1:80".into(), "[::ffff:10.96.0.1]:80".into(), "[fd00::01]:80".into()],
            descriptors_sha256: Bytes::new(),
        }
    }

    fn at(address: &str) -> Announce {
        let endpoint = good().endpoint.map(|endpoint| Endpoint { address: address.into(), ..endpoint });
        Announce { endpoint, ..good() }
    }

    fn judge(announce: Announce, host: &str) -> Result<Announcement, Status> {
        let id = users();
        let allowed: crate::authority::network::Network = "172.16.0.0/12".parse().unwrap();
        let mut hosts = crate::claims::hosts::Hosts::default();
        hosts.allow(id.service(), vec![allowed]);
        let allows = |service: &ServiceName, address| hosts.allows(service, address);
        check(Announcer { id: &id, host: host.parse().unwrap() }, announce, allows)
    }

    #[test]
    fn an_address_has_one_spelling() {
        let announcement = judge(good(), "10.0.0.1").unwrap();
        assert_eq!(announcement.addresses, BTreeSet::from(["10.96.0.1:80".to_owned(), "[fd00::1]:80".to_owned()]));
        assert_eq!(judge(at("[::ffff:10.0.0.1]:1"), "10.0.0.1").unwrap().endpoint.address, "10.0.0.1:1");
    }

    #[test]
    fn an_endpoint_is_on_the_announcing_host_or_where_its_token_allows_it() {
        for (address, host) in [
            ("10.0.0.1:15006", "10.0.0.1"),
            ("10.0.0.1:1", "::ffff:10.0.0.1"),
            ("172.17.0.2:15006", "10.0.0.1"),
            ("127.0.0.1:15006", "127.0.0.1"),
            ("127.3.0.1:15006", "127.0.0.1"),
        ] {
            assert!(judge(at(address), host).is_ok(), "{address} from {host}");
        }
        for (address, host) in [
            ("10.0.0.2:15006", "10.0.0.1"),
            ("127.0.0.1:15006", "10.0.0.1"),
            ("192.0.2.1:443", "10.0.0.1"),
            ("192.0.2.1:443", "127.0.0.1"),
            ("[2001:db8::1]:443", "127.0.0.1"),
        ] {
            let refused = judge(at(address), host).unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{address} from {host}: {refused}");
            assert!(refused.message().contains(&format!("its connection comes from {host}")), "{refused}");
        }
    }

    #[test]
    fn refusals_quote_only_a_part_of_long_values() {
        let long = "x".repeat(1_000_000);
        let of_endpoint = |change: fn(&mut Endpoint, String)| {
            let mut announce = good();
            change(announce.endpoint.as_mut().unwrap(), long.clone());
            announce
        };
        for announce in [
            Announce { service: long.clone(), ..good() },
            Announce { service: format!("{long}.shop"), ..good() },
            Announce { contracts: vec![format!("{long} ")], ..good() },
            Announce { contracts: vec![long.clone()], ..good() },
            Announce { addresses: vec![long.clone()], ..good() },
            of_endpoint(|endpoint, long| endpoint.id = long),
            of_endpoint(|endpoint, long| endpoint.address = long),
            of_endpoint(|endpoint, long| endpoint.spiffe_id = long),
        ] {
            let refused = judge(announce, "10.0.0.1").unwrap_err();
            assert!(refused.message().len() < 500, "{} bytes", refused.message().len());
        }
    }
}
