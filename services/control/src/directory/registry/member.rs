//! What the registry keeps of a service and of its endpoints.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use tokio::{sync::oneshot, time::Instant};
use weft_contracts::weft::{
    discovery::v1::{Endpoint, Health, Protocol},
    policy::v1::ServicePolicy,
};
use weft_mesh::limits;

use super::{
    Digest,
    claimed::{Claim, Claimed},
    news::News,
};
use crate::directory::denials::Denials;

/// An endpoint that is announced.
#[derive(Debug)]
pub(super) struct Member {
    /// As watchers see it.
    pub(super) endpoint: Endpoint,
    pub(super) protocol: Protocol,
    pub(super) claims: Vec<Claim>,
    pub(super) descriptors: Option<Digest>,
    /// `None` until its descriptors are known.
    pub(super) policy: Option<Arc<ServicePolicy>>,
    /// The number of its session: the highest is the newest announcement.
    pub(super) session: u64,
    /// Dropped with the member, whatever replaces it: then the session is over.
    pub(super) _holds: oneshot::Sender<Infallible>,
    pub(super) is_connected: bool,
    /// When something was last heard of it.
    pub(super) heard: Instant,
    /// When its health last changed, and the health that it reports since, if watchers are not told yet because the
    /// last change was too recent.
    pub(super) changed: Option<Instant>,
    pub(super) untold: Option<Health>,
    /// The calls that it did not allow.
    pub(super) denials: Denials,
}

impl Member {
    /// Takes the health that the member reports. True if watchers are to be told.
    pub(super) fn says(&mut self, health: Health, now: Instant) -> bool {
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

/// A service.
#[derive(Debug)]
pub(super) struct Entry {
    /// By the endpoint's id.
    pub(super) members: BTreeMap<String, Member>,
    /// Of the newest member, or of the last one if all have gone.
    pub(super) protocol: Protocol,
    /// The descriptors of the newest member whose descriptors are known, and their policy. Until those of a new version
    /// arrive, and if they are refused, the older ones stay in force.
    pub(super) described: Option<(Digest, Arc<ServicePolicy>)>,
    /// Of all members, or of the last one if all have gone.
    pub(super) claimed: Claimed,
    /// Its claims changed since watchers were last told.
    pub(super) has_new_claims: bool,
    /// Its contracts changed since its policy was last made.
    pub(super) has_new_contracts: bool,
    /// What callers are told.
    pub(super) policy: Arc<ServicePolicy>,
    /// What watchers are not told yet.
    pub(super) news: News,
    pub(super) empty_since: Option<Instant>,
    /// The last member went without saying so.
    pub(super) is_lost: bool,
}

impl Entry {
    pub(super) fn new(protocol: Protocol) -> Self {
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

    /// Works out the protocol and the descriptors from its members, of which there is at least one.
    pub(super) fn refresh(&mut self) {
        let Some(newest) = self.members.values().max_by_key(|m| m.session) else { return };
        let protocol = newest.protocol;
        let is_other_protocol = std::mem::replace(&mut self.protocol, protocol) != protocol;
        let described = self.members.values().filter(|m| m.policy.is_some()).max_by_key(|m| m.session);
        let before = self.described.as_ref().map(|(digest, policy)| (*digest, Arc::as_ptr(policy)));
        if let Some(described) = described.and_then(|m| Some((m.descriptors?, m.policy.clone()?))) {
            self.described = Some(described);
        } else if self.members.values().all(|m| m.descriptors.is_none()) {
            self.described = None;
        }
        self.empty_since = None;
        let is_redescribed = before != self.described.as_ref().map(|(digest, p)| (*digest, Arc::as_ptr(p)));
        let has_new_claims = std::mem::take(&mut self.has_new_claims);
        let has_new_contracts = std::mem::take(&mut self.has_new_contracts);
        self.news.note(is_other_protocol || is_redescribed || has_new_contracts, has_new_claims);
    }
}
