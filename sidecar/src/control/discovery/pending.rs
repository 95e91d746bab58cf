//! Changes of a service that have come and that no call can see yet: many may come at once, and the service is built once
//! for all of them.

use std::{collections::HashMap, net::SocketAddr};

use weft_contracts::weft::discovery::v1::Version;

use super::build::EndpointParts;
use crate::endpoints::catalog::Service;

/// The endpoints of a service after the changes so far.
pub(super) struct Pending {
    pub(super) version: Version,
    /// `None` where one was removed.
    endpoints: Vec<Option<EndpointParts>>,
    by_id: HashMap<String, usize>,
    /// Kept only if the service is incomplete: then a new endpoint may be one that is known with another id.
    by_address: Option<HashMap<SocketAddr, usize>>,
}

impl Pending {
    pub(super) fn of(service: &Service) -> Self {
        let mut pending = Self {
            version: service.version,
            endpoints: Vec::with_capacity(service.endpoints.len()),
            by_id: HashMap::with_capacity(service.endpoints.len()),
            by_address: (!service.is_complete).then(HashMap::new),
        };
        service.endpoints.iter().for_each(|endpoint| pending.add(EndpointParts::of(endpoint)));
        pending
    }

    /// Removes endpoints, then adds some or replaces older ones by them.
    pub(super) fn change(&mut self, upserted: impl Iterator<Item = EndpointParts>, removed: &[String]) {
        for id in removed {
            let place = self.by_id.get(id).copied();
            self.remove(place);
        }
        for new in upserted {
            let (same_id, same_address) = (self.by_id.get(&new.id).copied(), self.at(&new.address()));
            self.remove(same_id);
            self.remove(same_address);
            self.add(new);
        }
    }

    pub(super) fn into_endpoints(self) -> Vec<EndpointParts> {
        self.endpoints.into_iter().flatten().collect()
    }

    fn at(&self, address: &SocketAddr) -> Option<usize> {
        self.by_address.as_ref()?.get(address).copied()
    }

    fn add(&mut self, endpoint: EndpointParts) {
        let place = self.endpoints.len();
        self.by_id.insert(endpoint.id.clone(), place);
        if let Some(by_address) = &mut self.by_address {
            by_address.insert(endpoint.address(), place);
        }
        self.endpoints.push(Some(endpoint));
    }

    fn remove(&mut self, place: Option<usize>) {
        let Some(removed) = place.and_then(|place| self.endpoints[place].take()) else { return };
        self.by_id.remove(&removed.id);
        if let Some(by_address) = &mut self.by_address {
            by_address.remove(&removed.address());
        }
    }
}
