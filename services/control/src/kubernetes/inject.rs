//! The sidecar that a pod gets when it is made.
//!
//! [`inject`] is asked by the webhook for each new pod, and by `weft inject` for the pods of a file. It reads the pod as
//! raw JSON and answers with a JSON patch (RFC 6902), so that fields that Weft does not know stay as they are.
//!
//! - `config`: the file `inject.yaml`, with what all sidecars have in common.
//! - `pod`: reads a pod; `skip` says which pods are left alone.
//! - `settings`: what the pod's `annotations` and ports say about its sidecar, with amounts in `quantity`.
//! - `probes`: sends the probes of the pod's containers to the sidecar.
//! - `redirect`: the init container that has the pod's connections redirected to the sidecar.
//! - `sidecar`: the container and its volumes; `environment`: what the application's containers get.
//! - `patch`: the operations.

mod annotations;
mod config;
mod environment;
mod patch;
mod pod;
mod probes;
mod quantity;
mod redirect;
mod settings;
mod sidecar;
mod skip;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub(super) use self::config::{amount, enabled, is_image};
pub use self::{
    config::{Amounts, Config, LEAST_MEMORY_LIMIT, PullPolicy, Resources},
    pod::Error,
    quantity::Quantity,
    skip::{Namespace, Reason},
};
use self::{patch::Patch, pod::Pod, probes::Reach, redirect::Redirect, settings::Settings};
use super::names::annotation;

/// What happens to a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// These operations of a JSON patch (RFC 6902) give it a sidecar. There is at least one.
    Patch(Vec<Value>),
    /// It stays as it is.
    Skip(Reason),
}

/// Decides what is added to a pod: the `object` of an admission request, or the template of a Deployment.
///
/// A pod that has its sidecar is not given another one. If it has containers without the variables of the mesh, since
/// another webhook has added them in the meantime, they get these, and their probes are sent to the sidecar.
///
/// # Errors
/// The pod should get a sidecar, but an annotation, a label or a port of it makes that impossible. The error names the
/// field, what was found and what is allowed. Such a pod must not be made: without its sidecar it would run unprotected.
pub fn inject(config: &Config, namespace: &Namespace, pod: &Value) -> Result<Decision, Error> {
    let pod = Pod::new(pod)?;
    if let Some(reason) = skip::reason(namespace, &pod)? {
        return Ok(Decision::Skip(reason));
    }
    sidecar::check_mounts(&pod)?;
    let has_sidecar = pod.has_sidecar()?;
    let mut patch = Patch::default();
    // First, while the indices of the pod's own init containers are still those that the pod has.
    environment::add(&pod, &mut patch)?;
    if has_sidecar {
        let redirect = Redirect::read(config, &pod)?;
        if redirect.is_some() {
            redirect::check_redirected(&pod)?;
            redirect::check_users(&pod)?;
        }
        probes::rewrite(&pod, Reach::of(redirect.as_ref()), &mut patch)?.add_to_sidecar(&pod, &mut patch)?;
    } else {
        let settings = Settings::read(config, &pod)?;
        if settings.redirect.is_some() {
            redirect::check_name(&pod)?;
            redirect::check_users(&pod)?;
        }
        let originals = probes::rewrite(&pod, Reach::of(settings.redirect.as_ref()), &mut patch)?;
        sidecar::add(config, &settings, &originals, &pod, &mut patch)?;
        patch.set(pod.value(), &["metadata", "annotations"], annotation::INJECTED, json!(env!("CARGO_PKG_VERSION")));
    }
    Ok(match patch.into_operations() {
        operations if operations.is_empty() => Decision::Skip(Reason::HasSidecar),
        operations => Decision::Patch(operations),
    })
}

/// Why a pod gets no sidecar although its label or that of its namespace asks for one. `None` if it can have one, or its own
/// label says that it gets none.
pub fn refusal(namespace: &str, pod: &Value) -> Option<Reason> {
    let reason = skip::reason(&Namespace::enabled(namespace), &Pod::new(pod).ok()?).ok()??;
    reason.is_refusal().then_some(reason)
}

/// Whether Weft has given a pod its sidecar.
pub fn has_sidecar(pod: &Value) -> bool {
    Pod::new(pod).and_then(|pod| pod.has_sidecar()).unwrap_or(false)
}
