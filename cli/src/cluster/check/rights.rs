//! Before the installation: whether the user may make all that is installed.

use std::collections::BTreeSet;

use serde_json::json;
use weft_control::kubernetes::install::{self, Object};

use super::super::{
    api::{Api, Trouble},
    finding::{Finding, Findings},
    objects::AccessReview,
};

const CHECK: &str = "rights";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// A right: verb, API group, resource, namespace.
type Right = (&'static str, String, String, Option<String>);

pub(super) async fn check(api: &Api, findings: &mut Findings) {
    let mut lacking = Vec::new();
    for (verb, group, resource, namespace) in needed(&install::objects()) {
        match may(api, verb, &group, &resource, namespace.as_deref()).await {
            Ok(true) => {}
            Ok(false) => {
                let group = if group.is_empty() { String::new() } else { format!(".{group}") };
                let place = namespace.map_or_else(String::new, |namespace| format!(" in {namespace}"));
                lacking.push(format!("{verb} {resource}{group}{place}"));
            }
            Err(trouble) => return findings.add(super::unread(CHECK, "create selfsubjectaccessreviews", &trouble)),
        }
    }
    if !lacking.is_empty() {
        let found = "this user may not make all objects of the installation";
        findings.add(Finding::error(CHECK, found, "let a cluster admin install it").about(lacking));
        return;
    }
    findings.add(Finding::good(CHECK, "this user may make all objects of the installation"));
    // Kubernetes lets nobody give away rights that he does not have.
    let gives = may(api, "escalate", "rbac.authorization.k8s.io", "clusterroles", None).await;
    if gives == Ok(false) {
        let found = "this user may give the control plane only rights that the user has";
        findings.add(Finding::warning(CHECK, found, "if the installation fails at a role, let a cluster admin do it"));
    }
}

fn needed(objects: &[Object]) -> BTreeSet<Right> {
    let of = |object: &Object| {
        let group = object.api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let (resource, namespace) = (plural(&object.kind), object.namespace.clone());
        ["create", "patch"].map(|verb| (verb, group.clone(), resource.clone(), namespace.clone()))
    };
    objects.iter().flat_map(of).collect()
}

/// The resource of a kind.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    }
}

async fn may(api: &Api, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Result<bool, Trouble> {
    let asked = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource, "namespace": namespace}},
    });
    Ok(api.post::<AccessReview>(REVIEWS, &asked).await?.status.allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_needed_for_each_kind_of_object() {
        let needed = needed(&install::objects());
        let has = |verb, group: &str, resource: &str, namespace: Option<&str>| {
            needed.contains(&(verb, group.to_owned(), resource.to_owned(), namespace.map(str::to_owned)))
        };
        assert!(has("create", "", "namespaces", None));
        assert!(has("patch", "apps", "deployments", Some("weft")));
        assert!(has("create", "networking.k8s.io", "networkpolicies", Some("weft")));
        assert!(has("create", "scheduling.k8s.io", "priorityclasses", None));
        assert!(has("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", None));
    }
}
