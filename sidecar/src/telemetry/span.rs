//! Spans of calls, by OpenTelemetry's conventions for RPC ([`attribute`]). Built only for sampled traces; other calls
//! only pass on their trace context.
//!
//! Text that many spans use is made once and shared: the names of methods, services and endpoints.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{Event, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use weft_mesh::{
    errors::{CONNECT_CODES, Reason},
    identity::SpiffeId,
    limits,
    names::ServiceName,
    policy::Verdict,
    telemetry::{
        SpanSink,
        attribute::{self, OTHER_METHOD, system},
    },
    trace_context::{TraceContext, ratio_sampled},
};
use weft_wire::{Headers, Name};

use crate::{
    message::{
        code::{self, CANCELLED_BY_CALLER},
        rpc::Rpc,
    },
    policy::outcome,
    telemetry::metrics::code_name,
};

/// Which calls of a sidecar have spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// New traces whose id is below this are sampled.
    pub(crate) threshold: u64,
    /// Whether spans are exported at all.
    pub(crate) is_wanted: bool,
}

/// A call's place in its trace.
#[derive(Debug)]
pub(crate) struct CallTrace {
    /// The context that is passed on, with the call's own span as the current one.
    context: TraceContext,
    /// The span that the caller's head named.
    parent: Option<[u8; 8]>,
    /// Whether the call has a span.
    pub(crate) is_recorded: bool,
}

impl CallTrace {
    /// Continues the trace in the headers or starts a new one.
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

    /// Writes the context into the head of the forwarded call.
    pub(crate) fn pass_on(&self, headers: &mut Headers) {
        write(self.context, headers);
    }

    /// The span of a recorded call. `method` is its full name if a descriptor knows it; `service` is the service that
    /// is called.
    pub(crate) fn span(
        &self,
        kind: SpanKind,
        method: Option<&Arc<str>>,
        service: &ServiceName,
        head: &Headers,
    ) -> Box<Span> {
        Box::new(Span::new(self.context, self.parent, kind, method, service, head))
    }
}

/// The RPC systems of OpenTelemetry's conventions that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Grpc,
    Connect,
}

impl System {
    fn of(rpc: Rpc) -> Option<Self> {
        match rpc {
            Rpc::No => None,
            Rpc::Grpc | Rpc::GrpcWeb | Rpc::GrpcWebText => Some(Self::Grpc),
            Rpc::Connect | Rpc::ConnectStream { .. } => Some(Self::Connect),
        }
    }

    /// The value of `rpc.system.name`.
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => system::GRPC,
            Self::Connect => system::CONNECT,
        }
    }

    /// The value of `rpc.response.status_code`. Connect has no code for a call that succeeded.
    fn status(self, code: u8) -> Option<&'static str> {
        // A call whose caller is gone counts as cancelled.
        let code = if code == CANCELLED_BY_CALLER { code::CANCELLED } else { code };
        match self {
            Self::Grpc => Some(code_name(code)),
            Self::Connect if code == code::OK => None,
            Self::Connect => CONNECT_CODES.get(usize::from(code)).copied(),
        }
    }
}

/// Room for all attributes that the sidecar sets on a span.
const ATTRIBUTES: usize = 10;

/// A span that has started.
#[derive(Debug)]
pub(crate) struct Span {
    context: TraceContext,
    parent: Option<[u8; 8]>,
    is_parent_remote: bool,
    kind: SpanKind,
    name: Cow<'static, str>,
    start: SystemTime,
    /// `None` for plain HTTP.
    system: Option<System>,
    attributes: Vec<KeyValue>,
    /// How many of the first attributes also apply to the call's tries.
    of_call: usize,
    events: Vec<Event>,
}

impl Span {
    fn new(
        context: TraceContext,
        parent: Option<[u8; 8]>,
        kind: SpanKind,
        method: Option<&Arc<str>>,
        service: &ServiceName,
        head: &Headers,
    ) -> Self {
        let system = System::of(Rpc::of(head));
        let mut attributes = Vec::with_capacity(ATTRIBUTES);
        if let Some(system) = system {
            attributes.push(KeyValue::new(attribute::RPC_SYSTEM_NAME, system.name()));
            match method {
                Some(method) => attributes.push(KeyValue::new(attribute::RPC_METHOD, Arc::clone(method))),
                None => attributes.extend([
                    KeyValue::new(attribute::RPC_METHOD, OTHER_METHOD),
                    KeyValue::new(attribute::RPC_METHOD_ORIGINAL, original_method(head)),
                ]),
            }
        }
        attributes.push(KeyValue::new(attribute::SERVER_ADDRESS, Arc::<str>::from(service)));
        let name = name(method, system, head);
        let (start, of_call, events) = (SystemTime::now(), attributes.len(), Vec::new());
        Self { context, parent, is_parent_remote: true, kind, name, start, system, attributes, of_call, events }
    }

    /// The span of one try of this span's call, to the endpoint with this id and address.
    pub(crate) fn attempt(&self, number: u32, endpoint: &str, ip: &Arc<str>, port: u16) -> Self {
        let mut attributes = Vec::with_capacity(ATTRIBUTES);
        attributes.extend_from_slice(&self.attributes[..self.of_call]);
        let mut span = Self {
            context: self.context.child(new_span_id()),
            parent: Some(self.context.span_id),
            is_parent_remote: false,
            kind: SpanKind::Client,
            name: self.name.clone(),
            start: SystemTime::now(),
            system: self.system,
            attributes,
            of_call: self.of_call,
            events: Vec::new(),
        };
        span.set(attribute::ATTEMPT, i64::from(number));
        span.set(attribute::ENDPOINT, endpoint.to_owned());
        span.set(attribute::NETWORK_PEER_ADDRESS, Arc::clone(ip));
        span.set(attribute::NETWORK_PEER_PORT, i64::from(port));
        span
    }

    /// Writes this span's context into the head of the forwarded call.
    pub(crate) fn pass_on(&self, headers: &mut Headers) {
        write(self.context, headers);
    }

    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    pub(crate) fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        self.events.push(Event::new(name, SystemTime::now(), attributes, 0));
    }

    /// Says that the call goes on to a fallback, why, and where.
    pub(crate) fn fell_back(&mut self, reason: Reason, to: &str) {
        let attributes = [
            KeyValue::new(attribute::FALLBACK_REASON, reason.as_str()),
            KeyValue::new(attribute::FALLBACK_TO, to.to_owned()),
        ];
        self.event(attribute::FALLBACK_EVENT, attributes.to_vec());
        // Of several the last one answers.
        self.attributes.retain(|known| attributes.iter().all(|attribute| attribute.key != known.key));
        self.attributes.extend(attributes);
    }

    /// Says that the rules for who may call do not allow the call.
    #[cold]
    pub(crate) fn not_allowed(&mut self, verdict: Verdict) {
        let attributes = [
            KeyValue::new(attribute::ACCESS_RULE, verdict.source.as_str()),
            KeyValue::new(attribute::ACCESS_AUDIT, !verdict.refuses()),
        ];
        self.event(attribute::NOT_ALLOWED_EVENT, attributes.to_vec());
        self.attributes.extend(attributes);
    }

    /// Ends it with a gRPC code and, if the mesh knows it, the reason, and hands it to the sink.
    pub(crate) fn end(self, code: u8, error: Option<&'static str>, sink: &SpanSink) {
        sink.push(self.ended(code, error));
    }

    fn ended(mut self, code: u8, error: Option<&'static str>) -> SpanData {
        let status = self.system.and_then(|system| system.status(code));
        if let Some(status) = status {
            self.set(attribute::RPC_RESPONSE_STATUS_CODE, status);
        }
        let is_error = match self.kind {
            SpanKind::Server => outcome::is_server_error(code),
            _ => code != code::OK,
        };
        let error = is_error.then(|| match (error, status) {
            (Some(error), _) => error,
            (None, Some(status)) if code != CANCELLED_BY_CALLER => status,
            (None, _) => code_name(code),
        });
        if let Some(error) = error {
            self.set(attribute::ERROR_TYPE, error);
        }
        let mut events = SpanEvents::default();
        events.events = self.events;
        SpanData {
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
            name: self.name,
            start_time: self.start,
            end_time: SystemTime::now(),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("weft-sidecar").build(),
        }
    }
}

/// The attributes of the caller on a connection. Made once for all of its calls.
#[derive(Debug)]
pub(crate) struct Caller {
    id: Arc<str>,
    ip: Arc<str>,
    port: u16,
}

impl Caller {
    pub(crate) fn new(id: &SpiffeId, from: SocketAddr) -> Self {
        Self { id: id.to_string().into(), ip: from.ip().to_canonical().to_string().into(), port: from.port() }
    }

    /// Sets them on a span.
    pub(crate) fn tell(&self, span: &mut Span) {
        span.set(attribute::PEER, Arc::clone(&self.id));
        span.set(attribute::NETWORK_PEER_ADDRESS, Arc::clone(&self.ip));
        span.set(attribute::NETWORK_PEER_PORT, i64::from(self.port));
    }
}

fn write(context: TraceContext, headers: &mut Headers) {
    headers.set(Name::TRACEPARENT, &context.to_traceparent());
}

/// The names that are looked up for nearly every call are found without comparing text.
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

/// A span's name. For a method that no descriptor knows it is the name of the RPC system, or the HTTP method: paths
/// would make too many names.
fn name(method: Option<&Arc<str>>, system: Option<System>, head: &Headers) -> Cow<'static, str> {
    match (method, system) {
        (Some(method), _) => Cow::Owned(method.to_string()),
        (None, Some(system)) => Cow::Borrowed(system.name()),
        (None, None) => Cow::Owned(String::from_utf8_lossy(head.method().unwrap_or_default()).into_owned()),
    }
}

/// The name that the caller gives a method that no descriptor knows: the path without its query, cut to
/// [`limits::SPAN_NAME_BYTES`].
fn original_method(head: &Headers) -> String {
    let path = head.path().unwrap_or_default();
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    String::from_utf8_lossy(&path[..end.min(limits::SPAN_NAME_BYTES)]).into_owned()
}

#[cfg(test)]
mod tests;
