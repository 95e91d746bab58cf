//! The webhook: its configuration, and whether the API server can ask it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use weft_control::kubernetes::{
    inject::has_sidecar,
    names::{CONTROL, ENABLED, LABEL_INJECT, NAMESPACE, WEBHOOK},
};
use weft_mesh::tls::TrustBundle;

use super::{
    super::{
        api::{Api, Trouble},
        finding::{Finding, Findings, Level},
        objects::WebhookConfiguration,
    },
    unread,
};

const CHECK: &str = "webhook";
/// In how many namespaces with the label a pod is tried.
const TRIALS: usize = 3;

/// Returns the certificates that the API server trusts, as PEM.
pub(super) async fn check(api: &Api, enabled: &[&str], findings: &mut Findings) -> Option<String> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK}");
    let bundle = match api.get::<WebhookConfiguration>(&path).await {
        Ok(configuration) => match of_configuration(&configuration) {
            Ok(bundle) => bundle,
            Err(finding) => {
                findings.add(*finding);
                return None;
            }
        },
        Err(Trouble::Missing(_)) => {
            let found = format!("there is no MutatingWebhookConfiguration {WEBHOOK}: no pod gets a sidecar");
            findings.add(Finding::error(
                CHECK,
                found,
                "install it again: weft install | kubectl apply --server-side -f -",
            ));
            return None;
        }
        Err(trouble) => {
            findings.add(unread(CHECK, "get mutatingwebhookconfigurations", &trouble));
            return None;
        }
    };
    // One namespace with the label, by which the first webhook is asked, and a pod with the label elsewhere, for the second.
    let mut is_tried = enabled.is_empty();
    for namespace in enabled.iter().take(TRIALS) {
        let found = of_trial(namespace, try_in(api, namespace, json!({})).await);
        // The owner of a namespace may allow no pods in it.
        is_tried = found.level != Level::Note;
        findings.add(found);
        if is_tried {
            break;
        }
    }
    if !is_tried {
        let text =
            "it is not known whether pods get a sidecar in namespaces with the label: no pod could be tried there";
        let to_do = "see the notes above, and try it in a namespace that allows pods: kubectl run --dry-run=server";
        findings.add(Finding::warning(CHECK, text, to_do));
    }
    if !enabled.contains(&"default") {
        findings.add(of_trial("default", try_in(api, "default", json!({LABEL_INJECT: ENABLED})).await));
    }
    Some(bundle)
}

async fn try_in(api: &Api, namespace: &str, labels: Value) -> Result<Value, Trouble> {
    api.post(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), &trial(labels)).await
}

fn of_configuration(configuration: &WebhookConfiguration) -> Result<String, Box<Finding>> {
    let to_do = format!("see why the control plane does not set it: kubectl -n {NAMESPACE} logs deployment/{CONTROL}");
    let error = |found: String| Box::new(Finding::error(CHECK, found, to_do.clone()));
    let mut bundles =
        configuration.webhooks.iter().map(|hook| (hook.name.as_str(), hook.client_config.ca_bundle.as_str()));
    let Some((_, first)) = bundles.next() else { return Err(error(format!("{WEBHOOK} has no webhooks"))) };
    for (name, bundle) in configuration.webhooks.iter().map(|hook| (&hook.name, &hook.client_config.ca_bundle)) {
        if bundle.is_empty() {
            return Err(error(format!("the webhook {name} of {WEBHOOK} has no certificate (caBundle)")));
        }
        if bundle != first {
            return Err(error(format!("the webhooks of {WEBHOOK} have different certificates (caBundle)")));
        }
    }
    let pem = BASE64_STANDARD.decode(first).ok().and_then(|pem| String::from_utf8(pem).ok());
    match pem.filter(|pem| TrustBundle::from_pem(pem.as_bytes()).is_ok()) {
        Some(pem) => Ok(pem),
        None => Err(error(format!("the caBundle of {WEBHOOK} has no certificate in it"))),
    }
}

/// A pod that is not made, as the PodSecurity level `restricted` allows it.
fn trial(labels: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "weft-cluster-check-", "labels": labels},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65_532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app",
                "image": "weft.dev/never-made",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"},
                    "limits": {"cpu": "1m", "memory": "1Mi"},
                },
            }],
        },
    })
}

/// What came back of a pod that should get a sidecar.
fn of_trial(namespace: &str, answer: Result<Value, Trouble>) -> Finding {
    let reach = format!(
        "see whether the API server reaches the Service {NAMESPACE}/{CONTROL}, port 443 (a firewall between it and the \
         nodes?), and kubectl -n {NAMESPACE} logs deployment/{CONTROL}"
    );
    match answer {
        Ok(pod) if has_sidecar(&pod) => Finding::good(
            CHECK,
            format!("the API server trusts the webhook's certificate, and a pod in {namespace} would get a sidecar"),
        ),
        Ok(_) => Finding::error(
            CHECK,
            format!("a pod in {namespace} would get no sidecar: the webhook is not asked about it"),
            "apply the manifests again: weft install | kubectl apply --server-side -f -",
        ),
        Err(trouble) if trouble.to_string().contains("failed calling webhook") => {
            Finding::error(CHECK, format!("the API server can't ask the webhook: {trouble}"), reach)
        }
        Err(trouble @ Trouble::Forbidden(_)) => {
            Finding::note(CHECK, format!("not tried with a pod in {namespace}: {trouble}"))
        }
        Err(trouble) => unread(CHECK, &format!("create pods in {namespace}, as a dry run"), &trouble),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_webhook_has_the_same_certificate() {
        let of = |bundles: &[&str]| {
            let hooks = bundles.iter().map(|bundle| json!({"name": "a", "clientConfig": {"caBundle": bundle}}));
            let configuration = json!({"webhooks": hooks.collect::<Vec<_>>()});
            of_configuration(&serde_json::from_value(configuration).unwrap())
        };
        for (bundles, said) in [
            (&[][..], "no webhooks"),
            (&["", ""], "has no certificate (caBundle)"),
            (&["YQ==", ""], "has no certificate (caBundle)"),
            (&["YQ==", "Yg=="], "different certificates"),
            (&["YQ=="], "no certificate in it"),
            (&["!"], "no certificate in it"),
        ] {
            let found = of(bundles).unwrap_err();
            assert!(found.level == Level::Error && found.found.contains(said), "{bundles:?}: {}", found.found);
        }
    }

    #[test]
    fn a_webhook_that_can_not_be_asked_is_an_error() {
        let failed = "Internal error occurred: failed calling webhook \"inject.weft.dev\": x509: unknown authority";
        assert_eq!(of_trial("a", Err(Trouble::Refused(500, failed.to_owned()))).level, Level::Error);
        assert_eq!(of_trial("a", Ok(trial(json!({})))).level, Level::Error);
        assert_eq!(of_trial("a", Err(Trouble::Forbidden("no".to_owned()))).level, Level::Note);
        assert_eq!(of_trial("a", Err(Trouble::Away("no".to_owned()))).level, Level::Warning);
    }
}
