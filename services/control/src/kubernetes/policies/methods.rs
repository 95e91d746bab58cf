//! The MethodPolicies of one namespace.

use std::{
    collections::{HashMap, hash_map::Entry as Place},
    sync::Arc,
};

use weft_mesh::names::ServiceName;

use super::{
    aged::{Aged, MOST, MOST_BYTES},
    entry::{Content, Says, Settled, Target},
    object::{Kind, Verdict},
    programmed::Subject,
};
use crate::rules::{ByService, OfService};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct MethodsOf {
    pub(super) policies: Aged<Arc<OfService>>,
    /// What holds, since it was settled last.
    held: ByService,
}

impl Says for Arc<OfService> {
    fn closes(&self) -> Option<Target> {
        None
    }
}

impl MethodsOf {
    pub(super) fn settle(&mut self, namespace: &str, settled: &mut Settled) {
        let mut held = HashMap::new();
        let most = self.policies.leave_out();
        for (place, ((_, name), entry)) in self.policies.by_age.iter_mut().enumerate() {
            let key = (namespace.to_owned(), name.clone());
            let mut hold = |of_service: &Arc<OfService>| match held.entry(of_service.service.clone()) {
                Place::Vacant(place) => {
                    place.insert(Arc::clone(of_service));
                    Ok(format!("it holds for the Service {}", of_service.service.name()))
                }
                Place::Occupied(older) => {
                    let (older, service) = (&older.get().name, of_service.service.name());
                    Err(format!("MethodPolicy {older} is for the Service {service} too, and is older"))
                }
            };
            let verdict = match &entry.content {
                Content::Valid(of_service) => match hold(of_service) {
                    Ok(holds) => entry.accepted(holds),
                    Err(why) => entry.refused(Verdict::CONFLICTED, why),
                },
                Content::Invalid { why, last, .. } => {
                    let stays = last.as_ref().filter(|last| hold(last).is_ok());
                    let stays = stays.map_or("; it has no effect", |_| "; what it said before holds");
                    entry.refused(Verdict::INVALID, format!("{why}{stays}"))
                }
                Content::LeftOut(_) if place < most => {
                    settled.to_read.push((Kind::MethodPolicy, key));
                    continue;
                }
                Content::LeftOut(_) => {
                    let why = format!(
                        "the namespace has older policies, and may have {MOST} with {MOST_BYTES} bytes in all: it has no effect"
                    );
                    entry.refused(Verdict::TOO_MANY, why)
                }
            };
            let subject = match &entry.content {
                Content::Valid(of_service) => Some(Subject::Callers(Arc::clone(of_service))),
                Content::Invalid { .. } | Content::LeftOut(_) => None,
            };
            entry.say(Kind::MethodPolicy, key, verdict, subject, settled);
        }
        self.held = held;
    }

    /// Which Services have something else to be said of them.
    pub(super) fn of(&self) -> impl Iterator<Item = (ServiceName, Arc<OfService>)> {
        self.held.iter().map(|(service, of)| (service.clone(), Arc::clone(of)))
    }
}
