//! Logs and traces of the process.

use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};
use weft_mesh::telemetry::{
    Component, ExportTarget, Origin, ServiceTelemetry, TelemetryGuard, init_service_telemetry, log_filter,
};

use crate::{Settings, logs::LogFormat};

/// Sets up the process's logs and, if there are OTLP targets, its traces, for as long as the guard lives.
///
/// # Errors
/// An OTLP address can't be used, or the process has a subscriber already. The text is one line.
pub(crate) fn start(service: &str, settings: &Settings) -> Result<Option<TelemetryGuard>, String> {
    let format = LogFormat { service: service.to_owned(), is_json: settings.is_log_json };
    let logs = tracing_subscriber::fmt::layer()
        .event_format(format)
        .with_writer(std::io::stderr)
        .with_filter(log_filter().map_err(|error| error.to_string())?);
    if settings.otlp.is_empty() {
        tracing_subscriber::registry().with(logs).try_init().map_err(|error| error.to_string())?;
        return Ok(None);
    }
    let targets: Result<Vec<ExportTarget>, _> = settings.otlp.iter().map(|target| target.parse()).collect();
    let telemetry = ServiceTelemetry {
        origin: Origin {
            service: service.to_owned(),
            namespace: settings.namespace.clone(),
            instance: format!("{:016x}", fastrand::u64(..)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            component: Component::Service,
        },
        targets: targets.map_err(|error| format!("WEFT_OTLP: {error}"))?,
        // Whether a trace is recorded was decided where it started.
        sample_ratio: 1.0,
    };
    init_service_telemetry(&telemetry, logs).map(Some).map_err(|error| error.to_string())
}
