//! Claims: which service may be called by which contract, and at which address.
//!
//! A plain state machine. A claim is a contract's name or an `IP:PORT`. Whose it is, in this order:
//!
//! 1. the service that the mesh's own file names for it ([`file`](mod@file));
//! 2. for an address on an endpoint's own host, whoever is there: a host's address is proven by the connection that
//!    announces it, and goes to another when the host does. It is held while the endpoint is a member;
//! 3. the first identity that claimed it. That is pinned in the [`store`] until it is released, whether or not endpoints
//!    of that identity are there. An address is pinned only where the identity's join token allows it, as any other may be
//!    somebody's outside the mesh; and no contract is where there is a file, unless that says so.
//!
//! A claim of another service is contested: it is refused, counted and listed, and moves nothing.

pub(crate) mod file;
pub(crate) mod hosts;
pub(crate) mod store;
#[cfg(test)]
mod tests;
pub(crate) mod visibility;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use weft_mesh::{limits, names::ServiceName};

/// How a claim is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// By having been the first.
    Pinned,
    /// By nothing: an address that is neither on its host nor allowed by its join token.
    Unproven,
    /// It is an address on the host of the endpoint that claims it.
    OwnHost,
}

/// A claim that one service has and another wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contest {
    pub(crate) claim: String,
    pub(crate) owner: ServiceName,
    pub(crate) claimant: ServiceName,
}

/// What of an announcement's claims was refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Denied {
    /// Claims that another service has.
    pub(crate) contested: Vec<(String, ServiceName)>,
    /// Those of them that were not listed before: for the log.
    pub(crate) listed: Vec<(String, ServiceName)>,
    /// Claims for which there was no room.
    pub(crate) without_room: usize,
    /// Claims that the file would have to name, or the join token to allow.
    pub(crate) unlisted: Vec<String>,
}

/// What becomes of a contract that nobody has and the file does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Unlisted {
    /// It belongs to whoever is first: where there is no file, or where that says so.
    #[default]
    Pin,
    Refuse,
}

/// What is kept across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) pinned: BTreeMap<String, ServiceName>,
    /// For people to read; it is not taken up again.
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
    pinned: BTreeMap<String, ServiceName>,
    pins_of: HashMap<ServiceName, usize>,
    /// How many addresses are a service's by what is written or pinned.
    addresses_of: HashMap<ServiceName, usize>,
    /// Who is called so now: a service that is known and may have the claim.
    held: BTreeMap<Arc<str>, Held>,
    /// By claim and claimant.
    contests: BTreeMap<(String, ServiceName), ServiceName>,
    contests_of: HashMap<ServiceName, usize>,
    refused: u64,
    is_changed: bool,
}

impl Claims {
    /// With what a file says and what was pinned before.
    pub(crate) fn new(
        listed: BTreeMap<String, ServiceName>,
        unlisted: Unlisted,
        pinned: BTreeMap<String, ServiceName>,
    ) -> Self {
        let mut pins_of = HashMap::new();
        for owner in pinned.values() {
            *pins_of.entry(owner.clone()).or_default() += 1;
        }
        let mut addresses_of: HashMap<ServiceName, usize> = HashMap::new();
        for (_, owner) in listed.iter().chain(&pinned).filter(|(claim, _)| is_address(claim)) {
            *addresses_of.entry(owner.clone()).or_default() += 1;
        }
        // Written at once, so that contests of an earlier process are no longer told.
        Self { listed, unlisted, pinned, pins_of, addresses_of, is_changed: true, ..Self::default() }
    }

    /// The service that is called by a contract or at an address.
    pub(crate) fn owner(&self, claim: &str) -> Option<&ServiceName> {
        self.held.get(claim).map(|held| &held.service)
    }

    /// Whose an address is by what is written or pinned, be the service there or not.
    pub(crate) fn named_owner(&self, address: &str) -> Option<&ServiceName> {
        if !is_address(address) {
            return None;
        }
        self.listed.get(address).or_else(|| self.pinned.get(address))
    }

    /// Whether a service has an address by what is written or pinned.
    pub(crate) fn names_address_of(&self, service: &ServiceName) -> bool {
        self.addresses_of.get(service).is_some_and(|count| *count > 0)
    }

    /// Every claim that has an owner among the services that are known, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(|claim| &**claim)
    }

    /// As [`Self::names`], from a name on.
    pub(crate) fn names_from<'a>(&'a self, from: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.held.range::<str, _>((Bound::Included(from), Bound::Unbounded)).map(|(claim, _)| &**claim)
    }

    /// As [`Self::names`], those before a name, backwards.
    pub(crate) fn names_before<'a>(&'a self, before: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.held.range::<str, _>((Bound::Unbounded, Bound::Excluded(before))).rev().map(|(claim, _)| &**claim)
    }

    /// Judges what a service announces: pins what is nobody's, and refuses what is another's. `is_alive` says whether a
    /// service is there to be called.
    pub(crate) fn judge<'a>(
        &mut self,
        service: &ServiceName,
        claims: impl Iterator<Item = (&'a str, Kind)>,
        is_alive: impl Fn(&ServiceName) -> bool,
    ) -> Denied {
        let mut denied = Denied::default();
        for (claim, kind) in claims {
            match self.rightful(claim, kind, &is_alive) {
                Some(owner) if owner == service => {}
                Some(owner) => {
                    let owner = owner.clone();
                    self.refused += 1;
                    if self.list(claim, service, &owner) {
                        denied.listed.push((claim.to_owned(), owner.clone()));
                    }
                    denied.contested.push((claim.to_owned(), owner));
                }
                None if kind == Kind::OwnHost => {}
                // Each service has them, and none is called by them.
                None if is_everybodys(claim) => {}
                // An address that a join token allows was named by the mesh's owner as well.
                None if kind == Kind::Unproven || (self.unlisted == Unlisted::Refuse && !is_address(claim)) => {
                    self.refused += 1;
                    denied.unlisted.push(claim.to_owned());
                }
                None if self.has_room(service) => self.pin(claim, service),
                None => {
                    self.refused += 1;
                    denied.without_room += 1;
                }
            }
        }
        denied
    }

    /// A service has new claims. Those that it may have are its own from now on; returns those that were not before.
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
                None => *kind == Kind::OwnHost,
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

    /// A service no longer makes these claims. Nobody is called so now; what is pinned stays pinned. Returns those that
    /// it had.
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

    /// Gives up the pin of a claim. Returns who had it, and the others that claim it, who may have it now.
    pub(crate) fn release(&mut self, claim: &str) -> Option<(ServiceName, Vec<ServiceName>)> {
        let owner = self.pinned.remove(claim)?;
        if let Some(pins) = self.pins_of.get_mut(&owner) {
            *pins -= 1;
        }
        if let Some(count) = self.addresses_of.get_mut(&owner).filter(|_| is_address(claim)) {
            *count -= 1;
        }
        self.is_changed = true;
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

    /// What was refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many claims are pinned.
    pub(crate) fn pins(&self) -> usize {
        self.pinned.len()
    }

    /// The contests that are listed.
    pub(crate) fn contests(&self) -> impl Iterator<Item = Contest> {
        self.contests.iter().map(|((claim, claimant), owner)| Contest {
            claim: claim.clone(),
            owner: owner.clone(),
            claimant: claimant.clone(),
        })
    }

    /// What is to be kept, if it changed since this was last asked.
    pub(crate) fn take_changes(&mut self) -> Option<Saved> {
        std::mem::take(&mut self.is_changed)
            .then(|| Saved { pinned: self.pinned.clone(), contests: self.contests().collect() })
    }

    /// What was taken could not be kept: it is to be tried again.
    pub(crate) fn keep_again(&mut self) {
        self.is_changed = true;
    }

    /// Whose a claim is, if it is anybody's.
    fn rightful(&self, claim: &str, kind: Kind, is_alive: impl Fn(&ServiceName) -> bool) -> Option<&ServiceName> {
        let on_its_host = || {
            let held = self.held.get(claim).filter(|held| held.kind == Kind::OwnHost);
            held.map(|held| &held.service).filter(|service| is_alive(service))
        };
        let listed = self.listed.get(claim);
        match kind {
            Kind::OwnHost => listed.or_else(on_its_host),
            // An address that is a member's own host is no virtual one, whoever was pinned to it before.
            Kind::Pinned | Kind::Unproven => listed.or_else(on_its_host).or_else(|| self.pinned.get(claim)),
        }
    }

    fn has_room(&self, service: &ServiceName) -> bool {
        let own = self.pins_of.get(service).copied().unwrap_or_default();
        own < limits::CLAIMS_PER_IDENTITY && self.pinned.len() < limits::CLAIMS_PINNED
    }

    fn pin(&mut self, claim: &str, service: &ServiceName) {
        self.pinned.insert(claim.to_owned(), service.clone());
        *self.pins_of.entry(service.clone()).or_default() += 1;
        if is_address(claim) {
            *self.addresses_of.entry(service.clone()).or_default() += 1;
        }
        self.is_changed = true;
    }

    /// Lists a contest; true when it was not before and there is room.
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

/// Whether it is one of gRPC's own contracts, such as `grpc.health.v1.Health`.
fn is_everybodys(claim: &str) -> bool {
    claim.starts_with("grpc.") || claim.starts_with("google.")
}

/// Addresses and contracts are claimed alike, and never look alike.
pub(crate) fn is_address(claim: &str) -> bool {
    claim.contains(':')
}
