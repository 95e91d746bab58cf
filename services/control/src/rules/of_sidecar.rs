//! What the rules say of the calls that one sidecar takes in.
//!
//! On Kubernetes rules are for Services, and a sidecar can't know by which of its Services a pod was called. So a pod obeys the
//! rules of all Services that it backs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_contracts::weft::policy::v1 as wire;
use weft_mesh::{
    names::ServiceName,
    policy::{AccessRule, Callers, DefaultAccess, FromObjects, MeshAccess, MeshRules, PathRules, ServiceAccess},
};

/// The most rules that a pod obeys together. With more, nobody may call it.
const RULES_OF_POD: usize = 32;
/// How many sets of rules are kept put together. More are put together for each sidecar.
const TOGETHER: usize = 1_024;

/// The rules of the mesh.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    /// What holds where there is no rule; without rules for services.
    defaults: MeshRules,
    services: HashMap<ServiceName, Arc<ServiceAccess>>,
    /// The namespaces of these services.
    namespaces: HashSet<String>,
    /// The namespaces where nobody may call anything.
    closed: HashSet<String>,
    origins: Origins,
    /// It is higher than that of the rules before.
    version: u64,
    /// The rules of several Services, put together once for all pods that back them.
    together: Mutex<Together>,
}

/// The objects on Kubernetes that rules are from, as `AccessPolicy NAMESPACE/NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    /// Of the default of the mesh, and of those of namespaces unless another object says them.
    pub(crate) mesh: Option<Arc<str>>,
    pub(crate) namespaces: HashMap<String, Arc<str>>,
    pub(crate) services: HashMap<ServiceName, Arc<str>>,
}

impl Origins {
    /// Of the rules for several Services: the first of them, and how many others there are.
    fn of(&self, services: &[&ServiceName]) -> Option<Arc<str>> {
        let all: BTreeSet<&Arc<str>> = services.iter().filter_map(|service| self.services.get(*service)).collect();
        let first = *all.first()?;
        match all.len() - 1 {
            0 => Some(Arc::clone(first)),
            others => Some(format!("{first} and {others} more").into()),
        }
    }

    fn of_default(&self, namespace: &str, default: DefaultAccess) -> Option<Arc<str>> {
        match default {
            DefaultAccess::BuiltIn => None,
            DefaultAccess::Mesh { .. } => self.mesh.clone(),
            DefaultAccess::Namespace { .. } => self.namespaces.get(namespace).or(self.mesh.as_ref()).cloned(),
        }
    }
}

/// By the Services that have rules, in order.
type Together = HashMap<Vec<ServiceName>, Arc<ServiceAccess>>;

/// What the rules say of one sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Access {
    pub(crate) default: DefaultAccess,
    pub(crate) is_audit: bool,
    pub(crate) service: Option<Arc<ServiceAccess>>,
    /// They hold beside what would hold without them.
    pub(crate) contracts_hold_too: bool,
    /// The objects that the rules are from.
    rule_from: Option<Arc<str>>,
    default_from: Option<Arc<str>>,
}

impl InForce {
    /// Puts them together. `defaults` is without rules for services.
    pub(crate) fn new(defaults: MeshRules, services: HashMap<ServiceName, Arc<ServiceAccess>>) -> Self {
        let namespaces = services.keys().map(|service| service.namespace().to_owned()).collect();
        Self { defaults, services, namespaces, ..Self::default() }
    }

    /// In these namespaces, nobody may call anything.
    pub(crate) fn closing(self, closed: HashSet<String>) -> Self {
        Self { closed, ..self }
    }

    /// They are from these objects.
    pub(crate) fn with_origins(self, origins: Origins) -> Self {
        Self { origins, ..self }
    }

    /// Which services have these contracts, whoever claims them.
    pub(crate) fn contracts(&self) -> &BTreeMap<String, ServiceName> {
        &self.defaults.contracts
    }

    /// Whether they say the same.
    pub(crate) fn says(&self, other: &Self) -> bool {
        self.defaults == other.defaults
            && self.services == other.services
            && self.closed == other.closed
            && self.origins == other.origins
    }

    /// By this it is known which rules a sidecar was told.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Takes the place of other rules, with what was put together before of those that have not changed.
    pub(crate) fn follow(&mut self, before: &Self) {
        self.version = before.version + 1;
        let is_as_before = |service: &ServiceName| match (self.services.get(service), before.services.get(service)) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            _ => false,
        };
        let kept = before
            .together()
            .iter()
            .filter(|(services, _)| services.iter().all(is_as_before))
            .map(|(services, access)| (services.clone(), Arc::clone(access)))
            .collect();
        self.together = Mutex::new(kept);
    }

    fn together(&self) -> MutexGuard<'_, Together> {
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds in a namespace where there is no rule.
    #[cfg(test)]
    pub(crate) fn default_of(&self, namespace: &str) -> DefaultAccess {
        self.defaults.default_of(namespace)
    }

    /// What they say of a service.
    pub(crate) fn of_service(&self, service: &ServiceName) -> Access {
        self.with(service.namespace(), self.services.get(service).cloned(), &[service])
    }

    /// What they say of a pod that backs these Services of its namespace. If it backs none yet, while some have rules, nobody
    /// may call it: it may be one of theirs.
    pub(crate) fn of_pod(&self, namespace: &str, services: &[ServiceName]) -> Access {
        let is_unknown = services.is_empty() && self.namespaces.contains(namespace);
        if is_unknown || self.closed.contains(namespace) {
            return self.with(namespace, Some(Arc::new(nobody())), &[]);
        }
        let have_rules = |service: &ServiceName| self.services.contains_key(service);
        let mut ruled: Vec<&ServiceName> =
            services.iter().filter(|service| have_rules(service)).take(RULES_OF_POD + 1).collect();
        ruled.sort_unstable();
        ruled.dedup();
        let service = match ruled[..] {
            [] => None,
            [one] => self.services.get(one).cloned(),
            _ if ruled.len() > RULES_OF_POD => Some(Arc::new(nobody())),
            _ => self.put_together(ruled.iter().copied().cloned().collect()),
        };
        // Where a Service has no rule, its contracts decide, and the default. A rule of another Service takes nothing of that away.
        let contracts_hold_too = service.is_some() && !services.iter().all(have_rules);
        let service = match service {
            Some(access) if contracts_hold_too && !access.paths.written().is_empty() => Some(Arc::new(nobody())),
            service => service,
        };
        Access { contracts_hold_too, ..self.with(namespace, service, &ruled) }
    }

    /// The rules of Services that have some.
    fn put_together(&self, ruled: Vec<ServiceName>) -> Option<Arc<ServiceAccess>> {
        if let Some(known) = self.together().get(&ruled) {
            return Some(Arc::clone(known));
        }
        let rules = ruled.iter().filter_map(|service| self.services.get(service));
        let access = rules.cloned().reduce(|one, other| both(&one, &other))?;
        let mut together = self.together();
        if together.len() < TOGETHER {
            together.insert(ruled, Arc::clone(&access));
        }
        Some(access)
    }

    /// `from` are the Services whose rules these are.
    fn with(&self, namespace: &str, service: Option<Arc<ServiceAccess>>, from: &[&ServiceName]) -> Access {
        let default = self.defaults.default_of(namespace);
        Access {
            default,
            is_audit: self.defaults.is_audit,
            rule_from: service.as_ref().and_then(|_| self.origins.of(from)),
            default_from: self.origins.of_default(namespace, default),
            service,
            contracts_hold_too: false,
        }
    }
}

impl From<MeshRules> for InForce {
    fn from(mut rules: MeshRules) -> Self {
        let services = std::mem::take(&mut rules.services);
        Self::new(rules, services.into_iter().map(|(service, access)| (service, Arc::new(access))).collect())
    }
}

impl From<&Access> for wire::MeshAccess {
    fn from(access: &Access) -> Self {
        let service = access.service.as_deref().cloned();
        let (default, is_audit, contracts_hold_too) = (access.default, access.is_audit, access.contracts_hold_too);
        let text = |from: &Option<Arc<str>>| from.as_deref().unwrap_or_default().to_owned();
        let from = FromObjects { rule: text(&access.rule_from), default: text(&access.default_from) };
        (&MeshAccess { default, is_audit, service, contracts_hold_too, from }).into()
    }
}

/// Nobody may call.
pub(crate) fn nobody() -> ServiceAccess {
    ServiceAccess { rule: Some(rule(&[], false)), paths: PathRules::default() }
}

/// Rules that allow no more than each of two. If they are different, only names count that both have in the same form; and
/// if one of them has rules for paths, nothing is allowed.
fn both(one: &Arc<ServiceAccess>, other: &Arc<ServiceAccess>) -> Arc<ServiceAccess> {
    if one == other {
        return Arc::clone(one);
    }
    let (ServiceAccess { rule: Some(first), .. }, ServiceAccess { rule: Some(second), .. }) = (&**one, &**other) else {
        return Arc::new(nobody());
    };
    if [one, other].iter().any(|access| !access.paths.written().is_empty()) {
        return Arc::new(nobody());
    }
    // What is only tried refuses nothing.
    match (first.is_audit, second.is_audit) {
        (true, false) => return Arc::clone(other),
        (false, true) => return Arc::clone(one),
        _ => {}
    }
    let (names, others) = (first.callers.written(), second.callers.written());
    let common = match (is_any(names), is_any(others)) {
        (true, _) => others.to_vec(),
        (_, true) => names.to_vec(),
        _ => {
            let others: HashSet<&String> = others.iter().collect();
            names.iter().filter(|name| others.contains(name)).cloned().collect()
        }
    };
    Arc::new(ServiceAccess { rule: Some(rule(&common, first.is_audit)), paths: PathRules::default() })
}

fn is_any(names: &[String]) -> bool {
    matches!(names, [name] if name == "any")
}

/// A rule with names that are known to be right. Without one it allows nobody.
fn rule(names: &[String], is_audit: bool) -> AccessRule {
    let nobody = ["nobody".to_owned()];
    let callers = Callers::parse(if names.is_empty() { &nobody } else { names });
    AccessRule { callers: callers.unwrap_or_default(), is_audit }
}

#[cfg(test)]
mod tests {
    use weft_mesh::policy::AccessRules;

    use super::*;

    const RULES: &str = "access: { default: deny, namespaces: { open: allow } }
services:
  web.shop: [any]
  orders.shop: [web, users]
  orders-old.shop: [users, ops]
  admin.shop: [ops.it]
  tried.shop: { allow: [nobody], audit: true }
  paths.shop: { allow: [users], paths: [{ path: /a, allow: [any] }] }
  only-paths.shop: { paths: [{ path: /a, allow: [any] }] }
";

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    /// Who of the namespace `shop` may call a pod that backs these Services.
    fn callers(services: &[&str]) -> Vec<&'static str> {
        let rules = InForce::from(MeshRules::parse("access.yaml", RULES).unwrap());
        let services: Vec<ServiceName> = services.iter().map(|text| name(text)).collect();
        callers_by(&rules.of_pod("shop", &services))
    }

    fn callers_by(access: &Access) -> Vec<&'static str> {
        let mesh = MeshAccess::try_from(wire::MeshAccess::from(access)).unwrap();
        let judge = AccessRules::new(&name("pod.shop"), mesh);
        let may = |caller: &&str| {
            let caller = format!("spiffe://weft.local/ns/shop/sa/{caller}").parse().unwrap();
            !judge.judge_called(&[], weft_mesh::policy::Called::Other, &caller).refuses()
        };
        ["web", "users", "ops"].into_iter().filter(may).collect()
    }

    #[test]
    fn a_pod_obeys_the_rules_of_each_service_that_it_backs() {
        for (services, expected) in [
            (&["web.shop"][..], &["web", "users", "ops"][..]),
            (&["orders.shop"], &["web", "users"]),
            (&["orders.shop", "orders.shop"], &["web", "users"]),
            (&["orders.shop", "orders-old.shop"], &["users"]),
            (&["orders-old.shop", "web.shop", "orders.shop"], &["users"]),
            (&["orders.shop", "admin.shop"], &[]),
            (&["orders.shop", "admin.shop", "web.shop"], &[]),
            (&["tried.shop"], &["web", "users", "ops"]),
            (&["tried.shop", "orders.shop"], &["web", "users"]),
            (&["paths.shop"], &["users"]),
            (&["paths.shop", "orders.shop"], &[]),
            (&["only-paths.shop", "web.shop"], &[]),
            // The default is deny, and a rule of another Service does not change that.
            (&["orders.shop", "free.shop"], &[]),
            (&["web.shop", "paths.shop", "free.shop"], &[]),
            (&["free.shop"], &[]),
        ] {
            assert_eq!(callers(services), expected, "{services:?}");
        }
    }

    fn in_force(text: &str) -> InForce {
        MeshRules::parse("access.yaml", text).unwrap().into()
    }

    /// Otherwise a rule for one Service opens another one, which its contracts protect.
    #[test]
    fn the_contracts_of_a_service_without_a_rule_hold() {
        let rules = in_force(
            "services: { web.shop: [any], paths.shop: { allow: [any], paths: [{ path: /a, allow: [any] }] } }",
        );
        let of = |services: &[&str]| rules.of_pod("shop", &services.iter().map(|text| name(text)).collect::<Vec<_>>());
        assert!(wire::MeshAccess::from(&of(&["web.shop", "free.shop"])).contracts_hold_too);
        assert!(!of(&["web.shop"]).contracts_hold_too && !of(&["free.shop"]).contracts_hold_too);
        // The default allows.
        assert_eq!(callers_by(&of(&["web.shop", "free.shop"])), ["web", "users", "ops"]);
        // Rules for paths would decide before the contracts.
        assert_eq!(callers_by(&of(&["paths.shop", "free.shop"])), [""; 0]);
        assert_eq!(callers_by(&of(&["paths.shop"])), ["web", "users", "ops"]);
    }

    /// Otherwise each change of any rule has this done for each sidecar.
    #[test]
    fn rules_are_put_together_once_and_again_when_they_change() {
        let two = [name("orders.shop"), name("orders-old.shop")];
        let rules = in_force(RULES);
        let first = rules.of_pod("shop", &two).service.unwrap();
        let in_other_order = rules.of_pod("shop", &[two[1].clone(), two[0].clone(), name("free.shop")]);
        assert!(Arc::ptr_eq(&first, &in_other_order.service.unwrap()));
        let mut services = rules.services.clone();
        services.insert(name("web.shop"), Arc::new(nobody()));
        let mut newer = InForce::new(rules.defaults.clone(), services);
        newer.follow(&rules);
        assert!(Arc::ptr_eq(&first, &newer.of_pod("shop", &two).service.unwrap()), "another rule has changed");
        let mut services = rules.services.clone();
        services.insert(two[0].clone(), Arc::new(nobody()));
        let mut newest = InForce::new(rules.defaults.clone(), services);
        newest.follow(&newer);
        assert_eq!(newest.of_pod("shop", &two).service, Some(Arc::new(nobody())));
    }

    #[test]
    fn a_pod_is_told_which_objects_its_rules_are_from() {
        let text =
            "access: { default: deny, namespaces: { data: allow } }\nservices: { web.shop: [any], orders.shop: [web] }";
        let named = |object: &str| Arc::<str>::from(object);
        let origins = Origins {
            mesh: Some(named("MeshDefaults default")),
            namespaces: HashMap::from([("data".to_owned(), named("AccessPolicy data/open"))]),
            services: HashMap::from([
                (name("web.shop"), named("AccessPolicy shop/web")),
                (name("orders.shop"), named("AccessPolicy shop/orders")),
            ]),
        };
        let rules = in_force(text).with_origins(origins);
        let of = |namespace: &str, services: &[&str]| {
            let services: Vec<_> = services.iter().map(|text| name(text)).collect();
            let told = wire::MeshAccess::from(&rules.of_pod(namespace, &services));
            (told.rule_from, told.otherwise_from)
        };
        let mesh = || "MeshDefaults default".to_owned();
        assert_eq!(of("shop", &["web.shop"]), ("AccessPolicy shop/web".to_owned(), mesh()));
        assert_eq!(of("shop", &["web.shop", "orders.shop", "web.shop"]).0, "AccessPolicy shop/orders and 1 more");
        assert_eq!(of("shop", &["free.shop"]), (String::new(), mesh()));
        assert_eq!(of("data", &["x.data"]), (String::new(), "AccessPolicy data/open".to_owned()));
        // Another object that says the same is told, too.
        assert!(!rules.says(&in_force(text)));
    }

    #[test]
    fn what_is_put_together_has_a_limit() {
        let services = |numbers: std::ops::Range<usize>| numbers.map(|number| name(&format!("s{number}.shop")));
        let text: String = services(0..100).map(|service| format!("  {service}: [web]\n")).collect();
        let rules = in_force(&format!("services:\n{text}"));
        let callers_of = |numbers| {
            let services: Vec<ServiceName> = services(numbers).collect();
            rules.of_pod("shop", &services).service.unwrap().rule.clone().unwrap().callers.to_string()
        };
        assert_eq!(callers_of(0..RULES_OF_POD), "web");
        assert_eq!(callers_of(0..RULES_OF_POD + 1), "nobody");
        for first in 0..100 {
            (first + 1..100).for_each(|other| {
                rules.of_pod("shop", &[name(&format!("s{first}.shop")), name(&format!("s{other}.shop"))]);
            });
        }
        assert_eq!(rules.together().len(), TOGETHER);
        assert_eq!(callers_of(98..100), "web", "also without room");
    }

    /// Otherwise it could be called around the rules of its Service, before that is known.
    #[test]
    fn a_pod_whose_services_are_not_known_takes_no_calls_where_there_are_rules() {
        let rules = InForce::from(MeshRules::parse("access.yaml", RULES).unwrap());
        assert_eq!(rules.of_pod("shop", &[]).service, Some(Arc::new(nobody())));
        let open = rules.of_pod("open", &[]);
        assert_eq!((open.service, open.default), (None, DefaultAccess::Namespace { is_allowed: true }));
    }
}
