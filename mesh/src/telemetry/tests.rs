//! Export to a collector in this process, over real sockets.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle};
use tonic::{Request, Response, transport::server::TcpIncoming};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::limits;

pub(super) fn span(id: u64) -> SpanData {
    let now = SystemTime::now();
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(u128::from(id)),
            SpanId::from(id),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Client,
        name: "t.S/Call".into(),
        start_time: now,
        end_time: now + Duration::from_millis(3),
        attributes: vec![KeyValue::new(attribute::RPC_SYSTEM_NAME, attribute::system::GRPC)],
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::error("lost"),
        instrumentation_scope: InstrumentationScope::builder("weft").build(),
    }
}

fn origin() -> Origin {
    Origin {
        service: "users".to_owned(),
        namespace: "shop".to_owned(),
        instance: "users-1".to_owned(),
        version: "0.1.0".to_owned(),
        component: Component::Sidecar,
    }
}

struct Collector {
    target: ExportTarget,
    requests: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
    server: AbortHandle,
}

impl Collector {
    async fn start() -> Self {
        struct Receiver(mpsc::UnboundedSender<ExportTraceServiceRequest>);

        #[tonic::async_trait]
        impl TraceService for Receiver {
            async fn export(
                &self,
                request: Request<ExportTraceServiceRequest>,
            ) -> Result<Response<ExportTraceServiceResponse>, tonic::Status> {
                let _ = self.0.send(request.into_inner());
                Ok(Response::new(ExportTraceServiceResponse::default()))
            }
        }

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = ExportTarget::Otlp(format!("http://{}", listener.local_addr().unwrap()));
        let (sender, requests) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(server).abort_handle();
        Self { target, requests, server }
    }

    async fn spans(&mut self, count: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let request = self.requests.recv().await.expect("the collector runs");
            spans.extend(spans_of(request));
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<Span> {
    request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
}

#[tokio::test]
async fn spans_arrive_at_every_target_although_one_is_dead() {
    let (mut first, mut second) = (Collector::start().await, Collector::start().await);
    // Bound, so that nobody else gets the port, and never accepting.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = ExportTarget::Otlp(format!("http://{}", dead.local_addr().unwrap()));
    let targets = [dead, first.target.clone(), second.target.clone()];
    let (sink, export) = SpanExport::start(&targets, &origin()).unwrap();

    // From threads without a runtime.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let sink = &sink;
            scope.spawn(move || (1..=200).for_each(|id| sink.push(span(thread * 200 + id))));
        }
    });

    for collector in [&mut first, &mut second] {
        let mut ids: Vec<_> = collector.spans(800).await.into_iter().map(|span| span.span_id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=800u64).map(|id| id.to_be_bytes().to_vec()).collect::<Vec<_>>());
    }
    assert_eq!(sink.dropped(), 0);
    drop(export);
}

#[tokio::test]
async fn a_span_arrives_with_its_resource_and_a_stop_sends_waiting_spans() {
    let mut collector = Collector::start().await;
    let (sink, export) = SpanExport::start(&[collector.target.clone()], &origin()).unwrap();
    sink.push(span(7));
    export.shutdown().await;

    let request = collector.requests.recv().await.unwrap();
    let mut attributes: Vec<_> = request.resource_spans[0].resource.clone().unwrap().attributes;
    attributes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let attributes: Vec<_> = attributes
        .into_iter()
        .map(|attribute| match attribute.value.unwrap().value.unwrap() {
            Value::StringValue(value) => (attribute.key, value),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        ("service.instance.id", "users-1"),
        ("service.name", "users"),
        ("service.namespace", "shop"),
        ("service.version", "0.1.0"),
        ("weft.component", "sidecar"),
    ];
    assert_eq!(attributes, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(spans_of(request)[0].name, "t.S/Call");

    sink.push(span(8));
    assert_eq!(sink.dropped(), 1, "no span is taken after the stop");
}

#[tokio::test]
async fn a_full_queue_drops_and_counts() {
    let (sink, export) = SpanExport::start(&[], &origin()).unwrap();
    // The export's task can't run in between: this test holds the runtime's only thread.
    for id in 1..=limits::SPANS_QUEUED as u64 + 5 {
        sink.push(span(id));
    }
    assert_eq!(sink.dropped(), 5);
    export.shutdown().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_target_that_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = ExportTarget::Otlp(format!("http://{}", silent.local_addr().unwrap()));
    let (sink, export) = SpanExport::start(&[target], &origin()).unwrap();
    sink.push(span(1));
    // Time is paused once the export waits for the target, which has accepted the connection and does not answer.
    let (_connection, _) = silent.accept().await.unwrap();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    export.shutdown().await;
    assert!(start.elapsed() <= limits::SPAN_FLUSH_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn spans_of_tracing_are_exported_except_those_of_libraries() {
    let mut collector = Collector::start().await;
    let settings = ServiceTelemetry { origin: origin(), targets: vec![collector.target.clone()], sample_ratio: 1.0 };
    let (guard, provider) = service::start(&settings).unwrap();
    let subscriber = Arc::new(tracing_subscriber::registry().with(service::span_layer(&provider)));
    tracing::subscriber::with_default(subscriber, || {
        tracing::info_span!("outer").in_scope(|| {
            tracing::info_span!(target: "h2::proto", "frame").in_scope(|| {
                tracing::info_span!(target: "hyperion", "inner").in_scope(|| ());
            });
            tracing::debug_span!("detail").in_scope(|| ());
        });
    });
    guard.shutdown_async().await;

    let spans = collector.spans(2).await;
    let find = |name| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(find("inner").parent_span_id, find("outer").span_id);
    assert_eq!(spans.len(), 2);
    assert!(collector.requests.try_recv().is_err());
}

#[tokio::test]
async fn spans_that_are_not_sampled_are_not_exported() {
    let mut collector = Collector::start().await;
    let settings = ServiceTelemetry { origin: origin(), targets: vec![collector.target.clone()], sample_ratio: 0.0 };
    let (guard, provider) = service::start(&settings).unwrap();
    let subscriber = tracing_subscriber::registry().with(service::span_layer(&provider));
    tracing::subscriber::with_default(subscriber, || tracing::info_span!("call").in_scope(|| ()));
    guard.shutdown_async().await;
    assert!(collector.requests.try_recv().is_err());
}
