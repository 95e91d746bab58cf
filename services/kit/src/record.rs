//! Observes a call until it has ended: its span, its metrics, its log line.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tracing::{Span, field};
use weft_mesh::telemetry::attribute;

use crate::{
    call::{self, Call},
    metrics::{Calls, OTHER, code_name},
};

/// Which end of the call this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// The server of a call, as in its span: a service by its name, or an address.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: Arc<str>,
    pub(crate) port: Option<u16>,
}

/// A running call. However it ends, it is counted and timed, and its span is closed. A call that is dropped was
/// cancelled, or its deadline has passed.
pub(crate) struct Record {
    side: Side,
    span: Span,
    method: String,
    calls: Calls,
    began: Instant,
    /// The call that is being answered: this one, or the one that this one was made for.
    call: Option<Call>,
    is_finished: bool,
}

impl Record {
    pub(crate) fn begin(side: Side, span: Span, method: String, calls: Calls, call: Option<Call>) -> Self {
        calls.in_flight.inc();
        Self { side, span, method, calls, began: Instant::now(), call, is_finished: false }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The call has ended.
    pub(crate) fn finish(mut self, code: Code, message: &str) {
        self.end(code, message);
    }

    fn end(&mut self, code: Code, message: &str) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let took = self.began.elapsed();
        self.calls.in_flight.dec();
        self.calls.record(&self.method, code, took);

        self.span.record(attribute::RPC_RESPONSE_STATUS_CODE, code_name(code));
        let is_error = code != Code::Ok && (self.side == Side::Client || is_server_fault(code));
        if is_error {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("otel.status_description", message);
            self.span.record(attribute::ERROR_TYPE, code_name(code));
        }
        match &self.call {
            Some(call) => call::within(call, || self.log(code, message, took)),
            None => self.log(code, message, took),
        }
    }

    fn log(&self, code: Code, why: &str, took: Duration) {
        let (method, ms) = (&self.method, took.as_secs_f64() * 1e3);
        let name = code_name(code);
        match (self.side, code) {
            (Side::Server, code) if is_server_fault(code) => {
                tracing::warn!(method, code = name, ms, why, "call failed")
            }
            (Side::Server, Code::Ok) => tracing::debug!(method, ms, "call answered"),
            (Side::Server, _) => tracing::info!(method, code = name, ms, why, "call refused"),
            (Side::Client, _) => tracing::debug!(method, code = name, ms, why, "call made"),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let is_late = self.call.as_ref().and_then(Call::remaining).is_some_and(|left| left.is_zero());
        let (code, why) = match (is_late, self.side) {
            (true, _) => (Code::DeadlineExceeded, "the deadline passed"),
            (false, Side::Server) => (Code::Cancelled, "the caller went away"),
            (false, Side::Client) => (Code::Cancelled, "cancelled before its end"),
        };
        self.end(code, why);
    }
}

/// The codes that OpenTelemetry's conventions for RPC count as the server's fault.
fn is_server_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// A span for one side of a call, by OpenTelemetry's conventions for RPC. The empty fields are filled when the call
/// ends. `path` is the call's path without the first slash. `method` is the same, or [`OTHER`] if no contract has it.
pub(crate) fn span(side: Side, path: &str, method: &str, server: &Server) -> Span {
    let kind = match side {
        Side::Server => "server",
        Side::Client => "client",
    };
    let is_known = method != OTHER;
    let span = tracing::info_span!(
        "call",
        otel.name = if is_known { method } else { attribute::system::GRPC },
        otel.kind = kind,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        { attribute::RPC_SYSTEM_NAME } = attribute::system::GRPC,
        { attribute::RPC_METHOD } = if is_known { method } else { attribute::OTHER_METHOD },
        { attribute::RPC_METHOD_ORIGINAL } = field::Empty,
        { attribute::SERVER_ADDRESS } = &*server.address,
        { attribute::SERVER_PORT } = server.port.map(i64::from),
        { attribute::RPC_RESPONSE_STATUS_CODE } = field::Empty,
        { attribute::ERROR_TYPE } = field::Empty,
        request_id = field::Empty,
    );
    if !is_known {
        span.record(attribute::RPC_METHOD_ORIGINAL, path);
    }
    span
}

/// Attaches a record to an answer: it ends with the answer's status, in the headers or the trailers.
pub(crate) fn observe(answer: http::Response<Body>, record: Record) -> http::Response<Body> {
    // An answer without a body ("trailers only") has its status among the headers.
    if let Some((code, message)) = status_in(answer.headers()) {
        record.finish(code, &message);
        return answer;
    }
    if !answer.status().is_success() {
        let message = format!("HTTP {}", answer.status());
        record.finish(Code::Unknown, &message);
        return answer;
    }
    // Only the body of the answered call runs the service's own code, which needs the call as the current one.
    let call = record.call.clone().filter(|_| record.side == Side::Server);
    answer.map(|inner| Body::new(Observed { inner, record: Some(record), call }))
}

fn status_in(headers: &HeaderMap) -> Option<(Code, String)> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    if code == Code::Ok {
        return Some((code, String::new()));
    }
    let message = Status::from_header_map(headers).map(|status| status.message().to_owned());
    Some((code, message.unwrap_or_default()))
}

/// A body that is polled with its call and span as the current ones, and whose end ends the record.
struct Observed {
    inner: Body,
    record: Option<Record>,
    call: Option<Call>,
}

impl Observed {
    fn saw(&mut self, frame: Option<&Result<Frame<Bytes>, Status>>) {
        let (code, message) = match frame {
            Some(Ok(frame)) => match frame.trailers_ref().map(status_in) {
                Some(Some(end)) => end,
                Some(None) => (Code::Unknown, "no grpc-status at the end".to_owned()),
                None => return,
            },
            Some(Err(status)) => (status.code(), status.message().to_owned()),
            None => (Code::Unknown, "the stream ended with no status".to_owned()),
        };
        if let Some(record) = self.record.take() {
            record.finish(code, &message);
        }
    }
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let span = this.record.as_ref().map_or_else(Span::none, |record| record.span().clone());
        let _entered = span.enter();
        let inner = Pin::new(&mut this.inner);
        let frame = ready!(match &this.call {
            Some(call) => call::within(call, || inner.poll_frame(cx)),
            None => inner.poll_frame(cx),
        });
        this.saw(frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
