//! The specs of custom resources on Kubernetes. They read like a `mesh.yaml`, and the same functions read them.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    MeshRules, ServiceAccess,
    file::{DEFAULTS, read_default, read_mesh_access, read_rule_and_paths},
};
use crate::{
    config::{self, Node, Problems, Reader, Table},
    names::{LABEL, ServiceName, is_contract_name, is_grpcs_own, is_label, shown},
};

const SPEC: &str = "spec";
const RULE_KEYS: &[&str] = &["allow", "audit", "paths"];
const POLICY_KEYS: &[&str] = &["service", "default", "allow", "audit", "paths"];
const DEFAULTS_KEYS: &[&str] = &["access", "contracts"];
const CONTRACT: &str = "the full name of a protobuf service, as shop.users.v1.Users";
const OWNER: &str = "NAME.NAMESPACE of a Service";
/// The most contracts that MeshDefaults names.
const CONTRACTS: usize = 1_000;
const POLICY: &str = "`service` with `allow`, `paths`, or both, or else `default`";

/// The spec of an AccessPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessPolicy {
    /// Who may call one Service of its namespace: as `services.NAME.access` of a `mesh.yaml`.
    Service {
        /// The Service's name.
        name: String,
        /// The rules.
        access: Arc<ServiceAccess>,
    },
    /// Whether every member may call what has no rule in its namespace: as `access.namespaces` of a `mesh.yaml`.
    Namespace {
        /// Every member, or nobody.
        is_allowed: bool,
    },
}

impl AccessPolicy {
    /// Reads it. `origin` names the object in problems.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(origin: &str, spec: &Node) -> Result<Self, Problems> {
        config::take(origin, spec, |reader, node| {
            let table = reader.table(SPEC, node, POLICY_KEYS)?;
            reader.must_have_values(&table, POLICY_KEYS);
            let has = |key: &str| table.get(key).is_some();
            if !has("service") {
                let mut without = |key: &str| {
                    let text = "found without `service`; allowed: beside it";
                    reader.problem(node.line, &table.path(key), text);
                };
                RULE_KEYS.iter().filter(|key| has(key)).for_each(|key| without(key));
                if !has("default") {
                    reader.problem(node.line, SPEC, format!("without a rule; allowed: {POLICY}"));
                }
                return Some(Self::Namespace { is_allowed: read_default(reader, &table, "default")? });
            }
            let name = reader.parsed(&table, "service", LABEL, |text| match is_label(text) {
                true => Ok(text.to_owned()),
                false => Err(format!("found the text {:?}; allowed: {LABEL}", shown(text))),
            });
            if has("default") {
                let text =
                    format!("found beside `service`; allowed: {DEFAULTS}, for all of the namespace and without it");
                reader.problem(node.line, &table.path("default"), text);
            }
            if !has("allow") && !has("paths") {
                reader.problem(node.line, SPEC, format!("without a rule; allowed: {POLICY}"));
            }
            Some(Self::Service { access: Arc::new(read_rule_and_paths(reader, &table)), name: name? })
        })
    }
}

/// Why a MeshDefaults does not hold, or not all of it.
#[derive(Debug)]
pub struct InvalidDefaults {
    /// All that is wrong with it.
    pub problems: Problems,
    /// Its rules without `contracts`, if nothing else is wrong.
    pub access: Option<MeshRules>,
}

impl MeshRules {
    /// Reads the spec of a MeshDefaults. `origin` names the object in problems.
    ///
    /// # Errors
    /// All that is wrong with it, and what is right all the same.
    pub fn read_defaults(origin: &str, spec: &Node) -> Result<Self, InvalidDefaults> {
        let mut right = None;
        let read = |reader: &mut Reader<'_>, node: &Node| {
            let table = reader.table(SPEC, node, DEFAULTS_KEYS)?;
            if DEFAULTS_KEYS.iter().all(|key| table.get(key).is_none()) {
                reader.problem(node.line, SPEC, "without content; allowed: `access`, `contracts`, or both");
            }
            let access = read_mesh_access(reader, &table);
            right = reader.problems.is_empty().then(|| access.clone());
            let contracts = read_owners(reader, &table);
            Some(Self { contracts, ..access })
        };
        config::take(origin, spec, read).map_err(|problems| InvalidDefaults { problems, access: right })
    }
}

/// Which services have which contracts.
fn read_owners(reader: &mut Reader<'_>, table: &Table<'_>) -> BTreeMap<String, ServiceName> {
    let mut owners = BTreeMap::new();
    reader.must_have_values(table, &["contracts"]);
    let Some(node) = table.get("contracts") else { return owners };
    let field = table.path("contracts");
    let Some(contracts) = reader.open_table(&field, node, "a table of Services by contract") else { return owners };
    let count = contracts.entries().len();
    if !(1..=CONTRACTS).contains(&count) {
        let text = format!("found {count} contracts; allowed: 1 to {CONTRACTS}, or no such key");
        reader.problem(node.line, &field, text);
        return owners;
    }
    for entry in contracts.entries() {
        reader.must_have_values(&contracts, &[&entry.key]);
        if !is_contract_name(&entry.key) {
            let text = format!("found the name {:?}; allowed: {CONTRACT}", shown(&entry.key));
            reader.problem(entry.line, &contracts.path(&shown(&entry.key)), text);
            continue;
        }
        if is_grpcs_own(&entry.key) {
            let text = "found a contract that belongs to no service; allowed: contracts of your own";
            reader.problem(entry.line, &contracts.path(&entry.key), text);
            continue;
        }
        let owner = reader.parsed(&contracts, &entry.key, OWNER, |text| {
            ServiceName::parse(text).map_err(|_| format!("found the text {:?}; allowed: {OWNER}", shown(text)))
        });
        owners.extend(owner.map(|owner| (entry.key.clone(), owner)));
    }
    owners
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(spec: Value) -> Result<AccessPolicy, String> {
        let lines = |problems: Problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        AccessPolicy::read("AccessPolicy shop/orders", &Node::of_json(&spec)).map_err(lines)
    }

    #[test]
    fn a_policy_says_the_same_as_a_mesh_file() {
        let rules = "namespace: shop\nservices: { orders: { allow: [web, '*.ops'], audit: true, paths: [{ path: /admin/*, \
                     methods: [GET], allow: [nobody] }] } }\n";
        let rules = MeshRules::parse("access.yaml", rules).unwrap();
        let expected = rules.services.into_values().next().unwrap();
        let spec = json!({"service": "orders", "allow": ["web", "*.ops"], "audit": true,
            "paths": [{"path": "/admin/*", "methods": ["GET"], "allow": ["nobody"]}]});
        assert_eq!(policy(spec), Ok(AccessPolicy::Service { name: "orders".into(), access: Arc::new(expected) }));
        assert_eq!(policy(json!({"default": "deny"})), Ok(AccessPolicy::Namespace { is_allowed: false }));
        let spec = json!({"access": {"default": "deny", "audit": true, "namespaces": {"shop": "allow"}}});
        let defaults = MeshRules::read_defaults("MeshDefaults default", &Node::of_json(&spec)).unwrap();
        let text = "access: { default: deny, audit: true, namespaces: { shop: allow } }\n";
        assert_eq!(defaults, MeshRules::parse("access.yaml", text).unwrap());
    }

    #[test]
    fn each_problem_names_the_object_and_the_field() {
        for (spec, problem) in [
            (json!({}), "spec: without a rule; allowed: `service` with"),
            (json!({"service": "orders"}), "spec: without a rule; allowed: `service` with"),
            (json!({"service": "orders", "allow": null}), "spec.allow: found nothing; allowed: a value"),
            (json!({"service": "orders", "allow": []}), "spec.allow: found without a name; write `nobody`"),
            (json!({"service": "orders", "allow": ["Web"]}), "spec.allow: found \"Web\"; allowed: the NAME"),
            (json!({"service": "orders", "allow": [7]}), "spec.allow: found a list; allowed: a list, each the NAME"),
            (json!({"service": "orders.data", "allow": ["web"]}), "spec.service: found the text \"orders.data\""),
            (json!({"service": "orders", "allow": ["web"], "default": "deny"}), "spec.default: found beside `service`"),
            (json!({"allow": ["web"]}), "spec.allow: found without `service`; allowed: beside it"),
            (json!({"default": "no"}), "spec.default: found the text \"no\"; allowed: allow, deny"),
            (
                json!({"service": "orders", "paths": [{"path": "a", "allow": ["any"]}]}),
                "spec.paths[0].path: found \"a\"",
            ),
            (json!({"service": "orders", "paths": [{"path": "/a"}]}), "spec.paths[0].allow: missing"),
            (json!({"service": "orders", "alow": ["web"]}), "spec.alow: unknown key; allowed: service, default,"),
            (json!([]), "spec: found a list; allowed: a table of service,"),
        ] {
            let told = policy(spec.clone()).expect_err("it is wrong");
            assert!(told.contains(&format!("AccessPolicy shop/orders: {problem}")), "{spec}: {told}");
        }
    }

    #[test]
    fn defaults_say_who_has_a_contract() {
        let read = |spec: &Value| MeshRules::read_defaults("MeshDefaults default", &Node::of_json(spec));
        let rules = read(&json!({"contracts": {"a.b.C": "users.shop", "D": "x.y"}})).unwrap();
        let owners: Vec<_> =
            rules.contracts.iter().map(|(contract, owner)| (contract.as_str(), owner.as_str())).collect();
        assert_eq!(owners, [("D", "x.y"), ("a.b.C", "users.shop")]);
        assert_eq!(rules.is_allowed, None);
        let both = read(&json!({"access": {"default": "deny"}, "contracts": {"a.b.C": "users.shop"}})).unwrap();
        assert_eq!((both.is_allowed, both.contracts.len()), (Some(false), 1));
        let many = |count: usize| -> Value {
            let all = (0..count).map(|number| (format!("a.S{number}"), json!("users.shop")));
            json!({"contracts": all.collect::<serde_json::Map<_, _>>()})
        };
        assert_eq!(read(&many(CONTRACTS)).unwrap().contracts.len(), CONTRACTS);
        for (spec, problem) in [
            (json!({}), "spec: without content; allowed: `access`, `contracts`, or both"),
            (json!({"contracts": {}}), "spec.contracts: found 0 contracts; allowed: 1 to 1000"),
            (many(CONTRACTS + 1), "spec.contracts: found 1001 contracts; allowed: 1 to 1000"),
            (json!({"contracts": ["a.b.C"]}), "spec.contracts: found a list; allowed: a table of Services"),
            (json!({"contracts": null}), "spec.contracts: found nothing; allowed: a value"),
            (
                json!({"contracts": {"a b": "users.shop"}}),
                "spec.contracts.a b: found the name \"a b\"; allowed: the full",
            ),
            (
                json!({"contracts": {"a.b.C": "users"}}),
                "spec.contracts.a.b.C: found the text \"users\"; allowed: NAME.",
            ),
            (json!({"contracts": {"a.b.C": null}}), "spec.contracts.a.b.C: found nothing; allowed: a value"),
            (
                json!({"contracts": {"grpc.health.v1.Health": "users.shop"}}),
                "spec.contracts.grpc.health.v1.Health: found a contract that belongs to no service",
            ),
            (json!({"contract": {"a.b.C": "users.shop"}}), "spec.contract: unknown key; allowed: access, contracts"),
        ] {
            let told = read(&spec).unwrap_err().problems.to_string();
            assert!(told.contains(&format!("MeshDefaults default: {problem}")), "{told}");
        }
    }

    #[test]
    fn a_mistake_in_contracts_leaves_the_rules() {
        let access =
            |spec: Value| MeshRules::read_defaults("MeshDefaults default", &Node::of_json(&spec)).unwrap_err().access;
        let wrong = json!({"a b": "users.shop", "a.C": "users.shop"});
        let found = access(json!({"access": {"default": "allow"}, "contracts": wrong})).unwrap();
        assert_eq!((found.is_allowed, found.contracts.len()), (Some(true), 0));
        assert_eq!(access(json!({"contracts": wrong})).unwrap(), MeshRules::default());
        for spec in [
            json!({"access": {"default": "no"}, "contracts": wrong}),
            json!({"access": {"default": "no"}}),
            json!({"acess": {"default": "deny"}, "contracts": wrong}),
            json!({}),
            json!([]),
        ] {
            assert_eq!(access(spec.clone()), None, "{spec}");
        }
    }
}
