//! A small HTTP server for pages, probes and webhooks: HTTP/1.1 and HTTP/2, in plain text or over TLS.
//!
//! Strangers can reach such a port, so its connections are limited in number and time ([`PortLimits`]): neither many
//! nor idle ones keep a probe out.

mod seats;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use self::seats::{Seat, Seats, Traffic};
use crate::limits;

/// The pause after a failed accept: file descriptors may have run out, and others must close some first.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

/// What the connections of a port may have.
#[derive(Clone, Copy, Debug)]
pub struct PortLimits {
    /// Concurrent connections. Past it, the oldest one of the host with the most is closed.
    pub connections: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub streams: u32,
    /// The bytes of a request's head. A longer one is refused.
    pub header_bytes: u32,
    /// For a client's first bytes, for a request's head, and for running requests when the server stops.
    pub timeout: Duration,
    /// A connection that has had no request for this long is closed, even if its peer has not read the last answer.
    pub idle: Duration,
}

/// The two ends of the connection on which a request has come: an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Our address.
    pub local: SocketAddr,
    /// The client's address.
    pub peer: SocketAddr,
}

/// Counts what happens on a port.
pub trait Observer {
    /// The port has this many connections now.
    fn has_connections(&self, _count: usize) {}

    /// The task of a connection has panicked, which is logged already.
    fn has_panicked(&self) {}
}

/// Nothing is counted.
impl Observer for () {}

/// The TLS configuration for the next handshake of a port.
pub type Tls = watch::Receiver<Arc<rustls::ServerConfig>>;

/// Like [`serve`], over TLS. A handshake has [`PortLimits::timeout`].
pub async fn serve_tls(
    listener: TcpListener,
    name: &'static str,
    tls: Tls,
    limits: PortLimits,
    app: Router,
    observer: impl Observer,
    shutdown: impl Future<Output = ()>,
) {
    serve_all(listener, name, Some(tls), limits, app, observer, shutdown).await;
}

/// Serves `app` until `shutdown` completes; then running requests have [`PortLimits::timeout`] to end. `name` is the
/// port in log lines, such as "the dashboard". A bad connection is logged and does not affect others. Dropping the
/// future closes every connection at once.
pub async fn serve(
    listener: TcpListener,
    name: &'static str,
    limits: PortLimits,
    app: Router,
    observer: impl Observer,
    shutdown: impl Future<Output = ()>,
) {
    serve_all(listener, name, None, limits, app, observer, shutdown).await;
}

async fn serve_all(
    listener: TcpListener,
    name: &'static str,
    tls: Option<Tls>,
    limits: PortLimits,
    app: Router,
    observer: impl Observer,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut seats: Seats<AbortHandle> = Seats::new(limits.connections);
    tokio::pin!(shutdown);
    loop {
        observer.has_connections(seats.len());
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                // A connection that was closed for another has already left its seat. One that panicked has not; it
                // makes room when it is the oldest.
                if let Some(seat) = look_at(ended, name, &observer) {
                    seats.leave(seat);
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let tls = tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.borrow())));
                    let serving = connection(stream, name, tls, limits, app.clone(), stopping.clone());
                    let start = |seat: Seat| connections.spawn(async move { serving.await; seat });
                    make_room(seats.enter(from.ip(), start), name, limits);
                }
                Err(error) => {
                    tracing::warn!(%error, "{name} could not accept a connection");
                    sleep(PAUSE_AFTER_ERROR).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async {
        while let Some(ended) = connections.join_next().await {
            look_at(ended, name, &observer);
        }
    };
    if timeout(limits.timeout, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// Closes the connection that makes room for a new one, if one has to.
fn make_room(oldest: Option<AbortHandle>, name: &str, limits: PortLimits) {
    if let Some(oldest) = oldest {
        oldest.abort();
        tracing::debug!(limit = limits.connections, "too many connections to {name}: the oldest is closed");
    }
}

/// The seat of a connection that has ended by itself.
fn look_at(ended: Result<Seat, JoinError>, name: &str, observer: &impl Observer) -> Option<Seat> {
    if let Err(error) = &ended
        && error.is_panic()
    {
        observer.has_panicked();
        tracing::error!(%error, "a connection to {name} panicked");
    }
    ended.ok()
}

async fn count_request(State(traffic): State<Arc<Traffic>>, request: Request, next: Next) -> Response {
    let _running = traffic.begin();
    next.run(request).await
}

/// Waits for the signal to stop, or until its sender is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|stop| *stop).await);
}

/// One connection's life.
async fn connection(
    stream: TcpStream,
    name: &str,
    tls: Option<TlsAcceptor>,
    limits: PortLimits,
    app: Router,
    mut stopping: watch::Receiver<bool>,
) {
    // A connection that has already ended has no addresses.
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    // hyper has no time limit for the first bytes, which tell HTTP/1.1 from HTTP/2.
    let mut byte = [0];
    let first = timeout(limits.timeout, stream.peek(&mut byte));
    tokio::select! {
        first = first => if !matches!(first, Ok(Ok(1..))) { return },
        () = stopped(&mut stopping) => return,
    }
    let ends = Ends { local, peer };
    let Some(tls) = tls else { return requests(stream, ends, name, limits, app, stopping).await };
    tokio::select! {
        shaken = timeout(limits.timeout, tls.accept(stream)) => match shaken {
            Ok(Ok(stream)) => requests(stream, ends, name, limits, app, stopping).await,
            Ok(Err(error)) => tracing::debug!(%error, "a handshake with {name} failed"),
            Err(_) => tracing::debug!("a handshake with {name} was not finished in time"),
        },
        () = stopped(&mut stopping) => {}
    }
}

/// The requests on one connection.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ends: Ends,
    name: &str,
    limits: PortLimits,
    app: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.timeout)
        .max_buf_size(limits.header_bytes as usize);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes);
    let traffic = Traffic::new();
    let app = app.layer(from_fn_with_state(Arc::clone(&traffic), count_request)).layer(Extension(ends));
    let serving = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = traffic.idle_for(limits.idle) => return,
        () = stopped(&mut stopping) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "a connection to {name} ended with an error");
    }
}
