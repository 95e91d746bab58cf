//! What is known and what is asked for, as a plain state machine: it gets messages, questions and `now`, and returns
//! what to send, answer and publish.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use tokio::{sync::oneshot, time::Instant};
use weft_contracts::weft::discovery::v1::{
    self as wire, ContractOwner, NotFound, Version, WatchRequest, WatchResponse, not_found, watch_request::What,
    watch_response,
};
use weft_mesh::{limits, names::ServiceName};

use super::{
    build::{Builder, Parts, decode, decode_endpoint, merge, to_wire, was_used_within},
    pending::Pending,
    snapshots::Saved,
};
use crate::endpoints::catalog::{Asked, DiscoveryQuestion, Service, Unknown, View};

/// The most questions that wait for one name.
const ASKERS_PER_NAME: usize = limits::DISCOVERY_QUEUE;

type Answer = Result<Arc<Service>, Unknown>;

/// See the module.
pub(super) struct Watches {
    builder: Builder,
    known: HashMap<ServiceName, Arc<Service>>,
    /// Changes of known services, while messages are taken.
    pending: HashMap<ServiceName, Pending>,
    /// The service that implements a protobuf service, or is called at an address. The control plane decides, because
    /// it knows if several do.
    owners: HashMap<Box<str>, ServiceName>,
    /// What was asked for and is not known. Together with `known`, at most [`limits::SERVICES_WATCHED`].
    waiting: HashMap<Asked, Vec<oneshot::Sender<Answer>>>,
}

/// What to do after a step.
#[derive(Default)]
pub(super) struct Effects {
    requests: Vec<WatchRequest>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    pub(super) is_view_changed: bool,
}

impl Effects {
    pub(super) fn and(&mut self, more: Self) {
        self.requests.extend(more.requests);
        self.answers.extend(more.answers);
        self.is_view_changed |= more.is_view_changed;
    }

    /// The requests to the control plane. If the stream is down, drop them: [`Watches::connected`] repeats them all.
    pub(super) fn take_requests(&mut self) -> Vec<WatchRequest> {
        std::mem::take(&mut self.requests)
    }

    pub(super) fn answer(self) {
        for (asker, answer) in self.answers {
            // The asker may have stopped waiting.
            let _ = asker.send(answer);
        }
    }

    fn request(&mut self, what: What) {
        self.requests.push(WatchRequest { what: Some(what) });
    }

    fn answer_all(&mut self, askers: Vec<oneshot::Sender<Answer>>, answer: &Answer) {
        self.answers.extend(askers.into_iter().map(|asker| (asker, answer.clone())));
    }
}

fn subscribe(asked: &Asked) -> What {
    match asked {
        Asked::Service(name) => What::SubscribeService(name.to_string()),
        Asked::Contract(name) => What::SubscribeContract(name.to_string()),
        Asked::Address(address) => What::SubscribeAddress(address.to_string()),
    }
}

/// A contract or an address. Messages have one field for both, because neither can look like the other.
fn asked_of(claim: &str) -> Asked {
    claim.parse().map_or_else(|_| Asked::Contract(claim.into()), Asked::Address)
}

impl Watches {
    pub(super) fn new(builder: Builder) -> Self {
        Self {
            builder,
            known: HashMap::new(),
            pending: HashMap::new(),
            owners: HashMap::new(),
            waiting: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Restores what an earlier run knew, as of `heard`. It is used until the control plane says otherwise.
    pub(super) fn restore(&mut self, saved: Saved, heard: Instant, now: Instant) -> Effects {
        for service in saved.services.into_iter().take(limits::SERVICES_WATCHED) {
            if let Some(parts) = decode(service, heard) {
                self.put(parts, now);
            }
        }
        for owner in saved.owners {
            if let Some(name) = ServiceName::parse(&owner.service).ok().filter(|name| self.known.contains_key(name)) {
                self.owners.insert(owner.contract.into(), name);
            }
        }
        Effects { is_view_changed: true, ..Effects::default() }
    }

    /// What is worth keeping for a later run.
    pub(super) fn saved(&self) -> Saved {
        Saved {
            services: self.known.values().map(|service| to_wire(service)).collect(),
            owners: self
                .owners
                .iter()
                .map(|(contract, service)| ContractOwner {
                    contract: contract.to_string(),
                    service: service.to_string(),
                })
                .collect(),
        }
    }

    pub(super) fn view(&self) -> View {
        let owned = self
            .owners
            .iter()
            .filter_map(|(contract, name)| Some((contract.clone(), Arc::clone(self.known.get(name)?))));
        let mut view = View {
            services: self.known.iter().map(|(name, service)| (name.clone(), Arc::clone(service))).collect(),
            ..View::default()
        };
        for (claim, service) in owned {
            match asked_of(&claim) {
                Asked::Address(address) => drop(view.addresses.insert(address, service)),
                _ => drop(view.contracts.insert(claim, service)),
            }
        }
        view
    }

    /// A worker's question.
    pub(super) fn ask(&mut self, DiscoveryQuestion { asked, answer }: DiscoveryQuestion, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let name = match &asked {
            Asked::Service(name) => Some(name),
            Asked::Contract(contract) => self.owners.get(contract),
            Asked::Address(address) => self.owners.get(&*address.to_string()),
        };
        if let Some(known) = name.and_then(|name| self.known.get(name)) {
            let service = Arc::clone(known);
            service.last_used.store(self.builder.seconds(now), std::sync::atomic::Ordering::Relaxed);
            effects.answers.push((answer, Ok(service)));
            return effects;
        }
        let is_new = !self.waiting.contains_key(&asked);
        if is_new && self.known.len() + self.waiting.len() >= limits::SERVICES_WATCHED {
            effects.answers.push((answer, Err(Unknown::Full)));
            return effects;
        }
        if is_new {
            effects.request(subscribe(&asked));
        }
        let askers = self.waiting.entry(asked).or_default();
        if askers.len() >= ASKERS_PER_NAME {
            // Askers that have stopped waiting need no room.
            askers.retain(|asker| !asker.is_closed());
        }
        if askers.len() >= ASKERS_PER_NAME {
            effects.answers.push((answer, Err(Unknown::Full)));
        } else {
            askers.push(answer);
        }
        effects
    }

    /// A new stream, on which nothing is subscribed.
    pub(super) fn connected(&self) -> Effects {
        let mut effects = Effects::default();
        for name in self.known.keys() {
            effects.request(What::SubscribeService(name.to_string()));
        }
        for asked in self.waiting.keys() {
            effects.request(subscribe(asked));
        }
        effects
    }

    /// The stream broke: what is known stays, and questions that nobody waits for any more are dropped.
    pub(super) fn disconnected(&mut self) {
        self.drop_abandoned();
    }

    /// The messages of the control plane that are there. However many of them change a service, it is built once.
    pub(super) fn take(&mut self, messages: impl IntoIterator<Item = WatchResponse>, now: Instant) -> Effects {
        let mut effects = Effects::default();
        for message in messages {
            effects.and(match message.what {
                Some(watch_response::What::Snapshot(snapshot)) => self.snapshot(snapshot, now),
                Some(watch_response::What::Change(change)) => self.change(change),
                Some(watch_response::What::NotFound(not_found)) => self.not_found(not_found),
                Some(watch_response::What::Owner(owner)) => self.owner(owner, now),
                None => Effects::default(),
            });
        }
        effects.is_view_changed |= !self.pending.is_empty();
        let changed: Vec<ServiceName> = self.pending.keys().cloned().collect();
        changed.iter().for_each(|name| self.build_pending(name, now));
        effects
    }

    /// Builds a service with the changes that have come.
    fn build_pending(&mut self, name: &ServiceName, now: Instant) {
        let (Some(pending), Some(service)) = (self.pending.remove(name), self.known.get(name)) else { return };
        let parts = Parts {
            name: name.clone(),
            protocol: service.protocol,
            version: pending.version,
            policy: Arc::clone(&service.policy),
            endpoints: pending.into_endpoints(),
            addresses: service.addresses.clone(),
            heard: now,
            is_complete: service.is_complete,
        };
        self.put(parts, now);
    }

    fn snapshot(&mut self, snapshot: wire::Service, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let Some(mut parts) = decode(snapshot, now) else { return effects };
        let name = parts.name.clone();
        let asked = Asked::Service(name.clone());
        effects.is_view_changed = self.pending.contains_key(&name);
        self.build_pending(&name, now);
        match self.known.get(&name) {
            Some(known) if is_older(&parts.version, &known.version) => {
                tracing::warn!(service = %name, "an outdated snapshot is ignored");
                return effects;
            }
            Some(known) if !parts.is_complete => merge(&mut parts, known),
            Some(_) => {}
            None if self.waiting.contains_key(&asked) => {}
            None => {
                // It is neither known nor asked for any more.
                effects.request(What::UnsubscribeService(name.to_string()));
                return effects;
            }
        }
        if parts.is_complete {
            let addresses: HashSet<SocketAddr> = parts.addresses.iter().copied().collect();
            let is_claimed = |claim: &str| match asked_of(claim) {
                Asked::Address(address) => addresses.contains(&address),
                _ => parts.policy.contract(claim).is_some(),
            };
            self.owners.retain(|claim, owner| *owner != name || is_claimed(claim));
        }
        let service = self.put(parts, now);
        effects.is_view_changed = true;
        if let Some(askers) = self.waiting.remove(&asked) {
            effects.answer_all(askers, &Ok(service));
        }
        effects
    }

    /// Changes come in order and without gaps: there is one HTTP/2 stream, and a watcher that can't keep up gets a
    /// snapshot. But versions count the changes of all services, so only the order can be checked.
    fn change(&mut self, change: wire::Change) -> Effects {
        let mut effects = Effects::default();
        let Some(name) = ServiceName::parse(&change.service).ok() else { return effects };
        // The change and our unsubscribe request crossed.
        let Some(service) = self.known.get(&name) else { return effects };
        let version = change.version.unwrap_or_default();
        let known = self.pending.get(&name).map_or(service.version, |pending| pending.version);
        if version.epoch != known.epoch || version.counter <= known.counter {
            tracing::warn!(service = %name, ?version, after = ?known, "a change out of order; resubscribing");
            effects.request(What::UnsubscribeService(name.to_string()));
            effects.request(What::SubscribeService(name.to_string()));
            return effects;
        }
        let pending = self.pending.entry(name).or_insert_with(|| Pending::of(service));
        pending.version = version;
        pending.change(change.upserted.into_iter().filter_map(decode_endpoint), &change.removed_ids);
        effects
    }

    fn not_found(&mut self, answer: NotFound) -> Effects {
        let mut effects = Effects::default();
        // Announcements may still come: what is known stays, and questions keep waiting.
        if !answer.complete {
            return effects;
        }
        let closest = Some(answer.closest).filter(|closest| !closest.is_empty());
        let asked = match answer.what {
            Some(not_found::What::Service(name)) => match ServiceName::parse(&name) {
                Ok(name) => {
                    self.pending.remove(&name);
                    if self.known.remove(&name).is_some() {
                        self.owners.retain(|_, owner| *owner != name);
                        effects.is_view_changed = true;
                    }
                    Asked::Service(name)
                }
                Err(_) => return effects,
            },
            Some(not_found::What::Contract(name)) => {
                effects.is_view_changed = self.owners.remove(name.as_str()).is_some();
                asked_of(&name)
            }
            None => return effects,
        };
        if let Some(askers) = self.waiting.remove(&asked) {
            effects.answer_all(askers, &Err(Unknown::NotFound { closest }));
        }
        effects
    }

    /// The askers now wait for the owner's snapshot, which follows.
    fn owner(&mut self, owner: ContractOwner, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let Ok(name) = ServiceName::parse(&owner.service) else { return effects };
        let contract: Box<str> = owner.contract.into();
        let askers = match self.waiting.remove(&asked_of(&contract)) {
            Some(askers) => askers,
            // It moved to another service.
            None if self.owners.contains_key(&contract) => Vec::new(),
            None => return effects,
        };
        self.owners.insert(contract, name.clone());
        self.build_pending(&name, now);
        match self.known.get(&name) {
            Some(known) => {
                effects.is_view_changed = true;
                effects.answer_all(askers, &Ok(Arc::clone(known)));
            }
            None => self.waiting.entry(Asked::Service(name)).or_default().extend(askers),
        }
        effects
    }

    /// Drops questions that nobody waits for. While the control plane is connected, so that it can be asked again, also
    /// drops services that were not called for [`limits::WATCH_IDLE`].
    pub(super) fn tidy(&mut self, is_connected: bool, now: Instant) -> Effects {
        let mut effects = Effects::default();
        if !is_connected {
            self.drop_abandoned();
            return effects;
        }
        let now = self.builder.seconds(now);
        let idle = |service: &Service| !was_used_within(service, limits::WATCH_IDLE.as_secs(), now);
        for (name, _) in self.known.extract_if(|_, service| idle(service)) {
            tracing::debug!(service = %name, "no longer watched: it was not called for a long time");
            effects.request(What::UnsubscribeService(name.to_string()));
            effects.is_view_changed = true;
        }
        let (known, waiting) = (&self.known, &self.waiting);
        self.owners
            .retain(|_, owner| known.contains_key(owner) || waiting.contains_key(&Asked::Service(owner.clone())));
        self.drop_abandoned();
        effects
    }

    /// Does not unsubscribe: if the control plane still answers, that answer unsubscribes.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|_, askers| {
            askers.retain(|asker| !asker.is_closed());
            !askers.is_empty()
        });
    }

    fn put(&mut self, parts: Parts, now: Instant) -> Arc<Service> {
        let name = parts.name.clone();
        let before = self.known.get(&name).map(|service| &**service);
        let service = Arc::new(self.builder.service(parts, before, now));
        tracing::debug!(
            service = %name,
            version = service.version.counter,
            endpoints = service.endpoints.len(),
            is_complete = service.is_complete,
            "the service has changed"
        );
        self.known.insert(name, Arc::clone(&service));
        service
    }
}

/// Another epoch is another process of the control plane, and counters of two epochs can't be compared.
fn is_older(new: &Version, known: &Version) -> bool {
    new.epoch == known.epoch && new.counter < known.counter
}

#[cfg(test)]
mod tests;
