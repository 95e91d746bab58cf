//! Who has a claim after its owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::Instant;
use weft_mesh::names::ServiceName;

use super::Registry;
use crate::claims::{Kind, is_address};

impl Registry {
    /// Releases a pinned claim. If another service with endpoints claims it, that one gets it; otherwise the next that
    /// announces it. Returns the former owner.
    pub(crate) fn release(&mut self, claim: &str, now: Instant) -> Option<ServiceName> {
        let (owner, claimants) = self.claims.release(claim)?;
        let heir = claimants.iter().find(|name| self.does_claim(name, claim)).cloned();
        self.inherit(claim, heir, &claimants, now);
        Some(owner)
    }

    /// Releases what is pinned to services that are gone. A contract stays in its namespace if a service there claims it. Returns
    /// the released claims with their former owners.
    pub(crate) fn release_all_of(
        &mut self,
        is_gone: impl Fn(&ServiceName) -> bool,
        now: Instant,
    ) -> BTreeMap<String, ServiceName> {
        let gone = self.claims.pinned_to(&is_gone);
        if gone.is_empty() {
            return gone;
        }
        let kin = self.kin(&gone, &is_gone);
        for claim in gone.keys() {
            let claimants = self.claims.release(claim).map(|(_, claimants)| claimants).unwrap_or_default();
            let stranger = || claimants.iter().find(|name| !is_gone(name) && self.does_claim(name, claim));
            let heir = kin.get(claim).or_else(stranger).cloned();
            self.inherit(claim, heir, &claimants, now);
        }
        gone
    }

    /// For contracts of services that are gone, the first services by name of the same namespaces that claim them. Each service
    /// is looked at once, however many contracts there are.
    fn kin(
        &self,
        gone: &BTreeMap<String, ServiceName>,
        is_gone: impl Fn(&ServiceName) -> bool,
    ) -> BTreeMap<String, ServiceName> {
        let namespaces: BTreeSet<&str> = gone.values().map(ServiceName::namespace).collect();
        let mut kin: BTreeMap<String, ServiceName> = BTreeMap::new();
        for (name, entry) in &self.services {
            if entry.members.is_empty() || !namespaces.contains(name.namespace()) || is_gone(name) {
                continue;
            }
            let is_released =
                |claim: &&str| gone.get(*claim).is_some_and(|owner| owner.namespace() == name.namespace());
            for contract in entry.claimed.names().filter(is_released).filter(|claim| !is_address(claim)) {
                kin.entry(contract.to_owned()).or_insert_with(|| name.clone());
            }
        }
        kin
    }

    /// A claim without an owner becomes that of the heir, or of the service that the heir's namespace has chosen. Those that have
    /// waited for it contest it with the new owner.
    fn inherit(&mut self, claim: &str, heir: Option<ServiceName>, claimants: &[ServiceName], now: Instant) {
        let Some(heir) = heir else { return };
        self.judge(&heir, &[(claim.to_owned(), Kind::Pinned)], now);
        self.change_claims(&heir, &[(Arc::from(claim), Kind::Pinned)], &[], &[], now);
        for other in claimants.iter().filter(|other| **other != heir) {
            if self.does_claim(other, claim) {
                self.judge(other, &[(claim.to_owned(), Kind::Pinned)], now);
            }
        }
    }
}
