//! Which policies hold, and what is said of each.

use serde_json::{Value, json};
use weft_mesh::{names::ServiceName, policy::DefaultAccess};

use super::{
    aged::{KEPT, MOST},
    *,
};
use crate::rules::ByService;

/// An object of the first generation.
fn object(created: i64, spec: Value) -> Object {
    Object { uid: format!("uid-{created}"), created, generation: 1, spec, told: None, said: None }
}

fn key(name: &str) -> Key {
    ("shop".to_owned(), name.to_owned())
}

fn allow(service: &str, names: &[&str]) -> Value {
    json!({"service": service, "allow": names})
}

/// The policies of the namespace `shop`, and what was said of them.
#[derive(Default)]
struct Shop {
    policies: Policies,
    rules: InForce,
    said: BTreeMap<String, (bool, String, String)>,
    to_read: Vec<(Kind, Key)>,
    methods: ByService,
}

impl Shop {
    fn set(&mut self, name: &str, object: Object) {
        self.policies.set(Kind::AccessPolicy, key(name), object);
        self.settle();
    }

    fn set_methods(&mut self, name: &str, object: Object) {
        self.policies.set(Kind::MethodPolicy, key(name), object);
        self.settle();
    }

    /// The MethodPolicy that holds for a Service.
    fn methods(&self, service: &str) -> Option<&str> {
        self.methods.get(&ServiceName::new(service, "shop").unwrap()).map(|of| of.name.as_str())
    }

    fn set_defaults(&mut self, object: Object) {
        self.policies.set(Kind::MeshDefaults, (String::new(), DEFAULTS.into()), object);
        self.settle();
    }

    fn remove(&mut self, name: &str) {
        self.policies.remove(Kind::AccessPolicy, &key(name));
        self.said.remove(name);
        self.settle();
    }

    /// As it is done with statuses: each is written.
    fn settle(&mut self) {
        let Settled { rules, methods, is_whole, verdicts, to_read, lists_again: _ } = self.policies.settle(|_| true);
        assert!(is_whole);
        (self.rules, self.methods, self.to_read) = (rules, methods, to_read);
        for (kind, key, verdict) in verdicts {
            let said = (verdict.is_accepted, verdict.reason.clone(), verdict.message.clone());
            self.said.insert(key.1.clone(), said);
            self.policies.told(kind, &key, Told { verdict, since: "then".into() });
        }
        self.policies.all_changed();
        assert!(self.policies.settle(|_| true).verdicts.is_empty(), "nothing is said twice");
    }

    /// Whom the rule for a Service allows; `None` if there is no rule.
    fn allowed(&self, service: &str) -> Option<String> {
        let access = self.rules.of_service(&ServiceName::new(service, "shop").unwrap());
        access.service.map(|access| access.rule.as_ref().unwrap().callers.to_string())
    }

    fn default_now(&self) -> DefaultAccess {
        self.rules.default_of("shop")
    }

    fn said(&self, name: &str) -> (bool, &str, &str) {
        let (is_accepted, reason, message) = &self.said[name];
        (*is_accepted, reason, message)
    }
}

#[test]
fn a_policy_holds_until_it_is_deleted() {
    let mut shop = Shop::default();
    shop.set("orders", object(1, allow("orders", &["web", "*.ops"])));
    assert_eq!(shop.allowed("orders").unwrap(), "web, *.ops");
    assert_eq!(shop.said("orders"), (true, "Accepted", "it holds for the Service orders"));
    shop.set("all", object(2, json!({"default": "deny"})));
    assert_eq!(shop.default_now(), DefaultAccess::Namespace { is_allowed: false });
    let told = |shop: &Shop| {
        let access = shop.rules.of_service(&ServiceName::new("orders", "shop").unwrap());
        let told = weft_contracts::weft::policy::v1::MeshAccess::from(&access);
        (told.rule_from, told.otherwise_from)
    };
    assert_eq!(told(&shop), ("AccessPolicy shop/orders".to_owned(), "AccessPolicy shop/all".to_owned()));
    assert_eq!(shop.said("all"), (true, "Accepted", "it holds for the namespace"));
    let newer = Object { generation: 2, ..object(1, allow("orders", &["ops"])) };
    shop.set("orders", newer);
    assert_eq!(shop.allowed("orders").unwrap(), "ops");
    shop.remove("orders");
    shop.remove("all");
    assert_eq!((shop.allowed("orders"), shop.default_now()), (None, DefaultAccess::BuiltIn));
    assert!(shop.policies.namespaces.is_empty());
}

#[test]
fn of_two_for_the_same_the_older_one_holds() {
    let mut shop = Shop::default();
    shop.set("late", object(9, allow("orders", &["ops"])));
    assert!(shop.said("late").0);
    shop.set("early", object(5, allow("orders", &["web"])));
    assert_eq!(shop.allowed("orders").unwrap(), "web");
    let told = "AccessPolicy shop/early is for the Service orders too, and is older";
    assert_eq!(shop.said("late"), (false, "Conflicted", told));
    // Of the same second, the first by name.
    shop.set("a", object(5, allow("orders", &["users"])));
    assert_eq!(shop.allowed("orders").unwrap(), "users");
    shop.remove("a");
    shop.remove("early");
    assert_eq!(shop.allowed("orders").unwrap(), "ops");
    assert!(shop.said("late").0);
}

#[test]
fn what_is_wrong_opens_nothing() {
    let mut shop = Shop::default();
    // New: it may have been meant to be strict.
    shop.set("new", object(1, allow("orders", &["Web"])));
    assert_eq!(shop.allowed("orders").unwrap(), "nobody");
    let (is_accepted, reason, message) = shop.said("new");
    assert_eq!((is_accepted, reason), (false, "Invalid"));
    assert!(message.starts_with("spec.allow: found \"Web\"; allowed: the NAME"), "{message}");
    assert!(message.ends_with("; until that is mended, nobody may call the Service orders"), "{message}");
    // Right before: that stays.
    shop.set("users", object(2, allow("users", &["web"])));
    shop.set("users", Object { generation: 2, ..object(2, allow("users", &[])) });
    shop.set("users", Object { generation: 3, ..object(2, json!({"service": "users", "allow": 7})) });
    assert_eq!(shop.allowed("users").unwrap(), "web");
    assert!(shop.said("users").2.ends_with("; what it said before of the Service users holds"));
    // Both the old and the new Service.
    shop.set("users", Object { generation: 4, ..object(2, allow("auth", &[])) });
    assert_eq!((shop.allowed("users").unwrap(), shop.allowed("auth").unwrap()), ("web".into(), "nobody".into()));
    // Another object of the same name was never right.
    shop.set("users", Object { uid: "other".into(), ..object(3, allow("users", &[])) });
    assert_eq!(shop.allowed("users").unwrap(), "nobody");
    assert_eq!(shop.allowed("auth"), None);
    // A younger one does not take its place, and one for the namespace denies.
    shop.set("younger", object(4, allow("users", &["any"])));
    assert_eq!(shop.allowed("users").unwrap(), "nobody");
    shop.set("all", object(5, json!({"default": "alow"})));
    assert_eq!(shop.default_now(), DefaultAccess::Namespace { is_allowed: false });
    // What can be no Service needs no rule.
    shop.set("none", object(6, allow("Orders", &["web"])));
    assert_eq!(shop.said("none").1, "Invalid");
}

#[test]
fn the_defaults_of_the_mesh_win_over_those_of_a_namespace() {
    let mut shop = Shop::default();
    shop.set("all", object(1, json!({"default": "allow"})));
    shop.set_defaults(object(2, json!({"access": {"default": "deny"}})));
    assert_eq!(shop.default_now(), DefaultAccess::Namespace { is_allowed: true });
    assert_eq!(shop.rules.default_of("data"), DefaultAccess::Mesh { is_allowed: false });
    assert_eq!(shop.said("default"), (true, "Accepted", "they hold"));
    let with_namespace = json!({"access": {"default": "deny", "namespaces": {"shop": "deny"}}});
    shop.set_defaults(Object { generation: 2, ..object(2, with_namespace) });
    assert_eq!(shop.default_now(), DefaultAccess::Namespace { is_allowed: false });
    let told = "MeshDefaults default says what holds in the namespace: spec.access.namespaces.shop";
    assert_eq!(shop.said("all"), (false, "Conflicted", told));
    // Wrong: the last ones stay. New and wrong: deny.
    shop.set_defaults(Object { generation: 3, ..object(2, json!({"access": {"default": "denied"}})) });
    assert_eq!(shop.default_now(), DefaultAccess::Namespace { is_allowed: false });
    assert!(shop.said("default").2.ends_with("; what it said before holds"));
    shop.set_defaults(object(3, json!({"access": {"default": "denied"}})));
    assert_eq!(shop.rules.default_of("data"), DefaultAccess::Mesh { is_allowed: false });
    // They may have meant this namespace.
    assert_eq!(shop.default_now(), DefaultAccess::Mesh { is_allowed: false });
    let (is_accepted, reason, message) = shop.said("all");
    assert_eq!((is_accepted, reason), (false, "Conflicted"));
    assert!(message.starts_with("MeshDefaults default is wrong, and may say that it is deny"), "{message}");
    shop.set("all", Object { generation: 2, ..object(1, json!({"default": "deny"})) });
    assert_eq!(shop.default_now(), DefaultAccess::Namespace { is_allowed: false });
    assert!(shop.said("all").0);
    shop.set("all", Object { generation: 3, ..object(1, json!({"default": "allow"})) });
    assert!(!shop.said("all").0);
    shop.set_defaults(object(4, json!({"access": {"audit": true}})));
    assert!(shop.said("all").0, "nothing is against it any more");
    shop.policies.retain(Kind::MeshDefaults, &BTreeSet::new());
    shop.settle();
    assert_eq!(shop.rules.default_of("data"), DefaultAccess::BuiltIn);
    let other = (String::new(), "other".to_owned());
    shop.policies.set(Kind::MeshDefaults, other, object(4, json!({"access": {"default": "deny"}})));
    shop.settle();
    assert_eq!(shop.rules.default_of("data"), DefaultAccess::BuiltIn, "only one name counts");
}

/// Otherwise a mistake in the name of a contract ends all calls of the mesh.
#[test]
fn a_mistake_in_contracts_leaves_the_rules_of_the_mesh() {
    let mut shop = Shop::default();
    let with =
        |default: &str, contract: &str| json!({"access": {"default": default}, "contracts": {contract: "a.shop"}});
    shop.set_defaults(object(1, with("allow", "a b")));
    assert_eq!(shop.rules.default_of("data"), DefaultAccess::Mesh { is_allowed: true });
    assert!(shop.rules.contracts().is_empty());
    let (is_accepted, reason, message) = shop.said("default");
    assert_eq!((is_accepted, reason), (false, "Invalid"));
    assert!(message.ends_with("; the rest holds, and of `contracts` what it said before"), "{message}");
    shop.set_defaults(Object { generation: 2, ..object(1, with("allow", "a.B")) });
    assert_eq!(shop.said("default"), (true, "Accepted", "they hold"));
    shop.set_defaults(Object { generation: 3, ..object(1, with("deny", "grpc.A")) });
    assert_eq!(shop.rules.default_of("data"), DefaultAccess::Mesh { is_allowed: false });
    assert_eq!(shop.rules.contracts().keys().collect::<Vec<_>>(), ["a.B"]);
    // Of another object with that name, nothing was said before.
    shop.set_defaults(object(2, with("deny", "a b")));
    assert!(shop.rules.contracts().is_empty());
}

#[test]
fn a_new_list_takes_away_what_is_not_on_it() {
    let mut shop = Shop::default();
    for name in ["a", "b", "c"] {
        shop.set(name, object(1, allow(name, &["web"])));
    }
    shop.policies.retain(Kind::AccessPolicy, &[key("b")].into());
    shop.settle();
    assert_eq!(["a", "b", "c"].map(|name| shop.allowed(name).is_some()), [false, true, false]);
}

/// A change of its status, by whomever, is not one of its rules; and what somebody else writes there is written over.
#[test]
fn a_status_that_says_something_else_is_written_again() {
    let mut shop = Shop::default();
    let spec = allow("orders", &["web"]);
    shop.set("orders", object(1, spec.clone()));
    let right = shop.policies.since(Kind::AccessPolicy, &key("orders"));
    assert_eq!(right, Some((true, "then".into())));
    let verdict = Verdict { generation: 1, is_accepted: false, reason: "Lie".into(), message: String::new() };
    let told = Some(Told { verdict, since: "now".into() });
    shop.policies.set(Kind::AccessPolicy, key("orders"), Object { told, ..object(1, spec) });
    let settled = shop.policies.settle(|_| true);
    assert_eq!(settled.verdicts.len(), 1);
    assert!(settled.verdicts[0].2.is_accepted);
}

/// A namespace that changes too often is not settled for now.
#[test]
fn what_waits_stays_as_it_was_and_does_not_win_over_the_defaults_of_the_mesh() {
    let mut shop = Shop::default();
    shop.set("orders", object(1, allow("orders", &["web"])));
    shop.set("all", object(2, json!({"default": "allow"})));
    let is_settled = |policies: &mut Policies, may: bool| {
        let settled = policies.settle(|_| may);
        let orders = settled.rules.of_service(&ServiceName::new("orders", "shop").unwrap());
        let callers = orders.service.unwrap().rule.clone().unwrap().callers.to_string();
        (callers, settled.rules.default_of("shop"), settled.is_whole)
    };
    let newer = Object { generation: 2, ..object(1, allow("orders", &["ops"])) };
    shop.policies.set(Kind::AccessPolicy, key("orders"), newer);
    let pinned = json!({"access": {"namespaces": {"shop": "deny"}}});
    shop.policies.set(Kind::MeshDefaults, (String::new(), DEFAULTS.into()), object(3, pinned));
    let deny = DefaultAccess::Namespace { is_allowed: false };
    assert_eq!(is_settled(&mut shop.policies, false), ("web".into(), deny, false));
    assert_eq!(is_settled(&mut shop.policies, true), ("ops".into(), deny, true));
}

/// Otherwise one namespace fills the tables of the mesh.
#[test]
fn a_namespace_has_only_so_many() {
    let mut shop = Shop::default();
    let service = |number: usize| format!("s{number:04}");
    let spec = |number: usize| allow(&service(number), &["web"]);
    // The youngest are first on the list, so each takes the room of another.
    for number in (0..MOST + 50).rev() {
        shop.policies.set(Kind::AccessPolicy, key(&service(number)), object(number as i64, spec(number)));
        let kept =
            shop.policies.namespaces["shop"].policies.by_age.values().filter(|entry| !entry.is_left_out()).count();
        assert!(kept <= MOST, "{kept}");
    }
    shop.settle();
    assert_eq!(shop.allowed(&service(MOST - 1)).unwrap(), "web");
    assert_eq!(shop.allowed(&service(MOST)).unwrap(), "nobody");
    let (is_accepted, reason, message) = shop.said(&service(MOST));
    assert_eq!((is_accepted, reason), (false, "TooMany"));
    assert!(
        message.ends_with("may have 200 with 1048576 bytes in all: nobody may call the Service s0200"),
        "{message}"
    );
    // Room for one.
    shop.remove(&service(7));
    assert_eq!(shop.to_read, [(Kind::AccessPolicy, key(&service(MOST)))]);
    // What is older than the watch says is not taken, nor what is gone.
    let newer = Object { generation: 2, ..object(MOST as i64, allow("other", &["any"])) };
    shop.policies.read_again(Kind::AccessPolicy, key(&service(MOST)), newer);
    shop.policies.read_again(Kind::AccessPolicy, key("gone"), object(0, allow("other", &["any"])));
    shop.settle();
    assert_eq!(shop.allowed("other"), None);
    shop.policies.read_again(Kind::AccessPolicy, key(&service(MOST)), object(MOST as i64, spec(MOST)));
    shop.settle();
    assert_eq!((shop.allowed(&service(MOST)).unwrap(), shop.to_read.len()), ("web".into(), 0));
    assert!(shop.said(&service(MOST)).0);
}

/// Otherwise one namespace fills the memory with the names of its policies.
#[test]
fn a_namespace_with_far_too_many_is_closed_and_they_are_only_counted() {
    let mut shop = Shop::default();
    let policy = |number: usize| key(&format!("s{number:05}"));
    let spec = |number: usize| allow(&policy(number).1, &["any"]);
    for number in 0..KEPT * 3 {
        // The last ones are older: they would hold.
        shop.policies.set(Kind::AccessPolicy, policy(number), object(-(number as i64), spec(number)));
    }
    shop.settle();
    let of = &shop.policies.namespaces["shop"].policies;
    assert_eq!((of.by_age.len(), of.created.len(), of.beyond.len()), (KEPT, KEPT, 2 * KEPT));
    let callers = |shop: &Shop, service: &str| {
        let access = shop.rules.of_pod("shop", &[ServiceName::new(service, "shop").unwrap()]);
        access.service.map(|access| access.rule.as_ref().unwrap().callers.to_string())
    };
    assert_eq!(callers(&shop, "s00999").unwrap(), "nobody");
    assert_eq!(callers(&shop, "other").unwrap(), "nobody", "one that is not known may be for it");
    assert!(shop.said("s00000").2.starts_with("the namespace has more than 1000 policies"));
    // Most are deleted: there is room, but what the others say is not known.
    for number in 100..KEPT * 3 - 100 {
        shop.policies.remove(Kind::AccessPolicy, &policy(number));
    }
    let settled = shop.policies.settle(|_| true);
    assert_eq!(settled.lists_again, BTreeSet::from([Kind::AccessPolicy]));
    shop.settle();
    assert_eq!(callers(&shop, "s00000").unwrap(), "nobody");
    // They are listed again.
    let left: Vec<usize> = (0..100).chain(KEPT * 3 - 100..KEPT * 3 - 1).collect();
    for number in &left {
        shop.policies.set(Kind::AccessPolicy, policy(*number), object(-(*number as i64), spec(*number)));
    }
    shop.policies.retain(Kind::AccessPolicy, &left.iter().map(|number| policy(*number)).collect());
    shop.settle();
    assert_eq!((callers(&shop, "s00000").unwrap(), callers(&shop, "other")), ("any".into(), None));
    assert_eq!(shop.policies.namespaces["shop"].policies.by_age.len(), 199);
}

#[test]
fn large_policies_take_the_room_of_several() {
    let mut shop = Shop::default();
    let names: Vec<String> =
        (0..10_000).map(|number| format!("caller-{number:05}.some-namespace-with-a-name")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for number in 0..4 {
        shop.set(&format!("p{number}"), object(number, allow(&format!("s{number}"), &names)));
    }
    let accepted: Vec<bool> = (0..4).map(|number| shop.said(&format!("p{number}")).0).collect();
    assert_eq!(accepted, [true, true, false, false]);
    // The first one grows, so there is no room for the second.
    let paths: Vec<Value> =
        (0..500).map(|number| json!({"path": format!("/{number}"), "allow": names[..40]})).collect();
    let spec = json!({"service": "s0", "paths": paths});
    shop.set("p0", Object { generation: 2, ..object(0, spec) });
    assert_eq!((shop.said("p0").0, shop.said("p1").1), (true, "TooMany"));
    assert_eq!(shop.allowed("s1").unwrap(), "nobody");
}

#[test]
fn a_method_policy_holds_for_its_service() {
    let mut shop = Shop::default();
    let slow = |timeout: &str| json!({"service": "orders", "timeout": timeout});
    shop.set_methods("late", object(9, slow("9s")));
    assert_eq!(shop.said("late"), (true, "Accepted", "it holds for the Service orders"));
    shop.set_methods("early", object(5, slow("5s")));
    assert_eq!(shop.methods("orders"), Some("shop/early"));
    let told = "MethodPolicy shop/early is for the Service orders too, and is older";
    assert_eq!(shop.said("late"), (false, "Conflicted", told));
    // One that is wrong changes nothing.
    shop.set_methods("early", Object { generation: 2, ..object(5, slow("5")) });
    assert_eq!(shop.methods("orders"), Some("shop/early"));
    let (is_accepted, reason, message) = shop.said("early");
    assert!(!is_accepted && reason == "Invalid", "{message}");
    assert!(message.starts_with("spec.timeout: found the text \"5\"; allowed: a positive time"), "{message}");
    assert!(message.ends_with("; what it said before holds"), "{message}");
    // A policy of the same name for who may call is another object.
    shop.set("early", object(3, allow("orders", &["web"])));
    assert_eq!((shop.allowed("orders").as_deref(), shop.methods("orders")), (Some("web"), Some("shop/early")));
    shop.policies.remove(Kind::MethodPolicy, &key("early"));
    shop.settle();
    assert_eq!((shop.allowed("orders").as_deref(), shop.methods("orders")), (Some("web"), Some("shop/late")));
    shop.policies.retain(Kind::MethodPolicy, &BTreeSet::new());
    shop.settle();
    assert_eq!((shop.methods("orders"), shop.policies.methods.len()), (None, 0));
    shop.set_methods("round", object(8, json!({"service": "orders", "fallback": {"service": "orders.shop"}})));
    let told = "spec.fallback.service: found the Service itself; allowed: another service; it has no effect";
    assert_eq!(shop.said("round"), (false, "Invalid", told));
    shop.set_methods("new", object(10, json!({"service": "orders"})));
    assert!(shop.said("new").2.ends_with("; it has no effect"), "{}", shop.said("new").2);
    assert_eq!((shop.methods("orders"), shop.allowed("orders").as_deref()), (None, Some("web")));
}

#[test]
fn method_policies_beyond_the_limit_have_no_effect_until_there_is_room() {
    let mut shop = Shop::default();
    let service = |number: usize| format!("s{number:05}");
    let spec = |number: usize| json!({"service": service(number), "timeout": "1s"});
    for number in 0..KEPT + 10 {
        shop.policies.set(Kind::MethodPolicy, key(&service(number)), object(number as i64, spec(number)));
    }
    shop.settle();
    assert_eq!(shop.methods.len(), MOST);
    let of = &shop.policies.methods["shop"].policies;
    assert_eq!((of.created.len(), of.beyond.len()), (KEPT, 10));
    assert_eq!((shop.said(&service(MOST)).0, shop.said(&service(MOST)).1), (false, "TooMany"));
    assert!(shop.rules.of_service(&ServiceName::new("other", "shop").unwrap()).service.is_none(), "nothing is closed");
    shop.policies.remove(Kind::MethodPolicy, &key(&service(0)));
    shop.settle();
    assert_eq!(shop.to_read, [(Kind::MethodPolicy, key(&service(MOST)))]);
    shop.policies.read_again(Kind::MethodPolicy, key(&service(MOST)), object(MOST as i64, spec(MOST)));
    shop.settle();
    assert_eq!(shop.methods(&service(MOST)), Some("shop/s00200"));
}
