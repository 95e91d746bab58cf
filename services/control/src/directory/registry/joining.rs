//! How an announcement becomes a member.

use std::{mem, sync::Arc};

use tokio::{sync::oneshot, time::Instant};
use weft_contracts::weft::discovery::v1::Endpoint;

use super::{
    Announcement, Contracts, Event, GaveWay, Joined, Refusal, Registry, Session,
    claimed::{Claim, Claimed},
    claiming::claims_of,
    member::{Entry, Member},
};
use crate::{
    claims::{Kind, is_address},
    directory::denials::Denials,
};

/// What an announcement changed in the entry of its service.
struct Admitted {
    /// All claims of the announcement.
    claims: Vec<Claim>,
    /// Those of them that no other endpoint makes in the same way.
    new: Vec<Claim>,
    /// The names that no endpoint claims any more.
    lost: Vec<Arc<str>>,
    /// The names that the service still had from its former endpoints, and does not claim again.
    forgotten: Vec<Arc<str>>,
    contracts: Contracts,
    /// The endpoint's older announcement.
    before: Option<Member>,
    /// The ids of other endpoints that were at the same address.
    replaced: Vec<String>,
    gave_way: GaveWay,
}

impl Registry {
    /// Adds an endpoint, or replaces its older announcement.
    pub(crate) fn announce(&mut self, announcement: Announcement, now: Instant) -> Result<Joined, Refusal> {
        self.look_at_clock(now);
        self.check_room(&announcement)?;
        let claims = claims_of(&announcement);
        let denied = self.judge(&announcement.service, &claims, now);
        let (service, endpoint) = (announcement.service.clone(), announcement.endpoint.clone());
        self.sessions += 1;
        let session = Session { service: service.clone(), endpoint: endpoint.id.clone(), number: self.sessions };
        let is_new = !self.services.contains_key(&service);
        let entry = self.services.entry(service.clone()).or_insert_with(|| Entry::new(announcement.protocol));
        let Admitted { claims, new, mut lost, forgotten, contracts, before, replaced, gave_way } =
            entry.admit(announcement, claims, session.number, now);
        if mem::take(&mut entry.is_lost) {
            self.departed.note_all(&forgotten, &service, &self.claims, now);
        }
        lost.extend(forgotten);
        if is_new {
            self.bump();
            self.events.push(Event::Service(service.clone()));
        } else if !replaced.is_empty() || before.as_ref().is_none_or(|before| before.endpoint != endpoint) {
            self.emit_change(&service, vec![endpoint], replaced, now);
        }
        self.change_claims(&service, &claims, &new, &lost, now);
        self.refresh(&service, now);
        self.settle_if_all_are_here(&service, now);
        Ok(Joined { session, gave_way, contracts, is_again: before.is_some(), denied })
    }
}

impl Entry {
    fn admit(
        &mut self,
        announcement: Announcement,
        claims: Vec<(String, Kind)>,
        session: u64,
        now: Instant,
    ) -> Admitted {
        // A service without members only remembers its claims: it gives up those that it does not make again.
        let remembered = if self.members.is_empty() { mem::take(&mut self.claimed) } else { Claimed::default() };
        let (claims, new) = self.claimed.add(claims.into_iter());
        let Announcement { endpoint, protocol, descriptors, policy, .. } = announcement;
        let (replaced, mut lost) = self.remove_others_at(&endpoint);
        let (holds, gave_way) = oneshot::channel();
        let contracts: Contracts =
            claims.iter().map(|(name, _)| name).filter(|name| !is_address(name)).cloned().collect();
        let id = endpoint.id.clone();
        let member = Member {
            endpoint,
            protocol,
            claims: claims.clone(),
            descriptors,
            policy,
            session,
            _holds: holds,
            is_connected: true,
            heard: now,
            changed: None,
            untold: None,
            denials: Denials::default(),
        };
        let before = self.members.insert(id, member);
        if let Some(before) = &before {
            lost.extend(self.claimed.remove(&before.claims));
        }
        let forgotten: Vec<Arc<str>> =
            remembered.names().filter(|name| !self.claimed.contains(name)).map(Arc::from).collect();
        Admitted { claims, new, lost, forgotten, contracts, before, replaced, gave_way }
    }

    /// A restarted sidecar listens at the address of its predecessor, which cannot be there any more. Removes
    /// endpoints with another id at the same address. Returns their ids, and the names that no endpoint claims any
    /// more.
    fn remove_others_at(&mut self, endpoint: &Endpoint) -> (Vec<String>, Vec<Arc<str>>) {
        let replaced: Vec<String> = self
            .members
            .values()
            .filter(|member| member.endpoint.address == endpoint.address && member.endpoint.id != endpoint.id)
            .map(|member| member.endpoint.id.clone())
            .collect();
        let mut lost = Vec::new();
        for id in &replaced {
            if let Some(member) = self.members.remove(id) {
                lost.extend(self.claimed.remove(&member.claims));
            }
        }
        (replaced, lost)
    }
}
