//! The trust bundle for pods, as a ConfigMap in each namespace that has sidecars, and for the API server, in the
//! webhook's configuration. Both are server-side applied, so that nobody else's fields are touched.
//!
//! Only the API server says which namespaces these are: those with the label, and those with a pod that has it. What the
//! webhook is asked is no reason to write, since anybody can ask it.

mod targets;

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, pin_mut, stream::FuturesUnordered};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Duration, MissedTickBehavior, interval, timeout},
};
use weft_mesh::tls::TrustBundle;

use self::targets::{Target, Targets};
use super::{
    MANAGER, TIMEOUT,
    seen::{Nothing, Seen},
    watch::PAGE,
};
use crate::kubernetes::names::{CONFIG_MAP_TRUST, ENABLED, LABEL_INJECT, TRUST_BUNDLE, WEBHOOK};

/// Everything is written anew this often: somebody may have removed it.
const AGAIN: Duration = Duration::from_secs(60);

/// Writes the bundle where it is needed; never ends.
pub(super) async fn keep(client: Client, mut bundle: watch::Receiver<TrustBundle>) {
    let with_label = watcher::Config::default().labels(&format!("{LABEL_INJECT}={ENABLED}"));
    let with_label = with_label.page_size(PAGE);
    let namespaces =
        watcher(Api::<Seen<Namespace, Nothing>>::all(client.clone()), with_label.clone()).default_backoff();
    let pods = watcher(Api::<Seen<Pod, Nothing>>::all(client.clone()), with_label).default_backoff();
    pin_mut!(namespaces, pods);
    let mut again = interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut text: Arc<str> = pem(&bundle.borrow_and_update()).into();
    let mut targets = Targets::default();
    let mut writes = FuturesUnordered::new();
    loop {
        while let Some(target) = targets.next() {
            writes.push(write(&client, target, Arc::clone(&text)));
        }
        tokio::select! {
            _ = again.tick() => targets.all_are_due(),
            Ok(()) = bundle.changed() => {
                text = pem(&bundle.borrow_and_update()).into();
                targets.all_are_due();
            }
            Some((target, is_gone)) = writes.next() => targets.done(target, is_gone),
            Some(event) = namespaces.next() => match event {
                // In one that is being deleted nothing can be made.
                Ok(Event::Apply(namespace) | Event::InitApply(namespace)) => {
                    let stays = namespace.metadata.deletion_timestamp.is_none();
                    targets.set_labelled(namespace.name_any(), stays);
                }
                Ok(Event::Delete(namespace)) => targets.set_labelled(namespace.name_any(), false),
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => tracing::debug!(%error, "the watch of namespaces broke"),
            },
            Some(event) = pods.next() => match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    if let (Some(namespace), None) = (pod.namespace(), &pod.metadata.deletion_timestamp) {
                        targets.has_pod(namespace);
                    }
                }
                Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
                Err(error) => tracing::debug!(%error, "the watch of pods with the label broke"),
            },
        }
    }
}

/// Returns the target, and whether it is a namespace that is gone.
async fn write(client: &Client, target: Target, pem: Arc<str>) -> (Target, bool) {
    let written = match &target {
        Target::Webhook => timeout(TIMEOUT, write_webhook(client, &pem)).await,
        Target::Namespace(namespace) => timeout(TIMEOUT, write_bundle(client, namespace, &pem)).await,
    };
    let is_gone = matches!(&written, Ok(Err(kube::Error::Api(status))) if status.is_not_found());
    let error = match written {
        Ok(Err(error)) if !is_gone => error.to_string(),
        Err(_) => "no answer".to_owned(),
        Ok(_) => return (target, is_gone),
    };
    match &target {
        Target::Webhook => tracing::warn!(error, "the webhook's configuration could not be written"),
        Target::Namespace(namespace) => tracing::warn!(namespace, error, "the trust bundle could not be written"),
    }
    (target, is_gone)
}

async fn write_bundle(client: &Client, namespace: &str, pem: &str) -> kube::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let content = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP_TRUST},
        "data": {TRUST_BUNDLE: pem},
    });
    api.patch(CONFIG_MAP_TRUST, &PatchParams::apply(MANAGER).force(), &Patch::Apply(content)).await.map(drop)
}

/// So that the API server trusts the webhook. Each of its webhooks has an entry of its own.
async fn write_webhook(client: &Client, pem: &str) -> kube::Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let Some(found) = api.get_opt(WEBHOOK).await? else { return Ok(()) };
    let bundle = BASE64_STANDARD.encode(pem);
    let hooks = found.webhooks.unwrap_or_default();
    let hooks = hooks.iter().map(|hook| json!({"name": hook.name, "clientConfig": {"caBundle": bundle}}));
    let content = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": WEBHOOK},
        "webhooks": hooks.collect::<Vec<_>>(),
    });
    api.patch(WEBHOOK, &PatchParams::apply(MANAGER).force(), &Patch::Apply(content)).await.map(drop)
}

/// The roots as PEM.
fn pem(bundle: &TrustBundle) -> String {
    let block = |der: &[u8]| {
        let text = BASE64_STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    bundle.der().map(block).collect()
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use http::{Method, Request, Response};
    use kube::client::Body;
    use tokio::sync::mpsc;

    use super::*;

    fn bundle() -> TrustBundle {
        weft_mesh::tls::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        crate::authority::ca::Ca::open_or_create(dir.path(), &"weft.test".parse().unwrap()).unwrap().bundle().clone()
    }

    #[test]
    fn the_bundle_is_read_as_it_was_written() {
        let bundle = bundle();
        assert_eq!(TrustBundle::from_pem(pem(&bundle).as_bytes()).unwrap(), bundle);
    }

    /// A list with its watch: three namespaces with the label, and a pod with the label in a fourth.
    fn list(path: &str) -> serde_json::Value {
        let entry = |name: &str, namespace: Option<&str>| json!({"metadata": {"name": name, "namespace": namespace}});
        let items = match path {
            "/api/v1/namespaces" => vec![entry("stuck", None), entry("shop", None), entry("till", None)],
            _ => vec![entry("users-1", Some("alone"))],
        };
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {"resourceVersion": "1"}, "items": items})
    }

    /// Otherwise pods of all other namespaces wait for their volume.
    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_hangs_does_not_keep_the_bundle_from_others() {
        let (writes, mut written) = mpsc::unbounded_channel();
        let api_server = tower::service_fn(move |request: Request<Body>| {
            let writes = writes.clone();
            async move {
                let path = request.uri().path().to_owned();
                if request.method() == Method::PATCH {
                    let _ = writes.send(path.split('/').nth(4).unwrap_or_default().to_owned());
                    if path.contains("/stuck/") {
                        return pending().await;
                    }
                    let made = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "weft-trust"}});
                    return Ok::<_, Infallible>(Response::new(Body::from(made.to_string().into_bytes())));
                }
                let content = match (&*path, request.uri().query().unwrap_or_default()) {
                    (_, query) if query.contains("watch=") => return pending().await,
                    ("/api/v1/namespaces" | "/api/v1/pods", query) => {
                        assert!(query.contains("labelSelector=weft.dev%2Finject%3Denabled"), "{query}");
                        list(&path)
                    }
                    _ => {
                        json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": ""})
                    }
                };
                let code = content["code"].as_u64().unwrap_or(200) as u16;
                let body = Body::from(content.to_string().into_bytes());
                Ok(Response::builder().status(code).body(body).unwrap())
            }
        });
        let (_changes, bundle) = watch::channel(bundle());
        let keeping = tokio::spawn(keep(Client::new(api_server, "default"), bundle));
        let mut first = Vec::new();
        for _ in 0..4 {
            first.push(timeout(TIMEOUT / 2, written.recv()).await.expect("others wait for it").unwrap());
        }
        first.sort();
        assert_eq!(first, ["alone", "shop", "stuck", "till"]);
        // It is tried again with all others.
        timeout(AGAIN + TIMEOUT, async { while written.recv().await.unwrap() != "stuck" {} }).await.unwrap();
        keeping.abort();
    }
}
