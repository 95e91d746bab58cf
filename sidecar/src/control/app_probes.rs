//! The probes of the application's containers (`--probes`), which come to the metrics port: `GET /probes/CONTAINER/KIND`.
//!
//! In a pod whose connections are redirected, or whose application listens on loopback only, the kubelet can't reach the
//! application. So the pod's probes name this port, and the sidecar asks the application in the kubelet's place, as the
//! kubelet would: [`http`], [`connect`], [`grpc`].
//!
//! Anybody who reaches the port can ask. Nothing of what is asked comes from the request: the flag has it. One run of a
//! probe is made at a time, and whoever asks meanwhile, or right after it, shares its answer. A run goes on if the one who
//! asked has gone, so nobody can keep an answer from others. A hook is made only while this sidecar drains, since it may
//! end the application: see [`ProbeKind::PreStop`].

mod connect;
mod grpc;
mod http;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::{
    sync::Mutex,
    task::JoinError,
    time::{Instant, timeout},
};
use weft_mesh::limits;

use self::connect::Target;
use super::Control;
use crate::{
    args::{How, Probe, ProbeKind},
    shared::Phase,
};

/// All probes of the pod.
pub(super) struct AppProbes {
    control: Arc<Control>,
    of: BTreeMap<(String, ProbeKind), Probed>,
}

impl AppProbes {
    pub(super) fn new(control: Arc<Control>) -> Arc<Self> {
        let args = &control.shared.args;
        let pod = args.advertise.map(|advertise| advertise.ip());
        let probes = args.probes.iter().flat_map(|probes| &probes.0);
        let of = probes
            .map(|((container, kind), probe)| ((container.clone(), *kind), Probed::new(container, *kind, probe, pod)));
        let of = of.collect();
        Arc::new(Self { control, of })
    }
}

/// Answers a probe.
pub(super) async fn answer(
    State(probes): State<Arc<AppProbes>>,
    Path((container, kind)): Path<(String, String)>,
) -> Response {
    let kind = ProbeKind::read(&kind);
    let Some(probed) = kind.and_then(|kind| probes.of.get(&(container, kind))) else {
        return (StatusCode::NOT_FOUND, "the pod has no such probe\n").into_response();
    };
    if probed.kind == ProbeKind::PreStop {
        // The kubelet tells all containers at once that the pod is deleted, the sidecar among them.
        let is_draining = probes.control.shared.reached(Phase::Draining);
        if timeout(limits::PRE_STOP_WAIT, is_draining).await.is_err() {
            return (StatusCode::SERVICE_UNAVAILABLE, "the pod is not being deleted\n").into_response();
        }
    }
    match probed.outcome(&|error| probes.control.look_at(error)).await {
        Ok(()) => "ok\n".into_response(),
        // Anybody can ask; why it failed is in the log.
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the probe failed\n").into_response(),
    }
}

/// Why a probe failed, if it did. Shared by all who asked.
type Outcome = Result<(), Arc<str>>;

/// One probe, and how it went.
struct Probed {
    container: Arc<str>,
    kind: ProbeKind,
    probe: Arc<Probe>,
    target: Target,
    /// When the last run ended. Locked during a run.
    last: Arc<Mutex<Option<(Instant, Outcome)>>>,
}

impl Probed {
    fn new(container: &str, kind: ProbeKind, probe: &Probe, pod: Option<IpAddr>) -> Self {
        let target = Target { pod };
        Self { container: container.into(), kind, probe: Arc::new(probe.clone()), target, last: Arc::default() }
    }

    /// How a run goes that was made after the question, or right before it. Dropping the future changes nothing.
    async fn outcome(&self, look_at: &(dyn Fn(&JoinError) + Sync)) -> Outcome {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((ended, outcome)) = &*last
            && (self.kind == ProbeKind::PreStop || ended.elapsed() < limits::APP_PROBE_PAUSE)
        {
            return outcome.clone();
        }
        let (probe, target) = (Arc::clone(&self.probe), self.target);
        let (container, kind) = (Arc::clone(&self.container), self.kind);
        // A task of its own, so that it ends although the one who asked may be gone. It has a time limit.
        let run = tokio::spawn(async move {
            let outcome = run(&probe, target).await.map_err(Arc::<str>::from);
            let is_news = last.as_ref().is_none_or(|(_, before)| before.is_ok() != outcome.is_ok());
            match &outcome {
                Err(why) if is_news => tracing::info!(%container, kind = kind.as_str(), why = %why, "a probe fails"),
                Ok(()) if is_news => tracing::info!(%container, kind = kind.as_str(), "a probe succeeds"),
                _ => {}
            }
            *last = Some((Instant::now(), outcome.clone()));
            outcome
        });
        run.await.unwrap_or_else(|error| {
            look_at(&error);
            Err("the probe could not be made".into())
        })
    }
}

/// Asks the application once.
async fn run(probe: &Probe, target: Target) -> Result<(), String> {
    let asked = async {
        match &probe.how {
            How::Http(of) => http::get(of, probe.port, target).await,
            How::Tcp => target.connect(probe.port).await.map(drop),
            How::Grpc(service) => grpc::check(service, probe.port, target).await,
        }
    };
    let limit: Duration = probe.timeout;
    timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}
