//! What is looked at before Weft is taken off a cluster or upgraded.

use anyhow::{Context as _, bail};
use weft_control::kubernetes::names::{CONTROL, NAMESPACE};

use super::{
    Installed,
    api::{Api, MOST, Trouble},
    check,
    objects::{ConfigMap, Deployment},
    pods::{self, Namespaces},
};

/// The ConfigMap with `inject.yaml`.
const INJECTOR: &str = "weft-injector";

pub(super) async fn pods_with_sidecar(api: &Api) -> anyhow::Result<Vec<String>> {
    // Which pods have one does not depend on the namespaces' labels.
    let pods = pods::all(api, &Namespaces::default()).await.context("the pods can't be listed")?;
    let mut names: Vec<String> = pods.items.iter().filter(|pod| pod.has_sidecar()).map(pods::Pod::full_name).collect();
    names.sort_unstable();
    if pods.is_cut {
        names.push(format!("and perhaps others: there are more pods than the {MOST} that are looked at"));
    }
    Ok(names)
}

pub(super) async fn installed(api: &Api) -> anyhow::Result<Installed> {
    let deployment: Deployment = match api.get(&check::deployment_path()).await {
        Err(Trouble::Missing(_)) => {
            bail!("Weft is not installed on this cluster: weft install | kubectl apply --server-side -f -")
        }
        found => found.with_context(|| format!("the Deployment {NAMESPACE}/{CONTROL} can't be read"))?,
    };
    let Some(version) = deployment.version() else {
        bail!(
            "the Deployment {NAMESPACE}/{CONTROL} has no label app.kubernetes.io/version: was it made by `weft install`?"
        )
    };
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{INJECTOR}");
    let map: ConfigMap = match api.get(&path).await {
        Err(Trouble::Missing(_)) => ConfigMap::default(),
        found => found.with_context(|| format!("the ConfigMap {NAMESPACE}/{INJECTOR} can't be read"))?,
    };
    Ok(Installed {
        version: version.to_owned(),
        trust_domain: check::trust_domain_of(&deployment),
        inject: map.data.get("inject.yaml").cloned().unwrap_or_default(),
    })
}
