//! Which service implements which contract, or is called at which address, and what holds for calls to it.

use std::collections::{BTreeMap, BTreeSet};

use weft_contracts::weft::policy::v1::{Contract, ServicePolicy};
use weft_mesh::{names::ServiceName, policy};

/// Who says of itself that it implements a contract, or is called at an address, and who is taken at its word: the first that said so, for as
/// long as it has endpoints.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<String, Claim>);

#[derive(Debug)]
struct Claim {
    owner: ServiceName,
    /// In the order in which they came; the owner is among them.
    claimants: Vec<ServiceName>,
}

impl Claims {
    pub(super) fn owner(&self, contract: &str) -> Option<&ServiceName> {
        self.0.get(contract).map(|claim| &claim.owner)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Takes what a service claims now, and returns the contracts whose owner is another one for it.
    pub(super) fn update(
        &mut self,
        service: &ServiceName,
        claimed: &BTreeSet<String>,
        is_alive: impl Fn(&ServiceName) -> bool,
    ) -> Vec<String> {
        let mut moved = Vec::new();
        for contract in claimed {
            match self.0.get_mut(contract) {
                Some(claim) if claim.claimants.contains(service) => {}
                Some(claim) => claim.claimants.push(service.clone()),
                None => {
                    let claim = Claim { owner: service.clone(), claimants: vec![service.clone()] };
                    self.0.insert(contract.clone(), claim);
                    moved.push(contract.clone());
                }
            }
        }
        self.0.retain(|contract, claim| {
            if !claim.claimants.contains(service) {
                return true;
            }
            if !claimed.contains(contract) {
                claim.claimants.retain(|s| s != service);
            }
            let keeps = claim.claimants.contains(&claim.owner);
            if !keeps || !is_alive(&claim.owner) {
                let heir = claim.claimants.iter().find(|s| is_alive(s)).or_else(|| claim.claimants.first());
                let Some(heir) = heir.filter(|heir| !keeps || is_alive(heir)) else {
                    if !keeps {
                        moved.push(contract.clone());
                    }
                    return keeps;
                };
                claim.owner = heir.clone();
                moved.push(contract.clone());
            }
            true
        });
        moved
    }
}

/// The policy of a service that implements these contracts, from what its descriptors say. Each contract is in it,
/// be it without methods: a caller learns from it what the service implements.
pub(super) fn policy_of(contracts: &BTreeSet<String>, known: Option<&ServicePolicy>) -> ServicePolicy {
    let base = known.cloned().unwrap_or_else(|| (&policy::ServicePolicy::default()).into());
    let mut described: BTreeMap<String, Contract> = base.contracts.into_iter().map(|c| (c.name.clone(), c)).collect();
    let contracts = contracts
        .iter()
        .map(|name| described.remove(name).unwrap_or_else(|| Contract { name: name.clone(), methods: Vec::new() }));
    ServicePolicy { contracts: contracts.collect(), breaker: base.breaker }
}
