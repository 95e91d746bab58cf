//! One worker's connections to endpoints and to the local service. They are kept by destination (address **and**
//! identity) and made one at a time. Another is opened when the peer's stream limit is reached; idle ones are closed.

mod open;

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use rustc_hash::FxHashMap;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    task::spawn_local,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsConnector;
use weft_mesh::{limits, tls};
use weft_wire::Usage;

use self::open::OpenConnection;
use crate::{
    endpoints::catalog::Endpoint,
    policy::retry::ConnectError,
    shared::survey::PoolSurvey,
    thread::{
        account::Counted,
        expiry::{Expiring, Listed},
        loads::Load,
        worker::Worker,
    },
    time::moment::Moment,
    transport::{
        connect::{self, NotMade, within},
        link::{
            Link, Role,
            driver::{LinkDriver, LinkError},
        },
        room::Room,
        tls_stream::TlsStream,
    },
};

/// All connections of a worker.
pub(crate) struct Pools {
    worker: Rc<Worker>,
    /// By the endpoints' numbers. The sidecar assigns them, so nobody can choose numbers that collide.
    by_endpoint: RefCell<FxHashMap<u64, Rc<Pool>>>,
}

impl Pools {
    pub(crate) fn new(worker: &Rc<Worker>) -> Self {
        Self { worker: Rc::clone(worker), by_endpoint: RefCell::default() }
    }

    /// The connections to an endpoint.
    pub(crate) fn of(&self, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let mut pools = self.by_endpoint.borrow_mut();
        let pool = pools.entry(endpoint.number).or_insert_with(|| {
            let destination = Destination::Endpoint(Arc::clone(endpoint));
            Pool::new(&self.worker, destination)
        });
        Rc::clone(pool)
    }

    /// Connects to each endpoint that calls may go to soon and that has no connection yet, so that no call waits for
    /// one.
    pub(crate) fn warm(&self, now: Moment) {
        for service in self.worker.shared.catalog.view().services.values() {
            if service.unused(now) > limits::WARM_TIME {
                continue;
            }
            // Starts at a random endpoint, so that not all sidecars warm the same ones if there are very many.
            let (first, last) = service.endpoints.split_at(fastrand::usize(..=service.endpoints.len()));
            let up = last.iter().chain(first).filter(|endpoint| endpoint.is_up() && !endpoint.is_shunned(now));
            for endpoint in up.take(limits::WARM_ENDPOINTS) {
                self.of(endpoint).warm();
            }
        }
    }

    /// Gives back the buffers that connections keep and do not use.
    pub(crate) fn shrink(&self, now: Instant) {
        self.by_endpoint.borrow().values().for_each(|pool| pool.shrink(now));
    }

    /// What the connections hold now.
    pub(crate) fn survey(&self) -> PoolSurvey {
        let mut survey = PoolSurvey::default();
        self.by_endpoint.borrow().values().for_each(|pool| survey.add(pool.usages()));
        survey
    }

    /// Closes connections that have been idle for [`limits::IDLE_CONNECTION`]. Call it now and then.
    pub(crate) fn close_idle(&self, now: Instant) {
        self.by_endpoint.borrow_mut().retain(|_, pool| pool.close_idle(now));
    }
}

/// Where connections lead.
pub(crate) enum Destination {
    /// Another sidecar, over mutual TLS.
    Endpoint(Arc<Endpoint>),
    /// The local service, in plain text over loopback.
    Local(SocketAddr),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => write!(f, "{} at {}", endpoint.spiffe_id, endpoint.address),
            Self::Local(address) => write!(f, "the service at {address}"),
        }
    }
}

/// A call that waits for a connection to be made.
type Waiting = oneshot::Sender<Result<(), ConnectError>>;

/// The connections to one destination.
pub(crate) struct Pool {
    worker: Rc<Worker>,
    destination: Destination,
    links: RefCell<Vec<Rc<Link>>>,
    /// Calls that wait for the connection that is being made; `None` while none is.
    waiting: RefCell<Option<Vec<Waiting>>>,
    /// Set at the first connection.
    load: OnceCell<Rc<Load>>,
    /// Calls that wait because all connections are full.
    room: Rc<Room>,
    /// Calls that may be cancelled on a connection before another replaces it.
    resets: Cell<u32>,
}

fn is_idle(link: &Link, now: Instant) -> bool {
    link.idle_since().is_some_and(|since| now.saturating_duration_since(since) > limits::IDLE_CONNECTION)
}

impl Pool {
    pub(crate) fn new(worker: &Rc<Worker>, destination: Destination) -> Rc<Self> {
        Rc::new(Self {
            worker: Rc::clone(worker),
            destination,
            links: RefCell::default(),
            waiting: RefCell::default(),
            load: OnceCell::new(),
            room: Rc::default(),
            resets: Cell::new(u32::MAX),
        })
    }

    /// The load that is charged for what its connections hold and, for an endpoint, also for the calls that go there.
    #[inline]
    pub(crate) fn load(&self) -> &Rc<Load> {
        self.load.get_or_init(|| match &self.destination {
            Destination::Endpoint(endpoint) => self.worker.callees.of(&endpoint.spiffe_id),
            Destination::Local(_) => Rc::clone(&self.worker.to_local),
        })
    }

    /// Whether the bytes that wait for this endpoint's service, or come from it, have reached its part of the memory.
    /// Then it gets no new calls.
    pub(crate) fn is_over_budget(&self) -> bool {
        let account = &self.worker.accounts.outbound;
        account.is_tight() && !account.takes_calls(self.load())
    }

    /// What each of its connections holds now.
    pub(crate) fn usages(&self) -> Vec<Usage> {
        self.links.borrow().iter().map(|link| link.usage()).collect()
    }

    /// Gives back the buffers that its connections keep and do not use.
    pub(crate) fn shrink(&self, now: Instant) {
        self.links.borrow().iter().for_each(|link| link.shrink(now));
    }

    /// Closes connections that have been idle for [`limits::IDLE_CONNECTION`]. False if the pool has nothing left.
    pub(crate) fn close_idle(&self, now: Instant) -> bool {
        for link in self.links.borrow().iter().filter(|link| is_idle(link, now)) {
            link.drain(now);
        }
        !self.links.borrow().is_empty() || self.waiting.borrow().is_some() || !self.room.is_free()
    }

    /// A connection with room, if there is one and no call waits for it.
    #[inline]
    pub(crate) fn ready(&self) -> Option<Rc<Link>> {
        if self.room.is_free() { self.with_room() } else { None }
    }

    /// Connects, if there is no connection yet. A call that needs it waits for it itself.
    pub(crate) fn warm(self: &Rc<Self>) {
        if self.links.borrow().is_empty() {
            let _ = self.join_connect();
        }
    }

    fn with_room(&self) -> Option<Rc<Link>> {
        let links = self.links.borrow();
        let mut with_room = links.iter().filter(|link| link.has_room() && !link.is_worn());
        if let Destination::Endpoint(_) = self.destination {
            return with_room.next().cloned();
        }
        // A single connection whose window is low may be blocked: make a second one, then take one that is not blocked.
        let found = with_room.clone().find(|link| !link.is_low());
        found.or_else(|| with_room.find(|link| links.len() > 1 && !self.is_blocked(link))).cloned()
    }

    /// Whether a connection to the local service is blocked by a call whose request the service does not read.
    fn is_blocked(&self, link: &Link) -> bool {
        matches!(self.destination, Destination::Local(_)) && link.is_blocked(self.worker.now())
    }

    /// Any connection with room: a worn one, or one whose window is used up, is better than none.
    fn worn(&self) -> Option<Rc<Link>> {
        self.links.borrow().iter().find(|link| link.has_room()).cloned()
    }

    fn congested(&self) -> Option<Rc<Link>> {
        self.links.borrow().iter().find(|link| link.is_congested()).cloned()
    }

    /// A connection with room. Makes one if there is none, or waits if the pool has as many as allowed. If the future
    /// is dropped, a connection that is being made still goes to the other calls that wait, and a turn goes to the next
    /// call.
    ///
    /// # Errors
    /// No connection could be made, or none had room within [`limits::ROOM_WAIT`].
    pub(crate) async fn link(self: &Rc<Self>) -> Result<Rc<Link>, ConnectError> {
        let end = Instant::now() + limits::ROOM_WAIT;
        let mut made = 0;
        while self.room.is_free() {
            if let Some(link) = self.with_room() {
                return Ok(link);
            }
            if let Some(link) = self.congested() {
                // Another connection would lead to the same peer, and a refusal would hit a call that did not cause the
                // flood.
                timeout_at(end, link.relieved()).await.map_err(|_| ConnectError::Full)?;
                continue;
            }
            // Other calls may fill each new connection, until there are as many as allowed.
            made += 1;
            if made > limits::CONNECTIONS_PER_ENDPOINT + CONNECTS {
                return Err(ConnectError::Failed("its connections end as soon as they are made".into()));
            }
            match (self.make().await, self.worn()) {
                (Ok(()), _) => {}
                (Err(_), Some(worn)) => return Ok(worn),
                (Err(ConnectError::Full), None) => break,
                (Err(why), None) => return Err(why),
            }
        }
        self.wait_for_room(end).await
    }

    async fn wait_for_room(self: &Rc<Self>, end: Instant) -> Result<Rc<Link>, ConnectError> {
        let Some(mut place) = self.room.queue() else {
            self.worker.shared.metrics.limit_reached("CALLS_QUEUED");
            return Err(ConnectError::Full);
        };
        loop {
            if !place.turn(end).await {
                self.worker.shared.metrics.limit_reached("ROOM_WAIT");
                return Err(ConnectError::Full);
            }
            self.worker.tick();
            let found = match self.with_room().or_else(|| self.worn()) {
                Some(link) => Some(Ok(link)),
                // A connection may have ended, so another may be made in its place.
                None => match self.make().await {
                    Ok(()) => self.with_room().map(Ok),
                    Err(ConnectError::Full) => None,
                    Err(why) => Some(Err(why)),
                },
            };
            if let Some(found) = found {
                place.served();
                if self.links.borrow().iter().map(|link| link.room()).sum::<usize>() > 1 || found.is_err() {
                    self.room.has_come();
                }
                return found;
            }
        }
    }

    /// Makes a connection, or waits for the one that is being made.
    async fn make(self: &Rc<Self>) -> Result<(), ConnectError> {
        // The sender is dropped without a result only when its worker ends.
        let made = self.join_connect()?.await;
        self.worker.tick();
        made.unwrap_or(Err(ConnectError::Failed("the sidecar is stopping".into())))
    }

    fn join_connect(self: &Rc<Self>) -> Result<oneshot::Receiver<Result<(), ConnectError>>, ConnectError> {
        let (sender, made) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        if let Some(waiting) = &mut *waiting {
            waiting.push(sender);
            return Ok(made);
        }
        if !self.has_place_for_connection() {
            return Err(ConnectError::Full);
        }
        *waiting = Some(vec![sender]);
        spawn_local(Rc::clone(self).connect());
        Ok(made)
    }

    /// Whether one more connection may be made.
    fn has_place_for_connection(&self) -> bool {
        let links = self.links.borrow();
        let all = links.iter().filter(|link| !link.is_gone()).count();
        let blocked = links.iter().filter(|link| !link.is_gone() && self.is_blocked(link)).count();
        all - blocked < limits::CONNECTIONS_PER_ENDPOINT
            && all < limits::CONNECTIONS_PER_ENDPOINT + limits::BLOCKED_CONNECTIONS
    }

    async fn connect(self: Rc<Self>) {
        let counters = &self.worker.shared.metrics.counters;
        let mut result = self.try_connect().await;
        for _ in 1..CONNECTS {
            // Most likely a new process is just replacing this endpoint's, and the next connection reaches the new one.
            if !matches!(result, Err(NotMade::Going)) {
                break;
            }
            sleep(CONNECT_PAUSE).await;
            result = self.try_connect().await;
        }
        let result = result.map_err(|why| {
            counters.upstream_connects_failed.fetch_add(1, Relaxed);
            // Callers decide how often this is tried, so the lines are limited.
            if self.worker.log_limit.take().is_some() {
                tracing::warn!("no connection to {}: {why}", self.destination);
            }
            if let Destination::Endpoint(endpoint) = &self.destination {
                self.worker.shared.catalog.not_connected(endpoint);
            }
            ConnectError::Failed(why.to_string().into())
        });
        if result.is_ok() {
            counters.upstream_connections_opened.fetch_add(1, Relaxed);
            tracing::debug!("connected to {}", self.destination);
        }
        for waiting in self.waiting.borrow_mut().take().into_iter().flatten() {
            // The receiver may be gone: a call that no longer waits.
            let _ = waiting.send(result.clone());
        }
        // If it failed, calls in the queue may have to connect themselves.
        self.room.has_come();
    }

    async fn try_connect(self: &Rc<Self>) -> Result<(), NotMade> {
        match self.destination {
            Destination::Endpoint(ref endpoint) => self.connect_mesh(&Arc::clone(endpoint)).await,
            Destination::Local(address) => {
                let stream = connect::to_local(address, || self.is_awaited()).await;
                self.drive(stream.map_err(|e| e.to_string())?, None).await
            }
        }
    }

    /// Whether any call waits for the connection that is being made.
    fn is_awaited(&self) -> bool {
        self.waiting.borrow().iter().flatten().any(|waiting| !waiting.is_closed())
    }

    async fn connect_mesh(self: &Rc<Self>, endpoint: &Endpoint) -> Result<(), NotMade> {
        let identity = self.worker.shared.identity.load_full().ok_or("this sidecar has no identity yet".to_owned())?;
        let config = identity.client(&endpoint.spiffe_id).map_err(|e| e.to_string())?;
        let stream = connect::to_address(limits::CONNECT_TIMEOUT, endpoint.address).await?;
        // No TCP_USER_TIMEOUT: it counts a window that stays closed as silence, and a sidecar that has no memory left does
        // not read for a while. PINGs tell whether it is alive.
        let name = tls::server_name(&endpoint.spiffe_id);
        let stream = within(limits::HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let expiry = identity.connection_end(chain).map_err(|e| e.to_string())?;
        self.drive(TlsStream::client(stream), Some(expiry)).await
    }

    /// Starts HTTP/2 on a stream and adds the connection to the pool. It is replaced before `expiry`, and ends at
    /// `expiry`.
    pub(crate) async fn drive(
        self: &Rc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        expiry: Option<SystemTime>,
    ) -> Result<(), NotMade> {
        let worker = &self.worker;
        worker.tick();
        let limits = match self.destination {
            Destination::Endpoint(_) => &worker.wire_limits.mesh_made,
            Destination::Local(_) => &worker.wire_limits.local,
        };
        let account = match self.destination {
            Destination::Endpoint(_) => &worker.accounts.outbound,
            Destination::Local(_) => &worker.accounts.inbound,
        };
        let link = Link::client(worker, limits, &self.room, Counted::new(account, self.load()));
        let driver = LinkDriver::new(worker, &link, Role::Client, stream, |_| {});
        let listed = expiry.map(|end| {
            let made = Made { pool: Rc::downgrade(self), link: Rc::downgrade(&link) };
            worker.expiries.add(Rc::new(made), SystemTime::now(), end)
        });
        let ended = spawn_local(Rc::clone(self).attend(Rc::downgrade(&link), driver, listed));
        // Only the peer's settings say how many streams it takes.
        if let Err(why) = within(limits::HANDSHAKE_TIMEOUT, link.settled()).await {
            ended.abort();
            return Err(if link.is_gone() { NotMade::Going } else { why.into() });
        }
        link.allow_resets(self.resets.get());
        let mut links = self.links.borrow_mut();
        links.iter().filter(|link| link.is_worn()).for_each(|link| link.drain(worker.now()));
        links.push(link);
        Ok(())
    }

    /// Runs a connection until it ends, then removes it from the pool.
    async fn attend(
        self: Rc<Self>,
        link: Weak<Link>,
        driver: impl Future<Output = Result<(), LinkError>>,
        _listed: Option<Listed>,
    ) {
        let _open = match &self.destination {
            Destination::Endpoint(endpoint) => Some(OpenConnection::new(endpoint, &self.worker.shared)),
            Destination::Local(_) => None,
        };
        if let Err(e) = driver.await {
            tracing::debug!("the connection to {} broke: {e}", self.destination);
        }
        let was_calmed = link.upgrade().is_some_and(|link| link.was_calmed());
        let is_news = was_calmed && self.resets.replace(limits::RESETS_OF_CALM_SERVICE) == u32::MAX;
        if is_news && self.worker.log_limit.take().is_some() {
            tracing::warn!(
                "{} ended a connection because too much was asked of it (ENHANCE_YOUR_CALM); from now on each \
                 connection to it is replaced after {} cancelled calls",
                self.destination,
                limits::RESETS_OF_CALM_SERVICE,
            );
        }
        self.links.borrow_mut().retain(|other| !std::ptr::eq(Rc::as_ptr(other), link.as_ptr()));
        self.room.has_come();
        if let Destination::Local(_) = self.destination {
            self.worker.shared.check_health_now.notify_one();
        }
    }
}

/// A connection of a pool whose certificates expire.
struct Made {
    pool: Weak<Pool>,
    link: Weak<Link>,
}

impl Expiring for Made {
    /// Makes another connection, which takes the calls once it is ready.
    fn renew(&self) {
        let (Some(pool), Some(link)) = (self.pool.upgrade(), self.link.upgrade()) else { return };
        link.wear_out();
        // A call that needs the new one waits for it itself. If no more connections are allowed, this one makes room.
        if pool.join_connect().is_err() {
            link.drain(Instant::now());
        }
    }

    fn expire(&self) {
        if let Some(link) = self.link.upgrade() {
            link.expire();
        }
    }
}

/// Attempts to get a connection that does not end at once, and the pause between them.
const CONNECTS: usize = 4;
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
