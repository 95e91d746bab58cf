//! What owners say of contracts while the control plane runs: the mesh's owner for all services, the owner of a namespace for
//! those of it. Contracts are pinned as they say, so they stay where they are when it is no longer said.

use std::collections::BTreeMap;

use weft_mesh::{limits, names::ServiceName};

use super::Claims;

impl Claims {
    /// The owner of a namespace says which of its Services have these contracts, instead of what was said before. What is
    /// pinned to another Service of the namespace moves; what other namespaces have does not. Returns what has moved, with
    /// the new owners.
    pub(crate) fn choose(
        &mut self,
        namespace: &str,
        chosen: BTreeMap<String, ServiceName>,
    ) -> BTreeMap<String, ServiceName> {
        let mut moved = BTreeMap::new();
        for (contract, service) in &chosen {
            let is_other = |owner: &ServiceName| owner.namespace() == namespace && owner != service;
            if self.pinned.get(contract).is_some_and(is_other)
                && !self.is_said(contract)
                && self.repin(contract, service)
            {
                moved.insert(contract.clone(), service.clone());
            }
        }
        match chosen.is_empty() {
            true => drop(self.chosen.remove(namespace)),
            false => drop(self.chosen.insert(namespace.to_owned(), chosen)),
        }
        self.follow_contests(&moved);
        moved
    }

    /// The mesh's owner says which services have these contracts, instead of what was said before. They get them from whoever
    /// has them, and keep them when that is no longer said. Returns what has moved, with the new owners.
    pub(crate) fn own(&mut self, owners: &BTreeMap<String, ServiceName>) -> BTreeMap<String, ServiceName> {
        let mut moved = BTreeMap::new();
        if self.owners == *owners {
            return moved;
        }
        let before = std::mem::replace(&mut self.owners, owners.clone());
        for (contract, service) in owners {
            if self.listed.contains_key(contract) {
                continue;
            }
            if before.get(contract).or_else(|| self.pinned.get(contract)) != Some(service) {
                moved.insert(contract.clone(), service.clone());
            }
            // If there is no room for a pin, it is the service's for as long as it is said.
            self.repin(contract, service);
        }
        for (contract, was) in &before {
            if self.is_said(contract) {
                continue;
            }
            // It has no pin if its Service was not there yet.
            if !self.pinned.contains_key(contract)
                && let Some(holder) = self.owner(contract).cloned()
            {
                self.repin(contract, &holder);
            }
            let Some(owner) = self.pinned.get(contract).cloned() else { continue };
            // What a namespace says of its contracts holds again.
            let chosen = self.chosen.get(owner.namespace()).and_then(|chosen| chosen.get(contract)).cloned();
            let now = chosen.filter(|service| self.repin(contract, service)).unwrap_or(owner);
            if now != *was {
                moved.insert(contract.clone(), now);
            }
        }
        self.follow_contests(&moved);
        moved
    }

    /// A service announces what is its own. If the mesh's owner says that it is, it is pinned, so that it stays when that is no
    /// longer said: what is said before there is such a Service is not pinned yet.
    pub(super) fn keep(&mut self, claim: &str, service: &ServiceName) {
        if self.owners.get(claim) == Some(service) && !self.listed.contains_key(claim) {
            self.repin(claim, service);
        }
    }

    /// Whether the mesh's owner says whose a contract is.
    fn is_said(&self, contract: &str) -> bool {
        self.listed.contains_key(contract) || self.owners.contains_key(contract)
    }

    /// Pins a claim to this service, whoever has it. False if there is no room.
    fn repin(&mut self, claim: &str, service: &ServiceName) -> bool {
        if self.pinned.get(claim) == Some(service) {
            return true;
        }
        let has_room = self.has_part(service, claim)
            && (self.pinned.contains_key(claim) || self.pinned.len() < limits::CLAIMS_PINNED);
        if has_room {
            self.unpin(claim);
            self.pin(claim, service);
        }
        has_room
    }

    /// The contests of contracts that have new owners are with these now, or over.
    fn follow_contests(&mut self, moved: &BTreeMap<String, ServiceName>) {
        if moved.is_empty() {
            return;
        }
        self.contests.retain(|(claim, claimant), owner| {
            let Some(now) = moved.get(claim) else { return true };
            *owner = now.clone();
            let is_over = now == claimant;
            if is_over && let Some(count) = self.contests_of.get_mut(claimant) {
                *count -= 1;
            }
            !is_over
        });
        self.is_changed = true;
    }
}
