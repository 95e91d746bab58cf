//! What one stream is a member of: its identity's own service or, on Kubernetes, each Service that its pod backs.

use std::sync::Arc;

use futures_util::future::select_all;
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{identity::SpiffeId, names::ServiceName};

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
    backed: Option<Backed>,
}

struct Pod {
    /// Whose it has to be.
    id: SpiffeId,
    follows: Following,
    announcement: Announcement,
    /// What the sidecar says of itself.
    health: Health,
}

impl Memberships {
    /// The announced endpoint becomes the one member of its stream.
    pub(super) fn join(&mut self, directory: &Arc<Directory>, announcement: Announcement) -> Result<Denied, Refusal> {
        let (membership, denied) = directory.join(announcement)?;
        self.replace(vec![Member { membership, backed: None }]);
        Ok(denied)
    }

    /// The announced endpoint becomes an endpoint of each Service that its pod backs, now and later.
    pub(super) fn join_as_pod(
        &mut self,
        directory: &Arc<Directory>,
        id: &SpiffeId,
        announcement: Announcement,
        follows: Following,
    ) -> Result<Denied, Refusal> {
        let health = announcement.endpoint.health();
        self.of.iter_mut().for_each(|member| member.backed = None);
        self.pod = Some(Pod { id: id.clone(), follows, announcement, health });
        self.follow(directory)
    }

    /// The pod backs other Services, or is in another condition.
    pub(super) fn follow(&mut self, directory: &Arc<Directory>) -> Result<Denied, Refusal> {
        let Some(pod) = &mut self.pod else { return Ok(Denied::default()) };
        let backing = pod.follows.now();
        let mut denied = Denied::default();
        let mut members = Vec::new();
        let services = backing.services.iter().filter(|_| backing.is_of(&pod.id)).take(SERVICES_OF_POD);
        for (number, (service, backed)) in services.enumerate() {
            let before = self.of.iter().position(|member| member.membership.service() == service);
            let before = before.map(|at| self.of.swap_remove(at));
            match before.and_then(|before| before.if_like(backed)) {
                // Nothing else is announced of it.
                Some(before) => {
                    let health = health(pod.health, backed.condition);
                    // What ended the session also ends the stream.
                    let _ = before.membership.heartbeat(health);
                    members.push(Member { backed: Some(backed.clone()), ..before });
                }
                None => {
                    let announcement = pod.announcement_of(service, backed, number == 0);
                    let (membership, of_it) = directory.join(announcement)?;
                    denied.contested.extend(of_it.contested);
                    denied.unlisted.extend(of_it.unlisted);
                    denied.without_room += of_it.without_room;
                    // The older session, if there was one, is over by now: dropping it has changed nothing.
                    members.push(Member { membership, backed: Some(backed.clone()) });
                }
            }
        }
        self.replace(members);
        Ok(denied)
    }

    fn replace(&mut self, members: Vec<Member>) {
        for before in std::mem::replace(&mut self.of, members) {
            let (service, endpoint) = (before.membership.service(), before.membership.endpoint());
            let is_over =
                self.of.iter().any(|m| m.membership.service() == service && m.membership.endpoint() == endpoint);
            // A sidecar has one endpoint and keeps its id. Otherwise a stream could leave any number of silent ones behind.
            if !is_over {
                before.membership.leave();
            }
        }
    }

    /// The sidecar is alive.
    pub(super) fn heartbeat(&mut self, said: Health) -> Result<(), SessionOver> {
        if let Some(pod) = &mut self.pod {
            pod.health = said;
        }
        self.of.iter().try_for_each(|member| {
            let condition = member.backed.as_ref().map(|backed| backed.condition);
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
    /// Itself, if nothing but its condition is different, and it is still a member.
    fn if_like(mut self, backed: &Backed) -> Option<Self> {
        let is_like = self.backed.as_ref().is_some_and(|before| before.virtual_addresses == backed.virtual_addresses);
        (is_like && !self.membership.has_given_way()).then_some(self)
    }
}

impl Pod {
    /// The sidecar's announcement, as one of a Service's endpoint.
    fn announcement_of(&self, service: &ServiceName, backed: &Backed, is_first: bool) -> Announcement {
        let mut announcement = Announcement { service: service.clone(), ..self.announcement.clone() };
        announcement.endpoint.set_health(health(self.health, backed.condition));
        let ports: Vec<u16> = announcement.addresses.iter().filter_map(|address| port_of(address)).collect();
        if !is_first {
            // An address is one service's.
            announcement.addresses.clear();
        }
        let leads_here = backed.virtual_addresses.iter().filter(|(to, _)| ports.contains(to));
        let virtual_addresses: Vec<String> = leads_here.map(|(_, address)| address.to_string()).collect();
        announcement.allowed = virtual_addresses.iter().cloned().collect();
        announcement.addresses.extend(virtual_addresses);
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
