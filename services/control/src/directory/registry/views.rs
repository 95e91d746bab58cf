//! What the registry answers to questions.

use std::collections::HashSet;

use weft_contracts::weft::discovery::v1::{Endpoint, Service};
use weft_mesh::{limits, names::ServiceName};

use super::{Digest, Registry, member::Member};
use crate::{claims::is_address, directory::denials::Denials};

impl Registry {
    /// The descriptor sets that members announced, or that a service's policy comes from.
    pub(crate) fn descriptors_in_use(&self) -> HashSet<Digest> {
        // Descriptors without a policy were refused, or are not read yet: the shelf does not hold them.
        let is_described = |member: &&Member| member.policy.is_some();
        let members = self.services.values().flat_map(|entry| entry.members.values());
        let of_members = members.filter(is_described).filter_map(|member| member.descriptors);
        self.services.values().filter_map(|entry| Some(entry.described.as_ref()?.0)).chain(of_members).collect()
    }

    /// A service with all that a caller needs; `None` if it is not known.
    pub(crate) fn snapshot(&self, service: &ServiceName) -> Option<Service> {
        let Some(entry) = self.services.get(service) else { return self.remains(service) };
        Some(Service {
            name: service.to_string(),
            protocol: entry.protocol.into(),
            endpoints: entry.members.values().map(|m| m.endpoint.clone()).collect(),
            policy: Some((*entry.policy).clone()),
            version: Some(self.version),
            complete: self.is_settled(),
            addresses: entry
                .claimed
                .addresses()
                .filter(|address| self.claims.owner(address) == Some(service))
                .chain(self.departed.of(service))
                .take(limits::ADDRESSES_PER_SERVICE)
                .map(str::to_owned)
                .collect(),
        })
    }

    /// A service that has no entry, but an address by which it is called: without endpoints.
    fn remains(&self, service: &ServiceName) -> Option<Service> {
        let addresses: Vec<String> = self.departed.of(service).map(str::to_owned).collect();
        (!addresses.is_empty() || self.claims.names_address_of(service)).then(|| Service {
            name: service.to_string(),
            version: Some(self.version),
            complete: self.is_settled(),
            addresses,
            ..Service::default()
        })
    }

    /// The calls that each of a service's members did not allow.
    pub(crate) fn denials(&self, service: &ServiceName) -> impl Iterator<Item = &Denials> {
        self.services.get(service).into_iter().flat_map(|entry| entry.members.values()).map(|member| &member.denials)
    }

    /// Every endpoint, with its service.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&ServiceName, &Endpoint)> {
        self.services.iter().flat_map(|(service, entry)| entry.members.values().map(move |m| (service, &m.endpoint)))
    }

    /// Whether a service has endpoints, or had some lately.
    pub(crate) fn knows(&self, service: &ServiceName) -> bool {
        self.services.contains_key(service)
    }

    /// Every service, sorted.
    pub(crate) fn service_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Every contract that has an owner, sorted.
    pub(crate) fn contract_names(&self) -> impl Iterator<Item = &str> {
        self.claims.names().filter(|name| !is_address(name))
    }

    /// The service that implements a contract, or is called at an address. An address has an owner even while none of
    /// the owner's endpoints is there: callers ask whether it is outside the mesh.
    pub(crate) fn owner(&self, contract: &str) -> Option<&ServiceName> {
        let of_absent = || self.departed.owner(contract).or_else(|| self.claims.named_owner(contract));
        self.claims.owner(contract).or_else(of_absent)
    }

    /// The descriptor set that a service's policy comes from.
    pub(crate) fn descriptors(&self, service: &ServiceName) -> Option<&Digest> {
        self.services.get(service)?.described.as_ref().map(|(digest, _)| digest)
    }
}
