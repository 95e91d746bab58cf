//! Connections: their number and time are limited, and they end gracefully.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
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
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
};
use weft_mesh::{
    limits,
    seats::{Seat, Seats, Traffic},
};

use super::{Dashboard, access::ClientHost, routes};

/// Serves the dashboard until `shutdown` completes; then requests under way have [`limits::DASHBOARD_TIMEOUT`] to end.
/// Dropping the future closes every connection at once.
///
/// # Errors
/// Only if the listener has no address. A bad connection is logged and does not affect others.
pub async fn serve(
    listener: TcpListener,
    dashboard: Dashboard,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::debug!(%address, "the dashboard takes connections");
    let app = routes::routes(dashboard);
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut seats: Seats<AbortHandle> = Seats::new(limits::DASHBOARD_CONNECTIONS);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                // A connection that was closed for another has given up its seat already.
                if let Some(seat) = look_at(ended) {
                    seats.leave(seat);
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let serving = connection(stream, from.ip(), app.clone(), stopping.clone());
                    let start = |seat: Seat| connections.spawn(async move { serving.await; seat });
                    if let Some(oldest) = seats.enter(from.ip(), start) {
                        oldest.abort();
                        let limit = limits::DASHBOARD_CONNECTIONS;
                        tracing::debug!(limit, "too many connections to the dashboard: the oldest is closed");
                    }
                }
                Err(error) => {
                    // The connection is gone already, or there are no file descriptors until others are closed.
                    tracing::warn!(%error, "the dashboard could not take a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async {
        while let Some(ended) = connections.join_next().await {
            let _ = look_at(ended);
        }
    };
    if tokio::time::timeout(limits::DASHBOARD_TIMEOUT, all).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

/// The seat of a connection that has ended by itself.
fn look_at(ended: Result<Seat, JoinError>) -> Option<Seat> {
    if let Err(error) = &ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection to the dashboard panicked");
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
async fn connection(stream: TcpStream, from: IpAddr, app: Router, mut stopping: watch::Receiver<bool>) {
    // hyper has no time limit for the first bytes, which tell HTTP/1.1 from HTTP/2.
    let mut byte = [0];
    let first = tokio::time::timeout(limits::DASHBOARD_TIMEOUT, stream.peek(&mut byte));
    tokio::select! {
        first = first => if !matches!(first, Ok(Ok(1..))) { return },
        () = stopped(&mut stopping) => return,
    }
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::DASHBOARD_TIMEOUT)
        .max_buf_size(limits::DASHBOARD_HEADER_BYTES as usize);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(limits::DASHBOARD_STREAMS)
        .max_header_list_size(limits::DASHBOARD_HEADER_BYTES);
    let traffic = Traffic::new();
    let app =
        app.layer(from_fn_with_state(Arc::clone(&traffic), count_request)).layer(axum::Extension(ClientHost(from)));
    let serving = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = traffic.idle_for(limits::DASHBOARD_IDLE) => return,
        () = stopped(&mut stopping) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "a connection to the dashboard ended badly");
    }
}
