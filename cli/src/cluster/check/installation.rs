//! The control plane's namespace, its Deployment, its version and its Secret.

use weft_control::kubernetes::{
    inject::Config,
    names::{CONTROL, NAMESPACE, SECRET_CA},
};

use super::{
    super::{
        api::{Api, Trouble},
        finding::{Finding, Findings},
        objects::{Deployment, Plain},
    },
    VERSION, unread,
};

const CHECK: &str = "control-plane";
const INSTALL: &str = "install it: weft install | kubectl apply --server-side -f -";

/// What is installed.
#[derive(Debug, Default)]
pub(super) struct Installed {
    /// The control plane's version, if its Deployment says it.
    pub(super) version: Option<String>,
    pub(super) trust_domain: String,
}

/// `None` if Weft is not installed.
pub(super) async fn check(api: &Api, findings: &mut Findings) -> Option<Installed> {
    let nothing = || Finding::error(CHECK, "Weft is not installed on this cluster", INSTALL);
    match api.get::<Plain>(&format!("/api/v1/namespaces/{NAMESPACE}")).await {
        Ok(namespace) if namespace.metadata.deletion_timestamp.is_some() => {
            let found = format!("the namespace {NAMESPACE} is being deleted");
            findings.add(Finding::error(CHECK, found, "wait until it is gone, then install Weft again"));
            return None;
        }
        Err(Trouble::Missing(_)) => {
            findings.add(nothing());
            return None;
        }
        Ok(_) => {}
        // A user who may not read the namespace may read what is in it.
        Err(trouble) => findings.add(unread(CHECK, "get namespaces", &trouble)),
    }
    let mut installed = Installed { version: None, trust_domain: trust_domain(&Deployment::default()) };
    match api.get::<Deployment>(&path()).await {
        Ok(deployment) => {
            of_deployment(&deployment).into_iter().for_each(|finding| findings.add(finding));
            installed.version = deployment.version().map(str::to_owned);
            installed.trust_domain = trust_domain(&deployment);
        }
        Err(Trouble::Missing(_)) => {
            findings.add(nothing());
            return None;
        }
        Err(trouble) => findings.add(unread(CHECK, &format!("get deployments in {NAMESPACE}"), &trouble)),
    }
    match api.has(&format!("/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET_CA}")).await {
        Ok(true) => findings.add(Finding::good("ca", format!("the Secret {NAMESPACE}/{SECRET_CA} is there"))),
        Ok(false) => {
            let found = format!("there is no Secret {NAMESPACE}/{SECRET_CA}: the control plane has no CA to keep");
            let to_do = format!("see why it can't make it: kubectl -n {NAMESPACE} logs deployment/{CONTROL}");
            findings.add(Finding::error("ca", found, to_do));
        }
        // Most users may not read Secrets, and need not.
        Err(Trouble::Forbidden(_)) => {
            findings.add(Finding::note("ca", "not looked at: this user may not get Secrets"));
        }
        Err(trouble) => findings.add(unread("ca", &format!("get secrets in {NAMESPACE}"), &trouble)),
    }
    Some(installed)
}

/// Where the Deployment is.
pub(in crate::cluster) fn path() -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{CONTROL}")
}

/// The trust domain that a control plane has.
pub(in crate::cluster) fn trust_domain(deployment: &Deployment) -> String {
    let given = deployment.flag("--trust-domain").map(str::to_owned);
    given.unwrap_or_else(|| Config::default().trust_domain.to_string())
}

fn of_deployment(deployment: &Deployment) -> Vec<Finding> {
    let mut findings = Vec::new();
    let status = &deployment.status;
    if status.available_replicas == 0 {
        let mut unmet = status.conditions.iter().filter(|condition| condition.status == "False");
        let why = unmet.next().map_or_else(String::new, |unmet| format!(": {}: {}", unmet.reason, unmet.message));
        let found = format!("the Deployment {NAMESPACE}/{CONTROL} has no pod that is available{why}");
        let to_do = format!("kubectl -n {NAMESPACE} describe pods; kubectl -n {NAMESPACE} logs deployment/{CONTROL}");
        findings.push(Finding::error(CHECK, found, to_do));
    } else {
        findings.push(Finding::good(CHECK, format!("the Deployment {NAMESPACE}/{CONTROL} is available")));
    }
    findings.push(match deployment.version() {
        Some(VERSION) => Finding::good("version", format!("the control plane has this program's version, {VERSION}")),
        Some(other) => Finding::warning(
            "version",
            format!("the control plane has version {other}, this program {VERSION}"),
            "use the `weft` of the control plane's version, or upgrade: weft upgrade | kubectl apply --server-side -f -",
        ),
        None => Finding::warning(
            "version",
            format!("the Deployment {NAMESPACE}/{CONTROL} has no label app.kubernetes.io/version"),
            "install it with `weft install`",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::super::finding::Level, *};

    fn levels(deployment: serde_json::Value) -> Vec<Level> {
        of_deployment(&serde_json::from_value(deployment).unwrap()).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_deployment_is_available_and_of_this_version() {
        let version = |version: &str| json!({"labels": {"app.kubernetes.io/version": version}});
        let available = json!({"availableReplicas": 1});
        assert_eq!(levels(json!({"metadata": version(VERSION), "status": available})), [Level::Good, Level::Good]);
        assert_eq!(levels(json!({"metadata": version("0.0.9"), "status": available})), [Level::Good, Level::Warning]);
        let away = json!({"conditions": [{"type": "Available", "status": "False", "reason": "No", "message": "none"}]});
        assert_eq!(levels(json!({"metadata": {}, "status": away})), [Level::Error, Level::Warning]);
    }
}
