//! The AccessPolicies of one namespace.

use std::{collections::HashMap, sync::Arc};

use weft_mesh::{names::ServiceName, policy::ServiceAccess};

use super::{
    aged::{Aged, KEPT, MOST, MOST_BYTES},
    entry::{Content, Rule, Settled, Target},
    object::{DEFAULTS, Kind, Verdict},
};
use crate::rules::nobody;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OfNamespace {
    /// With more than [`KEPT`], all of the namespace is closed.
    pub(super) policies: Aged<Rule>,
    /// What holds, since it was settled last.
    pub(super) rules: Vec<(ServiceName, Arc<ServiceAccess>)>,
    pub(super) default: Option<bool>,
    /// The objects that all this is from.
    pub(super) from: HashMap<Target, Arc<str>>,
}

impl OfNamespace {
    /// Nobody may call anything in the namespace, whatever its policies say.
    fn close(&mut self, namespace: &str, settled: &mut Settled) {
        for ((_, name), entry) in &mut self.policies.by_age {
            let said = entry.told.as_ref().map(|told| &told.verdict);
            if said.is_none_or(|said| said.generation != entry.generation || said.reason != Verdict::TOO_MANY) {
                let why =
                    format!("the namespace has more than {KEPT} policies: until that is mended, nobody may call in it");
                let key = (namespace.to_owned(), name.clone());
                entry.say(Kind::AccessPolicy, key, entry.refused(Verdict::TOO_MANY, why), None, settled);
            }
        }
        (self.rules, self.default) = (Vec::new(), Some(false));
        self.from.clear();
    }

    pub(super) fn settle(&mut self, namespace: &str, of_mesh: OfMesh, settled: &mut Settled) {
        if !self.policies.beyond.is_empty() {
            return self.close(namespace, settled);
        }
        let mut claims = Claims { namespace, of_mesh, ..Claims::default() };
        let most = self.policies.leave_out();
        for (place, ((_, name), entry)) in self.policies.by_age.iter_mut().enumerate() {
            let key = || (namespace.to_owned(), name.clone());
            let verdict = match &entry.content {
                Content::Valid(rule) => match claims.add(name, rule.clone()) {
                    Ok(()) => entry.accepted(format!("it holds for {}", rule.target())),
                    Err(why) => entry.refused(Verdict::CONFLICTED, why),
                },
                Content::Invalid { why, target, last } => {
                    let mut stays = String::new();
                    if let Some(last) = last
                        && claims.add(name, last.clone()).is_ok()
                    {
                        stays = format!("; what it said before of {} holds", last.target());
                    }
                    let before = last.as_ref().map(Rule::target);
                    if let Some(target) = target
                        && before.as_ref() != Some(target)
                        && claims.close(name, target).is_ok()
                    {
                        stays.push_str(&format!("; until that is mended, {}", target.closed()));
                    }
                    entry.refused(Verdict::INVALID, format!("{why}{stays}"))
                }
                Content::LeftOut(_) if place < most => {
                    settled.to_read.push((Kind::AccessPolicy, key()));
                    continue;
                }
                Content::LeftOut(target) => {
                    let closed = target.as_ref().filter(|target| claims.close(name, target).is_ok());
                    let closed = closed.map(|target| format!(": {}", target.closed())).unwrap_or_default();
                    let why = format!(
                        "the namespace has older policies, and may have {MOST} with {MOST_BYTES} bytes in all{closed}"
                    );
                    entry.refused(Verdict::TOO_MANY, why)
                }
            };
            let subject = match &entry.content {
                Content::Valid(rule) => Some(rule.target().subject(namespace)),
                Content::Invalid { .. } | Content::LeftOut(_) => None,
            };
            entry.say(Kind::AccessPolicy, key(), verdict, subject, settled);
        }
        let origin = |name: &str| Kind::AccessPolicy.origin(&(namespace.to_owned(), name.to_owned())).into();
        self.from = claims.taken.into_iter().map(|(target, name)| (target, origin(name))).collect();
        (self.rules, self.default) = (claims.rules, claims.default);
    }
}

/// What the MeshDefaults say of a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum OfMesh {
    #[default]
    Nothing,
    /// They have a default for it.
    Default,
    /// They are wrong, and what they said before is not known.
    Unknown,
}

/// What the policies of a namespace have claimed, from the oldest on.
#[derive(Default)]
struct Claims<'a> {
    namespace: &'a str,
    of_mesh: OfMesh,
    taken: HashMap<Target, &'a str>,
    rules: Vec<(ServiceName, Arc<ServiceAccess>)>,
    default: Option<bool>,
}

impl<'a> Claims<'a> {
    /// # Errors
    /// Who has it already.
    fn add(&mut self, name: &'a str, rule: Rule) -> Result<(), String> {
        let target = rule.target();
        if target == Target::Namespace && self.of_mesh == OfMesh::Default {
            return Err(format!(
                "{} {DEFAULTS} says what holds in the namespace: spec.access.namespaces.{}",
                Kind::MeshDefaults.as_str(),
                self.namespace
            ));
        }
        if matches!(rule, Rule::Namespace(true)) && self.of_mesh == OfMesh::Unknown {
            return Err(format!(
                "{} {DEFAULTS} is wrong, and may say that it is deny: until that is mended, the default of {target} is deny",
                Kind::MeshDefaults.as_str()
            ));
        }
        if let Some(older) = self.taken.get(&target) {
            let older = Kind::AccessPolicy.origin(&(self.namespace.to_owned(), (*older).to_owned()));
            return Err(format!("{older} is for {target} too, and is older"));
        }
        self.taken.insert(target, name);
        match rule {
            Rule::Service(service, access) => self.rules.push((service, access)),
            Rule::Namespace(is_allowed) => self.default = Some(is_allowed),
        }
        Ok(())
    }

    fn close(&mut self, name: &'a str, target: &Target) -> Result<(), String> {
        let rule = match target {
            Target::Service(service) => Rule::Service(service.clone(), Arc::new(nobody())),
            Target::Namespace => Rule::Namespace(false),
        };
        self.add(name, rule)
    }
}
