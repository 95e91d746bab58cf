//! The directory: what runs in the mesh now. It keeps the registry, the descriptors and the watchers behind one lock,
//! and passes the changes of each on to the others.
//!
//! The lock is held for one step of plain state machines, and never across an await. Joins, leaves and evictions are
//! logged here.
//!
//! - [`membership`]: an endpoint in the registry, held by its stream; [`watching`]: a watcher, held by its stream.
//! - [`sidecars`]: what is known of each sidecar.
//! - [`reading`]: how announced descriptors are read and compiled, in [`turns`], and kept on the [`shelf`].

pub(crate) mod denials;
mod descriptors;
mod hints;
#[cfg(test)]
mod lines;
mod membership;
pub(crate) mod rates;
mod reading;
pub(crate) mod registry;
pub(crate) mod shelf;
pub(crate) mod sidecars;
mod turns;
pub(crate) mod watcher;
mod watchers;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use weft_contracts::weft::{discovery::v1::Service, policy::v1::ServicePolicy};
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    limits,
    names::ServiceName,
};

use self::{
    denials::{Denials, Kind},
    descriptors::DescriptorSet,
    rates::Rates,
    registry::{Announcement, Digest, Evicted, Joined, Refusal, Registry},
    shelf::Shelf,
    turns::Turns,
    watchers::{Watchers, Who},
};
#[cfg(feature = "kubernetes")]
use crate::rules::{OfService, Reach};
use crate::{
    authority::network::Network,
    claims::{
        Claims, Contest, Denied, Saved,
        hosts::Hosts,
        visibility::{Sight, Visibility},
    },
    log_limit::Members,
    rules::ByService,
};
pub(crate) use membership::{Lacks, Membership};
pub(crate) use reading::{Read, Reading};
pub(crate) use watching::Watching;

const TICK: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Directory {
    trust_domain: TrustDomain,
    visibility: Visibility,
    state: Mutex<Contents>,
    /// There may be changes to save.
    to_keep: Notify,
    /// The turns to read descriptors ([`limits::DESCRIPTORS_READ`]).
    pub(crate) reading: Arc<Turns>,
    /// How often each identity may announce itself.
    pub(crate) announcements: Rates,
    /// The log lines that each identity may cause.
    pub(crate) lines: Members,
    /// Log lines about contests have a limit of their own, so that an identity can't hide its contests behind other
    /// lines.
    contest_lines: Members,
    sidecars_seen: sidecars::LastSeen,
}

/// What the lock guards.
struct Contents {
    registry: Registry,
    hosts: Hosts,
    are_new_hosts: bool,
    shelf: Shelf,
    /// How many questions for an unknown symbol may still be answered with the closest name, in this second.
    hints: u32,
    watchers: Watchers,
    is_frozen: bool,
}

/// What a client asks the descriptors for.
pub(crate) enum DescriptorQuery {
    Symbol(String),
    File(String),
    Extension(String, i32),
}

impl Directory {
    /// A directory without services, with the claims that are listed or were pinned before.
    pub(crate) fn new(trust_domain: TrustDomain, visibility: Visibility, claims: Claims, hosts: Hosts) -> Arc<Self> {
        // Microseconds since 1970, so that a later process has a higher epoch.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let registry = Registry::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX), Instant::now());
        let state = Contents {
            registry: registry.with_claims(claims),
            hosts,
            are_new_hosts: false,
            shelf: Shelf::default(),
            hints: limits::HINTS_PER_SECOND,
            watchers: Watchers::default(),
            is_frozen: false,
        };
        let reading = Turns::new(limits::DESCRIPTORS_READ);
        Arc::new(Self {
            trust_domain,
            visibility,
            state: Mutex::new(state),
            to_keep: Notify::new(),
            reading,
            announcements: Rates::new(limits::ANNOUNCEMENTS),
            lines: Members::default(),
            contest_lines: Members::default(),
            sidecars_seen: sidecars::LastSeen::default(),
        })
    }

    /// The mesh's trust domain.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // A panic in one step must not stop the mesh: each step leaves its maps usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due, once a second; never ends.
    pub(crate) async fn tick_for_ever(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            self.lock().tick(now, &self.lines);
        }
    }

    /// These are all services of the mesh: see [`Registry::await_all`]. Call it before any service joins.
    pub(crate) fn await_all(&self, mesh: BTreeMap<ServiceName, usize>) {
        self.lock().registry.await_all(mesh);
    }

    /// From now on MethodPolicies say this.
    pub(crate) fn set_methods(&self, methods: &Arc<ByService>) {
        let mut state = self.lock();
        state.registry.set_methods(Arc::clone(methods), Instant::now());
        state.tell();
    }

    /// How many sidecars follow the service of a MethodPolicy, and how many of them have been sent its values.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn reach(&self, methods: &Arc<OfService>) -> Reach {
        let state = self.lock();
        let reach = state.watchers.followers(&methods.service);
        if state.registry.tells(methods) { reach } else { Reach { told: 0, ..reach } }
    }

    /// From now on the end of a stream does not count: the control plane is stopping, and not its member.
    pub(crate) fn freeze(&self) {
        self.lock().is_frozen = true;
    }

    /// Adds an endpoint. Returns its membership, and the claims that were refused.
    pub(crate) fn join(self: &Arc<Self>, announcement: Announcement) -> Result<(Membership, Denied), Refusal> {
        let mut state = self.lock();
        let digest = announcement.descriptors;
        let contracts = || announcement.contracts.iter().map(String::as_str);
        let (policy, lacks) = state.what_is_known(&announcement.service, digest, contracts);
        let address = announcement.endpoint.address.clone();
        let joined = state.registry.announce(Announcement { policy, ..announcement }, Instant::now())?;
        state.tell();
        let Joined { session, contracts, gave_way, is_again, denied } = joined;
        let (service, endpoint) = (&session.service, &session.endpoint);
        if self.lines.allows(service) {
            tracing::info!(%service, endpoint, address, is_again, "joined");
        }
        self.log(service, &denied);
        // Claims may have been pinned.
        self.to_keep.notify_one();
        drop(state);
        let membership = Membership::new(Arc::clone(self), session, gave_way, digest, contracts, lacks);
        Ok((membership, denied))
    }

    fn log(&self, claimant: &ServiceName, denied: &Denied) {
        let id = |service: &ServiceName| SpiffeId::of_service(&self.trust_domain, service);
        for (claim, owner) in denied.listed.iter().filter(|_| self.contest_lines.allows(claimant)) {
            tracing::warn!(
                claim,
                owner = %id(owner),
                claimant = %id(claimant),
                "a claim of another service was refused; to let another have it, release it (weft identity release) or, on \
                 Kubernetes, name it in `contracts` of MeshDefaults"
            );
        }
        if denied.without_room > 0 && self.lines.allows(claimant) {
            let (claims, limit) = (denied.without_room, limits::CLAIMS_PER_IDENTITY);
            tracing::warn!(claimant = %id(claimant), claims, limit, "claims were refused: too many are pinned already");
        }
        if let Some(first) = denied.unlisted.first()
            && self.lines.allows(claimant)
        {
            let (claimant, claims) = (id(claimant), denied.unlisted.len());
            tracing::warn!(
                %claimant,
                claims,
                first,
                "claims were refused: name them in the file of --services (or set `unlisted: pin` there), or allow their \
                 addresses in the join token"
            );
        }
    }

    /// Whether a service's join token allows its endpoints at an address.
    pub(crate) fn allows_host(&self, service: &ServiceName, address: IpAddr) -> bool {
        self.lock().hosts.allows(service, address)
    }

    /// A join token allows a service's endpoints in these networks.
    pub(crate) fn allow_hosts(&self, service: &ServiceName, networks: Vec<Network>) {
        let mut state = self.lock();
        if state.hosts.allow(service, networks) {
            state.are_new_hosts = true;
            self.to_keep.notify_one();
        }
    }

    /// Claims that were refused because another service has them.
    pub(crate) fn contested(&self) -> Vec<Contest> {
        self.lock().registry.claims().contests().collect()
    }

    /// The calls that were not allowed, by the called service.
    pub(crate) fn denials(&self) -> Vec<(ServiceName, Vec<(Kind, u64)>)> {
        let state = self.lock();
        let of = |name: &ServiceName| (name.clone(), Denials::sum(state.registry.denials(name)));
        state.registry.service_names().map(of).filter(|(_, kinds)| !kinds.is_empty()).collect()
    }

    /// How many claims are pinned now, and how many were refused since the start.
    pub(crate) fn claim_counts(&self) -> (usize, u64) {
        let state = self.lock();
        let claims = state.registry.claims();
        (claims.pins(), claims.refused())
    }

    /// Releases pinned claims.
    pub(crate) fn release(&self, claims: &[String]) {
        let mut state = self.lock();
        for claim in claims {
            match state.registry.release(claim, Instant::now()) {
                Some(owner) => tracing::info!(claim, %owner, "a claim was released"),
                None => tracing::warn!(claim, "a claim can't be released: it is not pinned"),
            }
        }
        state.tell();
    }

    /// Releases what is pinned to services that no longer exist.
    pub(crate) fn release_all_of(&self, is_gone: impl Fn(&ServiceName) -> bool) {
        let mut state = self.lock();
        let released = state.registry.release_all_of(is_gone, Instant::now());
        for (claim, owner) in &released {
            tracing::info!(claim, %owner, "a claim was released: the service is gone");
        }
        if !released.is_empty() {
            state.tell();
            self.to_keep.notify_one();
        }
    }

    /// Pins contracts to the services that the mesh's owner gives them to.
    pub(crate) fn grant(&self, grants: &[(String, ServiceName)]) {
        let mut state = self.lock();
        for (contract, owner) in grants {
            match state.registry.grant(contract, owner, Instant::now()) {
                true => tracing::info!(contract, %owner, "a contract was granted"),
                false => tracing::warn!(
                    contract,
                    %owner,
                    "a contract can't be granted: another service has it, or too many claims are pinned"
                ),
            }
        }
        state.tell();
    }

    /// The owner of a namespace says which of its Services have these contracts, instead of what was said before.
    pub(crate) fn choose(&self, namespace: &str, chosen: BTreeMap<String, ServiceName>) {
        self.move_contracts(|registry| registry.choose(namespace, chosen, Instant::now()));
    }

    /// The mesh's owner says which services have these contracts, instead of what was said before.
    pub(crate) fn own(&self, owners: &BTreeMap<String, ServiceName>) {
        self.move_contracts(|registry| registry.own(owners, Instant::now()));
    }

    fn move_contracts(&self, make: impl FnOnce(&mut Registry) -> BTreeMap<String, ServiceName>) {
        let mut state = self.lock();
        let moved = make(&mut state.registry);
        state.tell();
        drop(state);
        if !moved.is_empty() {
            self.to_keep.notify_one();
        }
        for (contract, owner) in moved.iter().filter(|(_, owner)| self.lines.allows(owner)) {
            tracing::info!(contract, %owner, "a contract belongs to another service now: an annotation or MeshDefaults says so");
        }
    }

    /// Waits until there may be changes to save. Dropping the future loses nothing.
    pub(crate) async fn has_to_keep(&self) {
        self.to_keep.notified().await;
    }

    /// What has to be saved for the next start, if it changed since the last call.
    pub(crate) fn take_changes(&self) -> Option<(Saved, Hosts)> {
        let state = &mut *self.lock();
        if std::mem::take(&mut state.are_new_hosts) {
            state.registry.claims_mut().keep_again();
        }
        let saved = state.registry.claims_mut().take_changes()?;
        Some((saved, state.hosts.clone()))
    }

    /// Saving failed: the next [`Self::take_changes`] returns it again.
    pub(crate) fn keep_again(&self) {
        self.lock().registry.claims_mut().keep_again();
    }

    /// What a workload of this service may know of.
    pub(crate) fn sight_of(&self, viewer: &ServiceName) -> Sight {
        self.visibility.of(viewer)
    }

    /// Adds a watcher for a workload of this service, whose connection comes from a host.
    pub(crate) fn watch(self: &Arc<Self>, viewer: &ServiceName, host: IpAddr) -> Watching {
        let who = Who { service: viewer.clone(), host };
        let (id, news) = self.lock().watchers.add(who, self.sight_of(viewer), Instant::now());
        Watching::new(Arc::clone(self), id, news)
    }

    /// Every contract in sight, sorted.
    pub(crate) fn contracts(&self, sight: &Sight) -> Vec<String> {
        let state = self.lock();
        let registry = &state.registry;
        let is_seen = |name: &&str| registry.owner(name).is_some_and(|owner| sight.sees(owner));
        registry.contract_names().filter(is_seen).map(str::to_owned).collect()
    }

    /// Every service in sight, sorted.
    pub(crate) fn services_in(&self, sight: &Sight) -> Vec<Service> {
        let state = self.lock();
        let registry = &state.registry;
        let seen = registry.service_names().filter(|name| sight.sees(name));
        seen.filter_map(|name| registry.snapshot(name)).collect()
    }

    /// The files that answer a query, or else the closest name to the one that was asked for, if one is close.
    pub(crate) fn describe(&self, query: &DescriptorQuery, sight: &Sight) -> Result<Vec<Bytes>, Option<String>> {
        let state = &mut *self.lock();
        let sets = state.sets_for(query, sight);
        let found = sets.iter().find_map(|set| match query {
            DescriptorQuery::Symbol(symbol) => set.of_symbol(symbol),
            DescriptorQuery::File(name) => set.of_file(name),
            DescriptorQuery::Extension(extendee, number) => set.of_extension(extendee, *number),
        });
        if let Some(files) = found {
            return Ok(files);
        }
        let DescriptorQuery::Symbol(symbol) = query else { return Err(None) };
        if state.hints == 0 {
            return Err(None);
        }
        let hint = hints::symbol(symbol, sets.iter().flat_map(|set| set.symbols()));
        state.hints -= 1;
        Err(hint)
    }

    /// The numbers of the known extensions of a message, up to [`limits::EXTENSION_NUMBERS`]; `None` if the message is not
    /// known.
    pub(crate) fn extension_numbers(&self, extendee: &str, sight: &Sight) -> Option<BTreeSet<i32>> {
        // Collected without the lock: a member may define as many as fit its descriptors.
        let sets: Vec<Arc<DescriptorSet>> = self.lock().sets_in(None, sight).into_iter().cloned().collect();
        let known: Vec<_> = sets.iter().filter_map(|set| set.extension_numbers(extendee)).collect();
        (!known.is_empty()).then(|| fair_union(known, limits::EXTENSION_NUMBERS))
    }
}

/// The numbers of several lists, at most so many. Each list has its part, so that none hides the numbers of others.
fn fair_union(lists: Vec<impl Iterator<Item = i32>>, most: usize) -> BTreeSet<i32> {
    let part = (most / lists.len().max(1)).max(1);
    lists.into_iter().flat_map(|numbers| numbers.take(part)).collect()
}

impl Contents {
    fn tick(&mut self, now: Instant, lines: &Members) {
        for Evicted { service, endpoint, address } in self.registry.tick(now) {
            if lines.allows(&service) {
                tracing::warn!(%service, endpoint, address, "evicted: nothing was heard of it");
            }
        }
        let in_use = self.registry.descriptors_in_use();
        let registry = &self.registry;
        self.shelf.tidy(&in_use, |service| registry.knows(service));
        self.hints = limits::HINTS_PER_SECOND;
        self.watchers.allow_hints();
        self.tell();
    }

    /// Passes the registry's events on to the watchers that they concern.
    fn tell(&mut self) {
        for event in self.registry.take_events() {
            self.watchers.tell(&event);
        }
    }

    /// The policy in announced descriptors for a service's contracts if it was compiled before, or else what is
    /// missing.
    fn what_is_known<'a, I: Iterator<Item = &'a str>>(
        &self,
        service: &ServiceName,
        descriptors: Option<Digest>,
        contracts: impl Fn() -> I,
    ) -> (Option<Arc<ServicePolicy>>, Lacks) {
        let Some(digest) = descriptors else { return (None, Lacks::Nothing) };
        if let Some(policy) = self.shelf.policy(service, &digest, &contracts) {
            return (Some(policy), Lacks::Nothing);
        }
        if let Some(why) = self.shelf.refusal(service, &digest, &contracts) {
            return (None, Lacks::Use(why));
        }
        let is_set_known = self.shelf.set(&digest).is_some();
        (None, if is_set_known { Lacks::Policy } else { Lacks::Descriptors })
    }

    /// The sets to look in. For a contract the set of its owner comes first: it wins over what other services know of
    /// it.
    fn sets_for(&self, query: &DescriptorQuery, sight: &Sight) -> Vec<&Arc<DescriptorSet>> {
        let owner = match query {
            // The contract of a method is the part before its last dot.
            DescriptorQuery::Symbol(symbol) => self
                .registry
                .owner(symbol)
                .or_else(|| symbol.rsplit_once('.').and_then(|(contract, _)| self.registry.owner(contract))),
            DescriptorQuery::File(_) | DescriptorQuery::Extension(..) => None,
        };
        self.sets_in(owner, sight)
    }

    /// The sets that describe services in sight, each once; the set of `first` comes first.
    fn sets_in(&self, first: Option<&ServiceName>, sight: &Sight) -> Vec<&Arc<DescriptorSet>> {
        let services = first.into_iter().chain(self.registry.service_names()).filter(|service| sight.sees(service));
        let mut seen = BTreeSet::new();
        services
            .filter_map(|service| self.registry.descriptors(service))
            .filter(|digest| seen.insert(**digest))
            .filter_map(|digest| self.shelf.set(digest))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_with_many_extensions_hides_none_of_others() {
        assert_eq!(fair_union(vec![0..1_000_000, 50_901..50_902], 6), BTreeSet::from([0, 1, 2, 50_901]));
    }
}
