//! What the control plane runs on: Kubernetes, or anything else.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::{
    Args,
    authority::{ca::Ca, credentials::Credentials},
    claims::store::{Backup, Store},
    kubernetes::cluster::Cluster,
    rules::Rules,
};
#[cfg(feature = "kubernetes")]
use {
    super::{
        health::{self, Standing},
        listen,
    },
    crate::kubernetes::api::{
        Api, Lease,
        webhook::{Webhook, lingered},
    },
    std::env,
    tokio::{
        net::TcpListener,
        sync::{mpsc, watch},
        task::{JoinError, JoinHandle},
        time::{Duration, timeout},
    },
    tokio_util::task::AbortOnDropHandle,
};

/// How long one that has the Lease may read the cluster until it is no longer called ready.
#[cfg(feature = "kubernetes")]
const LATE: Duration = Duration::from_secs(30);
/// How long until it gives the Lease to another one.
#[cfg(feature = "kubernetes")]
const GIVEN_UP: Duration = Duration::from_secs(300);

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
    webhook: Option<(TcpListener, crate::kubernetes::inject::Config)>,
    health: Option<TcpListener>,
    /// `None` if there is no other control plane.
    lease: Option<Lease>,
}

/// What is done on other threads for this platform, whoever asks for it.
#[cfg(feature = "kubernetes")]
pub(super) const WORK_OF_WEBHOOK: usize = crate::kubernetes::api::webhook::WORK;
#[cfg(not(feature = "kubernetes"))]
pub(super) const WORK_OF_WEBHOOK: usize = 0;

/// What was started.
pub(super) struct Started {
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Runs beside the ports of the control plane; ends when it fails, or with them.
    pub(super) beside: BoxFuture<'static, anyhow::Result<()>>,
    /// What is done when all is saved: another control plane may act from then on.
    pub(super) at_last: BoxFuture<'static, ()>,
}

impl Started {
    /// Outside of a cluster.
    fn nothing(stopping: CancellationToken) -> Self {
        Self { cluster: None, beside: Box::pin(until(stopping)), at_last: Box::pin(async {}) }
    }
}

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
        if !args.kubernetes {
            return Ok(Self::Any);
        }
        let webhook = match args.webhook {
            Some(address) => {
                let config = Webhook::configuration(args.inject_config.as_deref())?;
                Some((listen(address, "--webhook").await?, config))
            }
            None => None,
        };
        let health = match args.health {
            Some(address) => Some(listen(address, "--health").await?),
            None => None,
        };
        let api = Api::connect().await?;
        api.keep_ca(&args.state_dir, &args.trust_domain).await?;
        // In a pod there may be others, even if nobody says so.
        let own = env::var("HOSTNAME").ok().filter(|_| env::var_os("KUBERNETES_SERVICE_HOST").is_some());
        let lease = args.pod.as_deref().or(own.as_deref()).map(|pod| api.lease(pod));
        Ok(Self::Kubernetes(Box::new(Kubernetes { api, webhook, health, lease })))
    }

    /// Where the claims are kept as well, if the state folder does not outlive this process.
    pub(super) fn backup(&self) -> Option<Arc<dyn Backup>> {
        match self {
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => Some(kubernetes.api.claims(kubernetes.lease.as_ref().map(Lease::held))),
            _ => None,
        }
    }

    /// Starts what belongs to the platform. On Kubernetes it returns when the cluster is known and this control plane is the
    /// one that acts; then the store has the claims of the one before.
    ///
    /// # Errors
    /// The kept claims can't be used, or `stopping` was cancelled meanwhile.
    pub(super) async fn start(
        self,
        ca: &Arc<Ca>,
        credentials: &Credentials,
        rules: &Arc<Rules>,
        store: &Store,
        stopping: CancellationToken,
    ) -> anyhow::Result<Started> {
        match self {
            Self::Any => {
                let _ = (ca, credentials, rules, store);
                Ok(Started::nothing(stopping))
            }
            #[cfg(test)]
            Self::Made(known) => {
                tokio::select! {
                    () = known => {}
                    () = stopping.cancelled() => anyhow::bail!("it was told to stop"),
                }
                Ok(Started::nothing(stopping))
            }
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => kubernetes.start(ca, credentials, rules, store, stopping).await,
        }
    }
}

#[cfg(feature = "kubernetes")]
impl Kubernetes {
    async fn start(
        self,
        ca: &Arc<Ca>,
        credentials: &Credentials,
        rules: &Arc<Rules>,
        store: &Store,
        stopping: CancellationToken,
    ) -> anyhow::Result<Started> {
        let Self { api, webhook, health, lease } = self;
        let (standing, seen) = watch::channel(Standing::Starts);
        // These do the same in each control plane, whether it acts or stands by.
        let (ca, stopped, stopped_too) = (Arc::clone(ca), stopping.clone(), stopping.clone());
        let (failing, mut failed) = mpsc::channel(1);
        let answering = tokio::spawn(async move {
            let probes = async {
                match health {
                    Some(listener) => health::answer(listener, seen, lingered(stopped.clone())).await,
                    None => stopped.cancelled().await,
                }
                anyhow::Ok(())
            };
            let pods = async {
                match webhook {
                    Some((listener, config)) => Webhook { listener, config }.serve(&ca, stopped.clone()).await,
                    None => until(stopped.clone()).await,
                }
            };
            if let Err(error) = tokio::try_join!(probes, pods) {
                let _ = failing.send(error).await;
            }
        });
        let keeping = tokio::spawn(api.keep_trust(credentials.bundle()));
        let stands_by = || {
            standing.send_replace(Standing::StandsBy);
        };
        if let Some(lease) = &lease {
            tokio::select! {
                () = lease.acquire(stands_by) => {}
                () = stopping.cancelled() => {
                    // The API server may be asking the webhook.
                    let _ = answering.await;
                    anyhow::bail!("it was told to stop");
                }
            }
        }
        let mut renewing =
            lease.clone().map(|lease| AbortOnDropHandle::new(tokio::spawn(async move { lease.renew().await })));
        // Only now: until then, another one wrote all this.
        let known = async {
            api.restore_claims(store).await?;
            let known = api.watch(rules).await?;
            tracing::info!("knows the pods, Services, EndpointSlices and policies of the cluster");
            anyhow::Ok(known)
        };
        let known = async {
            tokio::pin!(known);
            if let Ok(known) = timeout(LATE, &mut known).await {
                return known;
            }
            tracing::warn!(after = ?LATE, "holds the Lease, and can't act yet: the cluster could not be read");
            standing.send_replace(Standing::Starts);
            match timeout(GIVEN_UP - LATE, known).await {
                Ok(known) => known,
                Err(_) => Err(anyhow::anyhow!("the cluster could not be read in {GIVEN_UP:?}")),
            }
        };
        let known = tokio::select! {
            known = known => known,
            lost = is_lost(&mut renewing) => Err(lost),
            () = stopping.cancelled() => Err(anyhow::anyhow!("it was told to stop")),
        };
        let (cluster, watches) = match known {
            Ok(known) => known,
            Err(why) => {
                drop(renewing);
                if let Some(lease) = lease {
                    lease.release().await;
                }
                if stopped_too.is_cancelled() {
                    let _ = answering.await;
                }
                return Err(why);
            }
        };
        let mut renewing = renewing.map(AbortOnDropHandle::detach);
        let renews = renewing.as_ref().map(JoinHandle::abort_handle);
        let leads = lease.clone();
        let beside = async move {
            let mut watches = watches;
            standing.send_replace(Standing::Acts);
            let labelling = async {
                match leads {
                    Some(lease) => lease.keep_label().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => Ok(()),
                Some(error) = failed.recv() => Err(error),
                lost = is_lost(&mut renewing) => Err(lost),
                failed = watches.failed() => Err(failed),
                () = labelling => Ok(()),
            }
        };
        let at_last = async move {
            keeping.abort();
            if let Some(renews) = renews {
                renews.abort();
            }
            if let Some(lease) = lease {
                lease.release().await;
            }
            // The API server may still call the webhook here.
            if stopped_too.is_cancelled() {
                let _ = answering.await;
            }
        };
        Ok(Started { cluster: Some(Arc::new(cluster)), beside: Box::pin(beside), at_last: Box::pin(at_last) })
    }
}

/// Waits until another control plane acts. Dropping the future loses nothing.
#[cfg(feature = "kubernetes")]
async fn is_lost(
    renewing: &mut Option<impl Future<Output = Result<anyhow::Error, JoinError>> + Unpin>,
) -> anyhow::Error {
    match renewing {
        Some(renewing) => renewing.await.unwrap_or_else(anyhow::Error::from),
        None => std::future::pending().await,
    }
}

async fn until(stopping: CancellationToken) -> anyhow::Result<()> {
    stopping.cancelled().await;
    Ok(())
}
