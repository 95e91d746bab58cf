//! What is known about the services that this sidecar calls. Discovery writes it, workers read it without waiting.
//!
//! A worker looks a service up in the current [`View`]. Only if the service is not there, the worker sends a
//! [`DiscoveryQuestion`] to discovery and waits a limited time for the first snapshot.

use std::{
    cell::OnceCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
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
    telemetry::LogLimit,
};

use crate::{
    policy::{breaker::Breaker, fallback::Fallback},
    telemetry::metrics::{CallMetrics, OTHER},
    time::moment::Moment,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Catalog {
    view: ArcSwap<View>,
    /// Counts views, so that a cached lookup can be checked cheaply.
    version: AtomicU64,
    changes: watch::Sender<()>,
    questions: mpsc::Sender<DiscoveryQuestion>,
}

/// All that is known at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) services: HashMap<ServiceName, Arc<Service>>,
    /// Protobuf services by their full names.
    pub(crate) contracts: HashMap<Box<str>, Arc<Service>>,
    /// Services by the addresses at which programs that know nothing of the mesh call them.
    pub(crate) addresses: HashMap<SocketAddr, Arc<Service>>,
}

/// A service as its callers see it. A change makes a new value; what must outlive a change is behind an `Arc`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    pub(crate) protocol: Protocol,
    pub(crate) version: Version,
    pub(crate) policy: Arc<ServicePolicy>,
    /// In any state of health.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// The addresses at which programs that know nothing of the mesh call it.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) breaker: Arc<Breaker>,
    /// By path: `/shop.users.v1.Users/Create`.
    pub(crate) methods: Arc<HashMap<Box<str>, Arc<Method>>>,
    /// For paths that no descriptor has.
    pub(crate) other: Arc<Method>,
    /// When it was last called, in seconds since the sidecar's start.
    pub(crate) last_used: Arc<AtomicU64>,
    /// When the control plane last sent news of it. If it was read from the disk, that was before this run.
    pub(crate) heard: Instant,
    /// Whether the control plane knows all endpoints. From then on its list replaces this one; before, it adds to it.
    pub(crate) is_complete: bool,
    /// Since when it is known here without an endpoint that was certainly up. `None` once there was one.
    pub(crate) starts_since: Option<Instant>,
}

impl Service {
    /// The time since the last call to it.
    pub(crate) fn unused(&self, now: Moment) -> Duration {
        now.since_start().saturating_sub(Duration::from_secs(self.last_used.load(Relaxed)))
    }

    /// Whether it was most likely just started and was never up yet.
    pub(crate) fn is_starting(&self, now: Moment) -> bool {
        self.starts_since.is_some_and(|since| now.since(Moment::of(since)) < limits::STARTING_TIME)
    }

    /// Notes that it is called.
    pub(crate) fn used(&self, now: Moment) {
        // Only once a second: a store takes the cache line from the other workers.
        let second = now.since_start().as_secs();
        if self.last_used.load(Relaxed) != second {
            self.last_used.store(second, Relaxed);
        }
    }

    /// The method of a path.
    pub(crate) fn method(&self, path: &str) -> &Arc<Method> {
        self.methods.get(path).unwrap_or(&self.other)
    }
}

/// Where calls of one method go: what is the same for each of them. Routes form a table: from one that cannot take a call
/// it goes on to the next. A connection keeps the first of them for its next calls, and with it the others.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) service: Arc<Service>,
    pub(crate) method: Arc<Method>,
    /// Where the method's fallback leads, once a call had to go there.
    pub(crate) fallback: OnceCell<Rc<Route>>,
}

impl Route {
    /// The route of calls of a method, by its path without a query.
    pub(crate) fn new(service: Arc<Service>, path: &str) -> Rc<Self> {
        let method = Arc::clone(service.method(path));
        Rc::new(Self { service, method, fallback: OnceCell::new() })
    }
}

/// One method of a service, with all that can be prepared before a call.
#[derive(Debug)]
pub(crate) struct Method {
    /// `shop.users.v1.Users/Create`; `_other` for methods that no descriptor has. Shared with the spans of its calls.
    pub(crate) name: Arc<str>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idempotency: Idempotency,
    /// What answers a call that the service cannot take. In a box, as hardly any method has one.
    pub(crate) fallback: Option<Box<Fallback>>,
    /// A call that is not answered after this time is sent to another endpoint as well.
    pub(crate) hedge_after: Option<Duration>,
    pub(crate) metrics: Arc<CallMetrics>,
}

impl Method {
    /// Its name, if a descriptor has it.
    pub(crate) fn known_name(&self) -> Option<&Arc<str>> {
        (&*self.name != OTHER).then_some(&self.name)
    }
}

/// One replica of a service.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Unique in this process. Workers look up their connections by it.
    pub(crate) number: u64,
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    /// The address without its port, as text: shared with the spans of its calls.
    pub(crate) ip: Arc<str>,
    pub(crate) spiffe_id: SpiffeId,
    health: AtomicU8,
    /// The control plane has lost the stream of the endpoint's sidecar and knows no more: see [`judge_silent`].
    is_silent: AtomicBool,
    /// Silent, and a connection to it could not be made.
    is_lost: AtomicBool,
    pub(crate) breaker: Breaker,
    pub(crate) in_flight: AtomicU32,
    pub(crate) connections: AtomicU32,
    shunned_until_ms: AtomicU64,
}

/// For how long an endpoint that did not take a call is shunned.
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

    /// Sets the health that the registry reports. `is_silent` says that the control plane has lost the stream of the
    /// endpoint's sidecar. For an endpoint that comes back, the breaker is closed and shunning ends.
    pub(crate) fn set_health(&self, health: Health, is_silent: bool) {
        let before = self.health.swap(health as u8, Relaxed);
        let was_silent = self.is_silent.swap(is_silent, Relaxed);
        if !is_silent || !was_silent {
            self.is_lost.store(false, Relaxed);
        }
        if health == Health::Up && !is_silent && (before != Health::Up as u8 || was_silent) {
            reset(&self.breaker);
            self.shunned_until_ms.store(0, Relaxed);
        }
    }

    /// Whether the control plane has lost the stream of the endpoint's sidecar. If so, [`judge_silent`] sets its
    /// health.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent.load(Relaxed)
    }

    /// Prefers other endpoints for a while, as this one did not take a call.
    pub(crate) fn shun(&self, now: Moment) {
        self.shunned_until_ms.store(now.millis() + SHUN_MS, Relaxed);
    }

    /// Whether other endpoints are preferred.
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

/// Closes the breaker of what was replaced, or is up again. It may have been closed all the time.
pub(crate) fn reset(breaker: &Breaker) {
    // The registry may say so as often as it likes.
    static LINES: LogLimit = LogLimit::new();
    if let Some(change) = breaker.close()
        && LINES.take().is_some()
    {
        tracing::warn!("{}", breaker.describe(change));
    }
}

/// Decides which silent endpoints of a service are called. If most endpoints are silent, the control plane or the
/// network may be at fault rather than the endpoints. So they stay in use (compare Envoy's panic threshold), except for
/// those to which no connection can be made. If none but those are left, they are used.
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
pub(crate) struct DiscoveryQuestion {
    pub(crate) asked: Asked,
    pub(crate) answer: oneshot::Sender<Result<Arc<Service>, Unknown>>,
}

/// How a service is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Service(ServiceName),
    Contract(Box<str>),
    /// By the original destination of a redirected connection.
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
    /// The mesh has no such service.
    NotFound { closest: Option<String> },
    /// The control plane did not answer in time, and nothing is known from before.
    Away,
    /// Too many questions wait for discovery.
    Full,
}

impl Catalog {
    /// An empty catalog, and the receiver of its questions.
    pub(crate) fn new() -> (Self, mpsc::Receiver<DiscoveryQuestion>) {
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

    /// Replaces the view. Only discovery calls this.
    pub(crate) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        // After the view is stored: a reader that sees the new version sees at least this view.
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

    /// Notifies of each new view.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The version of the current view, or of one before it.
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

    /// The service. Asks discovery if it is not known yet, and waits at most [`limits::DISCOVERY_WAIT`].
    pub(crate) async fn find(&self, asked: Asked) -> Result<Arc<Service>, Unknown> {
        if let Some(service) = self.known(&asked) {
            return Ok(service);
        }
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(DiscoveryQuestion { asked, answer }).map_err(|_| Unknown::Full)?;
        match tokio::time::timeout(limits::DISCOVERY_WAIT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Unknown::Away),
        }
    }
}
