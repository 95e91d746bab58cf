//! Logs and spans of a service that uses the kit, both through `tracing`.

use std::{
    fmt,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use opentelemetry::{Context, global, trace::TracerProvider as _};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use tokio::{runtime, sync::oneshot};
use tracing::{Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry, filter::FilterFn, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

use super::{ExportTarget, Origin, SpanExport, SpanSink, TelemetryError};

/// Crates whose spans are about the mechanics of calls, including the exporter's own: exporting those would make each
/// export cause another.
const MECHANICS: [&str; 9] = [
    "h2",
    "hyper",
    "hyper_util",
    "tonic",
    "tower",
    "opentelemetry",
    "opentelemetry_sdk",
    "opentelemetry_otlp",
    "tracing_opentelemetry",
];

/// The settings of a service's telemetry.
#[derive(Clone, Debug)]
pub struct ServiceTelemetry {
    /// The process that makes the spans.
    pub origin: Origin,
    /// The targets of spans. Without targets, spans are still made, so that a call's trace context is passed on.
    pub targets: Vec<ExportTarget>,
    /// The share of traces to record, from 0 to 1, if no caller has decided already.
    pub sample_ratio: f64,
}

/// Sets up the logs of this process with `logs`, its spans, and W3C Trace Context as the global propagator.
///
/// A separate thread exports spans; [`TelemetryGuard`] ends it.
pub fn init_service_telemetry<L>(settings: &ServiceTelemetry, logs: L) -> Result<TelemetryGuard, TelemetryError>
where
    L: Layer<Registry> + Send + Sync + 'static,
{
    let (guard, provider) = start(settings)?;
    let spans = span_layer(&provider);
    let subscriber = tracing_subscriber::registry().with(logs).with(spans);
    subscriber.try_init().map_err(|_| TelemetryError::AlreadySet)?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(provider);
    Ok(guard)
}

pub(super) fn start(settings: &ServiceTelemetry) -> Result<(TelemetryGuard, SdkTracerProvider), TelemetryError> {
    let guard = TelemetryGuard::start(settings.targets.clone(), settings.origin.clone())?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_resource(settings.origin.resource())
        .with_sampler(sampler)
        .with_span_processor(ToSink(guard.sink.clone()))
        .build();
    Ok((guard, provider))
}

pub(super) fn span_layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("weft"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(is_exported).with_max_level_hint(LevelFilter::INFO))
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    let krate = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= LevelFilter::INFO && !MECHANICS.contains(&krate)
}

/// Passes finished spans to the export.
#[derive(Debug)]
struct ToSink(SpanSink);

impl SpanProcessor for ToSink {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.push(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The thread that exports a service's spans. Dropping the guard has the same effect as [`TelemetryGuard::shutdown`].
pub struct TelemetryGuard {
    sink: SpanSink,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TelemetryGuard {
    fn start(targets: Vec<ExportTarget>, origin: Origin) -> Result<Self, TelemetryError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (started, start) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("weft-telemetry".to_owned()).spawn(move || {
            runtime.block_on(async {
                let (sink, export) = match SpanExport::start(&targets, &origin) {
                    Ok((sink, export)) => (Ok(sink), Some(export)),
                    Err(error) => (Err(error), None),
                };
                // The receiver waits for this, so it fails only if the process ends.
                let _ = started.send(sink);
                if let Some(export) = export {
                    // A dropped guard stops the export, too.
                    let _ = stopped.await;
                    export.shutdown().await;
                }
            });
            // Does not wait for a DNS lookup that is still running.
            runtime.shutdown_background();
        })?;
        let sink = start.recv().map_err(|_| std::io::Error::other("the thread ended at once"))??;
        Ok(Self { sink, stop: Some(stop), thread: Some(thread) })
    }

    /// The sink for spans that are not made with `tracing`.
    pub fn sink(&self) -> &SpanSink {
        &self.sink
    }

    /// Exports waiting spans, and ends the thread. Blocks for at most [`crate::limits::SPAN_FLUSH_TIMEOUT`].
    pub fn shutdown(mut self) {
        self.end();
    }

    /// Like [`Self::shutdown`], without blocking the caller's thread.
    pub async fn shutdown_async(self) {
        // It fails only if the runtime is shutting down. Then the guard is dropped, which has the same effect.
        let _ = tokio::task::spawn_blocking(|| self.shutdown()).await;
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that exports spans has panicked");
        }
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for TelemetryGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryGuard").finish_non_exhaustive()
    }
}
