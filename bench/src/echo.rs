//! The server of the benchmark: reads a whole body and sends the same bytes back. For gRPC it adds `grpc-status: 0`,
//! and for [`contract::STREAM`] it sends them many times. [`contract::CHAT`], [`contract::POUR`] and [`contract::DEAF`]
//! run until their caller ends them.

use std::future::poll_fn;

use anyhow::Result;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, header};

use crate::{cases::STREAM_MESSAGES, contract, http2};

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
                    // A caller that has gone needs no answer. The load generator counts missing answers.
                    let _ = answer(request, respond).await;
                });
            }
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (request, mut body) = request.into_parts();
    match request.uri.path() {
        contract::CHAT => return chat(&mut body, respond).await,
        contract::POUR => return pour(respond).await,
        contract::DEAF => return Err(poll_fn(|cx| respond.poll_reset(cx)).await?.into()),
        _ => {}
    }
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.push(data);
    }
    let content_type = request.headers.get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        let mut stream = respond.send_response(grpc_head(), false)?;
        let times = if request.uri.path() == contract::STREAM { STREAM_MESSAGES } else { 1 };
        for data in std::iter::repeat_n(message, times).flatten() {
            http2::send(&mut stream, data, false).await?;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        stream.send_trailers(trailers)
    } else {
        let mut head = Response::new(());
        let size = message.iter().map(Bytes::len).sum::<usize>();
        head.headers_mut().insert(header::CONTENT_LENGTH, size.into());
        let mut stream = respond.send_response(head, size == 0)?;
        let last = message.len().saturating_sub(1);
        for (index, data) in message.into_iter().enumerate() {
            http2::send(&mut stream, data, index == last).await?;
        }
        Ok(())
    }
}

fn grpc_head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head
}

async fn chat(body: &mut RecvStream, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(grpc_head(), false)?;
    while let Some(data) = http2::data_or_reset(body, &mut stream).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        http2::send(&mut stream, data, false).await?;
    }
    stream.send_data(Bytes::new(), true)
}

async fn pour(mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(grpc_head(), false)?;
    let data = Bytes::from_static(&[b'x'; 16 * 1024]);
    loop {
        http2::send(&mut stream, data.clone(), false).await?;
    }
}
