//! The calls that a service answers.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Status, body::Body, server::NamedService};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::{
    call::{self, Call},
    metrics::Metrics,
    record::{self, Record, Server, Side},
    trace,
};

/// Makes each gRPC call the current one while it is answered, in a span of its own, and counts it.
#[derive(Clone)]
pub struct InboundLayer {
    metrics: Metrics,
    server: Server,
}

impl InboundLayer {
    /// For the service of this full name (`users.shop`). Counts into `metrics`.
    pub fn new(service: &str, metrics: Metrics) -> Self {
        Self { metrics, server: Server { address: service.into(), port: None } }
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = Inbound<S>;

    fn layer(&self, inner: S) -> Inbound<S> {
        Inbound { inner, metrics: self.metrics.clone(), server: self.server.clone() }
    }
}

/// See [`InboundLayer`].
#[derive(Clone)]
pub struct Inbound<S> {
    inner: S,
    metrics: Metrics,
    server: Server,
}

impl<S> Service<Request<Body>> for Inbound<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Readiness belongs to the instance that was polled: it takes the call, and a clone stays for the next one.
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        if !is_grpc(&request) || is_health_check(request.uri().path()) {
            let mut inner = inner;
            return Box::pin(inner.call(request));
        }
        Box::pin(answer(inner, request, self.metrics.clone(), self.server.clone()))
    }
}

async fn answer<S>(
    mut inner: S,
    request: Request<Body>,
    metrics: Metrics,
    server: Server,
) -> Result<Response<Body>, Infallible>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut call = Call::from_headers(request.headers(), Instant::now());
    let path = request.uri().path().trim_start_matches('/');
    let method = metrics.label(path);
    let span = record::span(Side::Server, path, &method, &server);
    if let Some(trace) = &call.trace {
        trace::continue_from(&span, trace, call.tracestate.as_ref());
    }
    span.record("request_id", call.request_id());
    call.position = trace::position(&span);
    let record = Record::begin(Side::Server, span.clone(), method, metrics.server.clone(), Some(call.clone()));

    // A method that panics fails its own call, with a log line, and no other call.
    let future = span.in_scope(|| call::within(&call, || inner.call(request)));
    let outcome = AssertUnwindSafe(call::with(call.clone(), future)).catch_unwind().instrument(span.clone()).await;
    let answer = match outcome {
        Ok(answer) => answer?,
        Err(panic) => {
            let said = panic_message(panic.as_ref());
            call::within(&call, || tracing::error!(panic = said, "the method panicked"));
            Status::internal("the service failed while it answered this call").into_http()
        }
    };
    Ok(record::observe(answer, record))
}

fn is_grpc(request: &Request<Body>) -> bool {
    request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The sidecar checks health every second: that is kept out of traces.
pub(crate) fn is_health_check(path: &str) -> bool {
    type Health = tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService>;
    path.strip_prefix('/')
        .and_then(|path| path.strip_prefix(<Health as NamedService>::NAME))
        .is_some_and(|rest| rest.starts_with('/'))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
