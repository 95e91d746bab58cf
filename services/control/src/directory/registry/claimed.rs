//! What the endpoints of a service claim together, and the policy that follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_contracts::weft::policy::v1::{Contract, ServicePolicy};
use weft_mesh::policy;

use crate::claims::{Kind, is_address};

/// A claim of one endpoint. The endpoints of a service share its name.
pub(super) type Claim = (Arc<str>, Kind);

/// How many endpoints make a claim, by kind.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    pinned: usize,
    located: usize,
    unproven: usize,
}

impl Count {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Pinned => &mut self.pinned,
            Kind::Located => &mut self.located,
            Kind::Unproven => &mut self.unproven,
        }
    }

    fn is_none(self) -> bool {
        self.pinned + self.located + self.unproven == 0
    }
}

/// The claims of all endpoints of a service: during a rollout old and new versions run side by side.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    counts: BTreeMap<Arc<str>, Count>,
    /// How many of the names are addresses.
    addresses: usize,
}

impl Claimed {
    /// Adds the claims of an endpoint. Returns them, and those of them that no other endpoint makes in the same way.
    pub(super) fn add(&mut self, claims: impl Iterator<Item = (String, Kind)>) -> (Vec<Claim>, Vec<Claim>) {
        let (mut all, mut new) = (Vec::new(), Vec::new());
        for (name, kind) in claims {
            let name = match self.counts.get_key_value(name.as_str()) {
                Some((known, _)) => Arc::clone(known),
                None => {
                    self.addresses += usize::from(is_address(&name));
                    Arc::from(name)
                }
            };
            let count = self.counts.entry(Arc::clone(&name)).or_default().of(kind);
            *count += 1;
            if *count == 1 {
                new.push((Arc::clone(&name), kind));
            }
            all.push((name, kind));
        }
        (all, new)
    }

    /// Removes the claims of an endpoint. Returns the names that no endpoint claims any more.
    pub(super) fn remove(&mut self, claims: &[Claim]) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        for (name, kind) in claims {
            let Some(count) = self.counts.get_mut(name) else { continue };
            *count.of(*kind) -= 1;
            if count.is_none() {
                self.counts.remove(name);
                self.addresses -= usize::from(is_address(name));
                gone.push(Arc::clone(name));
            }
        }
        gone
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.counts.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.counts.keys().map(|name| &**name)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| is_address(name))
    }

    fn contracts(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| !is_address(name))
    }

    /// How many contracts and addresses there would be with these added.
    pub(super) fn counts_with(&self, contracts: &BTreeSet<String>, addresses: &BTreeSet<String>) -> (usize, usize) {
        let new = |names: &BTreeSet<String>| names.iter().filter(|name| !self.contains(name)).count();
        (self.counts.len() - self.addresses + new(contracts), self.addresses + new(addresses))
    }

    /// The policy of a service with these claims, from the one in its descriptors. It contains each contract, without
    /// methods if the descriptors lack it: callers learn from it what the service implements.
    pub(super) fn policy(&self, known: Option<&Arc<ServicePolicy>>) -> Arc<ServicePolicy> {
        let is_same =
            |known: &&Arc<ServicePolicy>| known.contracts.iter().map(|c| c.name.as_str()).eq(self.contracts());
        if let Some(known) = known.filter(is_same) {
            return Arc::clone(known);
        }
        let default = || ServicePolicy::from(&policy::ServicePolicy::default()).breaker;
        let described: BTreeMap<&str, &Contract> =
            known.iter().flat_map(|known| &known.contracts).map(|c| (c.name.as_str(), c)).collect();
        let contract = |name: &str| match described.get(name) {
            Some(contract) => (*contract).clone(),
            None => Contract { name: name.to_owned(), ..Contract::default() },
        };
        let breaker = known.map_or_else(default, |known| known.breaker.clone());
        let contracts = self.contracts().map(contract).collect();
        Arc::new(ServicePolicy { contracts, breaker, ..ServicePolicy::default() })
    }
}
