//! The registry: which services there are, where they run, how they are, and what they implement.
//!
//! A plain state machine: it takes what sidecars say and `now`, and gives [`Event`]s; it does no I/O and has no
//! clock. Its truth is what the members announced to this process: nothing of it is kept on disk.
//!
//! An endpoint is a member from its announcement on. Its stream is its [`Session`]. When the stream breaks, the member
//! is silent: down for callers who have others. When nothing was heard of it for [`limits::ENDPOINT_EXPIRY`] it is
//! evicted; the last members of a service are kept for [`limits::SERVICE_MEMORY`], as a silent one may work. A newer
//! announcement of the same id takes over, and what an older session still says or how it ends is ignored. A service
//! whose members have all gone stays known for [`limits::SERVICE_MEMORY`], and an address of one that went without a word
//! stays its service's for [`limits::ADDRESS_MEMORY`] (`departed.rs`).
//!
//! When this process itself stood still ([`limits::STANDSTILL`]), it settles as after a start: the streams that broke
//! meanwhile may be its own doing, so until it has settled a broken stream does not make its member silent.

mod claimed;
mod claiming;
mod departed;
mod news;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use weft_contracts::weft::{
    discovery::v1::{Change, Endpoint, Health, Protocol, Service, Version},
    policy::v1::ServicePolicy,
};
use weft_mesh::{limits, names::ServiceName};

use crate::claims::{Claims, Denied, is_address};
use claimed::{Claim, Claimed};
use claiming::claims_of;
use departed::Departed;
use news::News;

/// The SHA-256 of a descriptor set.
pub(crate) type Digest = [u8; 32];

/// The contracts of an endpoint, sorted. Their names are shared among the endpoints of a service.
pub(crate) type Contracts = Arc<[Arc<str>]>;

/// Ends when a session is over, and says nothing before.
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
    /// Those of them that a join token allows its identity to be called at.
    pub(crate) allowed: BTreeSet<String>,
    pub(crate) descriptors: Option<Digest>,
    /// What the descriptors say, where they are known already.
    pub(crate) policy: Option<Arc<ServicePolicy>>,
}

/// The right of a stream to speak for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: String,
    number: u64,
}

/// What became of an announcement.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) session: Session,
    pub(crate) gave_way: GaveWay,
    pub(crate) contracts: Contracts,
    /// It took the place of an older announcement of the same endpoint.
    pub(crate) is_again: bool,
    /// What of its claims was refused.
    pub(crate) denied: Denied,
}

/// Of what there would be too much, so that an announcement was not taken.
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
}

/// The session is over: its endpoint was evicted, or announced anew by another stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this announcement no longer holds: announce again")]
pub(crate) struct SessionOver;

/// What changed, for those who watch.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Only endpoints of a service did.
    Endpoints(ServiceName, Arc<Change>),
    /// A service came, was forgotten, or has another protocol or policy.
    Service(ServiceName),
    /// A contract has another owner.
    Contract(String),
    /// What is missing from now on is not there.
    Settled,
}

/// A member of which nothing was heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: String,
    pub(crate) address: String,
}

#[derive(Debug)]
struct Member {
    /// As watchers see it.
    endpoint: Endpoint,
    protocol: Protocol,
    claims: Vec<Claim>,
    descriptors: Option<Digest>,
    policy: Option<Arc<ServicePolicy>>,
    /// The number of its session: the highest is the newest announcement.
    session: u64,
    /// Dropped with the member, whatever takes its place: the session is over then.
    _holds: oneshot::Sender<Infallible>,
    is_connected: bool,
    heard: Instant,
    /// When its health changed last, and what it says now if that was too short a while ago to be told.
    changed: Option<Instant>,
    untold: Option<Health>,
}

impl Member {
    /// Takes what the member says of its health. True when watchers are to be told.
    fn says(&mut self, health: Health, now: Instant) -> bool {
        let is_early = self.changed.is_some_and(|at| now.saturating_duration_since(at) < limits::HEALTH_PAUSE);
        self.untold = Some(health).filter(|health| is_early && self.endpoint.health() != *health);
        if is_early || self.endpoint.health() == health {
            return false;
        }
        self.changed = Some(now);
        self.endpoint.set_health(health);
        true
    }
}

#[derive(Debug)]
struct Entry {
    members: BTreeMap<String, Member>,
    /// Of the newest member, or of the last one when all have gone.
    protocol: Protocol,
    /// Those of the newest member whose descriptors are known, and what they say: until those of a new version have
    /// come, and when they are refused, what held before holds on.
    described: Option<(Digest, Arc<ServicePolicy>)>,
    /// Of all members, or of the last one when all have gone.
    claimed: Claimed,
    /// Its claims, and of these its contracts, are others than when watchers were last told, and its policy made.
    has_new_claims: bool,
    has_new_contracts: bool,
    policy: Arc<ServicePolicy>,
    /// What watchers have yet to be told.
    news: News,
    empty_since: Option<Instant>,
    /// The last member went without a word.
    is_lost: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Registry {
    version: Version,
    sessions: u64,
    settles_at: Instant,
    is_settled: bool,
    /// How many endpoints each service of the mesh has that has not announced them yet; `None` where nobody knows.
    awaited: Option<BTreeMap<ServiceName, usize>>,
    /// It settles because it stood still, not because it started.
    stood_still: bool,
    /// When it last looked at the clock, and how long this process had run by then.
    looked: Instant,
    ran: Duration,
    services: BTreeMap<ServiceName, Entry>,
    claims: Claims,
    departed: Departed,
    events: Vec<Event>,
}

impl Registry {
    /// An empty registry; a later process must have a higher `epoch`.
    pub(crate) fn new(epoch: u64, now: Instant) -> Self {
        Self {
            version: Version { epoch, counter: 0 },
            sessions: 0,
            settles_at: now + limits::SETTLING_TIME,
            is_settled: false,
            awaited: None,
            stood_still: false,
            looked: now,
            ran: cpu_time(),
            services: BTreeMap::new(),
            claims: Claims::default(),
            departed: Departed::default(),
            events: Vec::new(),
        }
    }

    /// What is written of claims, and what was pinned before: for a registry that has no service yet.
    pub(crate) fn with_claims(self, claims: Claims) -> Self {
        Self { claims, ..self }
    }

    /// These are all services of the mesh, with the number of their endpoints: it has settled as soon as all are there.
    pub(crate) fn await_all(&mut self, mesh: BTreeMap<ServiceName, usize>) {
        self.awaited = Some(mesh);
    }

    /// Takes an endpoint in, or takes its newer announcement in place of the older.
    pub(crate) fn announce(&mut self, announcement: Announcement, now: Instant) -> Result<Joined, Refusal> {
        self.look_at_clock(now);
        self.check_room(&announcement)?;
        let claims = claims_of(&announcement);
        let denied = self.judge(&announcement.service, &claims, now);
        let Announcement { service, endpoint, protocol, descriptors, policy, .. } = announcement;
        self.sessions += 1;
        let session = Session { service: service.clone(), endpoint: endpoint.id.clone(), number: self.sessions };
        let is_new = !self.services.contains_key(&service);
        let entry = self.services.entry(service.clone()).or_insert_with(|| Entry::new(protocol));
        // What is remembered of a service whose members have all gone is what it claims no longer.
        let remembered = if entry.members.is_empty() { std::mem::take(&mut entry.claimed) } else { Claimed::default() };
        let (claims, new) = entry.claimed.add(claims.into_iter());
        // A sidecar that was started again listens where its predecessor did, which can't be there any more.
        let replaced: Vec<String> = entry
            .members
            .values()
            .filter(|m| m.endpoint.address == endpoint.address && m.endpoint.id != endpoint.id)
            .map(|m| m.endpoint.id.clone())
            .collect();
        let mut lost = Vec::new();
        for id in &replaced {
            if let Some(member) = entry.members.remove(id) {
                lost.extend(entry.claimed.remove(&member.claims));
            }
        }
        let (holds, gave_way) = oneshot::channel();
        let contracts = claims.iter().map(|(name, _)| name).filter(|name| !is_address(name)).cloned().collect();
        let member = Member {
            endpoint: endpoint.clone(),
            protocol,
            claims: claims.clone(),
            descriptors,
            policy,
            session: session.number,
            _holds: holds,
            is_connected: true,
            heard: now,
            changed: None,
            untold: None,
        };
        let before = entry.members.insert(endpoint.id.clone(), member);
        if let Some(before) = &before {
            lost.extend(entry.claimed.remove(&before.claims));
        }
        let forgotten: Vec<Arc<str>> =
            remembered.names().filter(|name| !entry.claimed.contains(name)).map(Arc::from).collect();
        if std::mem::take(&mut entry.is_lost) {
            self.departed.note_all(&forgotten, &service, &self.claims, now);
        }
        lost.extend(forgotten);
        if is_new {
            self.bump();
            self.events.push(Event::Service(service.clone()));
        } else if !replaced.is_empty() || before.as_ref().is_none_or(|b| b.endpoint != endpoint) {
            self.emit_change(&service, vec![endpoint], replaced);
        }
        self.change_claims(&service, &claims, &new, &lost, now);
        self.refresh(&service, now);
        self.settle_if_all_are_here(&service);
        Ok(Joined { session, gave_way, contracts, is_again: before.is_some(), denied })
    }

    /// A member lives; `Unspecified` says nothing new of its health.
    pub(crate) fn heartbeat(&mut self, session: &Session, health: Health, now: Instant) -> Result<(), SessionOver> {
        self.look_at_clock(now);
        let member = self.member(session).ok_or(SessionOver)?;
        member.heard = now;
        if health != Health::Unspecified && member.says(health, now) {
            let endpoint = member.endpoint.clone();
            self.emit_change(&session.service, vec![endpoint], Vec::new());
        }
        Ok(())
    }

    /// A member leaves of its own will. False when the session was over anyway.
    pub(crate) fn deregister(&mut self, session: &Session, now: Instant) -> bool {
        let is_member = self.member(session).is_some();
        if is_member {
            self.remove(&session.service, &session.endpoint, false, now);
        }
        is_member
    }

    /// A member's stream has ended: callers who have others call it no longer, but it is not forgotten yet. False when
    /// the session was over anyway.
    pub(crate) fn stream_broken(&mut self, session: &Session, now: Instant) -> bool {
        self.look_at_clock(now);
        let Some(member) = self.member(session) else { return false };
        member.is_connected = false;
        if !self.stood_still {
            self.make_silent(&session.service, &session.endpoint);
        }
        true
    }

    fn make_silent(&mut self, service: &ServiceName, endpoint: &str) {
        let member = self.services.get_mut(service).and_then(|entry| entry.members.get_mut(endpoint));
        // One that is down or leaves by its own word stays so: that it is silent says no more.
        if let Some(member) = member.filter(|member| member.endpoint.health() == Health::Up) {
            member.endpoint.set_health(Health::Down);
            member.endpoint.silent = true;
            let endpoint = member.endpoint.clone();
            self.emit_change(service, vec![endpoint], Vec::new());
        }
    }

    /// Notices that this process stood still: stopped, or starved. What it did not hear meanwhile was not unsaid.
    fn look_at_clock(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.looked);
        let ran = cpu_time().saturating_sub(self.ran);
        (self.looked, self.ran) = (now, self.ran + ran);
        if passed < limits::STANDSTILL {
            return;
        }
        // A process that works hard may be late for the clock as well, and members can make it work.
        if ran > passed / 2 {
            return tracing::warn!(for_time = ?passed, "the control plane was too busy to look at the clock");
        }
        for member in self.services.values_mut().flat_map(|entry| entry.members.values_mut()) {
            member.heard += passed;
        }
        self.settles_at = now + limits::SETTLING_TIME;
        self.is_settled = false;
        self.stood_still = true;
        self.bump();
        tracing::warn!(for_time = ?passed, "the control plane stood still: it waits for its sidecars to announce again");
    }

    /// One of its endpoints has come: nobody may be missing any more. After a standstill all are members still, whether
    /// they are there or not, so that says nothing then.
    fn settle_if_all_are_here(&mut self, service: &ServiceName) {
        let Some(awaited) = &mut self.awaited else { return };
        let Some(endpoints) = awaited.get(service) else { return };
        let members = self.services.get(service).into_iter().flat_map(|entry| entry.members.values());
        if members.filter(|member| member.is_connected).count() < *endpoints {
            return;
        }
        awaited.remove(service);
        if awaited.is_empty() && !self.is_settled && !self.stood_still {
            self.settle();
        }
    }

    /// What is missing from now on is not there.
    fn settle(&mut self) {
        self.is_settled = true;
        if std::mem::take(&mut self.stood_still) {
            let is_lost = |member: &&Member| !member.is_connected;
            let lost: Vec<(ServiceName, String)> = self
                .services
                .iter()
                .flat_map(|(name, entry)| entry.members.values().filter(is_lost).map(move |member| (name, member)))
                .map(|(name, member)| (name.clone(), member.endpoint.id.clone()))
                .collect();
            for (service, endpoint) in lost {
                self.make_silent(&service, &endpoint);
            }
        }
        self.bump();
        self.events.push(Event::Settled);
    }

    /// Does what is due at `now`, and says who was evicted.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Evicted> {
        self.look_at_clock(now);
        let unheard = |member: &Member, time| now.saturating_duration_since(member.heard) >= time;
        // Its callers may reach one that we do not: the last ones are theirs to give up.
        let expiry = |entry: &Entry| {
            let has_others = entry.members.values().any(|member| !unheard(member, limits::ENDPOINT_EXPIRY));
            if has_others { limits::ENDPOINT_EXPIRY } else { limits::SERVICE_MEMORY }
        };
        let evicted: Vec<Evicted> = self
            .services
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
            .collect();
        for Evicted { service, endpoint, .. } in &evicted {
            self.remove(service, endpoint, true, now);
        }
        self.tell_late(now);
        self.forget(now);
        if !self.is_settled && now >= self.settles_at {
            self.settle();
        }
        evicted
    }

    /// Tells what changed too soon after the last change.
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
            self.emit_change(&service, vec![endpoint], Vec::new());
        }
        self.tell_all_anew(now);
    }

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

    /// Whether what is missing is not there, rather than not yet.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// The descriptor sets that members announced, or that a service's policy comes from.
    pub(crate) fn descriptors_in_use(&self) -> HashSet<Digest> {
        // What nothing could be made of is of no use, and not counted.
        let is_described = |member: &&Member| member.policy.is_some();
        let members = self.services.values().flat_map(|e| e.members.values());
        let of_members = members.filter(is_described).filter_map(|m| m.descriptors);
        self.services.values().filter_map(|e| Some(e.described.as_ref()?.0)).chain(of_members).collect()
    }

    /// Takes what a member's descriptors say.
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

    /// A service with all that a caller needs; `None` when it is not known.
    pub(crate) fn snapshot(&self, service: &ServiceName) -> Option<Service> {
        let Some(entry) = self.services.get(service) else { return self.remains(service) };
        Some(Service {
            name: service.to_string(),
            protocol: entry.protocol.into(),
            endpoints: entry.members.values().map(|m| m.endpoint.clone()).collect(),
            policy: Some((*entry.policy).clone()),
            version: Some(self.version),
            complete: self.is_settled,
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

    /// A service of which nothing is known but that it is called at some address: without endpoints.
    fn remains(&self, service: &ServiceName) -> Option<Service> {
        let addresses: Vec<String> = self.departed.of(service).map(str::to_owned).collect();
        (!addresses.is_empty() || self.claims.names_address_of(service)).then(|| Service {
            name: service.to_string(),
            version: Some(self.version),
            complete: self.is_settled,
            addresses,
            ..Service::default()
        })
    }

    /// Whether a service has, or had lately, endpoints.
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

    /// The service that implements a contract, or is called at an address. An address is a service's also when none of its
    /// endpoints is there: who asks wants to know whether it is outside the mesh.
    pub(crate) fn owner(&self, contract: &str) -> Option<&ServiceName> {
        let of_nobody_there = || self.departed.owner(contract).or_else(|| self.claims.named_owner(contract));
        self.claims.owner(contract).or_else(of_nobody_there)
    }

    /// The descriptor set that a service's policy comes from.
    pub(crate) fn descriptors(&self, service: &ServiceName) -> Option<&Digest> {
        self.services.get(service)?.described.as_ref().map(|(digest, _)| digest)
    }

    /// What happened since this was last asked, in order.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn member(&mut self, session: &Session) -> Option<&mut Member> {
        let member = self.services.get_mut(&session.service)?.members.get_mut(&session.endpoint)?;
        (member.session == session.number).then_some(member)
    }

    /// Takes a member out, which is silent or has said that it goes.
    fn remove(&mut self, service: &ServiceName, endpoint: &str, is_silent: bool, now: Instant) {
        if let Some(entry) = self.services.get_mut(service) {
            let member = entry.members.remove(endpoint);
            // Of the last one it is remembered, so that callers hear `no-endpoint` and not `no-such-service`.
            let lost = match member {
                Some(member) if !entry.members.is_empty() => entry.claimed.remove(&member.claims),
                _ => Vec::new(),
            };
            entry.is_lost = is_silent && entry.members.is_empty();
            if is_silent {
                self.departed.note_all(&lost, service, &self.claims, now);
            }
            self.emit_change(service, Vec::new(), vec![endpoint.to_owned()]);
            self.change_claims(service, &[], &[], &lost, now);
            self.refresh(service, now);
        }
    }

    fn bump(&mut self) -> Version {
        self.version.counter += 1;
        self.version
    }

    fn emit_change(&mut self, service: &ServiceName, upserted: Vec<Endpoint>, removed_ids: Vec<String>) {
        let version = Some(self.bump());
        let change = Change { service: service.to_string(), upserted, removed_ids, version };
        self.events.push(Event::Endpoints(service.clone(), Arc::new(change)));
    }

    /// Works out what follows from a service's members.
    fn refresh(&mut self, service: &ServiceName, now: Instant) {
        let Some(entry) = self.services.get_mut(service) else { return };
        if let Some(newest) = entry.members.values().max_by_key(|m| m.session) {
            let protocol = newest.protocol;
            let is_other_protocol = std::mem::replace(&mut entry.protocol, protocol) != protocol;
            let described = entry.members.values().filter(|m| m.policy.is_some()).max_by_key(|m| m.session);
            let before = entry.described.as_ref().map(|(digest, policy)| (*digest, Arc::as_ptr(policy)));
            if let Some(described) = described.and_then(|m| Some((m.descriptors?, m.policy.clone()?))) {
                entry.described = Some(described);
            } else if entry.members.values().all(|m| m.descriptors.is_none()) {
                entry.described = None;
            }
            entry.empty_since = None;
            let is_redescribed = before != entry.described.as_ref().map(|(digest, p)| (*digest, Arc::as_ptr(p)));
            let has_new_claims = std::mem::take(&mut entry.has_new_claims);
            let has_new_contracts = std::mem::take(&mut entry.has_new_contracts);
            entry.news.note(is_other_protocol || is_redescribed || has_new_contracts, has_new_claims);
            self.tell_anew(service, now);
        } else if entry.empty_since.is_none() {
            entry.empty_since = Some(now);
        }
    }
}

/// How long this process has run on CPUs.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl Entry {
    fn new(protocol: Protocol) -> Self {
        Self {
            members: BTreeMap::new(),
            protocol,
            described: None,
            policy: Claimed::default().policy(None),
            claimed: Claimed::default(),
            has_new_claims: false,
            has_new_contracts: false,
            news: News::default(),
            empty_since: None,
            is_lost: false,
        }
    }
}
