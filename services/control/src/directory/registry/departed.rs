//! Addresses of endpoints that went without saying so: for a while they still belong to their service.
//!
//! A silent endpoint may only be out of reach of the control plane. If its address counted as outside the mesh, callers
//! that allow it would send to it in plain text. So it stays in the mesh for [`limits::ADDRESS_MEMORY`]. This hinders
//! no other service: one that announces the address gets it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::time::Instant;
use weft_mesh::{limits, names::ServiceName};

use crate::claims::{Claims, is_address};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Departed {
    by_address: HashMap<Arc<str>, (ServiceName, u64)>,
    /// In the order in which they were noted, with the time.
    order: BTreeMap<u64, (Arc<str>, Instant)>,
    of: HashMap<ServiceName, BTreeMap<u64, Arc<str>>>,
    noted: u64,
}

impl Departed {
    /// Notes an address that was a service's until now. At most [`limits::ADDRESSES_PER_SERVICE`] are kept for a
    /// service, the latest ones, and [`limits::ADDRESSES_DEPARTED`] for all: then the service with the most loses its
    /// oldest.
    pub(super) fn note(&mut self, address: &Arc<str>, service: &ServiceName, now: Instant) {
        self.forget(address);
        let own = self.of.get(service).map_or(0, BTreeMap::len);
        if own >= limits::ADDRESSES_PER_SERVICE {
            self.forget_oldest(&service.clone());
        } else if self.by_address.len() >= limits::ADDRESSES_DEPARTED {
            let most = self.of.iter().max_by_key(|(_, addresses)| addresses.len()).map(|(service, _)| service.clone());
            most.into_iter().for_each(|service| self.forget_oldest(&service));
        }
        self.noted += 1;
        self.by_address.insert(Arc::clone(address), (service.clone(), self.noted));
        self.order.insert(self.noted, (Arc::clone(address), now));
        self.of.entry(service.clone()).or_default().insert(self.noted, Arc::clone(address));
    }

    /// Notes the addresses among a service's former claims that it owned, and not those that were refused.
    pub(super) fn note_all(&mut self, lost: &[Arc<str>], service: &ServiceName, claims: &Claims, now: Instant) {
        let is_its_own = |claim: &&Arc<str>| is_address(claim) && claims.owner(claim) == Some(service);
        lost.iter().filter(is_its_own).for_each(|address| self.note(address, service, now));
    }

    fn forget_oldest(&mut self, service: &ServiceName) {
        let oldest = self.of.get(service).and_then(|addresses| addresses.first_key_value());
        if let Some(address) = oldest.map(|(_, address)| Arc::clone(address)) {
            self.forget(&address);
        }
    }

    /// Forgets an address: it has an owner again, or its time is over.
    pub(super) fn forget(&mut self, address: &str) {
        let Some((service, number)) = self.by_address.remove(address) else { return };
        self.order.remove(&number);
        if let Some(addresses) = self.of.get_mut(&service) {
            addresses.remove(&number);
            if addresses.is_empty() {
                self.of.remove(&service);
            }
        }
    }

    /// The former owner of an address.
    pub(super) fn owner(&self, address: &str) -> Option<&ServiceName> {
        self.by_address.get(address).map(|(service, _)| service)
    }

    /// The addresses of a service, the latest first.
    pub(super) fn of(&self, service: &ServiceName) -> impl Iterator<Item = &str> {
        self.of.get(service).into_iter().flat_map(|addresses| addresses.values().rev()).map(|address| &**address)
    }

    /// Forgets the addresses whose time is over, and returns them.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<(Arc<str>, ServiceName)> {
        let mut over = Vec::new();
        while let Some((_, (address, since))) = self.order.first_key_value()
            && now.saturating_duration_since(*since) >= limits::ADDRESS_MEMORY
        {
            let address = Arc::clone(address);
            let service = self.owner(&address).cloned();
            self.forget(&address);
            over.extend(service.map(|service| (address, service)));
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_one_service_and_of_all_are_limited() {
        let (mut departed, now) = (Departed::default(), Instant::now());
        let service = |name: &str| ServiceName::parse(name).unwrap();
        let (greedy, modest) = (service("greedy.shop"), service("modest.shop"));
        departed.note(&"10.0.0.1:1".into(), &modest, now);
        for number in 0..limits::ADDRESSES_PER_SERVICE + 10 {
            departed.note(&format!("10.1.{}.{}:1", number / 256, number % 256).into(), &greedy, now);
        }
        assert_eq!(departed.of(&greedy).count(), limits::ADDRESSES_PER_SERVICE);
        assert_eq!(departed.owner("10.1.0.9:1"), None, "its oldest addresses were dropped");
        assert_eq!(departed.owner("10.0.0.1:1"), Some(&modest));
        // If there are too many in all, the service with the most loses its oldest.
        let mut number = 0;
        while departed.by_address.len() < limits::ADDRESSES_DEPARTED {
            number += 1;
            departed.note(
                &format!("10.2.0.{number}:{number}").into(),
                &service(&format!("s{}.shop", number / 10)),
                now,
            );
        }
        departed.note(&"10.0.0.2:1".into(), &modest, now);
        assert_eq!(departed.by_address.len(), limits::ADDRESSES_DEPARTED);
        assert_eq!(
            (departed.of(&greedy).count(), departed.of(&modest).count()),
            (limits::ADDRESSES_PER_SERVICE - 1, 2)
        );
        assert_eq!(departed.tick(now + limits::ADDRESS_MEMORY).len(), limits::ADDRESSES_DEPARTED);
        assert!(departed.by_address.is_empty() && departed.order.is_empty() && departed.of.is_empty());
    }
}
