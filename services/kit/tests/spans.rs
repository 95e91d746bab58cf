//! The spans of calls, when spans are recorded.
#![allow(clippy::unwrap_used)]

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use opentelemetry::{
    Context, Value,
    trace::{SpanId, SpanKind, Status as SpanStatus, TracerProvider},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use tonic::{Request, Response, Status, Streaming};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt};
use weft_contracts::shop::products::v1::{
    GetRequest, ImportResponse, Product, SearchRequest,
    products_client::ProductsClient,
    products_server::{Products, ProductsServer},
};
use weft_kit::{Channel, Routes, Running, Service, Settings};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Keeps every span that has ended.
#[derive(Debug, Clone)]
struct Kept {
    spans: Arc<Mutex<Vec<SpanData>>>,
    ended: tokio::sync::mpsc::UnboundedSender<()>,
}

impl SpanProcessor for Kept {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.spans.lock().unwrap().push(span);
        let _ = self.ended.send(());
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The front calls the back from within its stream; the back fails.
struct Fake(Option<ProductsClient<Channel>>);

#[tonic::async_trait]
impl Products for Fake {
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Product>, Status> {
        Err(Status::unavailable("sold out of everything"))
    }

    type SearchStream = Pin<Box<dyn Stream<Item = Result<Product, Status>> + Send>>;

    async fn search(&self, _: Request<SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let mut next = self.0.clone().unwrap();
        let products = stream::once(async move {
            next.get(GetRequest::default()).await.unwrap_err();
            Ok(Product::default())
        });
        Ok(Response::new(Box::pin(products)))
    }

    async fn import(&self, _: Request<Streaming<Product>>) -> Result<Response<ImportResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

async fn start(name: &str, outbound: &str, is_front: bool) -> Running {
    let settings = Settings::local("127.0.0.1:0".parse().unwrap(), outbound.parse().unwrap());
    Service::new(name)
        .contracts(weft_contracts::FILE_DESCRIPTOR_SET)
        .start(settings, |ctx| async move {
            Ok(Routes::new(ProductsServer::new(Fake(is_front.then(|| ProductsClient::new(ctx.channel()))))))
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_call_through_two_services_is_one_chain_of_spans() {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let kept = Kept { spans: Arc::default(), ended };
    let provider = SdkTracerProvider::builder().with_span_processor(kept.clone()).build();
    // The HTTP/2 library has spans of its own.
    let kit_only = Targets::new().with_target("weft_kit", tracing::Level::INFO);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(kit_only);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();

    let back = start("back", "http://127.0.0.1:1", false).await;
    let port = back.address().port();
    let front = start("front", &format!("http://{}", back.address()), true).await;
    let channel = tonic::transport::Endpoint::try_from(format!("http://{}", front.address())).unwrap();
    let mut request = Request::new(SearchRequest::default());
    request.metadata_mut().insert("traceparent", format!("00-{TRACE_ID}-{CALLER}-01").parse().unwrap());
    let mut client = ProductsClient::new(channel.connect().await.unwrap());
    let products: Vec<_> = client.search(request).await.unwrap().into_inner().collect().await;
    assert_eq!(products.len(), 1);

    for _ in 0..3 {
        tokio::time::timeout(Duration::from_secs(60), ends.recv()).await.unwrap();
    }
    let spans = kept.spans.lock().unwrap().clone();
    let find = |kind: SpanKind, name: &str| {
        let found = spans.iter().find(|span| span.span_kind == kind && span.name == name);
        found.unwrap_or_else(|| panic!("no {kind:?} {name} in {spans:#?}"))
    };
    let front = find(SpanKind::Server, "shop.products.v1.Products/Search");
    let call = find(SpanKind::Client, "shop.products.v1.Products/Get");
    let back = find(SpanKind::Server, "shop.products.v1.Products/Get");
    assert!(spans.iter().all(|span| span.span_context.trace_id().to_string() == TRACE_ID));
    assert_eq!(front.parent_span_id, SpanId::from_hex(CALLER).unwrap());
    assert_eq!(call.parent_span_id, front.span_context.span_id());
    assert_eq!(back.parent_span_id, call.span_context.span_id());

    let attribute = |span: &SpanData, key: &str| -> Option<Value> {
        span.attributes.iter().find(|kv| kv.key.as_str() == key).map(|kv| kv.value.clone())
    };
    assert_eq!(front.status, SpanStatus::Unset);
    assert_eq!(attribute(front, "rpc.response.status_code"), Some("OK".into()));
    assert_eq!(attribute(front, "server.address"), Some("front.default".into()));
    assert_eq!(attribute(back, "server.address"), Some("back.default".into()));
    assert_eq!(attribute(call, "server.address"), Some("127.0.0.1".into()));
    assert_eq!(attribute(call, "server.port"), Some(Value::I64(port.into())));
    for failed in [call, back] {
        assert_eq!(failed.status, SpanStatus::error("sold out of everything"));
        assert_eq!(attribute(failed, "rpc.system.name"), Some("grpc".into()));
        assert_eq!(attribute(failed, "rpc.method"), Some("shop.products.v1.Products/Get".into()));
        assert_eq!(attribute(failed, "rpc.method_original"), None);
        assert_eq!(attribute(failed, "rpc.response.status_code"), Some("UNAVAILABLE".into()));
        assert_eq!(attribute(failed, "error.type"), Some("UNAVAILABLE".into()));
    }
}
