//! One worker's connections to endpoints and to its own service: kept by whom they lead to (address **and**
//! identity), made one at a time, opened anew when the peer's stream limit is reached, closed when idle.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
    task::spawn_local,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use weft_mesh::{limits, tls};

use crate::{
    catalog::Endpoint,
    http2::{self, Client, Responding, Sender},
    shared::Shared,
};

/// All connections of a worker.
pub(crate) struct Pools {
    shared: Arc<Shared>,
    by_endpoint: RefCell<HashMap<u64, Rc<Pool>>>,
}

impl Pools {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, by_endpoint: RefCell::default() }
    }

    /// The connections to an endpoint.
    pub(crate) fn of(&self, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let mut pools = self.by_endpoint.borrow_mut();
        let pool = pools
            .entry(endpoint.number)
            .or_insert_with(|| Pool::new(Arc::clone(&self.shared), Destination::Endpoint(Arc::clone(endpoint))));
        Rc::clone(pool)
    }

    /// Closes what has been idle for [`limits::IDLE_CONNECTION`]. To be called now and then.
    pub(crate) fn close_idle(&self, now: Instant) {
        self.by_endpoint.borrow_mut().retain(|_, pool| {
            pool.connections.borrow_mut().retain(|connection| !connection.is_idle(now));
            !pool.connections.borrow().is_empty() || pool.waiting.borrow().is_some()
        });
    }
}

/// Where connections lead.
pub(crate) enum Destination {
    /// Another sidecar, over mutual TLS.
    Endpoint(Arc<Endpoint>),
    /// The own service, in plain text over loopback.
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

/// One who waits for a connection to be made.
type Waiting = oneshot::Sender<Result<(), ConnectError>>;

/// The connections to one destination.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    destination: Destination,
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Who waits for the connection that is being made; `None` while none is.
    waiting: RefCell<Option<Vec<Waiting>>>,
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) enum ConnectError {
    /// It could not be made.
    Failed(Arc<str>),
    /// There are as many as may be, and all are full.
    Full,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::Full => f.write_str("every connection is at the peer's stream limit"),
        }
    }
}

/// A connection over which many calls go.
struct Connection {
    client: RefCell<Client>,
    in_flight: Cell<usize>,
    is_gone: Cell<bool>,
    idle_since: Cell<Instant>,
}

impl Connection {
    fn has_room(&self) -> bool {
        // In another step than opening: a stream limit that shrinks meanwhile only makes h2 queue one call.
        !self.is_gone.get() && self.in_flight.get() < self.client.borrow().stream_limit()
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.is_gone.get() || (self.in_flight.get() == 0 && now - self.idle_since.get() > limits::IDLE_CONNECTION)
    }
}

/// A place on a connection for one call, given back when dropped.
pub(crate) struct Lease(Rc<Connection>);

impl Lease {
    fn new(connection: &Rc<Connection>) -> Self {
        connection.in_flight.set(connection.in_flight.get() + 1);
        Self(Rc::clone(connection))
    }

    /// Opens a call. When it fails nothing was sent, and the connection is not used again.
    pub(crate) async fn open(&self, head: Request<()>, is_end: bool) -> Result<(Responding, Sender), http2::Error> {
        let mut client = self.0.client.borrow().another();
        let opened = client.open(head, is_end).await;
        if opened.is_err() {
            self.0.is_gone.set(true);
        }
        opened
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let in_flight = self.0.in_flight.get() - 1;
        self.0.in_flight.set(in_flight);
        if in_flight == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

impl Pool {
    pub(crate) fn new(shared: Arc<Shared>, destination: Destination) -> Rc<Self> {
        Rc::new(Self { shared, destination, connections: RefCell::default(), waiting: RefCell::default() })
    }

    /// A place on a connection, made if there is none with room. Dropping the future leaves the making to the others
    /// who wait for it.
    pub(crate) async fn lease(self: &Rc<Self>) -> Result<Lease, ConnectError> {
        loop {
            if let Some(connection) = self.connections.borrow().iter().find(|connection| connection.has_room()) {
                return Ok(Lease::new(connection));
            }
            let made = self.join_connect()?;
            // A sender that goes without a word was dropped with its worker.
            made.await.unwrap_or(Err(ConnectError::Failed("the sidecar is stopping".into())))?;
        }
    }

    fn join_connect(self: &Rc<Self>) -> Result<oneshot::Receiver<Result<(), ConnectError>>, ConnectError> {
        let (sender, made) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        if let Some(waiting) = &mut *waiting {
            waiting.push(sender);
            return Ok(made);
        }
        self.connections.borrow_mut().retain(|connection| !connection.is_gone.get());
        if self.connections.borrow().len() >= limits::CONNECTIONS_PER_ENDPOINT {
            return Err(ConnectError::Full);
        }
        *waiting = Some(vec![sender]);
        spawn_local(Rc::clone(self).connect());
        Ok(made)
    }

    async fn connect(self: Rc<Self>) {
        let counters = &self.shared.metrics.counters;
        let result = match self.destination {
            Destination::Endpoint(ref endpoint) => self.connect_mesh(&Arc::clone(endpoint)).await,
            Destination::Local(address) => self.connect_local(address).await,
        };
        let result = result.map_err(|why| {
            counters.upstream_connects_failed.fetch_add(1, Relaxed);
            tracing::warn!("no connection to {}: {why}", self.destination);
            ConnectError::Failed(why.into())
        });
        if result.is_ok() {
            counters.upstream_connections_opened.fetch_add(1, Relaxed);
        }
        for waiting in self.waiting.borrow_mut().take().into_iter().flatten() {
            // One who no longer waits is no loss.
            let _ = waiting.send(result.clone());
        }
    }

    async fn connect_mesh(self: &Rc<Self>, endpoint: &Endpoint) -> Result<(), String> {
        let identity = self.shared.identity.load_full().ok_or("this sidecar has no identity yet")?;
        let config = identity.client(&endpoint.spiffe_id).map_err(|e| e.to_string())?;
        let stream = connect_tcp(endpoint.address).await?;
        let name = tls::server_name(&endpoint.spiffe_id);
        let stream = within(limits::HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await?;
        self.drive(stream).await
    }

    async fn connect_local(self: &Rc<Self>, address: SocketAddr) -> Result<(), String> {
        let stream = connect_tcp(address).await?;
        self.drive(stream).await
    }

    /// Begins HTTP/2 on a stream and takes the connection in.
    async fn drive(self: &Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<(), String> {
        let (client, driver) = within(limits::HANDSHAKE_TIMEOUT, Client::handshake(stream)).await?;
        let connection = Rc::new(Connection {
            client: RefCell::new(client),
            in_flight: Cell::new(0),
            is_gone: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
        });
        if let Destination::Endpoint(endpoint) = &self.destination {
            endpoint.connections.fetch_add(1, Relaxed);
        }
        let (pool, weak) = (Rc::downgrade(self), Rc::downgrade(&connection));
        self.connections.borrow_mut().push(connection);
        let endpoint = match &self.destination {
            Destination::Endpoint(endpoint) => Some(Arc::clone(endpoint)),
            Destination::Local(_) => None,
        };
        spawn_local(async move {
            let ended = driver.await;
            if let Some(endpoint) = endpoint {
                endpoint.connections.fetch_sub(1, Relaxed);
            }
            forget(&pool, &weak, ended);
        });
        Ok(())
    }
}

/// Takes a connection that has ended out of its pool.
fn forget(pool: &Weak<Pool>, connection: &Weak<Connection>, ended: Result<(), http2::Error>) {
    let Some(pool) = pool.upgrade() else { return };
    if let Err(e) = ended {
        tracing::debug!("the connection to {} broke: {e}", pool.destination);
    }
    if let Some(connection) = connection.upgrade() {
        connection.is_gone.set(true);
        pool.connections.borrow_mut().retain(|other| !Rc::ptr_eq(other, &connection));
    }
    if let Destination::Local(_) = pool.destination {
        pool.shared.check_health_now.notify_one();
    }
}

/// For a peer that has gone without a word: unacknowledged bytes break the connection after this.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

async fn connect_tcp(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = within(limits::CONNECT_TIMEOUT, TcpStream::connect(address)).await?;
    // Both only tune: a socket that refuses them works all the same.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
    Ok(stream)
}

async fn within<T, E: fmt::Display>(limit: Duration, step: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(limit, step).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}
