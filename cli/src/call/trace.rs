//! The trace of a call. It begins with a span of `weft call` itself, so that the trace shows how long the person waited.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, metadata::MetadataMap, transport::Uri};
use weft_mesh::{
    telemetry::{Component, ExportTarget, Origin, SpanExport, attribute},
    trace_context::TraceContext,
};

use super::status_name;

/// How long the export of the span may take, so that nobody waits for a store that does not answer.
const EXPORT_LIMIT: Duration = Duration::from_secs(1);

/// A call's place in its trace.
#[derive(Debug)]
pub(super) struct CallTrace {
    context: TraceContext,
    /// The trace begins with this call, not with a `traceparent` that was given.
    begins_here: bool,
    start: SystemTime,
    server: Server,
}

/// The server that the span names: a service by its name or, if none was named, the sidecar.
#[derive(Clone, Debug)]
pub(super) struct Server {
    address: String,
    port: Option<u16>,
}

impl Server {
    /// The service that was named, or the sidecar at this URL.
    pub(super) fn new(service: Option<&str>, sidecar: &str) -> Self {
        let sidecar: Option<Uri> = sidecar.parse().ok();
        match (service, sidecar) {
            (Some(service), _) => Self { address: service.to_owned(), port: None },
            (None, Some(url)) => Self { address: url.host().unwrap_or_default().to_owned(), port: url.port_u16() },
            (None, None) => Self { address: String::new(), port: None },
        }
    }
}

impl CallTrace {
    /// Starts a trace, or continues that of a `traceparent` among the headers.
    ///
    /// # Errors
    /// The `traceparent` is malformed.
    pub(super) fn begin(headers: &mut MetadataMap, server: Server) -> anyhow::Result<Self> {
        let start = SystemTime::now();
        if let Some(given) = headers.get("traceparent") {
            let context = TraceContext::parse_traceparent(given.as_bytes()).context("the traceparent is malformed")?;
            return Ok(Self { context, begins_here: false, start, server });
        }
        let context = TraceContext::new_root(fastrand::u128(..), fastrand::u64(..), true);
        let value = String::from_utf8_lossy(&context.to_traceparent()).parse().context("a traceparent is ASCII")?;
        headers.insert("traceparent", value);
        Ok(Self { context, begins_here: true, start, server })
    }

    /// The trace's id in hexadecimal.
    pub(super) fn id(&self) -> String {
        String::from_utf8_lossy(&self.context.trace_id_hex()).into_owned()
    }

    /// Exports the call's span if the trace starts with it. The span is lost if a target does not take it in time.
    pub(super) async fn end(&self, method: &str, code: Code, targets: &[String]) {
        if !self.begins_here {
            return;
        }
        let mut there = Vec::new();
        for target in targets {
            // --dashboard may name a server that takes no spans.
            if let Ok(ExportTarget::Otlp(url)) = target.parse()
                && is_there(&url).await
            {
                there.push(ExportTarget::Otlp(url));
            }
        }
        if there.is_empty() {
            return;
        }
        let origin = Origin {
            service: "weft-call".to_owned(),
            namespace: String::new(),
            instance: std::process::id().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            component: Component::Service,
        };
        if let Ok((sink, export)) = SpanExport::start(&there, &origin) {
            sink.push(self.span(method, code));
            let _ = timeout(EXPORT_LIMIT, export.shutdown()).await;
        }
    }

    fn span(&self, method: &str, code: Code) -> SpanData {
        let TraceContext { trace_id, span_id, .. } = self.context;
        let mut attributes = vec![
            KeyValue::new(attribute::RPC_SYSTEM_NAME, attribute::system::GRPC),
            KeyValue::new(attribute::RPC_METHOD, method.to_owned()),
            KeyValue::new(attribute::RPC_RESPONSE_STATUS_CODE, status_name(code)),
            KeyValue::new(attribute::SERVER_ADDRESS, self.server.address.clone()),
        ];
        if let Some(port) = self.server.port {
            attributes.push(KeyValue::new(attribute::SERVER_PORT, i64::from(port)));
        }
        let mut status = Status::Unset;
        if code != Code::Ok {
            attributes.push(KeyValue::new(attribute::ERROR_TYPE, status_name(code)));
            status = Status::error(status_name(code));
        }
        SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(trace_id),
                SpanId::from_bytes(span_id),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Client,
            name: method.to_owned().into(),
            start_time: self.start,
            end_time: SystemTime::now(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("weft-call").build(),
        }
    }
}

/// Whether something listens there. If nothing does, an export would be retried until its time is up.
async fn is_there(url: &str) -> bool {
    let address = url.strip_prefix("http://").unwrap_or(url);
    matches!(timeout(EXPORT_LIMIT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_trace_is_kept() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = MetadataMap::new();
        headers.insert("traceparent", given.parse().unwrap());
        let trace = CallTrace::begin(&mut headers, Server::new(None, "http://127.0.0.1:15001")).unwrap();
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(headers.get("traceparent").unwrap(), given);
        assert!(!trace.begins_here, "the given trace starts elsewhere");
    }

    #[test]
    fn the_exported_span_is_the_parent_in_the_traceparent() {
        let mut headers = MetadataMap::new();
        let trace = CallTrace::begin(&mut headers, Server::new(None, "http://127.0.0.1:15001")).unwrap();
        let span = trace.span("shop.users.v1.Users/Get", Code::NotFound);
        let (trace_id, span_id) = (span.span_context.trace_id(), span.span_context.span_id());
        assert_eq!(headers.get("traceparent").unwrap(), format!("00-{trace_id}-{span_id}-01").as_str());
        assert_eq!((trace_id.to_string(), span.parent_span_id), (trace.id(), SpanId::INVALID));
        assert_eq!(span.status, Status::error("NOT_FOUND"));
        assert_eq!(trace.span("a.B/C", Code::Ok).status, Status::Unset);
        let said: Vec<_> = span.attributes.iter().map(|said| format!("{}={}", said.key, said.value)).collect();
        let expected = [
            "rpc.system.name=grpc",
            "rpc.method=shop.users.v1.Users/Get",
            "rpc.response.status_code=NOT_FOUND",
            "server.address=127.0.0.1",
            "server.port=15001",
            "error.type=NOT_FOUND",
        ];
        assert_eq!(said, expected);
        let named = Server::new(Some("users"), "http://127.0.0.1:15001");
        assert_eq!((&*named.address, named.port), ("users", None));
    }
}
