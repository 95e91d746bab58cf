//! An HTTP server for the admin and metrics ports. Connections are limited in number and time, so neither many nor idle
//! ones keep a probe out.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

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
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use weft_mesh::{
    limits,
    seats::{Seats, Traffic},
};

use super::Control;

/// The pause after a failed accept: file descriptors may have run out, and others must close some first.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

/// The two ends of the connection on which a request has come: an extension of each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

/// How many connections each port has.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) admin: AtomicUsize,
    pub(super) metrics: AtomicUsize,
}

/// Serves for as long as it is polled. `streams` limits the streams of one HTTP/2 connection. Dropping the future
/// closes every connection.
pub(super) async fn serve(
    control: Arc<Control>,
    listener: TcpListener,
    app: Router,
    streams: u32,
    count: impl Fn(&Connections) -> &AtomicUsize,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    let mut seats: Seats<AbortHandle> = Seats::new(limits::ADMIN_CONNECTIONS);
    loop {
        count(&control.connections).store(seats.len(), Relaxed);
        tokio::select! {
            Some(ended) = connections.join_next() => match ended {
                Ok(seat) => drop(seats.leave(seat)),
                // An aborted connection has already left its seat. One that panicked has not; it makes room when it is
                // the oldest.
                Err(error) => control.look_at(&error),
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let serving = connection(stream, app.clone(), streams);
                    let start = |seat| connections.spawn(async move { serving.await; seat });
                    if let Some(oldest) = seats.enter(from.ip(), start) {
                        oldest.abort();
                        let limit = limits::ADMIN_CONNECTIONS;
                        tracing::debug!(limit, "too many connections to the admin or metrics port: the oldest is closed");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin or metrics port could not accept a connection");
                    sleep(PAUSE_AFTER_ERROR).await;
                }
            },
        }
    }
}

async fn count_request(State(traffic): State<Arc<Traffic>>, request: Request, next: Next) -> Response {
    let _running = traffic.begin();
    next.run(request).await
}

async fn connection(stream: TcpStream, app: Router, streams: u32) {
    // A connection that has already ended has no addresses.
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let app = app.layer(Extension(Ends { local, peer }));
    // hyper has no time limit for the first bytes, which tell HTTP/1.1 from HTTP/2.
    if !matches!(timeout(limits::ADMIN_TIMEOUT, stream.peek(&mut [0])).await, Ok(Ok(1..))) {
        return;
    }
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::ADMIN_TIMEOUT)
        .max_buf_size(limits::ADMIN_HEADER_BYTES as usize);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(streams)
        .max_header_list_size(limits::ADMIN_HEADER_BYTES);
    let traffic = Traffic::new();
    let app = app.layer(from_fn_with_state(Arc::clone(&traffic), count_request));
    let serving = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::debug!(error, "a connection to the admin or metrics port ended with an error");
        },
        () = traffic.idle_for(limits::ADMIN_IDLE) => {}
    }
}
