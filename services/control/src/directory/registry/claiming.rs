//! How the claims of announcements become a service's own, and how many are allowed.

use std::{collections::BTreeMap, iter, net::SocketAddr, sync::Arc};

use tokio::time::Instant;
use weft_mesh::{limits, names::ServiceName};

use super::{
    Announcement, Event, Refusal, Registry,
    claimed::Claim,
    member::{Entry, Member},
};
use crate::claims::{Claims, Denied, Kind, hosts::are_one_host, is_address};

impl Registry {
    /// Whether there is room for an endpoint and its claims.
    pub(super) fn check_room(&self, announcement: &Announcement) -> Result<(), Refusal> {
        let Announcement { service, endpoint, contracts, addresses, .. } = announcement;
        let Some(entry) = self.services.get(service) else {
            let has_room = self.services.len() < limits::SERVICES_KNOWN;
            return if has_room { Ok(()) } else { Err(Refusal::Services) };
        };
        if entry.members.is_empty() {
            return Ok(());
        }
        // On a cluster pods of several accounts may back one Service: none takes the place of another's endpoint.
        if entry.members.get(&endpoint.id).is_some_and(|other| other.endpoint.spiffe_id != endpoint.spiffe_id) {
            return Err(Refusal::OtherIdentity { service: service.clone(), id: endpoint.id.clone() });
        }
        if entry.members.len() >= limits::ENDPOINTS_PER_SERVICE && !entry.members.contains_key(&endpoint.id) {
            return Err(Refusal::Endpoints { service: service.clone() });
        }
        let (contracts, addresses) = entry.claimed.counts_with(contracts, addresses);
        if contracts > limits::CONTRACTS_PER_SERVICE {
            return Err(Refusal::Contracts { service: service.clone() });
        }
        if addresses > limits::ADDRESSES_PER_SERVICE {
            return Err(Refusal::Addresses { service: service.clone() });
        }
        Ok(())
    }

    /// Judges a service's claims. Those without an owner are pinned to it, or to the one that its namespace has chosen. Returns
    /// those that are refused.
    pub(super) fn judge(&mut self, service: &ServiceName, claims: &[(String, Kind)], now: Instant) -> Denied {
        let Self { services, claims: all, .. } = self;
        let claims = claims.iter().map(|(claim, kind)| (claim.as_str(), *kind));
        let denied = all.judge(service, claims, |name| is_there(services, name, now));
        for (contract, owner) in &denied.given {
            self.call_by(contract, owner, now);
        }
        denied
    }

    /// The claims of a service have changed. `made` are all claims of an announcement: the service becomes the owner of
    /// those that it has a right to. `new` are those of them that none of its endpoints made before, and `lost` are
    /// those that none makes any more.
    pub(super) fn change_claims(
        &mut self,
        service: &ServiceName,
        made: &[Claim],
        new: &[Claim],
        lost: &[Arc<str>],
        now: Instant,
    ) {
        let Self { services, claims, departed, .. } = self;
        let mut moved = claims.gain(service, made.iter(), |name| is_there(services, name, now));
        // An address with an owner does not belong to its former one any more.
        made.iter()
            .filter(|(claim, _)| claims.owner(claim) == Some(service))
            .for_each(|(claim, _)| departed.forget(claim));
        moved.extend(claims.lose(service, lost.iter().map(|claim| &**claim)));
        let mut changed = new.iter().map(|(name, _)| name).chain(lost);
        if let Some(entry) = services.get_mut(service) {
            entry.has_new_claims |= !(new.is_empty() && lost.is_empty() && moved.is_empty());
            entry.has_new_contracts |= changed.any(|name| !is_address(name));
        }
        if !moved.is_empty() {
            self.bump();
        }
        self.events.extend(moved.into_iter().map(Event::Contract));
    }

    /// The mesh's owner gives a contract to a service. If an endpoint of it has claimed it in vain, the service is called
    /// by it now, and others that have claimed it contest it. False if another service has it, or if there is no room.
    pub(crate) fn grant(&mut self, contract: &str, service: &ServiceName, now: Instant) -> bool {
        let is_granted = self.claims.grant(contract, service);
        let entry = self.services.get(service);
        if is_granted && entry.is_some_and(|entry| !entry.members.is_empty() && entry.claimed.contains(contract)) {
            self.change_claims(service, &[(Arc::from(contract), Kind::Pinned)], &[], &[], now);
        }
        if is_granted {
            let claim_it = |(name, entry): &(&ServiceName, &Entry)| {
                *name != service && !entry.members.is_empty() && entry.claimed.contains(contract)
            };
            let others: Vec<ServiceName> =
                self.services.iter().filter(claim_it).map(|(name, _)| name.clone()).collect();
            for other in others {
                self.judge(&other, &[(contract.to_owned(), Kind::Pinned)], now);
            }
        }
        is_granted
    }

    /// The owner of a namespace says which of its Services have these contracts, instead of what was said before. A Service that
    /// claims what is its own now is called by it, and the former one is not. Returns what has moved, with the new owners.
    pub(crate) fn choose(
        &mut self,
        namespace: &str,
        chosen: BTreeMap<String, ServiceName>,
        now: Instant,
    ) -> BTreeMap<String, ServiceName> {
        let moved = self.claims.choose(namespace, chosen);
        for (contract, owner) in &moved {
            self.call_by(contract, owner, now);
        }
        moved
    }

    /// The mesh's owner says which services have these contracts, instead of what was said before. Returns what has moved,
    /// with the new owners.
    pub(crate) fn own(
        &mut self,
        owners: &BTreeMap<String, ServiceName>,
        now: Instant,
    ) -> BTreeMap<String, ServiceName> {
        let moved = self.claims.own(owners);
        for (contract, owner) in &moved {
            self.call_by(contract, owner, now);
        }
        moved
    }

    /// A contract belongs to another service now.
    fn call_by(&mut self, contract: &str, owner: &ServiceName, now: Instant) {
        let before = self.claims.owner(contract).filter(|before| *before != owner).cloned();
        if self.does_claim(owner, contract) {
            self.change_claims(owner, &[(Arc::from(contract), Kind::Pinned)], &[], &[], now);
        } else if let Some(before) = &before {
            let lost = self.claims.lose(before, iter::once(contract));
            if !lost.is_empty() {
                self.bump();
            }
            self.events.extend(lost.into_iter().map(Event::Contract));
        }
        if let Some(before) = before.filter(|before| self.does_claim(before, contract)) {
            self.judge(&before, &[(contract.to_owned(), Kind::Pinned)], now);
        }
    }

    /// Whether an endpoint of a service claims a contract.
    pub(super) fn does_claim(&self, service: &ServiceName, contract: &str) -> bool {
        let entry = self.services.get(service);
        entry.is_some_and(|entry| !entry.members.is_empty() && entry.claimed.contains(contract))
    }

    /// All claims and their owners.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    pub(crate) fn claims_mut(&mut self) -> &mut Claims {
        &mut self.claims
    }
}

/// Whether a service has an endpoint that was heard lately. The last endpoints of a service are kept for longer, but by
/// then another service may run on their hosts.
fn is_there(services: &BTreeMap<ServiceName, Entry>, name: &ServiceName, now: Instant) -> bool {
    let is_heard =
        |member: &Member| member.is_connected || now.saturating_duration_since(member.heard) < limits::ENDPOINT_EXPIRY;
    services.get(name).is_some_and(|entry| entry.members.values().any(is_heard))
}

/// The claims of an announcement, and how each is proven.
pub(super) fn claims_of(announcement: &Announcement) -> Vec<(String, Kind)> {
    let host_of = |address: &str| address.parse::<SocketAddr>().ok().map(|address| address.ip());
    let host = host_of(&announcement.endpoint.address);
    let kind = |address: &str| match (host, host_of(address)) {
        (Some(host), Some(other)) if are_one_host(host, other) => Kind::Located,
        _ if announcement.of_cluster.contains(address) => Kind::Located,
        _ if announcement.allowed.contains(address) => Kind::Pinned,
        _ => Kind::Unproven,
    };
    let contracts = announcement.contracts.iter().map(|contract| (contract.clone(), Kind::Pinned));
    contracts.chain(announcement.addresses.iter().map(|address| (address.clone(), kind(address)))).collect()
}
