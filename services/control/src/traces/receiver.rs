//! Receives spans: OTLP over gRPC.
//!
//! The server that tonic generates decodes a message before anything can look at it, on a thread that serves others as
//! well. This one takes its bytes, counts what they would take in memory, and decodes and files them on a thread of
//! their own.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::SERVICE_NAME,
};
use prost::Message as _;
use tokio::{sync::Semaphore, task::spawn_blocking};
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service},
    server::{Grpc, UnaryService},
};
use weft_mesh::{
    decoding::{Budget, Refused},
    limits,
};

use super::{Store, Taken, shapes};

/// Adds exported spans to a [`Store`].
#[derive(Debug, Clone)]
pub struct Receiver {
    store: Arc<Store>,
    /// As each export takes several times its size while it is read.
    turns: Arc<Semaphore>,
}

/// The gRPC service `opentelemetry.proto.collector.trace.v1.TraceService` for a store.
pub fn receiver(store: Arc<Store>) -> Receiver {
    Receiver { store, turns: Arc::new(Semaphore::new(limits::OTLP_READ)) }
}

impl Service<http::Request<axum::body::Body>> for Receiver {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/').strip_prefix(SERVICE_NAME);
        if method != Some("/Export") {
            let answer = Status::unimplemented("the service has one method: Export").into_http();
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let receiver = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(limits::OTLP_MESSAGE_BYTES);
            Ok(grpc.unary(receiver, request).await)
        })
    }
}

impl UnaryService<Bytes> for Receiver {
    type Response = ExportTraceServiceResponse;
    type Future = BoxFuture<Response<ExportTraceServiceResponse>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let receiver = self.clone();
        Box::pin(async move { receiver.export(request.into_inner()).await.map(answer) })
    }
}

impl Receiver {
    /// Waits for its turn. If it is dropped later, the spans are filed all the same.
    async fn export(self, message: Bytes) -> Result<Taken, Status> {
        let closed = |_| Status::unavailable("the control plane stops");
        let turn = self.turns.acquire_owned().await.map_err(closed)?;
        let reading = spawn_blocking(move || {
            let taken = decode(message).map(|request| self.store.export(request));
            drop(turn);
            taken
        });
        reading.await.map_err(|_| Status::internal("the spans could not be read"))?
    }
}

/// Decodes an export, unless it would take too much memory.
fn decode(message: Bytes) -> Result<ExportTraceServiceRequest, Status> {
    let malformed = |why: &dyn std::fmt::Display| Status::invalid_argument(format!("this is not an export: {why}"));
    Budget::new(limits::OTLP_MEMORY_BYTES).charge(&shapes::EXPORT, &message).map_err(|refused| match refused {
        Refused::Memory => Status::resource_exhausted(format!(
            "an export that takes more than {} bytes when it is decoded; send fewer spans at once",
            limits::OTLP_MEMORY_BYTES
        )),
        other => malformed(&other),
    })?;
    ExportTraceServiceRequest::decode(message).map_err(|error| malformed(&error))
}

fn answer(taken: Taken) -> Response<ExportTraceServiceResponse> {
    let refused = taken.invalid + taken.no_room;
    let partial_success = (refused > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(refused).unwrap_or(i64::MAX),
        error_message: format!(
            "{} spans without valid ids; {} past {} spans per trace or {} bytes in all",
            taken.invalid,
            taken.no_room,
            limits::SPANS_PER_TRACE,
            limits::TRACE_STORE_BYTES
        ),
    });
    Response::new(ExportTraceServiceResponse { partial_success })
}

/// Leaves requests as bytes.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = ExportTraceServiceResponse;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

impl Encoder for Raw {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn encode(&mut self, answer: ExportTraceServiceResponse, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        answer.encode(to).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span, span::Event},
    };
    use tonic::Code;

    use super::*;

    /// A message with a field that contains bytes.
    fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        prost::encoding::bytes::encode(number, &Bytes::copy_from_slice(bytes), &mut message);
        message
    }

    fn within(numbers: &[u32], bytes: Vec<u8>) -> Bytes {
        numbers.iter().rev().fold(bytes, |inner, number| field(*number, &inner)).into()
    }

    #[test]
    fn exports_that_decode_to_much_more_than_they_weigh_are_refused() {
        let empty = |number: u8| [number << 3 | 2, 0].repeat(limits::OTLP_MESSAGE_BYTES / 2 - 32);
        for (what, message) in [
            ("resources", within(&[], empty(1))),
            ("scopes", within(&[1], empty(2))),
            ("spans", within(&[1, 2], empty(2))),
            ("attributes of a span", within(&[1, 2, 2], empty(9))),
            ("events", within(&[1, 2, 2], empty(11))),
            ("attributes of an event", within(&[1, 2, 2, 11], empty(3))),
            ("links", within(&[1, 2, 2], empty(13))),
            ("attributes of a link", within(&[1, 2, 2, 13], empty(4))),
            ("attributes of a resource", within(&[1, 1], empty(1))),
            ("entities of a resource", within(&[1, 1], empty(3))),
            ("keys of an entity", within(&[1, 1, 3], empty(3))),
            ("attributes of a scope", within(&[1, 2, 1], empty(3))),
            ("values of an array", within(&[1, 2, 2, 9, 2, 5], empty(1))),
            ("values of a list", within(&[1, 2, 2, 9, 2, 6], empty(1))),
        ] {
            assert!(message.len() <= limits::OTLP_MESSAGE_BYTES);
            let refused = decode(message).map(|_| ()).unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{what}: {refused}");
        }
        assert_eq!(decode(Bytes::from_static(b"\x0a\x05")).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn an_export_of_full_size_is_taken() {
        let text = |text: &str| Some(AnyValue { value: Some(Value::StringValue(text.into())) });
        let attribute =
            |key: &str, value: &str| KeyValue { key: key.into(), value: text(value), ..KeyValue::default() };
        let codes = ArrayValue { values: vec![text("200").unwrap(), text("404").unwrap()] };
        let codes = Some(AnyValue { value: Some(Value::ArrayValue(codes)) });
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            parent_span_id: vec![3; 8],
            name: "shop.users.v1.Users/Get".into(),
            start_time_unix_nano: u64::MAX,
            end_time_unix_nano: u64::MAX,
            attributes: vec![
                attribute("rpc.system", "grpc"),
                attribute("rpc.method", "Get"),
                attribute("a", "b"),
                KeyValue { key: "codes".into(), value: codes, ..KeyValue::default() },
            ],
            events: vec![Event { name: "sent".into(), ..Event::default() }],
            ..Span::default()
        };
        let spans = vec![span.clone(); (limits::OTLP_MESSAGE_BYTES - 1_000) / (span.encoded_len() + 3)];
        let resource = Some(Resource { attributes: vec![attribute("service.name", "users")], ..Resource::default() });
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
        let request = ExportTraceServiceRequest { resource_spans };
        let message = request.encode_to_vec();
        assert!(message.len() > limits::OTLP_MESSAGE_BYTES - 2_000);
        assert_eq!(decode(message.into()).unwrap(), request);
    }
}
