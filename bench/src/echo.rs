//! The server of the benchmark: takes a whole gRPC message and sends the same bytes back with `grpc-status: 0`.

use anyhow::Result;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::http2;

/// Serves until the process is ended.
pub(crate) async fn run() -> Result<()> {
    let listener = http2::listen_and_say().await?;
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        tokio::spawn(async move {
            let Ok(mut connection) = http2::accept(io).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(async move {
                    // A caller that has gone away needs no answer; the load generator counts what it misses.
                    let _ = answer(request, respond).await;
                });
            }
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.push(data);
    }
    let mut head = Response::new(());
    head.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(head, false)?;
    for data in message {
        http2::send(&mut stream, data, false).await?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
