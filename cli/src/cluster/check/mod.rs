//! `weft cluster check`.
//!
//! The parts, in their order: `server` and, if Weft is not there, `rights`; `installation`, `webhook` and `trust`; then `pods`,
//! `mesh`, which is what the control plane knows, `annotations` of Services, and `policies`. A part that can't be looked at is a
//! finding too.

mod annotations;
mod installation;
mod mesh;
mod pods;
mod policies;
mod rights;
mod server;
mod trust;
mod webhook;

use anyhow::Context as _;
use weft_control::kubernetes::{
    inject::Namespace,
    names::{CONTROL, ENABLED, NAMESPACE},
};

use super::{
    api::{Api, Listed, Trouble},
    finding::{Finding, Findings},
    objects::{Deployment, Plain},
    pods::Namespaces,
};

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Looks at everything.
pub(super) async fn run(api: anyhow::Result<Api>) -> Findings {
    let mut findings = Findings::default();
    let api = match api {
        Ok(api) => api,
        Err(error) => {
            let to_do = "set KUBECONFIG to the file that `kubectl` uses, or choose one of its contexts with --context";
            findings.add(Finding::error("api-server", format!("{error:#}"), to_do));
            return findings;
        }
    };
    if !server::check(&api, &mut findings).await {
        return findings;
    }
    let Some(installed) = installation::check(&api, &mut findings).await else {
        rights::check(&api, &mut findings).await;
        return findings;
    };
    let namespaces = match namespaces(&api).await {
        Ok(namespaces) => namespaces,
        Err(trouble) => {
            findings.add(unread("namespaces", "list namespaces", &trouble));
            Namespaces::default()
        }
    };
    let enabled = enabled(&namespaces);
    let bundle = webhook::check(&api, &enabled, &mut findings).await;
    trust::check(&api, bundle.as_deref(), &enabled, &mut findings).await;
    let pods = match super::pods::all(&api, &namespaces).await {
        Ok(Listed { items, is_cut }) => {
            if is_cut {
                findings.add(cut("pods"));
            }
            pods::check(&items, installed.version.as_deref(), &enabled, &mut findings);
            items
        }
        Err(trouble) => {
            findings.add(unread("pods", "list pods in all namespaces", &trouble));
            return findings;
        }
    };
    mesh::check(&api, &pods, &installed.trust_domain, &mut findings).await;
    annotations::check(&api, &mut findings).await;
    policies::check(&api, &mut findings).await;
    findings
}

pub(super) use self::{
    installation::{path as deployment_path, trust_domain as trust_domain_of},
    mesh::identity,
};

/// The trust domain of the mesh, as the control plane's Deployment says it.
///
/// # Errors
/// It can't be read.
pub(super) async fn trust_domain(api: &Api) -> anyhow::Result<String> {
    let found = api.get::<Deployment>(&installation::path()).await;
    let deployment = found.with_context(|| format!("the Deployment {NAMESPACE}/{CONTROL} can't be read"))?;
    Ok(installation::trust_domain(&deployment))
}

/// All namespaces, with their label.
pub(super) async fn namespaces(api: &Api) -> Result<Namespaces, Trouble> {
    let listed = api.list("/api/v1/namespaces", "", |object: Plain| {
        let meta = object.metadata;
        let is_kept = meta.deletion_timestamp.is_none();
        is_kept.then(|| (meta.name.clone(), Namespace::new(meta.name, &meta.labels)))
    });
    Ok(listed.await?.items.into_iter().collect())
}

/// The names of the namespaces whose pods get sidecars.
fn enabled(namespaces: &Namespaces) -> Vec<&str> {
    let with_label = namespaces.values().filter(|namespace| namespace.inject.as_deref() == Some(ENABLED));
    with_label.map(|namespace| namespace.name.as_str()).collect()
}

/// A part that could not be looked at. `right` is what the user needs for it.
fn unread(check: &'static str, right: &str, trouble: &Trouble) -> Finding {
    let to_do = match trouble {
        Trouble::Forbidden(_) => format!("run it as a user who may {right}"),
        Trouble::Missing(_) => "install it: weft install | kubectl apply --server-side -f -".to_owned(),
        Trouble::Away(_) => "run it again, with a longer --timeout if the API server is slow".to_owned(),
        _ => "see the logs of the API server and of the control plane".to_owned(),
    };
    Finding::warning(check, format!("not looked at: {trouble}"), to_do)
}

/// A list that is too long.
fn cut(check: &'static str) -> Finding {
    let found = format!("there are more than {} objects; the others are not looked at", super::api::MOST);
    Finding::note(check, found)
}
