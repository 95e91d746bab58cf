//! `/metrics`: the control plane's counts, for Prometheus.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use super::Figures;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The figures in OpenMetrics format.
pub(super) fn answer(figures: Figures) -> Response {
    let mut registry = Registry::with_prefix("weft_control");
    let refused: Counter = Counter::default();
    refused.inc_by(figures.claims_refused);
    registry.register("claims_refused", "Claims of contracts and addresses that were refused", refused);
    let pinned: Gauge = Gauge::default();
    pinned.set(i64::try_from(figures.claims_pinned).unwrap_or(i64::MAX));
    registry.register("claims_pinned", "Contracts and virtual addresses that are pinned to an identity", pinned);
    let lost: Counter = Counter::default();
    lost.inc_by(weft_mesh::telemetry::log_lines_lost());
    registry.register("log_lines_lost", "Log lines that were lost because nobody read them", lost);
    let mut text = String::new();
    match text::encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
