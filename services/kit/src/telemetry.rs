//! Logs and traces of the process.

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use tokio::runtime::Runtime;
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{EnvFilter, Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};
use weft_mesh::limits;

use crate::{Settings, logs::LogFormat};

/// Between two exports: a trace is on its page about as soon as someone has turned to it.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// For one export, and for the last one at the end.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Logs and traces, for as long as it lives; what is left is exported at its end.
pub(crate) struct Telemetry {
    exporting: Option<(SdkTracerProvider, Runtime)>,
}

/// Sets up the process's logs and traces.
///
/// # Errors
/// An OTLP address can't be used, or the process has a subscriber already; in one line.
pub(crate) fn start(service: &str, settings: &Settings) -> Result<Telemetry, String> {
    let exporting = match settings.otlp.as_slice() {
        [] => None,
        urls => Some(exporting(service, &settings.namespace, urls)?),
    };
    let log_filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env();
    let format = LogFormat { service: service.to_owned(), is_json: settings.is_log_json };
    let logs = tracing_subscriber::fmt::layer()
        .event_format(format)
        .with_writer(std::io::stderr)
        .with_filter(log_filter.map_err(|error| format!("RUST_LOG: {error}"))?);
    let spans = exporting.as_ref().map(|(provider, _)| {
        tracing_opentelemetry::layer().with_tracer(provider.tracer("weft-kit")).with_filter(span_filter())
    });
    tracing_subscriber::registry().with(logs).with(spans).try_init().map_err(|error| error.to_string())?;
    Ok(Telemetry { exporting })
}

/// The service's own spans. Those of the libraries below it are noise, and the exporter's would be exported again.
fn span_filter() -> Targets {
    let libraries = ["h2", "hyper", "hyper_util", "opentelemetry", "opentelemetry_otlp", "opentelemetry_sdk"];
    let libraries = libraries.into_iter().chain(["tonic", "tower", "tokio"]);
    Targets::new().with_default(Level::INFO).with_targets(libraries.map(|name| (name, LevelFilter::OFF)))
}

fn exporting(service: &str, namespace: &str, urls: &[String]) -> Result<(SdkTracerProvider, Runtime), String> {
    // A runtime of its own: exports go on while the service's is busy or has ended.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("export")
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let _entered = runtime.enter();
    let resource = Resource::builder_empty()
        .with_service_name(service.to_owned())
        .with_attributes([
            KeyValue::new("service.namespace", namespace.to_owned()),
            KeyValue::new("service.instance.id", format!("{:016x}", fastrand::u64(..))),
            KeyValue::new("weft.component", "service"),
        ])
        .build();
    // Whether a trace is recorded was decided where it began.
    let mut provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
    for url in urls {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(url).with_timeout(EXPORT_TIMEOUT).build();
        let exporter = exporter.map_err(|error| format!("WEFT_OTLP: `{url}` can't be used: {error}"))?;
        let bounds = BatchConfigBuilder::default()
            .with_max_queue_size(limits::SPANS_QUEUED)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        provider =
            provider.with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(bounds).build());
    }
    Ok((provider.build(), runtime))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some((provider, runtime)) = self.exporting.take() {
            if let Err(error) = provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
                tracing::warn!(%error, "the last spans could not be exported");
            }
            runtime.shutdown_background();
        }
    }
}
