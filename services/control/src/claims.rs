//! Claims: which service is called by which contract, and at which address.
//!
//! A plain state machine. A claim is the name of a contract, or an `IP:PORT`. It belongs, in this order, to:
//!
//! 1. the service that the mesh's own file names for it ([`file`](mod@file));
//! 2. the service whose endpoint is on the same host, if it is an address: the announcing connection proves that the
//!    host is its own. On a cluster also the Service that has the address, as the API server says. The service keeps it
//!    while the endpoint is a member;
//! 3. the first identity that claimed it. It is pinned to that identity in the [`store`] until it is released, even
//!    while the identity has no endpoints. An address is pinned only if the identity's join token allows it, as any
//!    other address may belong to something outside the mesh. If there is a file, contracts are pinned only if the file
//!    says so, or if `weft up` grants them to the identity while the control plane runs. Of a service that the file lets
//!    wait for that, a contract may be claimed before.
//!
//!    On a cluster the owner of a namespace may say which of its Services have a contract. If the contract is the
//!    namespace's by the rule above, it is pinned to that Service. The mesh's owner may say it for all services: that wins,
//!    and the contract is pinned to that service, too.
//!
//! What the owners of the mesh and of namespaces say while the control plane runs is in [`said`].
//!
//! A claim on what belongs to another service is contested: it is refused, counted and listed, and changes nothing.

pub(crate) mod file;
pub(crate) mod hosts;
mod said;
pub(crate) mod store;
#[cfg(test)]
mod tests;
pub(crate) mod visibility;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use weft_mesh::{
    limits,
    names::{ServiceName, is_grpcs_own},
};

/// How a claim is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// By being the first.
    Pinned,
    /// By nothing: an address that is neither on the endpoint's host nor allowed by its join token.
    Unproven,
    /// By where it is: an address on the host of the endpoint that claims it or, on a cluster, one of the Service that the
    /// endpoint backs.
    Located,
}

/// A claim that belongs to one service and is made by another, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contest {
    pub(crate) claim: String,
    pub(crate) owner: ServiceName,
    pub(crate) claimant: ServiceName,
}

/// The claims of an announcement that were refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Denied {
    /// Claims that belong to another service.
    pub(crate) contested: Vec<(String, ServiceName)>,
    /// Contracts without an owner that are another service's now, as its namespace has chosen it.
    pub(crate) given: Vec<(String, ServiceName)>,
    /// Those that are contested and were not listed before: they are logged.
    pub(crate) listed: Vec<(String, ServiceName)>,
    /// How many were refused because the service, or the mesh, has too many.
    pub(crate) without_room: usize,
    /// Claims that are allowed only if the file names them, or the join token.
    pub(crate) unlisted: Vec<String>,
}

/// What happens to a contract that has no owner and is not in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Unlisted {
    /// It is pinned to the first service that claims it: if there is no file, or the file says so.
    #[default]
    Pin,
    Refuse,
    /// It has no owner until it is granted to a service.
    Grant,
}

/// The claims that are kept across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) pinned: BTreeMap<String, ServiceName>,
    /// For people to read: it is not loaded again.
    pub(crate) contests: Vec<Contest>,
}

#[derive(Debug)]
struct Held {
    service: ServiceName,
    kind: Kind,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    listed: BTreeMap<String, ServiceName>,
    unlisted: Unlisted,
    /// The same for some services.
    unlisted_of: BTreeMap<ServiceName, Unlisted>,
    pinned: BTreeMap<String, ServiceName>,
    /// The services that have these contracts, says the mesh's owner while the control plane runs.
    owners: BTreeMap<String, ServiceName>,
    /// By namespace, the Services that have these contracts if they are the namespace's, says its owner.
    chosen: HashMap<String, BTreeMap<String, ServiceName>>,
    /// The weights of what is pinned, by owner.
    pins_of: HashMap<ServiceName, usize>,
    /// How many addresses the file or a pin gives to each service.
    addresses_of: HashMap<ServiceName, usize>,
    /// The owner of each claim now: a service that is known and has a right to it.
    held: BTreeMap<Arc<str>, Held>,
    /// By claim and claimant.
    contests: BTreeMap<(String, ServiceName), ServiceName>,
    contests_of: HashMap<ServiceName, usize>,
    refused: u64,
    is_changed: bool,
}

/// How much of [`limits::CLAIMS_PER_IDENTITY`] a claim takes. On Kubernetes all claims together have 1 MiB.
fn weight(claim: &str) -> usize {
    1 + claim.len() / 64
}

impl Claims {
    /// Claims with the content of a file, and with those that were pinned before.
    pub(crate) fn new(
        listed: BTreeMap<String, ServiceName>,
        unlisted: Unlisted,
        pinned: BTreeMap<String, ServiceName>,
    ) -> Self {
        let mut pins_of = HashMap::new();
        for (claim, owner) in &pinned {
            *pins_of.entry(owner.clone()).or_default() += weight(claim);
        }
        let mut addresses_of: HashMap<ServiceName, usize> = HashMap::new();
        for (_, owner) in listed.iter().chain(&pinned).filter(|(claim, _)| is_address(claim)) {
            *addresses_of.entry(owner.clone()).or_default() += 1;
        }
        // Saved at once, so that contests of an earlier process are removed from the store.
        Self { listed, unlisted, pinned, pins_of, addresses_of, is_changed: true, ..Self::default() }
    }

    /// With what happens to contracts that are not in the file and that these services claim.
    pub(crate) fn with_unlisted_of(self, unlisted_of: BTreeMap<ServiceName, Unlisted>) -> Self {
        Self { unlisted_of, ..self }
    }

    /// The service that is called by a contract or at an address now.
    pub(crate) fn owner(&self, claim: &str) -> Option<&ServiceName> {
        self.held.get(claim).map(|held| &held.service)
    }

    /// The service to which the file or a pin gives an address, whether or not it has endpoints.
    pub(crate) fn named_owner(&self, address: &str) -> Option<&ServiceName> {
        if !is_address(address) {
            return None;
        }
        self.listed.get(address).or_else(|| self.pinned.get(address))
    }

    /// Whether the file or a pin gives an address to a service.
    pub(crate) fn names_address_of(&self, service: &ServiceName) -> bool {
        self.addresses_of.get(service).is_some_and(|count| *count > 0)
    }

    /// Every claim that has an owner now, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(|claim| &**claim)
    }

    /// Like [`Self::names`], starting with a name.
    pub(crate) fn names_from<'a>(&'a self, from: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.held.range::<str, _>((Bound::Included(from), Bound::Unbounded)).map(|(claim, _)| &**claim)
    }

    /// Like [`Self::names`], those before a name, in reverse order.
    pub(crate) fn names_before<'a>(&'a self, before: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.held.range::<str, _>((Bound::Unbounded, Bound::Excluded(before))).rev().map(|(claim, _)| &**claim)
    }

    /// Judges the claims that a service announces: pins those without an owner, and refuses those of others. `is_alive`
    /// says whether a service has endpoints that were heard lately.
    pub(crate) fn judge<'a>(
        &mut self,
        service: &ServiceName,
        claims: impl Iterator<Item = (&'a str, Kind)>,
        is_alive: impl Fn(&ServiceName) -> bool,
    ) -> Denied {
        let mut denied = Denied::default();
        let unlisted = self.unlisted_of.get(service).copied().unwrap_or(self.unlisted);
        for (claim, kind) in claims {
            match self.rightful(claim, kind, &is_alive) {
                Some(owner) if owner == service => self.keep(claim, service),
                Some(owner) => {
                    let owner = owner.clone();
                    self.contest(claim, service, owner, &mut denied);
                }
                None if kind == Kind::Located => {}
                // Every service has them, and none can own them.
                None if is_grpcs_own(claim) => {}
                None if unlisted == Unlisted::Grant && !is_address(claim) => {}
                // The mesh's owner also allowed the addresses in a join token, so they need not be in the file.
                None if kind == Kind::Unproven || (unlisted == Unlisted::Refuse && !is_address(claim)) => {
                    self.refused += 1;
                    denied.unlisted.push(claim.to_owned());
                }
                None => {
                    let others = self.chosen.get(service.namespace()).and_then(|chosen| chosen.get(claim));
                    let other = others.filter(|chosen| *chosen != service).cloned();
                    let owner = other.as_ref().unwrap_or(service);
                    if !self.has_room(owner, claim) {
                        self.refused += 1;
                        denied.without_room += 1;
                        continue;
                    }
                    self.pin(claim, owner);
                    if let Some(other) = other {
                        denied.given.push((claim.to_owned(), other.clone()));
                        self.contest(claim, service, other, &mut denied);
                    }
                }
            }
        }
        denied
    }

    /// A claim of a service that belongs to another one.
    fn contest(&mut self, claim: &str, service: &ServiceName, owner: ServiceName, denied: &mut Denied) {
        self.refused += 1;
        if self.list(claim, service, &owner) {
            denied.listed.push((claim.to_owned(), owner.clone()));
        }
        denied.contested.push((claim.to_owned(), owner));
    }

    /// A service has new claims. It becomes the owner of those that it has a right to. Returns those that it did not
    /// own before.
    pub(crate) fn gain<'a>(
        &mut self,
        service: &ServiceName,
        claims: impl Iterator<Item = &'a (Arc<str>, Kind)>,
        is_alive: impl Fn(&ServiceName) -> bool,
    ) -> Vec<String> {
        let mut moved = Vec::new();
        for (claim, kind) in claims {
            let is_its_own = match self.rightful(claim, *kind, &is_alive) {
                Some(owner) => owner == service,
                None => *kind == Kind::Located,
            };
            if !is_its_own {
                continue;
            }
            let held = Held { service: service.clone(), kind: *kind };
            let before = self.held.insert(Arc::clone(claim), held);
            if before.is_none_or(|before| before.service != *service) {
                moved.push(claim.to_string());
            }
        }
        moved
    }

    /// A service no longer makes these claims: they have no owner now, but pins stay. Returns those that it owned.
    pub(crate) fn lose<'a>(&mut self, service: &ServiceName, claims: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut lost = Vec::new();
        for claim in claims {
            if self.owner(claim) == Some(service) {
                self.held.remove(claim);
                lost.push(claim.to_owned());
            }
        }
        lost
    }

    /// Removes the pin of a claim. Returns its former owner, and the other services that claim it and may have it now.
    pub(crate) fn release(&mut self, claim: &str) -> Option<(ServiceName, Vec<ServiceName>)> {
        let owner = self.unpin(claim)?;
        let claimants: Vec<ServiceName> = self
            .contests
            .keys()
            .filter(|(contested, _)| contested == claim)
            .map(|(_, claimant)| claimant.clone())
            .collect();
        for claimant in &claimants {
            self.contests.remove(&(claim.to_owned(), claimant.clone()));
            self.contests_of.entry(claimant.clone()).and_modify(|count| *count -= 1);
        }
        Some((owner, claimants))
    }

    /// The mesh's owner gives a contract to a service: it is pinned to it. False if another service has it, or if the
    /// service or the mesh has too many.
    pub(crate) fn grant(&mut self, contract: &str, service: &ServiceName) -> bool {
        let said = self.listed.get(contract).or_else(|| self.owners.get(contract));
        match said.or_else(|| self.pinned.get(contract)) {
            Some(owner) => owner == service,
            None if self.has_room(service, contract) => {
                self.pin(contract, service);
                true
            }
            None => false,
        }
    }

    /// How many claims were refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many claims are pinned.
    pub(crate) fn pins(&self) -> usize {
        self.pinned.len()
    }

    /// The claims that are pinned to some services, and to which.
    pub(crate) fn pinned_to(&self, is_one: impl Fn(&ServiceName) -> bool) -> BTreeMap<String, ServiceName> {
        let pinned = self.pinned.iter().filter(|(_, owner)| is_one(owner));
        pinned.map(|(claim, owner)| (claim.clone(), owner.clone())).collect()
    }

    /// The contests that are listed.
    pub(crate) fn contests(&self) -> impl Iterator<Item = Contest> {
        self.contests.iter().map(|((claim, claimant), owner)| Contest {
            claim: claim.clone(),
            owner: owner.clone(),
            claimant: claimant.clone(),
        })
    }

    /// What has to be saved, if it changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Option<Saved> {
        std::mem::take(&mut self.is_changed)
            .then(|| Saved { pinned: self.pinned.clone(), contests: self.contests().collect() })
    }

    /// Saving failed: the next [`Self::take_changes`] returns it again.
    pub(crate) fn keep_again(&mut self) {
        self.is_changed = true;
    }

    /// The service with the right to a claim, if there is one.
    fn rightful(&self, claim: &str, kind: Kind, is_alive: impl Fn(&ServiceName) -> bool) -> Option<&ServiceName> {
        let on_its_host = || {
            let held = self.held.get(claim).filter(|held| held.kind == Kind::Located);
            held.map(|held| &held.service).filter(|service| is_alive(service))
        };
        let listed = self.listed.get(claim).or_else(|| self.owners.get(claim));
        match kind {
            Kind::Located => listed.or_else(on_its_host),
            // An address on a member's own host is not a virtual one, so it wins over a pin.
            Kind::Pinned | Kind::Unproven => listed.or_else(on_its_host).or_else(|| self.pinned.get(claim)),
        }
    }

    fn has_room(&self, service: &ServiceName, claim: &str) -> bool {
        self.has_part(service, claim) && self.pinned.len() < limits::CLAIMS_PINNED
    }

    /// Whether one service may have so many.
    fn has_part(&self, service: &ServiceName, claim: &str) -> bool {
        let own = self.pins_of.get(service).copied().unwrap_or_default();
        own + weight(claim) <= limits::CLAIMS_PER_IDENTITY
    }

    fn unpin(&mut self, claim: &str) -> Option<ServiceName> {
        let owner = self.pinned.remove(claim)?;
        if let Some(pins) = self.pins_of.get_mut(&owner) {
            *pins -= weight(claim);
        }
        if let Some(count) = self.addresses_of.get_mut(&owner).filter(|_| is_address(claim)) {
            *count -= 1;
        }
        self.is_changed = true;
        Some(owner)
    }

    fn pin(&mut self, claim: &str, service: &ServiceName) {
        self.pinned.insert(claim.to_owned(), service.clone());
        *self.pins_of.entry(service.clone()).or_default() += weight(claim);
        if is_address(claim) {
            *self.addresses_of.entry(service.clone()).or_default() += 1;
        }
        self.is_changed = true;
    }

    /// Lists a contest. False if it is listed already or there is no room.
    fn list(&mut self, claim: &str, claimant: &ServiceName, owner: &ServiceName) -> bool {
        let key = (claim.to_owned(), claimant.clone());
        let of_claimant = self.contests_of.get(claimant).copied().unwrap_or_default();
        if self.contests.contains_key(&key)
            || of_claimant >= limits::CONTESTS_PER_IDENTITY
            || self.contests.len() >= limits::CONTESTS_LISTED
        {
            return false;
        }
        self.contests.insert(key, owner.clone());
        self.contests_of.insert(claimant.clone(), of_claimant + 1);
        self.is_changed = true;
        true
    }
}

/// Whether a claim is an address: the name of a contract never contains a colon.
pub(crate) fn is_address(claim: &str) -> bool {
    claim.contains(':')
}
