//! The policies: whether they hold, and what of MethodPolicies has no effect.

use std::collections::HashMap;

use serde_json::Value;
use weft_control::kubernetes::names::{ACCESS_POLICY, MESH_DEFAULTS, METHOD_POLICY, POLICY_GROUP, POLICY_VERSION};

use super::{
    super::{
        api::{Api, Trouble},
        control_plane::{self, RpcMethod},
        finding::{Finding, Findings},
        objects::Policy,
    },
    cut, unread,
};

const CHECK: &str = "policies";

/// By `PACKAGE.SERVICE/METHOD`, of each service.
type Methods = HashMap<String, HashMap<String, RpcMethod>>;

pub(super) async fn check(api: &Api, findings: &mut Findings) {
    let (mut hold, mut not_accepted, mut not_judged, mut of_methods) = (0, Vec::new(), Vec::new(), Vec::new());
    let mut is_whole = true;
    for (kind, plural) in [ACCESS_POLICY, METHOD_POLICY, MESH_DEFAULTS] {
        let path = format!("/apis/{POLICY_GROUP}/{POLICY_VERSION}/{plural}");
        let listed = api.list(&path, "", |policy: Policy| {
            let name = name_of(kind, &policy);
            match verdict(&policy) {
                Some(Ok(())) => {
                    hold += 1;
                    let has_methods = kind == METHOD_POLICY.0 && policy.spec["methods"].is_array();
                    return has_methods.then_some(policy);
                }
                Some(Err(why)) => not_accepted.push(format!("{name}: {why}")),
                None => not_judged.push(name),
            }
            None
        });
        match listed.await {
            Ok(listed) => {
                of_methods.extend(listed.items);
                if listed.is_cut {
                    findings.add(cut(CHECK));
                }
            }
            Err(Trouble::Missing(_)) => {
                is_whole = false;
                let found = format!("the cluster has no such kind as {kind}, so there are none");
                let to_do = "weft install --crds | kubectl apply --server-side -f -";
                findings.add(Finding::warning(CHECK, found, to_do));
            }
            Err(trouble) => {
                is_whole = false;
                findings.add(unread(CHECK, &format!("list {plural}.{POLICY_GROUP}"), &trouble));
            }
        }
    }
    if !not_accepted.is_empty() {
        let (found, to_do) = ("these policies do not hold", "mend them, or delete those that are not needed");
        findings.add(Finding::error(CHECK, found, to_do).about(not_accepted));
    } else if is_whole && not_judged.is_empty() {
        findings.add(Finding::good(CHECK, format!("all {hold} policies hold")));
    }
    if !not_judged.is_empty() {
        let found = "the control plane has not said yet whether these policies hold";
        let to_do = "run it again; if it stays so, see the log of the control plane";
        findings.add(Finding::warning(CHECK, found, to_do).about(not_judged));
    }
    if of_methods.is_empty() {
        return;
    }
    match control_plane::methods(api).await {
        Ok(methods) => {
            let idle: Vec<String> = of_methods.iter().flat_map(|policy| without_effect(policy, &methods)).collect();
            if !idle.is_empty() {
                let found = "these parts of MethodPolicies have no effect";
                let to_do = "compare the names with the contracts of the service, as the dashboard shows them";
                findings.add(Finding::warning(CHECK, found, to_do).about(idle));
            }
        }
        Err(trouble) => findings.add(unread(CHECK, "get services/proxy in the namespace weft", &trouble)),
    }
}

fn name_of(kind: &str, policy: &Policy) -> String {
    let meta = &policy.metadata;
    match meta.namespace.as_str() {
        "" => format!("{kind} {}", meta.name),
        namespace => format!("{kind} {namespace}/{}", meta.name),
    }
}

/// Whether a policy holds, and why not. `None` if that is not said of what it says now.
fn verdict(policy: &Policy) -> Option<Result<(), String>> {
    let conditions = policy.status["conditions"].as_array()?;
    let of_now = |condition: &&Value| {
        condition["type"] == "Accepted" && condition["observedGeneration"] == policy.metadata.generation
    };
    let condition = conditions.iter().find(of_now)?;
    let text = |key: &str| condition[key].as_str().unwrap_or_default();
    Some(match text("status") {
        "True" => Ok(()),
        _ => Err(format!("{}: {}", text("reason"), text("message"))),
    })
}

/// What of a MethodPolicy has no effect on its service, if that is known.
fn without_effect(policy: &Policy, methods: &Methods) -> Vec<String> {
    let service = format!("{}.{}", policy.spec["service"].as_str().unwrap_or_default(), policy.metadata.namespace);
    let Some(of_service) = methods.get(&service) else { return Vec::new() };
    let named = policy.spec["methods"].as_array().into_iter().flatten();
    let told = |said: &Value| {
        let name = said["method"].as_str()?;
        let what = match of_service.get(name) {
            None => format!("{service} has no method {name}"),
            Some(method) if said["hedge"].as_str().is_some_and(|hedge| hedge != "never") && !method.is_hedged => {
                format!("hedge of {name}: its idempotency_level does not say that it is safe to repeat")
            }
            Some(_) => return None,
        };
        Some(format!("{}: {what}", name_of(METHOD_POLICY.0, policy)))
    };
    named.filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(spec: Value, conditions: Value) -> Policy {
        let metadata = json!({"name": "slow", "namespace": "shop", "generation": 2});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn only_what_is_said_of_the_present_version_counts() {
        let accepted = |generation: i64, status: &str| {
            json!([{"type": "Accepted", "status": status, "reason": "Invalid", "message": "spec.a: b",
                "observedGeneration": generation}])
        };
        assert_eq!(verdict(&policy(json!({}), accepted(2, "True"))), Some(Ok(())));
        let why = Some(Err("Invalid: spec.a: b".to_owned()));
        assert_eq!(verdict(&policy(json!({}), accepted(2, "False"))), why);
        assert_eq!(verdict(&policy(json!({}), accepted(1, "True"))), None);
        assert_eq!(verdict(&policy(json!({}), json!(null))), None);
    }

    #[test]
    fn names_that_the_service_does_not_have_are_told() {
        let method = |is_hedged| RpcMethod { is_hedged };
        let of_users = HashMap::from([("a.B/Get".to_owned(), method(true)), ("a.B/Put".to_owned(), method(false))]);
        let methods = Methods::from([("users.shop".to_owned(), of_users)]);
        let spec = |service: &str| {
            json!({"service": service, "methods": [
                {"method": "a.B/Get", "hedge": "1s"}, {"method": "a.B/Put", "hedge": "1s"},
                {"method": "a.B/Gett", "timeout": "1s"}, {"method": "a.B/Put", "hedge": "never"}]})
        };
        let told = without_effect(&policy(spec("users"), json!([])), &methods);
        let hedge =
            "MethodPolicy shop/slow: hedge of a.B/Put: its idempotency_level does not say that it is safe to repeat";
        assert_eq!(told, [hedge, "MethodPolicy shop/slow: users.shop has no method a.B/Gett"]);
        assert!(without_effect(&policy(spec("other"), json!([])), &methods).is_empty(), "nobody knows of it");
    }
}
