//! Connects `tracing`'s spans with the trace that the headers name.

use http::HeaderValue;
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use weft_mesh::trace_context::TraceContext;

/// Makes a span a child of the one that the caller named.
pub(crate) fn continue_from(span: &Span, trace: &TraceContext, tracestate: Option<&HeaderValue>) {
    let state = tracestate
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<TraceState>().ok())
        .unwrap_or_default();
    let flags = if trace.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let parent =
        SpanContext::new(TraceId::from_bytes(trace.trace_id), SpanId::from_bytes(trace.span_id), flags, true, state);
    // It fails if no spans are recorded; then the call passes its caller's context on.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

/// The trace context of a span; `None` if spans are not recorded.
pub(crate) fn position(span: &Span) -> Option<TraceContext> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| TraceContext {
        trace_id: context.trace_id().to_bytes(),
        span_id: context.span_id().to_bytes(),
        is_sampled: context.is_sampled(),
    })
}

/// A context that is not recorded, for calls that belong to no request, such as health checks.
pub(crate) fn unrecorded() -> TraceContext {
    TraceContext::new_root(fastrand::u128(..), fastrand::u64(..), false)
}

/// A context as `traceparent`.
pub(crate) fn header_value(trace: &TraceContext) -> HeaderValue {
    HeaderValue::from_bytes(&trace.to_traceparent()).expect("a traceparent is ASCII")
}
