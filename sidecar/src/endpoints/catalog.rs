//! What is known of the services that this sidecar calls: read by workers without waiting, written by discovery.
//!
//! A worker looks a service up in the current [`View`]; only for one that is not in it does it put a [`Question`] to
//! discovery and wait, bounded, for the first snapshot.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use weft_contracts::weft::discovery::v1::{Health, Protocol, Version};
use weft_mesh::{
    identity::SpiffeId,
    limits,
    names::ServiceName,
    policy::{Idempotency, ServicePolicy},
};

use crate::{
    policy::breaker::Breaker,
    telemetry::metrics::{CallMetrics, OTHER},
    time::moment::Moment,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Catalog {
    view: ArcSwap<View>,
    /// Counts views, so that who has looked something up can tell cheaply whether it still holds.
    version: AtomicU64,
    changes: watch::Sender<()>,
    questions: mpsc::Sender<Question>,
}

/// All that is known at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) services: HashMap<ServiceName, Arc<Service>>,
    /// Protobuf services by their full names.
    pub(crate) contracts: HashMap<Box<str>, Arc<Service>>,
    /// Where they are called by who knows nothing of the mesh.
    pub(crate) addresses: HashMap<SocketAddr, Arc<Service>>,
}

/// A service as its callers see it. A change of it makes another; what must outlive a change is behind an `Arc`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    pub(crate) protocol: Protocol,
    pub(crate) version: Version,
    pub(crate) policy: Arc<ServicePolicy>,
    /// In any state of health.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// Where it is called by who knows nothing of the mesh.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) breaker: Arc<Breaker>,
    /// By path: `/shop.users.v1.Users/Create`.
    pub(crate) methods: Arc<HashMap<Box<str>, Arc<Method>>>,
    /// What holds for a path that no descriptor knows.
    pub(crate) other: Arc<Method>,
    /// When it was last called, in seconds since the sidecar's start.
    pub(crate) last_used: Arc<AtomicU64>,
    /// When the control plane last said something of it, in this run or, for what was read from the disk, before it.
    pub(crate) heard: Instant,
    /// The control plane has said all that there is. From then on its word replaces ours, before that it adds.
    pub(crate) is_complete: bool,
    /// Since when it is known here without an endpoint that was surely up; `None` once there was one.
    pub(crate) starts_since: Option<Instant>,
}

impl Service {
    /// How long it has not been called.
    pub(crate) fn unused(&self, now: Moment) -> Duration {
        now.since_start().saturating_sub(Duration::from_secs(self.last_used.load(Relaxed)))
    }

    /// Whether it most likely was just started, and was not up yet.
    pub(crate) fn is_starting(&self, now: Moment) -> bool {
        self.starts_since.is_some_and(|since| now.since(Moment::of(since)) < limits::STARTING_TIME)
    }

    /// Notes that it is called.
    pub(crate) fn used(&self, now: Moment) {
        // Written once a second only: a store takes the line from the other workers.
        let second = now.since_start().as_secs();
        if self.last_used.load(Relaxed) != second {
            self.last_used.store(second, Relaxed);
        }
    }

    /// What holds for a path.
    pub(crate) fn method(&self, path: &str) -> &Arc<Method> {
        self.methods.get(path).unwrap_or(&self.other)
    }
}

/// Where a call goes, as far as it is the same for each of its kind.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) service: Arc<Service>,
    pub(crate) method: Arc<Method>,
}

/// One method of a service, with all that can be prepared before a call.
#[derive(Debug)]
pub(crate) struct Method {
    /// `shop.users.v1.Users/Create`; `_other` for what no descriptor knows. Shared with the spans of its calls.
    pub(crate) name: Arc<str>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idempotency: Idempotency,
    pub(crate) metrics: Arc<CallMetrics>,
}

impl Method {
    /// Its name, if a descriptor knows it.
    pub(crate) fn known_name(&self) -> Option<&Arc<str>> {
        (&*self.name != OTHER).then_some(&self.name)
    }
}

/// One replica of a service.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Unique in this process: what a worker's connections are kept by.
    pub(crate) number: u64,
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    /// The address without its port, as text: shared with the spans of its calls.
    pub(crate) ip: Arc<str>,
    pub(crate) spiffe_id: SpiffeId,
    health: AtomicU8,
    /// The control plane has lost its sidecar's stream, and said no more: see [`judge_silent`].
    is_silent: AtomicBool,
    /// Silent, and no connection could be made.
    is_lost: AtomicBool,
    pub(crate) breaker: Breaker,
    pub(crate) in_flight: AtomicU32,
    pub(crate) connections: AtomicU32,
    shunned_until_ms: AtomicU64,
}

/// For how long an endpoint that did not take a call comes last.
const SHUN_MS: u64 = 1_000;

impl Endpoint {
    pub(crate) fn new(id: String, address: SocketAddr, spiffe_id: SpiffeId, health: Health, breaker: Breaker) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NUMBERS.fetch_add(1, Relaxed),
            id,
            address,
            ip: address.ip().to_string().into(),
            spiffe_id,
            health: AtomicU8::new(health as u8),
            is_silent: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            breaker,
            in_flight: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            shunned_until_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn health(&self) -> Health {
        Health::try_from(i32::from(self.health.load(Relaxed))).unwrap_or(Health::Unspecified)
    }

    /// What the registry says, and whether it is only that the control plane has lost its sidecar's stream. One that comes
    /// back is met without prejudice.
    pub(crate) fn set_health(&self, health: Health, is_silent: bool) {
        let before = self.health.swap(health as u8, Relaxed);
        let was_silent = self.is_silent.swap(is_silent, Relaxed);
        if !is_silent || !was_silent {
            self.is_lost.store(false, Relaxed);
        }
        if health == Health::Up && !is_silent && (before != Health::Up as u8 || was_silent) {
            self.breaker.close();
            self.shunned_until_ms.store(0, Relaxed);
        }
    }

    /// Whether the control plane has lost its sidecar's stream: it is up or down by the share of such endpoints alone.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent.load(Relaxed)
    }

    /// Prefers others for a while: it did not take a call.
    pub(crate) fn shun(&self, now: Moment) {
        self.shunned_until_ms.store(now.millis() + SHUN_MS, Relaxed);
    }

    /// Whether others are preferred.
    pub(crate) fn is_shunned(&self, now: Moment) -> bool {
        match self.shunned_until_ms.load(Relaxed) {
            0 => false,
            until => now.millis() < until,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.health.load(Relaxed) == Health::Up as u8
    }
}

/// Decides which silent endpoints of a service are called. When most endpoints are silent the news may be about the control
/// plane or the network rather than about them, so they stay in use (Envoy's panic threshold), and connections decide: one
/// to which none can be made counts no longer, unless nothing else is left.
pub(crate) fn judge_silent(endpoints: &[Arc<Endpoint>]) {
    let silent: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.is_silent()).collect();
    if silent.is_empty() {
        return;
    }
    let heard = endpoints.iter().filter(|endpoint| endpoint.is_up() && !endpoint.is_silent()).count();
    let is_lost = |endpoint: &Endpoint| endpoint.is_lost.load(Relaxed);
    let hopeful = silent.iter().filter(|endpoint| !is_lost(endpoint)).count();
    let are_most = hopeful * 100 > (hopeful + heard) * limits::SILENT_SHARE_PERCENT;
    for endpoint in silent {
        let is_used = if is_lost(endpoint) { hopeful + heard == 0 } else { are_most };
        endpoint.health.store(if is_used { Health::Up } else { Health::Down } as u8, Relaxed);
    }
}

/// What a worker asks discovery for.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) asked: Asked,
    pub(crate) answer: oneshot::Sender<Result<Arc<Service>, Unknown>>,
}

/// A service by its name, or by what it implements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Service(ServiceName),
    Contract(Box<str>),
    /// By where it is called.
    Address(SocketAddr),
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Contract(name) => write!(f, "contract {name}"),
            Self::Address(address) => write!(f, "service at {address}"),
        }
    }
}

/// Why there is no service to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// The mesh has none of that name.
    NotFound { closest: Option<String> },
    /// The control plane did not answer in time, and nothing is known from before.
    Away,
    /// Too many questions wait.
    Full,
}

impl Catalog {
    /// An empty catalog and the questions that are put to it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(limits::DISCOVERY_QUEUE);
        (
            Self { view: ArcSwap::default(), version: AtomicU64::new(0), changes: watch::channel(()).0, questions },
            receiver,
        )
    }

    /// What is known now.
    pub(crate) fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// Puts a new view in place. Only discovery does.
    pub(crate) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        // After the view: who sees the number sees at least that view.
        self.version.fetch_add(1, Release);
        self.changes.send_replace(());
    }

    /// Notes that no connection to an endpoint could be made.
    pub(crate) fn not_connected(&self, endpoint: &Endpoint) {
        if endpoint.is_silent()
            && !endpoint.is_lost.swap(true, Relaxed)
            && let Some(service) = self.view().services.get(endpoint.spiffe_id.service())
        {
            judge_silent(&service.endpoints);
        }
    }

    /// Says when there is another view.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Of the view that is in place, or of one before it.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// Questions that wait for discovery.
    pub(crate) fn questions_waiting(&self) -> usize {
        self.questions.max_capacity() - self.questions.capacity()
    }

    /// The service, if it is known already.
    pub(crate) fn known(&self, asked: &Asked) -> Option<Arc<Service>> {
        let view = self.view.load();
        match asked {
            Asked::Service(name) => view.services.get(name).cloned(),
            Asked::Contract(name) => view.contracts.get(&**name).cloned(),
            Asked::Address(address) => view.addresses.get(address).cloned(),
        }
    }

    /// The service, asking discovery for one that is not known yet. Waits at most [`limits::DISCOVERY_WAIT`].
    pub(crate) async fn find(&self, asked: Asked) -> Result<Arc<Service>, Unknown> {
        if let Some(service) = self.known(&asked) {
            return Ok(service);
        }
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(Question { asked, answer }).map_err(|_| Unknown::Full)?;
        match tokio::time::timeout(limits::DISCOVERY_WAIT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Unknown::Away),
        }
    }
}
