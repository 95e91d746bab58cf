//! HTTP for the admin and metrics ports: connections taken, bounded in number and time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use weft_mesh::limits;

use super::{Control, admin::Ends};

/// File descriptors that ran out must be given back by others first.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

/// How many connections each port has.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) admin: AtomicUsize,
    pub(super) metrics: AtomicUsize,
}

/// Serves for as long as it is polled. Dropping the future closes every connection.
pub(super) async fn serve(
    control: Arc<Control>,
    listener: TcpListener,
    app: Router,
    count: impl Fn(&Connections) -> &AtomicUsize,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        count(&control.connections).store(connections.len(), Relaxed);
        tokio::select! {
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                control.look_at(&error);
            },
            accepted = listener.accept() => match accepted {
                Ok(_) if connections.len() >= limits::ADMIN_CONNECTIONS => {
                    tracing::warn!(limit = limits::ADMIN_CONNECTIONS, "too many connections to the admin or metrics port");
                }
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, app.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin or metrics port could not take a connection");
                    sleep(PAUSE_AFTER_ERROR).await;
                }
            },
        }
    }
}

async fn connection(stream: TcpStream, app: Router) {
    // One that has gone has none.
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let app = app.layer(Extension(Ends { local, peer }));
    // hyper waits for the first bytes, which tell HTTP/1.1 from HTTP/2, without a limit.
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
        .max_concurrent_streams(limits::ADMIN_STREAMS)
        .max_header_list_size(limits::ADMIN_HEADER_BYTES);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await {
        tracing::debug!(error, "a connection to the admin or metrics port ended badly");
    }
}
