//! What the kubelet's probes ask: a port of its own, so that nobody who keeps the others busy can have this control plane
//! restarted.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};
use weft_mesh::http_server::{PortLimits, serve};

const LIMITS: PortLimits = PortLimits {
    connections: 16,
    streams: 4,
    header_bytes: 16 * 1024,
    timeout: Duration::from_secs(5),
    idle: Duration::from_secs(30),
};

/// Whether this control plane does what it is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It reads the cluster, or waits for the API server.
    Starts,
    /// Another one acts, and this one takes over when that ends.
    StandsBy,
    Acts,
}

/// Answers until `shutdown` completes.
pub(super) async fn answer(
    listener: TcpListener,
    standing: watch::Receiver<Standing>,
    shutdown: impl Future<Output = ()>,
) {
    serve(listener, "the port of probes", LIMITS, app(standing), (), shutdown).await;
}

fn app(standing: watch::Receiver<Standing>) -> Router {
    let is_ready = async |State(standing): State<watch::Receiver<Standing>>| match *standing.borrow() {
        Standing::Starts => (StatusCode::SERVICE_UNAVAILABLE, "starts\n"),
        Standing::StandsBy => (StatusCode::OK, "stands by\n"),
        Standing::Acts => (StatusCode::OK, "acts\n"),
    };
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(is_ready)).with_state(standing)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_ready_when_it_acts_or_stands_by() {
        let (standing, seen) = watch::channel(Standing::Starts);
        for (now, health, ready) in
            [(Standing::Starts, 200, 503), (Standing::StandsBy, 200, 200), (Standing::Acts, 200, 200)]
        {
            standing.send_replace(now);
            for (path, expected) in [("/healthz", health), ("/readyz", ready)] {
                let request = Request::get(path).body(Body::empty()).unwrap();
                let answer = app(seen.clone()).oneshot(request).await.unwrap();
                assert_eq!(answer.status().as_u16(), expected, "{now:?} {path}");
            }
        }
    }
}
