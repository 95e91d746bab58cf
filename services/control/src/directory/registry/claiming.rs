//! How the claims of announcements become a service's own, and how many there may be.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tokio::time::Instant;
use weft_mesh::{limits, names::ServiceName};

use super::{Announcement, Entry, Event, Member, Refusal, Registry, claimed::Claim};
use crate::claims::{Claims, Denied, Kind, hosts::are_one_host, is_address};

impl Registry {
    /// Whether there is room for an endpoint and what it claims.
    pub(super) fn check_room(&self, announcement: &Announcement) -> Result<(), Refusal> {
        let Announcement { service, endpoint, contracts, addresses, .. } = announcement;
        let Some(entry) = self.services.get(service) else {
            let has_room = self.services.len() < limits::SERVICES_KNOWN;
            return if has_room { Ok(()) } else { Err(Refusal::Services) };
        };
        if entry.members.is_empty() {
            return Ok(());
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

    /// Which of a service's claims are refused; those that are nobody's yet are its own from now on.
    pub(super) fn judge(&mut self, service: &ServiceName, claims: &[(String, Kind)], now: Instant) -> Denied {
        let Self { services, claims: all, .. } = self;
        let claims = claims.iter().map(|(claim, kind)| (claim.as_str(), *kind));
        all.judge(service, claims, |name| is_there(services, name, now))
    }

    /// A service claims other things than before, for whoever watches them: `made` are all claims of an announcement, of
    /// which it may have some from now on, `new` those of them that none of its endpoints has made before, and `lost` those
    /// that none makes any more.
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
        // Whoever is called there now, the former is not.
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

    /// Gives up the pin of a claim. If others with endpoints claim it, one of them has it from now on; else whoever
    /// announces it next. Returns who had it.
    pub(crate) fn release(&mut self, claim: &str, now: Instant) -> Option<ServiceName> {
        let (owner, claimants) = self.claims.release(claim)?;
        let claims = |name: &&ServiceName| {
            let entry = self.services.get(*name);
            entry.is_some_and(|entry| !entry.members.is_empty() && entry.claimed.contains(claim))
        };
        if let Some(heir) = claimants.iter().find(claims).cloned() {
            self.judge(&heir, &[(claim.to_owned(), Kind::Pinned)], now);
            self.change_claims(&heir, &[(Arc::from(claim), Kind::Pinned)], &[], &[], now);
        }
        Some(owner)
    }

    /// Every claim, and whose it is.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    pub(crate) fn claims_mut(&mut self) -> &mut Claims {
        &mut self.claims
    }
}

/// Whether a service has an endpoint of which something was heard lately: the last ones are kept for longer, though their
/// hosts may be others' by then.
fn is_there(services: &BTreeMap<ServiceName, Entry>, name: &ServiceName, now: Instant) -> bool {
    let is_heard =
        |member: &Member| member.is_connected || now.saturating_duration_since(member.heard) < limits::ENDPOINT_EXPIRY;
    services.get(name).is_some_and(|entry| entry.members.values().any(is_heard))
}

/// What an announcement claims, and how each claim is proven.
pub(super) fn claims_of(announcement: &Announcement) -> Vec<(String, Kind)> {
    let host_of = |address: &str| address.parse::<SocketAddr>().ok().map(|address| address.ip());
    let host = host_of(&announcement.endpoint.address);
    let kind = |address: &str| match (host, host_of(address)) {
        (Some(host), Some(other)) if are_one_host(host, other) => Kind::OwnHost,
        _ if announcement.allowed.contains(address) => Kind::Pinned,
        _ => Kind::Unproven,
    };
    let contracts = announcement.contracts.iter().map(|contract| (contract.clone(), Kind::Pinned));
    contracts.chain(announcement.addresses.iter().map(|address| (address.clone(), kind(address)))).collect()
}
