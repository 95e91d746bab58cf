//! The registry: the services, where they run, their health, and the contracts that they implement.
//!
//! A plain state machine: it takes what sidecars report and `now`, and returns [`Event`]s. It does no I/O and has no
//! clock. It knows only what members announced to this process: nothing is kept on disk.
//!
//! An endpoint is a member from its announcement on, and its stream is its [`Session`]. When the stream breaks, the
//! member is silent: callers that know other endpoints no longer call it. A member of which nothing was heard for
//! [`limits::ENDPOINT_EXPIRY`] is evicted. The last members of a service are kept for [`limits::SERVICE_MEMORY`], as a
//! silent one may still work. A newer announcement of the same id takes over; what the older session still reports is
//! ignored, and so is its end. A service without members stays known for [`limits::SERVICE_MEMORY`].
//!
//! - [`joining`]: how an announcement becomes a [`member`], [`claiming`]: how its claims become the service's, and
//!   [`releasing`]: whose they are next.
//! - [`settling`]: when a missing service is known not to exist.
//! - [`news`]: when watchers are told of a service as a whole.
//! - [`departed`]: the addresses of endpoints that went without saying so.
//! - [`views`]: what the registry answers to questions.

mod claimed;
mod claiming;
mod departed;
mod joining;
mod member;
mod news;
mod releasing;
mod settling;
#[cfg(test)]
mod tests;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
};

use tokio::{sync::oneshot, time::Instant};
use weft_contracts::weft::{
    discovery::v1::{Change, Endpoint, Health, Protocol, Version},
    policy::v1::ServicePolicy,
};
use weft_mesh::{limits, names::ServiceName};

use self::{
    departed::Departed,
    member::{Entry, Member},
    settling::Settling,
};
use crate::{
    claims::{Claims, Denied},
    directory::denials::Denials,
    rules::ByService,
};

/// The SHA-256 of a descriptor set.
pub(crate) type Digest = [u8; 32];

/// The contracts of an endpoint, sorted. The endpoints of a service share their names.
pub(crate) type Contracts = Arc<[Arc<str>]>;

/// Ends when a session is over; nothing is ever sent.
pub(crate) type GaveWay = oneshot::Receiver<Infallible>;

/// An announcement whose parts have been checked.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: Endpoint,
    pub(crate) protocol: Protocol,
    pub(crate) contracts: BTreeSet<String>,
    /// `IP:PORT`
    pub(crate) addresses: BTreeSet<String>,
    /// Those of the addresses that the identity's join token allows.
    pub(crate) allowed: BTreeSet<String>,
    /// Those of the addresses that are the service's own on a cluster, as the API server says.
    pub(crate) of_cluster: BTreeSet<String>,
    pub(crate) descriptors: Option<Digest>,
    /// The policy in the descriptors, if it is known already.
    pub(crate) policy: Option<Arc<ServicePolicy>>,
}

/// The right of a stream to speak for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: String,
    number: u64,
}

/// The result of an announcement.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) session: Session,
    pub(crate) gave_way: GaveWay,
    pub(crate) contracts: Contracts,
    /// It replaced an older announcement of the same endpoint.
    pub(crate) is_again: bool,
    /// The claims that were refused.
    pub(crate) denied: Denied,
}

/// The limit that an announcement would exceed, so that it was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{service} has {} endpoints, which is the limit", limits::ENDPOINTS_PER_SERVICE)]
    Endpoints { service: ServiceName },
    #[error("the mesh has {} services, which is the limit", limits::SERVICES_KNOWN)]
    Services,
    #[error("{service} would have more than {} contracts together", limits::CONTRACTS_PER_SERVICE)]
    Contracts { service: ServiceName },
    #[error("{service} would be called at more than {} addresses together", limits::ADDRESSES_PER_SERVICE)]
    Addresses { service: ServiceName },
    #[error("{service} has an endpoint of another identity with the id `{id}`")]
    OtherIdentity { service: ServiceName, id: String },
}

/// The session is over: its endpoint was evicted, or another stream has announced it since.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this announcement no longer holds: announce again")]
pub(crate) struct SessionOver;

/// A change, for watchers.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Only the endpoints of a service changed.
    Endpoints(ServiceName, Arc<Change>),
    /// A service is new, was forgotten, or has another protocol or policy.
    Service(ServiceName),
    /// A contract has another owner.
    Contract(String),
    /// From now on a missing service does not exist.
    Settled,
}

/// A member that was removed because nothing was heard of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: String,
    pub(crate) address: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Registry {
    version: Version,
    sessions: u64,
    settling: Settling,
    services: BTreeMap<ServiceName, Entry>,
    claims: Claims,
    departed: Departed,
    /// What MethodPolicies put in the place of what contracts say.
    methods: Arc<ByService>,
    events: Vec<Event>,
}

impl Registry {
    /// An empty registry. The registry of a later process must have a higher `epoch`.
    pub(crate) fn new(epoch: u64, now: Instant) -> Self {
        Self {
            version: Version { epoch, counter: 0 },
            sessions: 0,
            settling: Settling::new(now),
            services: BTreeMap::new(),
            claims: Claims::default(),
            departed: Departed::default(),
            methods: Arc::default(),
            events: Vec::new(),
        }
    }

    /// Sets the claims that are written, and those that were pinned before, while the registry has no service yet.
    pub(crate) fn with_claims(self, claims: Claims) -> Self {
        Self { claims, ..self }
    }

    /// A member is alive. `Unspecified` reports nothing new about its health.
    pub(crate) fn heartbeat(&mut self, session: &Session, health: Health, now: Instant) -> Result<(), SessionOver> {
        self.look_at_clock(now);
        let member = self.member(session).ok_or(SessionOver)?;
        member.heard = now;
        if health != Health::Unspecified && member.says(health, now) {
            let endpoint = member.endpoint.clone();
            self.emit_change(&session.service, vec![endpoint], Vec::new(), now);
        }
        Ok(())
    }

    /// A member reports the calls that it did not allow. Only those of contracts that it has announced are taken.
    pub(crate) fn report(&mut self, session: &Session, denials: Denials) -> Result<(), SessionOver> {
        let member = self.member(session).ok_or(SessionOver)?;
        member.denials = denials.of_contracts(|contract| member.claims.iter().any(|(claim, _)| **claim == *contract));
        Ok(())
    }

    /// A member says that it leaves. False if the session was over already.
    pub(crate) fn deregister(&mut self, session: &Session, now: Instant) -> bool {
        let is_member = self.member(session).is_some();
        if is_member {
            self.remove(&session.service, &session.endpoint, false, now);
        }
        is_member
    }

    /// A member's stream has ended: it is silent from now on, but not forgotten yet. False if the session was over
    /// already.
    pub(crate) fn stream_broken(&mut self, session: &Session, now: Instant) -> bool {
        self.look_at_clock(now);
        let Some(member) = self.member(session) else { return false };
        member.is_connected = false;
        if !self.settling.stood_still() {
            self.make_silent(&session.service, &session.endpoint, now);
        }
        true
    }

    fn make_silent(&mut self, service: &ServiceName, endpoint: &str, now: Instant) {
        let member = self.services.get_mut(service).and_then(|entry| entry.members.get_mut(endpoint));
        // If it reported itself that it is down or leaves, its silence adds nothing.
        if let Some(member) = member.filter(|member| member.endpoint.health() == Health::Up) {
            member.endpoint.set_health(Health::Down);
            member.endpoint.silent = true;
            let endpoint = member.endpoint.clone();
            self.emit_change(service, vec![endpoint], Vec::new(), now);
        }
    }

    /// Takes the policy in a member's descriptors.
    pub(crate) fn describe(
        &mut self,
        session: &Session,
        policy: Arc<ServicePolicy>,
        now: Instant,
    ) -> Result<(), SessionOver> {
        self.member(session).ok_or(SessionOver)?.policy = Some(policy);
        self.refresh(&session.service, now);
        Ok(())
    }

    /// From now on MethodPolicies say this. The watchers of services of which they say something else are told.
    pub(crate) fn set_methods(&mut self, methods: Arc<ByService>, now: Instant) {
        let before = std::mem::replace(&mut self.methods, methods);
        let is_other = |service: &&ServiceName| before.get(*service) != self.methods.get(*service);
        let changed: Vec<ServiceName> = self.services.keys().filter(is_other).cloned().collect();
        for service in changed {
            if let Some(entry) = self.services.get_mut(&service) {
                entry.news.note(true, false);
            }
            self.tell_anew(&service, now);
        }
    }

    /// Does what is due at `now`, and returns the members that were evicted.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Evicted> {
        self.look_at_clock(now);
        let evicted = self.expired(now);
        for Evicted { service, endpoint, .. } in &evicted {
            self.remove(service, endpoint, true, now);
        }
        self.tell_late(now);
        self.forget(now);
        self.settle_if_due(now);
        evicted
    }

    /// The members of which nothing was heard for too long.
    fn expired(&self, now: Instant) -> Vec<Evicted> {
        let unheard = |member: &Member, time| now.saturating_duration_since(member.heard) >= time;
        // Callers may reach a member that the control plane does not reach, so they decide when to give up the last
        // ones.
        let expiry = |entry: &Entry| {
            let has_others = entry.members.values().any(|member| !unheard(member, limits::ENDPOINT_EXPIRY));
            if has_others { limits::ENDPOINT_EXPIRY } else { limits::SERVICE_MEMORY }
        };
        self.services
            .iter()
            .map(|(service, entry)| (service, entry, expiry(entry)))
            .flat_map(|(service, entry, expiry)| {
                entry.members.values().filter(move |m| unheard(m, expiry)).map(move |m| (service, m))
            })
            .map(|(service, member)| Evicted {
                service: service.clone(),
                endpoint: member.endpoint.id.clone(),
                address: member.endpoint.address.clone(),
            })
            .collect()
    }

    /// Tells watchers of health that changed too soon after the change before it, and of services.
    fn tell_late(&mut self, now: Instant) {
        let mut told = Vec::new();
        for (service, entry) in &mut self.services {
            for member in entry.members.values_mut().filter(|member| member.is_connected) {
                if let Some(health) = member.untold
                    && member.says(health, now)
                {
                    told.push((service.clone(), member.endpoint.clone()));
                }
            }
        }
        for (service, endpoint) in told {
            self.emit_change(&service, vec![endpoint], Vec::new(), now);
        }
        self.tell_all_anew(now);
    }

    /// Forgets addresses and services whose time is over.
    fn forget(&mut self, now: Instant) {
        for (address, service) in self.departed.tick(now) {
            self.events.push(Event::Contract(address.to_string()));
            self.events.push(Event::Service(service));
            self.bump();
        }
        let is_over = |entry: &Entry| {
            entry.empty_since.is_some_and(|since| now.saturating_duration_since(since) >= limits::SERVICE_MEMORY)
        };
        let over: Vec<ServiceName> =
            self.services.iter().filter(|(_, entry)| is_over(entry)).map(|(name, _)| name.clone()).collect();
        for service in over {
            let entry = self.services.remove(&service);
            self.bump();
            self.events.push(Event::Service(service.clone()));
            let lost: Vec<Arc<str>> = entry.iter().flat_map(|entry| entry.claimed.names()).map(Arc::from).collect();
            if entry.is_some_and(|entry| entry.is_lost) {
                self.departed.note_all(&lost, &service, &self.claims, now);
            }
            self.change_claims(&service, &[], &[], &lost, now);
        }
    }

    /// The events since the last call, in order.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn member(&mut self, session: &Session) -> Option<&mut Member> {
        let member = self.services.get_mut(&session.service)?.members.get_mut(&session.endpoint)?;
        (member.session == session.number).then_some(member)
    }

    /// Removes a member that is silent or has said that it leaves.
    fn remove(&mut self, service: &ServiceName, endpoint: &str, is_silent: bool, now: Instant) {
        if let Some(entry) = self.services.get_mut(service) {
            let member = entry.members.remove(endpoint);
            // The claims of the last member are remembered, so that callers get `no-endpoint` and not
            // `no-such-service`.
            let lost = match member {
                Some(member) if !entry.members.is_empty() => entry.claimed.remove(&member.claims),
                _ => Vec::new(),
            };
            entry.is_lost = is_silent && entry.members.is_empty();
            if is_silent {
                self.departed.note_all(&lost, service, &self.claims, now);
            }
            self.emit_change(service, Vec::new(), vec![endpoint.to_owned()], now);
            self.change_claims(service, &[], &[], &lost, now);
            self.refresh(service, now);
        }
    }

    fn bump(&mut self) -> Version {
        self.version.counter += 1;
        self.version
    }

    /// Works out what follows from a service's members.
    fn refresh(&mut self, service: &ServiceName, now: Instant) {
        let Some(entry) = self.services.get_mut(service) else { return };
        if entry.members.is_empty() {
            entry.empty_since.get_or_insert(now);
            return;
        }
        entry.refresh();
        self.tell_anew(service, now);
    }
}
