//! What one stream is a member of: its identity's own service or, on Kubernetes, each Service that its pod backs.

use std::{net::IpAddr, sync::Arc};

use futures_util::future::select_all;
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{identity::SpiffeId, names::ServiceName};

use super::access::Callee;
use crate::{
    claims::Denied,
    directory::{
        Directory, Lacks, Membership,
        denials::Denials,
        registry::{Announcement, Refusal, SessionOver},
    },
    kubernetes::workloads::{Backed, Condition, Following},
};

/// The most Services that a pod is made an endpoint of. Who may make Services in its namespace could make any number.
const SERVICES_OF_POD: usize = 32;

/// See the module.
#[derive(Default)]
pub(super) struct Memberships {
    of: Vec<Member>,
    /// On Kubernetes: the pod, and what its sidecar has announced.
    pod: Option<Pod>,
}

/// What happens to memberships by itself.
pub(super) enum Happened {
    /// The session of one is over.
    Over(SessionOver),
    /// The pod backs other Services, or is in another condition: [`Memberships::follow`].
    BacksOthers,
}

struct Member {
    membership: Membership,
    /// On Kubernetes.
    backs: Option<Backs>,
}

/// A Service that the pod backs, as it was announced.
#[derive(Clone, PartialEq, Eq)]
struct Backs {
    backed: Backed,
    /// The first of several has the pod's own addresses, and announces first what only one can have.
    is_first: bool,
}

struct Pod {
    /// Whose it has to be, and which of its addresses the announcement came from.
    id: SpiffeId,
    host: IpAddr,
    follows: Following,
    announcement: Announcement,
    /// What the sidecar says of itself.
    health: Health,
}

impl Memberships {
    /// The announced endpoint becomes the one member of its stream.
    pub(super) fn join(&mut self, directory: &Arc<Directory>, announcement: Announcement) -> Result<Denied, Refusal> {
        let (membership, denied) = directory.join(announcement)?;
        let before = std::mem::replace(&mut self.of, vec![Member { membership, backs: None }]);
        before.into_iter().for_each(|before| before.give_way_to(&self.of));
        Ok(denied)
    }

    /// The announced endpoint becomes an endpoint of each Service that its pod backs, now and later.
    ///
    /// # Errors
    /// It became an endpoint of none.
    pub(super) fn join_as_pod(
        &mut self,
        directory: &Arc<Directory>,
        (id, host): (&SpiffeId, IpAddr),
        announcement: Announcement,
        follows: Following,
    ) -> Result<Denied, Refusal> {
        let health = announcement.endpoint.health();
        self.pod = Some(Pod { id: id.clone(), host, follows, announcement, health });
        let (denied, refused) = self.join_all(directory, true);
        match refused {
            Some(refused) if self.of.is_empty() => Err(refused),
            _ => Ok(denied),
        }
    }

    /// The pod backs other Services, or is in another condition.
    pub(super) fn follow(&mut self, directory: &Arc<Directory>) {
        self.join_all(directory, false);
    }

    /// Becomes a member of each Service that the pod backs, and leaves the others. A Service that refuses it takes no other
    /// away. What was announced before is announced again only if it `is_anew`, or if it is different.
    fn join_all(&mut self, directory: &Arc<Directory>, is_anew: bool) -> (Denied, Option<Refusal>) {
        let Some(pod) = &mut self.pod else { return (Denied::default(), None) };
        let (mut all, mut refused) = (Denied::default(), None);
        let mut before = std::mem::take(&mut self.of);
        for (service, backs) in pod.backs() {
            let at = before.iter().position(|member| *member.membership.service() == service);
            let mut before = at.map(|at| before.swap_remove(at));
            if let Some(before) = before.take_if(|before| !is_anew && before.stays(&backs)) {
                // What ended the session also ends the stream.
                let _ = before.membership.heartbeat(health(pod.health, backs.backed.condition));
                self.of.push(Member { backs: Some(backs), ..before });
                continue;
            }
            match directory.join(pod.announcement_of(&service, &backs)) {
                Ok((membership, denied)) => {
                    all.contested.extend(denied.contested);
                    all.unlisted.extend(denied.unlisted);
                    all.without_room += denied.without_room;
                    self.of.push(Member { membership, backs: Some(backs) });
                    before.into_iter().for_each(|before| before.give_way_to(&self.of));
                }
                Err(refusal) => {
                    if directory.lines.allows(pod.id.service()) {
                        tracing::warn!(peer = %pod.id, why = %refusal, "a pod is no endpoint of a Service that it backs");
                    }
                    refused.get_or_insert(refusal);
                    self.of.extend(before);
                }
            }
        }
        before.into_iter().for_each(|before| before.membership.leave());
        (all, refused)
    }

    /// The sidecar is alive.
    pub(super) fn heartbeat(&mut self, said: Health) -> Result<(), SessionOver> {
        if let Some(pod) = &mut self.pod {
            pod.health = said;
        }
        self.of.iter().try_for_each(|member| {
            let condition = member.backs.as_ref().map(|backs| backs.backed.condition);
            member.membership.heartbeat(condition.map_or(said, |condition| health(said, condition)))
        })
    }

    /// The calls that the sidecar did not allow. They are shown with the first Service.
    pub(super) fn report(&self, denials: Denials) -> Result<(), SessionOver> {
        self.of.first().map_or(Ok(()), |member| member.membership.report(denials))
    }

    /// The endpoint leaves.
    pub(super) fn leave(&mut self) {
        self.pod = None;
        self.of.drain(..).for_each(|member| member.membership.leave());
    }

    /// The stream ended: its endpoints are silent.
    pub(super) fn drop_all(&mut self) {
        self.pod = None;
        self.of.clear();
    }

    /// Whether it is announced at all, even if its pod backs nothing.
    pub(super) fn is_announced(&self) -> bool {
        self.pod.is_some() || !self.of.is_empty()
    }

    /// Whose rules hold for the sidecar of this identity.
    pub(super) fn callee<'a>(&self, id: &'a ServiceName) -> Callee<'a> {
        match &self.pod {
            Some(pod) => Callee::Pod(id, pod.services()),
            None => Callee::Service(id),
        }
    }

    /// What the directory lacks of the policies: of the first for which it lacks something.
    pub(super) fn lacks(&self) -> Lacks {
        self.lacking().map_or(Lacks::Nothing, |membership| membership.lacks().clone())
    }

    /// The first for which something is lacking.
    pub(super) fn lacking(&self) -> Option<&Membership> {
        self.of.iter().map(|member| &member.membership).find(|membership| *membership.lacks() != Lacks::Nothing)
    }

    /// The one for this service.
    pub(super) fn of(&mut self, service: &ServiceName) -> Option<&mut Membership> {
        self.of.iter_mut().map(|member| &mut member.membership).find(|membership| membership.service() == service)
    }

    /// Checks again what is lacking: a replica may have sent it in the meantime.
    pub(super) fn look_again(&mut self) -> Result<(), SessionOver> {
        self.of.iter_mut().try_for_each(|member| member.membership.look_again())
    }

    /// The first of them, for log lines.
    pub(super) fn first(&self) -> Option<&Membership> {
        self.of.first().map(|member| &member.membership)
    }

    /// Waits until something happens to them; for ever if there are none. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Happened {
        let Self { of, pod } = self;
        tokio::select! {
            over = superseded(of) => Happened::Over(over),
            () = backs_others(pod) => Happened::BacksOthers,
        }
    }
}

/// Waits until the session of one is over; for ever if there is none.
async fn superseded(of: &mut [Member]) -> SessionOver {
    match of {
        [] => std::future::pending().await,
        [one] => one.membership.superseded().await,
        many => select_all(many.iter_mut().map(|member| Box::pin(member.membership.superseded()))).await.0,
    }
}

/// Waits until the pod backs other Services; for ever outside of Kubernetes.
async fn backs_others(pod: &mut Option<Pod>) {
    match pod {
        Some(pod) => pod.follows.changed().await,
        None => std::future::pending().await,
    }
}

impl Member {
    /// Whether it need not be announced again: nothing but its condition is different, or a newer stream has announced it.
    fn stays(&mut self, backs: &Backs) -> bool {
        let is_like = |before: &Backs| {
            before.is_first == backs.is_first && before.backed.virtual_addresses == backs.backed.virtual_addresses
        };
        self.membership.has_given_way() || self.backs.as_ref().is_some_and(is_like)
    }

    /// A newer announcement of the same stream is there. The session is over if that has the same endpoint: a sidecar keeps
    /// its id. Otherwise a stream could leave any number of silent ones behind.
    fn give_way_to(self, newer: &[Self]) {
        let (service, endpoint) = (self.membership.service(), self.membership.endpoint());
        let is_over = |newer: &Self| newer.membership.service() == service && newer.membership.endpoint() == endpoint;
        if !newer.iter().any(is_over) {
            self.membership.leave();
        }
    }
}

impl Pod {
    /// The Services that it backs: first the one that is called like its account.
    fn backs(&mut self) -> Vec<(ServiceName, Backs)> {
        let known = self.follows.now();
        if !known.is_pod_of(&self.id, self.host) {
            return Vec::new();
        }
        let own = known.services.get_key_value(self.id.service());
        let others = known.services.iter().filter(|(service, _)| *service != self.id.service());
        let all = own.into_iter().chain(others).take(SERVICES_OF_POD).enumerate();
        all.map(|(number, (service, backed))| {
            (service.clone(), Backs { backed: backed.clone(), is_first: number == 0 })
        })
        .collect()
    }

    /// All Services that it backs: more than it is an endpoint of, if there are too many.
    fn services(&self) -> Vec<ServiceName> {
        let known = self.follows.peek();
        if known.is_pod_of(&self.id, self.host) { known.services.keys().cloned().collect() } else { Vec::new() }
    }

    /// The sidecar's announcement, as one of a Service's endpoint.
    fn announcement_of(&self, service: &ServiceName, backs: &Backs) -> Announcement {
        let mut announcement = Announcement { service: service.clone(), ..self.announcement.clone() };
        announcement.endpoint.set_health(health(self.health, backs.backed.condition));
        let ports: Vec<u16> = announcement.addresses.iter().filter_map(|address| port_of(address)).collect();
        if !backs.is_first {
            // An address is one service's.
            announcement.addresses.clear();
        }
        let leads_here = backs.backed.virtual_addresses.iter().filter(|(to, _)| ports.contains(to));
        announcement.of_cluster = leads_here.map(|(_, address)| address.to_string()).collect();
        announcement.addresses.extend(announcement.of_cluster.iter().cloned());
        announcement
    }
}

fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

/// An endpoint takes calls if both say so: its sidecar, and the API server.
fn health(said: Health, condition: Condition) -> Health {
    match (said, condition) {
        (Health::Up, Condition::NotReady) => Health::Down,
        (Health::Up, Condition::Terminating) => Health::Draining,
        (said, _) => said,
    }
}
