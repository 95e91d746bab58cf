//! The metrics port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever supervises the process.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::TcpListener;

use super::{Control, serve::serve};
use crate::{metrics::MetricsCollector, shared::Phase};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the port for as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, listener: TcpListener) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/drainz", get(drainz))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(&control));
    serve(control, listener, app, |connections| &connections.metrics).await
}

async fn readyz(State(control): State<Arc<Control>>) -> Response {
    match control.unready_reason() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// For who stops the service after its sidecar: 200 when no call runs in it any more, nor will.
async fn drainz(State(control): State<Arc<Control>>) -> Response {
    let shared = &control.shared;
    if shared.is_drained.load(Relaxed) {
        return "drained\n".into_response();
    }
    let why = if shared.phase() == Phase::Running { "takes calls\n" } else { "calls still run\n" };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn metrics(State(control): State<Arc<Control>>) -> Response {
    let shared = &control.shared;
    if let Some(spans) = &shared.spans {
        shared.metrics.counters.spans_dropped.store(spans.dropped(), Relaxed);
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(MetricsCollector(Arc::clone(&shared.metrics))));
    let mut text = String::new();
    match text::encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
