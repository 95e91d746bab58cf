//! The trust bundle for pods, as a ConfigMap in each namespace that has sidecars, and for the API server, in the
//! webhook's configuration. Both are server-side applied, so that nobody else's fields are touched.

use std::collections::BTreeSet;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{ConfigMap, Namespace},
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
    sync::{mpsc, watch},
    time::{Duration, MissedTickBehavior, interval, timeout},
};
use weft_mesh::tls::TrustBundle;

use super::{MANAGER, TIMEOUT};
use crate::kubernetes::{
    api::Api as Connection,
    names::{CONFIG_MAP_TRUST, ENABLED, LABEL_INJECT, TRUST_BUNDLE},
};

/// The webhook's configuration.
const WEBHOOK: &str = "weft-injector";
/// Everything is written anew this often: somebody may have removed it.
const AGAIN: Duration = Duration::from_secs(60);
/// How many namespaces may wait.
const WAITING: usize = 256;

/// Asks for the bundle in a namespace.
#[derive(Clone)]
pub(crate) struct Trust(mpsc::Sender<String>);

impl Trust {
    /// The bundle is needed in this namespace: a pod there gets a sidecar.
    pub(crate) fn is_needed_in(&self, namespace: &str) {
        // If too many wait, it is written when the next pod comes.
        let _ = self.0.try_send(namespace.to_owned());
    }

    /// A handle, and what writes the bundle; never ends.
    pub(crate) fn keep(
        connection: &Connection,
        bundle: watch::Receiver<TrustBundle>,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let (asks, asked) = mpsc::channel(WAITING);
        let keeper = Keeper { client: connection.0.clone(), bundle, namespaces: BTreeSet::new() };
        (Self(asks), keeper.run(asked))
    }
}

struct Keeper {
    client: Client,
    bundle: watch::Receiver<TrustBundle>,
    /// Where it was asked for.
    namespaces: BTreeSet<String>,
}

impl Keeper {
    async fn run(mut self, mut asked: mpsc::Receiver<String>) {
        let labelled: Api<Namespace> = Api::all(self.client.clone());
        let events = watcher(labelled, watcher::Config::default().labels(&format!("{LABEL_INJECT}={ENABLED}")))
            .default_backoff();
        pin_mut!(events);
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = again.tick() => self.write_all().await,
                Ok(()) = self.bundle.changed() => self.write_all().await,
                Some(namespace) = asked.recv() => self.add(namespace).await,
                Some(event) = events.next() => match event {
                    Ok(Event::Apply(namespace) | Event::InitApply(namespace)) => self.add(namespace.name_any()).await,
                    // What is in a namespace goes with it.
                    Ok(Event::Delete(namespace)) => { self.namespaces.remove(&namespace.name_any()); }
                    Ok(Event::Init | Event::InitDone) => {}
                    Err(error) => tracing::debug!(%error, "the watch of namespaces broke"),
                },
            }
        }
    }

    async fn add(&mut self, namespace: String) {
        if self.namespaces.insert(namespace.clone()) {
            let pem = pem(&self.bundle.borrow_and_update());
            self.write(&namespace, &pem).await;
        }
    }

    async fn write_all(&mut self) {
        let pem = pem(&self.bundle.borrow_and_update());
        self.write_webhook(&pem).await;
        for namespace in self.namespaces.clone() {
            self.write(&namespace, &pem).await;
        }
    }

    async fn write(&mut self, namespace: &str, pem: &str) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let content = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP_TRUST}, "data": {TRUST_BUNDLE: pem}});
        let params = PatchParams::apply(MANAGER).force();
        match timeout(TIMEOUT, api.patch(CONFIG_MAP_TRUST, &params, &Patch::Apply(content))).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {
                // The namespace is gone.
                self.namespaces.remove(namespace);
            }
            Ok(Err(error)) => tracing::warn!(namespace, %error, "the trust bundle could not be written"),
            Err(_) => tracing::warn!(namespace, "the trust bundle could not be written: no answer"),
        }
    }

    /// So that the API server trusts the webhook. Each of its webhooks has an entry of its own.
    async fn write_webhook(&self, pem: &str) {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let write = async {
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
        };
        match timeout(TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the webhook's configuration could not be written"),
            Err(_) => tracing::warn!("the webhook's configuration could not be written: no answer"),
        }
    }
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
    use super::*;

    #[test]
    fn the_bundle_is_read_as_it_was_written() {
        weft_mesh::tls::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let ca = crate::authority::ca::Ca::open_or_create(dir.path(), &"weft.test".parse().unwrap()).unwrap();
        assert_eq!(TrustBundle::from_pem(pem(ca.bundle()).as_bytes()).unwrap(), *ca.bundle());
    }
}
