//! What the control plane runs on: Kubernetes, or anything else.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::{
    Args,
    authority::{ca::Ca, credentials::Credentials},
    claims::store::Backup,
    kubernetes::cluster::Cluster,
};
#[cfg(feature = "kubernetes")]
use crate::{
    claims::store::Store,
    kubernetes::api::{Api, webhook::Webhook},
};

/// See the module.
pub(super) enum Platform {
    Any,
    #[cfg(feature = "kubernetes")]
    Kubernetes(Box<Kubernetes>),
    /// One that a test makes, when it is known.
    #[cfg(test)]
    Made(BoxFuture<'static, ()>),
}

#[cfg(feature = "kubernetes")]
pub(super) struct Kubernetes {
    api: Api,
    webhook: Option<(tokio::net::TcpListener, crate::kubernetes::inject::Config)>,
}

/// What is done on other threads for this platform, whoever asks for it.
#[cfg(feature = "kubernetes")]
pub(super) const WORK_OF_WEBHOOK: usize = crate::kubernetes::api::webhook::WORK;
#[cfg(not(feature = "kubernetes"))]
pub(super) const WORK_OF_WEBHOOK: usize = 0;

/// Runs beside the ports of the control plane; ends when it fails, or with them.
pub(super) type Beside = BoxFuture<'static, anyhow::Result<()>>;

impl Platform {
    #[cfg(not(feature = "kubernetes"))]
    pub(super) async fn find(args: &Args) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !args.kubernetes,
            "--kubernetes: this program was built without the cargo feature `kubernetes`"
        );
        Ok(Self::Any)
    }

    /// On Kubernetes: connects, and fills the state folder.
    #[cfg(feature = "kubernetes")]
    pub(super) async fn find(args: &Args) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        if !args.kubernetes {
            return Ok(Self::Any);
        }
        let webhook = match args.webhook {
            Some(address) => {
                let config = Webhook::configuration(args.inject_config.as_deref())?;
                let listener = tokio::net::TcpListener::bind(address).await;
                Some((listener.with_context(|| format!("can't listen on {address} (--webhook)"))?, config))
            }
            None => None,
        };
        let api = Api::connect().await?;
        api.keep_ca(&args.state_dir, &args.trust_domain).await?;
        api.restore_claims(&Store::open(&args.state_dir, &args.trust_domain)?).await?;
        Ok(Self::Kubernetes(Box::new(Kubernetes { api, webhook })))
    }

    /// Where the claims are kept as well, if the state folder does not outlive this process.
    pub(super) fn backup(&self) -> Option<Arc<dyn Backup>> {
        match self {
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => Some(kubernetes.api.claims()),
            _ => None,
        }
    }

    /// Starts what belongs to the platform. On Kubernetes it returns when the cluster is known.
    pub(super) async fn start(
        self,
        ca: &Arc<Ca>,
        credentials: &Credentials,
        stopping: CancellationToken,
    ) -> (Option<Arc<Cluster>>, Beside) {
        match self {
            Self::Any => {
                let _ = (ca, credentials);
                (None, Box::pin(until(stopping)))
            }
            #[cfg(test)]
            Self::Made(known) => {
                known.await;
                (None, Box::pin(until(stopping)))
            }
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => {
                let Kubernetes { api, webhook } = *kubernetes;
                let keeping = api.keep_trust(credentials.bundle());
                let ca = Arc::clone(ca);
                let stopped = stopping.clone();
                let answering = async move {
                    match webhook {
                        Some((listener, config)) => {
                            Webhook { listener, config }.serve(&ca, stopped.cancelled_owned()).await
                        }
                        None => until(stopped).await,
                    }
                };
                let answering = tokio::spawn(answering);
                let keeping = tokio::spawn(keeping);
                let (cluster, watches) = api.watch().await;
                tracing::info!("knows the pods, Services and EndpointSlices of the cluster");
                let beside = async move {
                    let _watches = watches;
                    let answered = answering.await;
                    keeping.abort();
                    answered?
                };
                (Some(Arc::new(cluster)), Box::pin(beside))
            }
        }
    }
}

async fn until(stopping: CancellationToken) -> anyhow::Result<()> {
    stopping.cancelled().await;
    Ok(())
}
