//! The policies of one namespace.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, LazyLock},
};

use weft_mesh::{names::ServiceName, policy::ServiceAccess};

use super::{
    entry::{Content, Entry, Rule, Settled, Target},
    object::{DEFAULTS, Kind, Verdict},
};
use crate::rules::nobody;

/// How many policies of a namespace hold.
pub(super) const MOST: usize = 200;
/// How many bytes of JSON their specs may have together.
pub(super) const MOST_BYTES: usize = 1024 * 1024;

/// How many are kept, so that each is told whether it holds. With more, all of the namespace is closed.
pub(super) const KEPT: usize = 1_000;

/// Nobody outside can make two names alike.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The policies of a namespace.
#[derive(Debug, Default)]
pub(super) struct OfNamespace {
    /// The oldest first; of the same second, by name.
    pub(super) by_age: BTreeMap<Age, Entry<Rule>>,
    pub(super) created: HashMap<String, i64>,
    /// Those that are not kept at all, as there are more than [`KEPT`]: hashes of their names.
    pub(super) beyond: HashSet<u64>,
    /// What holds, since it was settled last.
    pub(super) rules: Vec<(ServiceName, Arc<ServiceAccess>)>,
    pub(super) default: Option<bool>,
}

pub(super) type Age = (i64, String);

impl OfNamespace {
    pub(super) fn remove(&mut self, name: &str) -> Option<Entry<Rule>> {
        let Some(created) = self.created.remove(name) else {
            self.beyond.remove(&HASHER.hash_one(name));
            return None;
        };
        self.by_age.remove(&(created, name.to_owned()))
    }

    /// Whether there is room to keep one of this name. If not, it counts only.
    pub(super) fn has_room(&mut self, name: &str) -> bool {
        let has_room = self.created.len() < KEPT || self.created.contains_key(name);
        let hash = HASHER.hash_one(name);
        if has_room {
            self.beyond.remove(&hash);
        } else {
            self.beyond.insert(hash);
        }
        has_room
    }

    /// Forgets those that only count, unless they have these names.
    pub(super) fn retain_beyond<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        if !self.beyond.is_empty() {
            let there: HashSet<u64> = names.map(|name| HASHER.hash_one(name)).collect();
            self.beyond.retain(|hash| there.contains(hash));
        }
    }

    /// Whether those that only count could be kept now.
    pub(super) fn lacks_some(&self) -> bool {
        !self.beyond.is_empty() && self.created.len() + self.beyond.len() <= KEPT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_age.is_empty() && self.beyond.is_empty()
    }

    /// Nobody may call anything in the namespace, whatever its policies say.
    fn close(&mut self, namespace: &str, settled: &mut Settled) {
        for ((_, name), entry) in &self.by_age {
            let said = entry.told.as_ref().map(|told| &told.verdict);
            if said.is_none_or(|said| said.generation != entry.generation || said.reason != Verdict::TOO_MANY) {
                let why =
                    format!("the namespace has more than {KEPT} policies: until that is mended, nobody may call in it");
                let key = (namespace.to_owned(), name.clone());
                entry.say(Kind::AccessPolicy, key, entry.refused(Verdict::TOO_MANY, why), settled);
            }
        }
        (self.rules, self.default) = (Vec::new(), Some(false));
    }

    /// How many of them there is room for.
    fn most(&self) -> usize {
        let mut bytes = 0;
        let has_room = |entry: &&Entry<Rule>| {
            bytes += entry.bytes;
            bytes <= MOST_BYTES
        };
        self.by_age.values().take(MOST).take_while(has_room).count()
    }

    /// Forgets what the others say. One of them may be new, and those that had room before are next to the last that has.
    pub(super) fn trim(&mut self, new: &Age) {
        let most = self.most();
        let beyond = self.by_age.values_mut().skip(most);
        beyond.take_while(|entry| !entry.is_left_out()).for_each(Entry::leave_out);
        let has_room = self.by_age.keys().take(most).any(|age| age == new);
        if let (false, Some(entry)) = (has_room, self.by_age.get_mut(new)) {
            entry.leave_out();
        }
    }

    pub(super) fn settle(&mut self, namespace: &str, of_mesh: OfMesh, settled: &mut Settled) {
        if !self.beyond.is_empty() {
            return self.close(namespace, settled);
        }
        let mut claims = Claims { namespace, of_mesh, ..Claims::default() };
        let most = self.most();
        self.by_age.values_mut().skip(most).filter(|entry| !entry.is_left_out()).for_each(Entry::leave_out);
        for (place, ((_, name), entry)) in self.by_age.iter().enumerate() {
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
                    settled.to_read.push(key());
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
            entry.say(Kind::AccessPolicy, key(), verdict, settled);
        }
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
