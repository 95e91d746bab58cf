//! The rules in the cluster's objects, AccessPolicies, MethodPolicies and the MeshDefaults, as plain state: which of them hold,
//! and what the status of each has to say.
//!
//! - A MethodPolicy that is wrong has no effect; if it was right before, that version stays. The rest is about who may call.
//! - An object that is wrong takes nothing away. If it was right before, that version stays. If it is new, nobody may call what
//!   it is for: it may have been meant to be strict.
//! - MeshDefaults that are new and wrong may have been meant to deny a namespace what its own policies allow, so these can't.
//! - Of several of a kind for the same Service, or for all of a namespace, the oldest holds, whatever it says.
//! - A namespace has [`aged::MOST`] of a kind, with [`aged::MOST_BYTES`], the oldest first. Nobody may call what the others are
//!   for. If there are more than [`aged::KEPT`], nobody may call anything in that namespace.

mod aged;
mod counting;
pub(crate) mod due;
mod entry;
mod methods;
mod namespace;
mod object;
mod programmed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry as Place},
    sync::Arc,
};

use weft_mesh::{
    names::ServiceName,
    policy::{AccessPolicy, MeshRules, Overrides},
};

#[cfg(feature = "kubernetes")]
pub(crate) use self::programmed::{Programmed, Said};
use self::{
    aged::Kept,
    entry::{Content, Entry, Known, Rule, Target},
    methods::MethodsOf,
    namespace::{OfMesh, OfNamespace},
    object::{DEFAULTS, why},
};
pub(crate) use self::{
    entry::Settled,
    object::{Kind, Object, Told, Verdict},
    programmed::Subject,
};
use crate::{
    kubernetes::workloads::Key,
    rules::{InForce, OfService, Origins},
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    namespaces: BTreeMap<String, OfNamespace>,
    methods: BTreeMap<String, MethodsOf>,
    defaults: Option<Entry<MeshRules>>,
    /// The namespaces that may say something else than before.
    changed: BTreeSet<String>,
}

impl Policies {
    /// An object is there.
    pub(crate) fn set(&mut self, kind: Kind, key: Key, object: Object) {
        match kind {
            Kind::AccessPolicy | Kind::MethodPolicy => self.set_policy(kind, key, object),
            Kind::MeshDefaults if key.1 == DEFAULTS => self.set_defaults(&key, object),
            // The API server takes no other.
            Kind::MeshDefaults => {}
        }
    }

    /// A policy was read again, since there is room for it. What the watch has told meanwhile is newer.
    pub(crate) fn read_again(&mut self, kind: Kind, key: Key, object: Object) {
        self.look_again(&key.0);
        if self.known(kind, &key).is_some_and(|known| known.is_left_out && known.is_of(&object)) {
            self.set_policy(kind, key, object);
        }
    }

    /// An object is gone.
    pub(crate) fn remove(&mut self, kind: Kind, key: &Key) {
        match kind {
            Kind::AccessPolicy | Kind::MethodPolicy => {
                if let Some(kept) = self.kept(kind, &key.0) {
                    kept.forget(&key.1);
                    self.changed.insert(key.0.clone());
                }
            }
            Kind::MeshDefaults if key.1 == DEFAULTS && self.defaults.take().is_some() => self.all_changed(),
            Kind::MeshDefaults => {}
        }
    }

    /// These are all objects of a kind: others are gone.
    pub(crate) fn retain(&mut self, kind: Kind, there: &BTreeSet<Key>) {
        if kind == Kind::MeshDefaults {
            if !there.iter().any(|key| key.1 == DEFAULTS) {
                self.remove(kind, &(String::new(), DEFAULTS.to_owned()));
            }
            return;
        }
        for namespace in self.namespaces_of(kind) {
            let Some(kept) = self.kept(kind, &namespace) else { continue };
            let there = there.iter().filter(|key| key.0 == namespace).map(|key| key.1.as_str()).collect();
            if kept.retain(&there) {
                self.changed.insert(namespace);
            }
        }
    }

    /// The status of an object was written.
    pub(crate) fn told(&mut self, kind: Kind, key: &Key, told: Told) {
        if let Some(known) = self.known(kind, key) {
            *known.told = Some(told);
        }
    }

    /// Something about a namespace is to be decided, or said, once more.
    pub(crate) fn look_again(&mut self, namespace: &str) {
        self.changed.insert(namespace.to_owned());
    }

    /// When an object began to be accepted, or not, as its status says.
    pub(crate) fn since(&mut self, kind: Kind, key: &Key) -> Option<(bool, String)> {
        let told = self.known(kind, key)?.told.as_ref();
        told.map(|told| (told.verdict.is_accepted, told.since.clone()))
    }

    fn known(&mut self, kind: Kind, (namespace, name): &Key) -> Option<Known<'_>> {
        match kind {
            Kind::AccessPolicy | Kind::MethodPolicy => self.kept(kind, namespace)?.known(name),
            Kind::MeshDefaults => self.defaults.as_mut().map(Known::of),
        }
    }

    /// The policies of a kind in a namespace.
    fn kept(&mut self, kind: Kind, namespace: &str) -> Option<&mut dyn Kept> {
        match kind {
            Kind::AccessPolicy => self.namespaces.get_mut(namespace).map(|of| &mut of.policies as _),
            Kind::MethodPolicy => self.methods.get_mut(namespace).map(|of| &mut of.policies as _),
            Kind::MeshDefaults => None,
        }
    }

    /// The namespaces that have policies of a kind.
    fn namespaces_of(&self, kind: Kind) -> Vec<String> {
        match kind {
            Kind::AccessPolicy => self.namespaces.keys().cloned().collect(),
            Kind::MethodPolicy => self.methods.keys().cloned().collect(),
            Kind::MeshDefaults => Vec::new(),
        }
    }

    fn all_changed(&mut self) {
        self.changed.extend(self.namespaces.keys().chain(self.methods.keys()).cloned());
    }

    fn set_policy(&mut self, kind: Kind, key: Key, object: Object) {
        // Most changes are those of its status.
        if let Some(before) = self.known(kind, &key)
            && before.is_of(&object)
            && !before.is_left_out
        {
            before.counted.said = object.said;
            // Most of those are our own.
            if *before.told != object.told {
                *before.told = object.told;
                self.changed.insert(key.0);
            }
            return;
        }
        self.changed.insert(key.0.clone());
        match kind {
            Kind::MethodPolicy => self.set_methods(key, object),
            Kind::AccessPolicy | Kind::MeshDefaults => self.set_access(key, object),
        }
    }

    fn set_access(&mut self, key: Key, object: Object) {
        let read = |object: &Object| {
            let read = AccessPolicy::read(&Kind::AccessPolicy.origin(&key), &object.spec_node());
            let read = read.map_err(|problems| why(Kind::AccessPolicy, &key, &problems));
            let rule = read.and_then(|policy| Rule::of(policy, &key.0).map_err(|error| error.to_string()));
            rule.map_err(|why| (why, Target::of(object, &key.0)))
        };
        self.namespaces.entry(key.0.clone()).or_default().policies.set(key.1.clone(), object, read);
    }

    fn set_methods(&mut self, key: Key, object: Object) {
        let read = |object: &Object| {
            let read = Overrides::read(&Kind::MethodPolicy.origin(&key), &object.spec_node());
            let values = read.map_err(|problems| (why(Kind::MethodPolicy, &key, &problems), None))?;
            let service = ServiceName::new(&values.service, &key.0).map_err(|error| (error.to_string(), None))?;
            if let Some(field) = values.fallback_to_itself(&service) {
                return Err((format!("{field}: found the Service itself; allowed: another service"), None));
            }
            Ok(Arc::new(OfService { service, name: format!("{}/{}", key.0, key.1), values }))
        };
        self.methods.entry(key.0.clone()).or_default().policies.set(key.1.clone(), object, read);
    }

    fn set_defaults(&mut self, key: &Key, object: Object) {
        if let Some(before) = self.known(Kind::MeshDefaults, key)
            && before.is_of(&object)
        {
            *before.told = object.told;
            before.counted.said = object.said;
            return;
        }
        let before = self.defaults.take().filter(|before| before.uid == object.uid);
        let content = match MeshRules::read_defaults(&Kind::MeshDefaults.origin(key), &object.spec_node()) {
            Ok(rules) => Content::Valid(rules),
            Err(wrong) => {
                let why = why(Kind::MeshDefaults, key, &wrong.problems);
                let last = before.and_then(|before| before.content.last());
                let (last, instead) = match (wrong.access, last) {
                    (Some(access), last) => {
                        let contracts = last.map(|last| last.contracts).unwrap_or_default();
                        (
                            Some(MeshRules { contracts, ..access }),
                            "; the rest holds, and of `contracts` what it said before",
                        )
                    }
                    (None, Some(last)) => (Some(last), "; what it said before holds"),
                    (None, None) => (None, ""),
                };
                Content::Invalid { why: format!("{why}{instead}"), target: None, last }
            }
        };
        self.defaults = Some(Entry::new(object, content));
        self.all_changed();
    }

    /// Decides which of them hold: anew in the namespaces that have changed and that `may` change now. The others stay as they
    /// were until the next time.
    pub(crate) fn settle(&mut self, mut may: impl FnMut(&str) -> bool) -> Settled {
        let mut settled = Settled::default();
        let mut defaults = self.settle_defaults(&mut settled);
        let is_unknown = matches!(self.defaults, Some(Entry { content: Content::Invalid { last: None, .. }, .. }));
        let (now, later) = std::mem::take(&mut self.changed).into_iter().partition(|namespace| may(namespace));
        self.changed = later;
        settled.is_whole = self.changed.is_empty();
        let now: BTreeSet<String> = now;
        for namespace in now {
            if let Some(of) = self.methods.get_mut(&namespace) {
                of.settle(&namespace, &mut settled);
                if of.policies.is_empty() {
                    self.methods.remove(&namespace);
                }
            }
            let Some(of) = self.namespaces.get_mut(&namespace) else { continue };
            let of_mesh = match defaults.namespaces.contains_key(&namespace) {
                _ if is_unknown => OfMesh::Unknown,
                true => OfMesh::Default,
                false => OfMesh::Nothing,
            };
            of.settle(&namespace, of_mesh, &mut settled);
            if of.policies.is_empty() {
                self.namespaces.remove(&namespace);
            }
        }
        let (mut services, mut closed, mut origins) = (HashMap::new(), HashSet::new(), Origins::default());
        origins.mesh =
            self.defaults.as_ref().map(|_| Kind::MeshDefaults.origin(&(String::new(), DEFAULTS.to_owned())).into());
        for (namespace, of) in &self.namespaces {
            services.extend(of.rules.iter().cloned());
            if !of.policies.beyond.is_empty() {
                closed.insert(namespace.clone());
            }
            if of.policies.lacks_some() {
                settled.lists_again.insert(Kind::AccessPolicy);
            }
            if let Some(is_allowed) = of.default.filter(|is_allowed| !(is_unknown && *is_allowed)) {
                // What MeshDefaults says wins, also before the namespace is settled again.
                if let Place::Vacant(place) = defaults.namespaces.entry(namespace.clone()) {
                    place.insert(is_allowed);
                    let from = of.from.get(&Target::Namespace);
                    origins.namespaces.extend(from.map(|from| (namespace.clone(), Arc::clone(from))));
                }
            }
            origins.services.extend(of.from.iter().filter_map(|(target, from)| match target {
                Target::Service(service) => Some((service.clone(), Arc::clone(from))),
                Target::Namespace => None,
            }));
        }
        settled.rules = InForce::new(defaults, services).closing(closed).with_origins(origins);
        settled.methods = self.methods.values().flat_map(MethodsOf::of).collect();
        if self.methods.values().any(|of| of.policies.lacks_some()) {
            settled.lists_again.insert(Kind::MethodPolicy);
        }
        settled
    }

    fn settle_defaults(&mut self, settled: &mut Settled) -> MeshRules {
        let Some(entry) = &mut self.defaults else { return MeshRules::default() };
        let (rules, verdict) = match &entry.content {
            Content::Valid(rules) => (rules.clone(), entry.accepted("they hold".to_owned())),
            Content::Invalid { why, last: Some(last), .. } => {
                (last.clone(), entry.refused(Verdict::INVALID, why.clone()))
            }
            Content::Invalid { why, .. } => {
                let rules = MeshRules { is_allowed: Some(false), ..MeshRules::default() };
                let so_far = "until that is mended, the default is deny, and no AccessPolicy can say otherwise";
                (rules, entry.refused(Verdict::INVALID, format!("{why}; {so_far}")))
            }
            Content::LeftOut(_) => return MeshRules::default(),
        };
        entry.say(Kind::MeshDefaults, (String::new(), DEFAULTS.to_owned()), verdict, Some(Subject::Everybody), settled);
        rules
    }
}

#[cfg(test)]
mod tests;
