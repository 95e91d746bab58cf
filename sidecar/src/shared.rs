//! What the control side and the workers share. The control side writes it, workers read it without a lock.

pub(crate) mod budget;
pub(crate) mod contracts;
pub(crate) mod survey;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{
    identity::{IdentityError, SpiffeId},
    names::ServiceName,
    telemetry::SpanSink,
    tls::{self, ClientCertificate, Svid, TlsSetupError, TrustBundle, client_config, server_config},
};

use crate::{
    args::{Args, Setting},
    endpoints::catalog::Catalog,
    shared::{
        budget::Budget,
        contracts::{Contracts, LocalTerms},
        survey::Surveyor,
    },
    telemetry::{metrics::Metrics, span::Sampling},
    watchdog::Pulses,
};

/// How long callers have to learn that this endpoint leaves. Until then new connections are accepted.
const SHORTEST_DRAIN: Duration = Duration::from_millis(500);
/// How often the drain checks whether the last call has ended.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct Shared {
    pub(crate) args: Args,
    /// Where each of `args` comes from.
    pub(crate) settings: Vec<Setting>,
    /// The local service: the one that this sidecar is beside.
    pub(crate) local_service: Option<ServiceName>,
    /// The contracts of the local service, with the policy for calls to it, and who may call it.
    pub(crate) local_terms: LocalTerms,
    /// `None` until the control plane has issued one.
    pub(crate) identity: ArcSwapOption<Identity>,
    pub(crate) catalog: Catalog,
    /// Asks the workers for their state.
    pub(crate) surveyor: Surveyor,
    /// Shows the watchdog that each thread makes progress.
    pub(crate) pulses: Pulses,
    pub(crate) metrics: Arc<Metrics>,
    /// For the memory that all connections hold.
    pub(crate) budget: Arc<Budget>,
    /// Where finished spans go. `None` if spans are not exported.
    pub(crate) spans: Option<SpanSink>,
    pub(crate) sampling: Sampling,
    pub(crate) phase: watch::Sender<Phase>,
    /// Calls that run in the local service.
    pub(crate) inbound_in_flight: AtomicUsize,
    /// Wakes the health check of the local service when a call to it went wrong.
    pub(crate) check_health_now: Notify,
    pub(crate) is_control_plane_connected: AtomicBool,
    /// Answers reflection on the outbound port.
    pub(crate) reflection: tonic::service::Routes,
    pub(crate) started: Instant,
    /// Another sidecar has taken the ports over.
    pub(crate) is_replaced: AtomicBool,
    /// No call runs in the local service any more, and none will start.
    pub(crate) is_drained: AtomicBool,
    /// A thread makes no progress: see [`crate::watchdog`].
    pub(crate) is_stalled: watch::Sender<bool>,
    local_health: AtomicU8,
}

/// The phase of a sidecar's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Takes calls both ways.
    Running,
    /// Has left discovery and takes no new inbound calls. Running ones may end, outbound calls go on.
    Draining,
    /// Takes no calls.
    Stopping,
}

impl Shared {
    /// The result of the last health check of the local service.
    pub(crate) fn local_health(&self) -> Health {
        Health::try_from(i32::from(self.local_health.load(Relaxed))).unwrap_or(Health::Unspecified)
    }

    pub(crate) fn set_local_health(&self, health: Health) {
        self.local_health.store(health as u8, Relaxed);
    }

    /// How messages name the local service.
    pub(crate) fn local_name(&self) -> &str {
        self.local_service.as_ref().map_or("the service", ServiceName::as_str)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Ready when the sidecar has reached `phase`.
    pub(crate) async fn reached(&self, phase: Phase) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Ready when a thread makes no progress; for `false`, when all threads do.
    pub(crate) async fn stalled(&self, is_stalled: bool) {
        // The sender lives as long as `self`.
        let _ = self.is_stalled.subscribe().wait_for(|now| *now == is_stalled).await;
    }

    /// Ready when a listener that lives until `last` must close. An inbound one stays open a little longer, for callers
    /// that have not learned yet that this endpoint leaves.
    pub(crate) async fn closed(&self, last: Phase) {
        self.reached(last).await;
        if last == Phase::Draining {
            tokio::select! {
                () = sleep(SHORTEST_DRAIN) => {}
                () = self.reached(Phase::Stopping) => {}
            }
        }
    }

    /// Ready when no call runs in the local service any more, and callers have had time to learn that it takes none.
    pub(crate) async fn drained(&self) {
        self.reached(Phase::Draining).await;
        sleep(SHORTEST_DRAIN).await;
        while self.inbound_in_flight.load(Relaxed) > 0 {
            sleep(DRAIN_LOOK_INTERVAL).await;
        }
    }

    /// Advances to `phase`, unless the sidecar is past it.
    pub(crate) fn advance_to(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let is_later = *now < phase;
            *now = phase.max(*now);
            is_later
        });
    }
}

/// The parts of [`Shared`] that are known before it is made.
pub(crate) struct Start {
    pub(crate) args: Args,
    pub(crate) settings: Vec<Setting>,
    pub(crate) local_service: Option<ServiceName>,
    pub(crate) local_contracts: Contracts,
    pub(crate) catalog: Catalog,
    pub(crate) surveyor: Surveyor,
    pub(crate) spans: Option<SpanSink>,
    pub(crate) reflection: tonic::service::Routes,
}

impl From<Start> for Shared {
    fn from(start: Start) -> Self {
        Self {
            sampling: Sampling {
                threshold: weft_mesh::trace_context::threshold_of(start.args.sample_ratio),
                is_wanted: start.spans.is_some(),
            },
            budget: Arc::new(Budget::new(start.args.memory)),
            pulses: Pulses::new(start.args.workers),
            local_terms: LocalTerms::new(start.local_contracts, !start.args.ask_contracts),
            args: start.args,
            settings: start.settings,
            local_service: start.local_service,
            identity: ArcSwapOption::empty(),
            catalog: start.catalog,
            surveyor: start.surveyor,
            metrics: Arc::default(),
            spans: start.spans,
            phase: watch::channel(Phase::Running).0,
            inbound_in_flight: AtomicUsize::new(0),
            check_health_now: Notify::new(),
            is_control_plane_connected: false.into(),
            reflection: start.reflection,
            started: Instant::now(),
            is_replaced: false.into(),
            is_drained: false.into(),
            is_stalled: watch::channel(false).0,
            local_health: AtomicU8::new(Health::Unspecified as u8),
        }
    }
}

/// Who this sidecar is, and the TLS configurations that follow from it.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) svid: Svid,
    pub(crate) bundle: TrustBundle,
    pub(crate) server: Arc<ServerConfig>,
    /// One for each peer, as a configuration is bound to the identity that it expects.
    clients: std::sync::Mutex<HashMap<SpiffeId, Arc<ClientConfig>>>,
}

impl Identity {
    pub(crate) fn new(svid: Svid, bundle: TrustBundle) -> Result<Self, TlsSetupError> {
        let server = server_config(&svid, &bundle, ClientCertificate::Required)?;
        Ok(Self { svid, bundle, server, clients: Default::default() })
    }

    /// When a connection to a peer with this chain must end: when the first certificate of either side expires.
    pub(crate) fn connection_end(&self, peer: &[CertificateDer<'_>]) -> Result<SystemTime, IdentityError> {
        Ok(tls::expiry(peer)?.min(self.svid.not_after()))
    }

    /// The configuration for connections to a peer. It takes a lock: call it once per connection, not once per call.
    pub(crate) fn client(&self, expected: &SpiffeId) -> Result<Arc<ClientConfig>, TlsSetupError> {
        let mut clients = self.clients.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(config) = clients.get(expected) {
            return Ok(Arc::clone(config));
        }
        let config = client_config(Some(&self.svid), &self.bundle, expected.clone())?;
        clients.insert(expected.clone(), Arc::clone(&config));
        Ok(config)
    }
}
