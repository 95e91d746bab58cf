//! Spans of calls, by OpenTelemetry's conventions for RPC. Built only for a trace that is sampled: for any other call
//! all that happens is that its trace context is passed on.

use std::time::SystemTime;

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{Event, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use weft_mesh::{
    telemetry::SpanSink,
    trace_context::{TraceContext, ratio_sampled},
};
use weft_wire::{Headers, Name};

use crate::{
    message::{code, rpc::Rpc, target},
    policy::outcome,
    telemetry::metrics::{self, code_name},
};

/// Which calls of a sidecar have spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// New traces whose id lies below this are sampled.
    pub(crate) threshold: u64,
    /// Whether somebody wants spans.
    pub(crate) is_wanted: bool,
}

/// A call's place in its trace.
#[derive(Debug)]
pub(crate) struct CallTrace {
    /// What is passed on, with the call's own span as the current one.
    context: TraceContext,
    /// The span that the caller's head named.
    parent: Option<[u8; 8]>,
    is_recorded: bool,
}

impl CallTrace {
    /// Continues the trace in the headers or begins one.
    pub(crate) fn begin(headers: &Headers, sampling: Sampling) -> Self {
        let incoming = TraceContext::read(|name| headers.get_single(known(name)));
        let (context, parent) = match incoming {
            Some(incoming) if !incoming.is_sampled => (incoming, Some(incoming.span_id)),
            Some(incoming) => (incoming.child(new_span_id()), Some(incoming.span_id)),
            None => {
                let mut root = TraceContext::new_root(fastrand::u128(..), fastrand::u64(..), false);
                root.is_sampled = ratio_sampled(&root.trace_id, sampling.threshold);
                (root, None)
            }
        };
        Self { context, parent, is_recorded: context.is_sampled && sampling.is_wanted }
    }

    /// Writes the context into the head of the call that goes on.
    pub(crate) fn pass_on(&self, headers: &mut Headers) {
        write(self.context, headers);
    }

    /// The span of the call itself, if it is recorded.
    pub(crate) fn span(&self, kind: SpanKind, name: impl FnOnce() -> String) -> Option<Box<Span>> {
        self.is_recorded.then(|| Box::new(Span::new(self.context, self.parent, true, kind, name())))
    }
}

/// A span that has begun.
#[derive(Debug)]
pub(crate) struct Span {
    context: TraceContext,
    parent: Option<[u8; 8]>,
    is_parent_remote: bool,
    kind: SpanKind,
    name: String,
    start: SystemTime,
    attributes: Vec<KeyValue>,
    events: Vec<Event>,
}

impl Span {
    fn new(
        context: TraceContext,
        parent: Option<[u8; 8]>,
        is_parent_remote: bool,
        kind: SpanKind,
        name: String,
    ) -> Self {
        let mut attributes = Vec::with_capacity(10);
        match name.split_once('/') {
            Some((service, method)) if !service.is_empty() && !service.contains(' ') => attributes.extend([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service.to_owned()),
                KeyValue::new("rpc.method", method.to_owned()),
            ]),
            _ => {}
        }
        let (start, events) = (SystemTime::now(), Vec::new());
        Self { context, parent, is_parent_remote, kind, name, start, attributes, events }
    }

    /// A span of one attempt under the span of a call.
    pub(crate) fn attempt(&self, number: u32) -> Self {
        let context = self.context.child(new_span_id());
        let mut span = Self::new(context, Some(self.context.span_id), false, SpanKind::Client, self.name.clone());
        span.set("weft.attempt", i64::from(number));
        span
    }

    /// Writes this span's context into the head of the call that goes on.
    pub(crate) fn pass_on(&self, headers: &mut Headers) {
        write(self.context, headers);
    }

    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    pub(crate) fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        self.events.push(Event::new(name, SystemTime::now(), attributes, 0));
    }

    /// Ends it with a gRPC code, and why if the mesh knows, and hands it over.
    pub(crate) fn end(mut self, code: u8, error: Option<&str>, sink: &SpanSink) {
        let name = code_name(code);
        let is_error = match self.kind {
            SpanKind::Server => outcome::is_server_error(code),
            _ => code != code::OK,
        };
        if code <= 16 && self.attributes.iter().any(|a| a.key.as_str() == "rpc.system") {
            self.set("rpc.grpc.status_code", i64::from(code));
        }
        if is_error {
            self.set("error.type", error.unwrap_or(name).to_owned());
        }
        let mut events = SpanEvents::default();
        events.events = self.events;
        sink.push(SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(self.context.trace_id),
                SpanId::from_bytes(self.context.span_id),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: self.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: self.is_parent_remote && self.parent.is_some(),
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.start,
            end_time: SystemTime::now(),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: if is_error { Status::error(error.unwrap_or(name).to_owned()) } else { Status::Unset },
            instrumentation_scope: InstrumentationScope::builder("weft-sidecar").build(),
        });
    }
}

fn write(context: TraceContext, headers: &mut Headers) {
    headers.set(Name::TRACEPARENT, &context.to_traceparent());
}

/// Those that nearly every call is asked for are found without comparing text.
fn known(name: &'static str) -> Name {
    match name {
        "traceparent" => Name::TRACEPARENT,
        "b3" => Name::B3,
        name => Name::other(name),
    }
}

fn new_span_id() -> [u8; 8] {
    fastrand::u64(1..).to_be_bytes()
}

/// The method's name, or for what no descriptor knows the HTTP method: a path would make too many names.
pub(crate) fn name(method: &str, head: &Headers) -> String {
    if method != metrics::OTHER {
        method.to_owned()
    } else if Rpc::of(head).is_some() {
        target::path(head).trim_start_matches('/').to_owned()
    } else {
        String::from_utf8_lossy(head.method().unwrap_or_default()).into_owned()
    }
}
