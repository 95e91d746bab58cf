//! Logs and spans of a service that is built on the kit, both by way of `tracing`.

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

/// Crates whose spans are about the mechanics of calls, those of the exporter itself included: exported, each export
/// would make the next one.
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

/// What a service's telemetry is set up with.
#[derive(Clone, Debug)]
pub struct ServiceTelemetry {
    /// Whose spans these are.
    pub origin: Origin,
    /// Where spans go. Without any, spans are made all the same, so that a call's trace context is carried on.
    pub targets: Vec<ExportTarget>,
    /// The share of traces to record, from 0 to 1, where no caller has decided already.
    pub sample_ratio: f64,
}

/// Sets up the logs of this process by `logs`, its spans, and W3C Trace Context as the global propagator.
///
/// Spans are exported by a thread of their own; [`TelemetryGuard`] ends it.
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

/// Hands finished spans to the export.
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

/// The thread that exports a service's spans. Dropping the guard does what [`TelemetryGuard::shutdown`] does.
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
                // Whoever waits for this gives up only with the process.
                let _ = started.send(sink);
                if let Some(export) = export {
                    // A guard that is gone stops the export as one that says so.
                    let _ = stopped.await;
                    export.shutdown().await;
                }
            });
            // Without waiting for a name that is still being looked up.
            runtime.shutdown_background();
        })?;
        let sink = start.recv().map_err(|_| std::io::Error::other("it ended at once"))??;
        Ok(Self { sink, stop: Some(stop), thread: Some(thread) })
    }

    /// Where spans that are not made with `tracing` go in.
    pub fn sink(&self) -> &SpanSink {
        &self.sink
    }

    /// Exports what still waits, and ends the thread. Blocks, for [`crate::limits::SPAN_FLUSH_TIMEOUT`] at most.
    pub fn shutdown(mut self) {
        self.end();
    }

    /// As [`Self::shutdown`], without blocking the thread of the caller.
    pub async fn shutdown_async(self) {
        // It fails when the runtime is going down, and then the guard is dropped, which does the same.
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
