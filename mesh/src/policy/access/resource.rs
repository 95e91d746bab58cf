//! The specs of custom resources on Kubernetes. They read like a `mesh.yaml`, and the same functions read them.

use std::sync::Arc;

use super::{
    MeshRules, ServiceAccess,
    file::{DEFAULTS, read_default, read_mesh_access, read_rule_and_paths},
};
use crate::{
    config::{self, Node, Problems, Reader},
    names::{LABEL, is_label, shown},
};

const SPEC: &str = "spec";
const RULE_KEYS: &[&str] = &["allow", "audit", "paths"];
const POLICY_KEYS: &[&str] = &["service", "default", "allow", "audit", "paths"];
const DEFAULTS_KEYS: &[&str] = &["access"];
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

impl MeshRules {
    /// Reads the spec of a MeshDefaults. `origin` names the object in problems.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read_defaults(origin: &str, spec: &Node) -> Result<Self, Problems> {
        let read = |reader: &mut Reader<'_>, node: &Node| {
            let table = reader.table(SPEC, node, DEFAULTS_KEYS)?;
            if table.get("access").is_none() {
                reader.problem(node.line, &table.path("access"), "missing");
            }
            Some(read_mesh_access(reader, &table))
        };
        config::take(origin, spec, read)
    }
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
        let told = MeshRules::read_defaults("MeshDefaults default", &Node::of_json(&json!({}))).unwrap_err();
        assert!(told.to_string().starts_with("MeshDefaults default: spec.access: missing"), "{told}");
    }
}
