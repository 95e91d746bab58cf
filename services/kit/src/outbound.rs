//! The calls that a service makes.

use std::{
    error::Error,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use tokio::time::Instant;
use tonic::{Status, body::Body, transport::Endpoint};
use tower::Service;
use tracing::Instrument;
use weft_mesh::{
    limits,
    names::header,
    trace_context::{TRACEPARENT, TRACESTATE},
};

use crate::{
    call::{self, Call, REQUEST_ID},
    deadline::{self, GRPC_TIMEOUT},
    inbound::is_health_check,
    metrics::Metrics,
    record::{self, Record, Server, Side},
    trace,
};

static SERVICE: HeaderName = HeaderName::from_static(header::SERVICE);

/// A channel to every contract of the mesh through the local sidecar, which finds from a call's path the service that
/// implements it. Cheap to clone; connects at the first call and again whenever the connection is lost.
///
/// Each call carries the request id, the trace and the remaining time of the call that is being answered.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    metrics: Metrics,
    service: Option<HeaderValue>,
    /// That service, or the sidecar if none is named.
    server: Server,
}

impl Channel {
    /// A channel through the sidecar at `outbound`. Must be made inside a tokio runtime.
    pub fn new(outbound: Uri, metrics: Metrics) -> Self {
        let server = Server { address: outbound.host().unwrap_or_default().into(), port: outbound.port_u16() };
        let endpoint = Endpoint::from(outbound).connect_timeout(limits::CONNECT_TIMEOUT).tcp_nodelay(true);
        Self { inner: endpoint.connect_lazy(), metrics, service: None, server }
    }

    /// A channel to one named service (`auth` or `auth.shop`), for a contract that several services implement.
    ///
    /// # Errors
    /// The name can't be a header value.
    pub fn to_service(&self, name: &str) -> Result<Self, http::header::InvalidHeaderValue> {
        let server = Server { address: name.into(), port: None };
        Ok(Self { service: Some(HeaderValue::from_str(name)?), server, ..self.clone() })
    }
}

/// Whether an answer comes from the fallback of the method's contract, as the service could not take the call: it may be
/// less than the service would have said.
pub fn is_fallback<T>(answer: &tonic::Response<T>) -> bool {
    answer.metadata().contains_key(header::FALLBACK)
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(|error| Box::new(status_of(error)) as Self::Error)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(service) = &self.service {
            request.headers_mut().entry(&SERVICE).or_insert_with(|| service.clone());
        }
        if is_health_check(request.uri().path()) {
            request.headers_mut().insert(&TRACEPARENT, trace::header_value(&trace::unrecorded()));
            let answer = self.inner.call(request);
            return Box::pin(async { answer.await.map_err(|error| status_of(error).into()) });
        }

        let current = call::current();
        let path = request.uri().path().trim_start_matches('/');
        let method = self.metrics.label(path);
        let span = record::span(Side::Client, path, &method, &self.server);
        let deadline = carry(current.as_ref(), &span, &mut request);
        let record = Record::begin(Side::Client, span.clone(), method, self.metrics.client.clone(), current);
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let late = Status::deadline_exceeded("the call was not sent: the caller's deadline has passed");
            record.finish(late.code(), late.message());
            return Box::pin(async { Err(late.into()) });
        }

        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(async move {
            match answer.instrument(span).await {
                Ok(answer) => Ok(record::observe(answer, record)),
                Err(error) => {
                    let status = match deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        true => Status::deadline_exceeded("the deadline passed before the call was answered"),
                        false => status_of(error),
                    };
                    record.finish(status.code(), status.message());
                    Err(status.into())
                }
            }
        })
    }
}

/// Adds the headers of the call that is being answered to a call made for it. Returns that call's deadline.
fn carry<B>(current: Option<&Call>, span: &tracing::Span, request: &mut Request<B>) -> Option<Instant> {
    let headers = request.headers_mut();
    if let Some(trace) = trace::position(span).or(current.and_then(|call| call.trace)) {
        headers.entry(&TRACEPARENT).or_insert_with(|| trace::header_value(&trace));
    }
    let own = deadline::read(headers);
    let remaining = current.and_then(Call::remaining);
    if let Some(call) = current {
        headers.entry(&REQUEST_ID).or_insert_with(|| call.request_id.clone());
        if let Some(state) = &call.tracestate {
            headers.entry(&TRACESTATE).or_insert_with(|| state.clone());
        }
        span.record("request_id", call.request_id());
    }
    let left = own.into_iter().chain(remaining).min()?;
    headers.insert(&GRPC_TIMEOUT, deadline::write(left));
    Instant::now().checked_add(left)
}

fn status_of(error: tonic::transport::Error) -> Status {
    let mut causes = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        causes = cause.to_string();
        source = cause.source();
    }
    let status = Status::from_error(Box::new(error));
    match status.code() {
        tonic::Code::Unknown | tonic::Code::Unavailable | tonic::Code::Cancelled => {
            Status::unavailable(format!("no answer through the local sidecar: {causes}"))
        }
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn carried(incoming: &[(&'static str, &'static str)], own: Option<&'static str>) -> http::HeaderMap {
        let headers = incoming.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let call = Call::from_headers(&headers, Instant::now());
        let mut request = Request::new(());
        if let Some(own) = own {
            request.headers_mut().insert(&GRPC_TIMEOUT, HeaderValue::from_static(own));
        }
        carry(Some(&call), &tracing::Span::none(), &mut request);
        request.into_parts().0.headers
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_of_both_deadlines_is_sent() {
        let sent = |incoming: &[_], own| deadline::read(&carried(incoming, own));
        assert_eq!(sent(&[("grpc-timeout", "2S")], None), Some(Duration::from_secs(2)));
        assert_eq!(sent(&[("grpc-timeout", "2S")], Some("5S")), Some(Duration::from_secs(2)));
        assert_eq!(sent(&[("grpc-timeout", "2S")], Some("1S")), Some(Duration::from_secs(1)));
        assert_eq!(sent(&[], Some("1S")), Some(Duration::from_secs(1)));
        assert_eq!(sent(&[], None), None);
    }

    #[test]
    fn without_recorded_spans_the_caller_s_context_is_passed_on_as_it_is() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let headers = carried(&[("traceparent", trace), ("tracestate", "a=b"), ("x-request-id", "r1")], None);
        assert_eq!(headers["traceparent"], trace);
        assert_eq!(headers["tracestate"], "a=b");
        assert_eq!(headers["x-request-id"], "r1");
        assert!(!carried(&[], None).contains_key("traceparent"));
    }
}
