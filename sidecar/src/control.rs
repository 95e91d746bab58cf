//! The control side: everything that is not on a call's path, on the main thread.
//!
//! [`identity`] gets and renews this sidecar's certificate, [`health`] checks the local service, [`announce`] announces
//! it to the registry with its [`contracts`], for which [`asking`] may have to ask it, and [`discovery`] learns about the services that are called. All of them reach the control plane
//! through [`channel`]. [`reflection`], [`admin`], [`probes`] and [`app_probes`] answer requests. Failures are retried ([`retry`]); a
//! task that ends in an error or a panic ends the process, so that its supervisor starts a new one.

mod admin;
mod announce;
mod app_probes;
mod asking;
pub(crate) mod channel;
pub(crate) mod contracts;
mod discovery;
mod health;
mod identity;
mod probes;
pub(crate) mod reflection;
pub(crate) mod request;
mod retry;
mod serve;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{telemetry::LogFilter, tls::TrustBundle};

use self::{announce::Front, channel::ControlPlane};
use crate::{
    endpoints::catalog::DiscoveryQuestion,
    shared::{Phase, Shared},
    watchdog,
};

/// How often to check whether the registry has answered.
const ANNOUNCED_LOOK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

const NO_IDENTITY: &str = "no identity from the control plane yet";

/// What the tasks of the control side share.
pub(crate) struct Control {
    shared: Arc<Shared>,
    plane: ControlPlane,
    /// The health of the local service; [`Shared`] has it for the workers.
    health: watch::Sender<Health>,
    /// The contracts of the local service were replaced.
    contracts_changed: watch::Sender<()>,
    /// The registry has answered an announcement.
    was_announced: AtomicBool,
    /// Discovery could be asked once, or knows what an earlier run knew.
    can_discover: AtomicBool,
    log: admin::Log,
    connections: serve::Connections,
}

/// What the control side gets at the start.
pub(crate) struct Inputs {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plane: ControlPlane,
    pub(crate) bundle: TrustBundle,
    pub(crate) log: LogFilter,
    pub(crate) questions: mpsc::Receiver<DiscoveryQuestion>,
    /// Unique among the replicas of the service, in the mesh and for all time.
    pub(crate) instance: String,
    pub(crate) admin: TcpListener,
    pub(crate) metrics: TcpListener,
}

/// The tasks of the control side. Dropping it ends them.
pub(crate) struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    control: Arc<Control>,
}

impl Tasks {
    /// Starts them, on the current runtime.
    pub(crate) fn start(inputs: Inputs) -> Self {
        let Inputs { shared, plane, bundle, log, questions, instance, admin, metrics } = inputs;
        let control = Arc::new(Control {
            shared: Arc::clone(&shared),
            plane,
            health: watch::Sender::new(Health::Unspecified),
            contracts_changed: watch::Sender::new(()),
            was_announced: AtomicBool::new(false),
            can_discover: AtomicBool::new(false),
            log: admin::Log::new(log),
            connections: serve::Connections::default(),
        });
        let mut tasks = Self { set: JoinSet::new(), control: Arc::clone(&control) };
        tasks.spawn("identity", identity::run(Arc::clone(&control), bundle));
        tasks.spawn("discovery", discovery::run(Arc::clone(&control), questions));
        tasks.spawn("admin", admin::run(Arc::clone(&control), admin));
        tasks.spawn("log", admin::keep_log(Arc::clone(&control)));
        tasks.spawn("probes", probes::run(Arc::clone(&control), metrics));
        tasks.spawn("drain", note_drained(Arc::clone(&shared)));
        // Shows the watchdog that the control side makes progress.
        let beat = watchdog::beat(shared.pulses.of_control());
        tasks.spawn("beat", async {
            beat.await;
            Ok(())
        });
        if let (Some(service), Some(app)) = (&shared.local_service, shared.args.app) {
            tasks.spawn("health", health::run(Arc::clone(&control), app));
            tasks.spawn("announce", announce::run(Arc::clone(&control), Front::new(service, instance)));
            tasks.spawn("contracts", contracts::run(Arc::clone(&control)));
            if shared.args.ask_contracts {
                tasks.spawn("asking", asking::run(Arc::clone(&control), app));
            }
        }
        tasks
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits for the first task that fails, and returns its error. Dropping the future loses nothing.
    pub(crate) async fn failure(&mut self) -> anyhow::Error {
        while let Some(ended) = self.set.join_next().await {
            match ended {
                Ok((name, Ok(()))) => tracing::debug!(task = name, "the task is done"),
                Ok((name, Err(error))) => return error.context(format!("the task `{name}` failed")),
                Err(error) => {
                    self.control.look_at(&error);
                    return anyhow::Error::new(error).context("a task of the control side panicked");
                }
            }
        }
        std::future::pending().await
    }

    /// Ready when this sidecar has an identity.
    pub(crate) fn has_identity(&self) -> impl Future<Output = ()> + use<> {
        let control = Arc::clone(&self.control);
        async move { drop(control.plane.ready().await) }
    }

    /// Ready when the registry knows this sidecar's endpoint, if it has one.
    pub(crate) fn is_announced(&self) -> impl Future<Output = ()> + use<> {
        let control = Arc::clone(&self.control);
        async move {
            while control.shared.local_service.is_some() && !control.was_announced.load(Relaxed) {
                tokio::time::sleep(ANNOUNCED_LOOK_INTERVAL).await;
            }
        }
    }

    /// Waits for discovery to end and ends all other tasks.
    pub(crate) async fn stop(&mut self, limit: std::time::Duration) -> anyhow::Result<()> {
        let own_end = async {
            // Discovery saves what it knows; the others may be aborted at any point.
            while let Some(ended) = self.set.join_next().await {
                match ended {
                    Ok(("discovery", _)) => break,
                    Ok(_) => {}
                    Err(error) => self.control.look_at(&error),
                }
            }
        };
        let result = tokio::time::timeout(limit, own_end).await.context("discovery did not end in time");
        self.set.shutdown().await;
        result
    }
}

async fn note_drained(shared: Arc<Shared>) -> anyhow::Result<()> {
    shared.drained().await;
    shared.is_drained.store(true, Relaxed);
    Ok(())
}

impl Control {
    fn set_local_health(&self, health: Health) {
        self.shared.set_local_health(health);
        self.health.send_replace(health);
    }

    /// The name of this sidecar in the metrics of outbound calls.
    fn caller_label(&self) -> String {
        let by_identity = || self.shared.identity.load().as_ref().map(|identity| identity.svid.id().service().clone());
        self.shared.local_service.clone().or_else(by_identity).map_or_else(String::new, |service| service.to_string())
    }

    /// Leaves discovery and takes no new inbound calls.
    fn drain(&self) {
        self.shared.advance_to(Phase::Draining);
    }

    /// Why this sidecar has not started, if it has not. It never depends on the local service, which may wait for it.
    fn unstarted_reason(&self) -> Option<&'static str> {
        self.shared.identity.load().is_none().then_some(NO_IDENTITY)
    }

    /// Why this sidecar is not ready, if it is not.
    fn unready_reason(&self) -> Option<&'static str> {
        let shared = &self.shared;
        if shared.phase() != Phase::Running {
            return Some("draining");
        }
        if *shared.is_stalled.borrow() {
            return Some("a thread makes no progress: the log says which");
        }
        match &*shared.identity.load() {
            None => return Some(NO_IDENTITY),
            Some(identity) if identity.svid.not_after() <= SystemTime::now() => {
                return Some("its certificate has expired: no other sidecar accepts a connection from it");
            }
            Some(_) => {}
        }
        // Once it could, the sidecar stays ready during an outage of the control plane.
        if !self.can_discover.load(Relaxed) {
            return Some("the control plane can't be asked for services yet");
        }
        let fronts_service = shared.local_service.is_some();
        if fronts_service && shared.local_health() != Health::Up {
            return Some("the local service is not up");
        }
        if !shared.local_terms.get().are_known {
            return Some(
                "the local service has not told its contracts: the log of its sidecar says why, and what to do",
            );
        }
        // The same holds here.
        if fronts_service && !self.was_announced.load(Relaxed) {
            return Some("not announced to the control plane yet");
        }
        None
    }

    /// Counts and logs a task's panic.
    fn look_at(&self, error: &JoinError) {
        if error.is_panic() {
            self.shared.metrics.counters.panics.fetch_add(1, Relaxed);
            tracing::error!(%error, "a task of the control side panicked");
        }
    }
}

/// Waits until a time; for ever if there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
