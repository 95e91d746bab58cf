//! The service, without generated code.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use tokio_stream::Stream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    metadata::MetadataMap,
    server::{ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService},
    transport::Server,
};
use tower::Service;

use crate::{Raw, Words};

const MESSAGE_BYTES: usize = 64 << 20;

/// The messages of a stream.
type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

pub(crate) async fn run(words: &Words) -> anyhow::Result<()> {
    let at = SocketAddr::from(([127, 0, 0, 1], words.number("port", 0)? as u16));
    let streams = Some(words.number("max_streams", 0)? as u32).filter(|streams| *streams > 0);
    let mut server = Server::builder().max_concurrent_streams(streams);
    if let Some(age) = words.millis("max_age_ms")? {
        server = server.max_connection_age(age);
    }
    Ok(server.add_service(Echo).serve(at).await?)
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "honest.v1.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(MESSAGE_BYTES);
            Ok(match request.uri().path() {
                "/honest.v1.Echo/Unary" => grpc.unary(Unary, request).await,
                "/honest.v1.Echo/ServerStream" => grpc.server_streaming(ServerStream, request).await,
                "/honest.v1.Echo/ClientStream" => grpc.client_streaming(ClientStream, request).await,
                "/honest.v1.Echo/Bidi" => grpc.streaming(Bidi, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Does what the caller says in `x-do`.
async fn do_as_asked(metadata: &MetadataMap) -> Result<(), Status> {
    let what = metadata.get("x-do").and_then(|what| what.to_str().ok()).unwrap_or_default();
    match what.split_once(':') {
        Some(("wait", millis)) => tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await,
        Some(("fail", code)) => return Err(Status::new(Code::from(code.parse::<i32>().unwrap_or(2)), "as asked")),
        _ => {}
    }
    Ok(())
}

struct Unary;
struct ServerStream;
struct ClientStream;
struct Bidi;

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            do_as_asked(request.metadata()).await?;
            Ok(Response::new(request.into_inner()))
        })
    }
}

impl ServerStreamingService<Bytes> for ServerStream {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            do_as_asked(request.metadata()).await?;
            let count = request.metadata().get("x-count").and_then(|count| count.to_str().ok()?.parse().ok());
            let message = request.into_inner();
            Ok(Response::new(Box::pin(stream::repeat(Ok(message)).take(count.unwrap_or(10))) as Messages))
        })
    }
}

impl ClientStreamingService<Bytes> for ClientStream {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            do_as_asked(request.metadata()).await?;
            let (mut messages, mut last) = (request.into_inner(), Bytes::new());
            while let Some(message) = messages.message().await? {
                last = message;
            }
            Ok(Response::new(last))
        })
    }
}

impl StreamingService<Bytes> for Bidi {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        ready(Ok(Response::new(Box::pin(request.into_inner()))))
    }
}
