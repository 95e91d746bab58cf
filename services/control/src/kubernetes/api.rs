//! What the control plane reads from the API server and writes there.
//!
//! - [`watch`]: pods, Services and EndpointSlices.
//! - [`tokens`]: reviews of tokens.
//! - [`secret`]: the CA, which is kept in a Secret.
//! - [`claims`]: the claims, which are kept in a ConfigMap.
//! - [`lease`]: which of several control planes acts.
//! - [`events`]: Events of pods that get no sidecar although a label asks for one, and of Services with a wrong annotation.
//! - [`policies`]: the rules for who may call, as custom resources.
//! - [`trust`]: the trust bundle, as a ConfigMap where pods get a sidecar, and in the webhook's configuration.
//! - [`webhook`]: the port that adds sidecars to pods.

mod claims;
mod events;
mod lease;
mod policies;
mod secret;
mod seen;
mod tokens;
mod trust;
mod watch;
pub(crate) mod webhook;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use kube::{Client, Config};
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};
use weft_mesh::{identity::TrustDomain, tls::TrustBundle};

pub(crate) use self::lease::Lease;
use self::{lease::Held, tokens::Reviewer, watch::Watches};
use super::{cluster::Cluster, workloads::Workloads};
use crate::{
    claims::store::{Backup, Store},
    rules::Rules,
};

/// How long until all objects of a kind are listed again, to learn of those that there was no room for.
const LIST_PAUSE: Duration = Duration::from_secs(60);
/// Our name for the API server's record of who wrote which field.
const MANAGER: &str = "weft-control";
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent while an answer is awaited. A watch may be, for the 290 s that it takes; after
/// this, the API server has vanished without a word.
const SILENCE: Duration = Duration::from_secs(300);
/// How long until something is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// The connection to the API server.
#[derive(Clone)]
pub(crate) struct Api(Client);

impl Api {
    /// Connects with the service account of this pod, or else as `KUBECONFIG` says.
    ///
    /// # Errors
    /// Neither is there.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let config = Config::infer().await.context(
            "--kubernetes: there is no API server to talk to: run it in a pod with a service account, or set KUBECONFIG",
        )?;
        let client = Client::try_from(limited(config));
        Ok(Self(client.context("--kubernetes: the API server's configuration can't be used")?))
    }

    /// Fills the state folder with the CA in the Secret, or makes both. Waits for the API server for as long as it takes.
    ///
    /// # Errors
    /// The folder can't be written, or what the Secret has is no CA of this trust domain.
    pub(crate) async fn keep_ca(&self, state_dir: &Path, trust_domain: &TrustDomain) -> anyhow::Result<()> {
        secret::keep(&self.0, state_dir, trust_domain).await
    }

    /// Writes the trust bundle where it is needed; never ends.
    pub(crate) fn keep_trust(&self, bundle: Receiver<TrustBundle>) -> impl Future<Output = ()> + use<> {
        trust::keep(self.0.clone(), bundle)
    }

    /// Fills the store with the claims in the ConfigMap, if there is one. Waits for the API server for as long as it takes.
    ///
    /// # Errors
    /// The store can't be written, or what the ConfigMap has are no claims of this trust domain.
    pub(crate) async fn restore_claims(&self, store: &Store) -> anyhow::Result<()> {
        claims::restore(&self.0, store).await
    }

    /// The ConfigMap with the claims, which only who acts may write.
    pub(crate) fn claims(&self, held: Option<Held>) -> Arc<dyn Backup> {
        Arc::new(claims::InConfigMap::new(self.0.clone(), held))
    }

    /// The Lease of the control plane that acts, for this pod.
    pub(crate) fn lease(&self, pod: &str) -> Lease {
        Lease::new(&self.0, pod)
    }

    /// Begins to watch. Returns when all that is there now is known, so that nothing counts as missing that is only not
    /// read yet. The watches end when the last part is dropped.
    ///
    /// # Errors
    /// A watch has ended.
    pub(crate) async fn watch(&self, rules: &Arc<Rules>) -> anyhow::Result<(Cluster, Watches)> {
        let workloads = Arc::new(Workloads::default());
        let watches = Watches::start(&self.0, &workloads, rules).await?;
        Ok((Cluster { workloads, tokens: Box::new(Reviewer(self.0.clone())) }, watches))
    }
}

/// Waits until a time; for ever if there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// No wait for the API server is without a limit.
fn limited(mut config: Config) -> Config {
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(SILENCE);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a list from a machine that has vanished is awaited for ever, and nothing new is learned.
    #[test]
    fn an_answer_of_the_api_server_is_not_awaited_for_ever() {
        let config = limited(Config::new("https://127.0.0.1:6443".parse().unwrap()));
        assert!(config.read_timeout.is_some_and(|limit| limit > Duration::from_secs(290)), "longer than a watch");
        assert_eq!(config.connect_timeout, Some(TIMEOUT));
    }
}
