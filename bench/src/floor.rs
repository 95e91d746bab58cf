//! The floor: a relay pair on the h2 crate and rustls with no features at all. It is the yardstick for the sidecars, so
//! it must be as correct as they are (flow control from end to end, trailers, resets, half-close) and do nothing else.
//!
//! Each relay has one upstream connection, opened before it reports that it is ready: the out-relay over mutual TLS to
//! the in-relay, the in-relay in plain text to the server.

use std::{future::poll_fn, net::SocketAddr, path::Path, pin::Pin, sync::Arc, task::Poll};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::try_join;
use h2::{Reason, RecvStream, SendStream, client, server::SendResponse};
use http::{Request, Response};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{http2, tls};

type Upstream = client::SendRequest<Bytes>;

/// The relay beside the client: plain text in, mutual TLS out.
pub(crate) async fn run_out(certificates: &Path, to: SocketAddr) -> Result<()> {
    let connector = TlsConnector::from(Arc::new(tls::client_config(certificates)?));
    let io = connector.connect(ServerName::try_from(tls::NAME)?, http2::dial(to).await?).await?;
    let upstream = http2::connect(io, upstream_has_gone).await?;
    let listener = http2::listen_and_say().await?;
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        tokio::spawn(serve(io, upstream.clone()));
    }
}

/// The relay beside the server: mutual TLS in, plain text out.
pub(crate) async fn run_in(certificates: &Path, to: SocketAddr) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(certificates)?));
    let upstream = http2::connect(http2::dial(to).await?, upstream_has_gone).await?;
    let listener = http2::listen_and_say().await?;
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
        tokio::spawn(async move {
            match acceptor.accept(io).await.context("TLS") {
                Ok(io) => serve(io, upstream).await,
                Err(error) => eprintln!("weft-bench: {error:#}"),
            }
        });
    }
}

/// A relay without its upstream connection is useless.
fn upstream_has_gone() {
    eprintln!("weft-bench: a relay has lost its connection");
    std::process::exit(1);
}

/// One connection from downstream: each call is opened upstream at once and then has a task.
async fn serve<T: AsyncRead + AsyncWrite + Unpin>(io: T, upstream: Upstream) {
    let Ok(mut connection) = http2::accept(io).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, body) = request.into_parts();
        // Beyond the peer's stream limit h2 queues the call. A new clone is always ready.
        match upstream.clone().send_request(Request::from_parts(head, ()), body.is_end_stream()) {
            Ok((answer, to_server)) => drop(tokio::spawn(relay(body, respond, answer, to_server))),
            Err(_) => respond.send_reset(Reason::REFUSED_STREAM),
        }
    }
}

/// One call: both directions at once. If one fails, both are reset with the same reason.
async fn relay(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    answer: client::ResponseFuture,
    mut to_server: SendStream<Bytes>,
) {
    let forth = async {
        if body.is_end_stream() {
            return Ok(());
        }
        match pump(&mut body, &mut to_server).await {
            // The server has answered and wants no more of the request (RFC 9113, section 8.1).
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => Ok(()),
            other => other,
        }
    };
    let back = async {
        let (head, mut body) = answer_or_reset(answer, &mut respond).await?.into_parts();
        let has_ended = body.is_end_stream();
        let mut to_client = respond.send_response(Response::from_parts(head, ()), has_ended)?;
        if has_ended { Ok(()) } else { pump(&mut body, &mut to_client).await }
    };
    if let Err(error) = try_join(forth, back).await {
        let reason = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        to_server.send_reset(reason);
        respond.send_reset(reason);
    }
}

/// The head of the answer, unless the client resets the call first.
async fn answer_or_reset(
    mut answer: client::ResponseFuture,
    respond: &mut SendResponse<Bytes>,
) -> Result<Response<RecvStream>, h2::Error> {
    poll_fn(|cx| {
        if let Poll::Ready(answer) = Pin::new(&mut answer).poll(cx) {
            return Poll::Ready(answer);
        }
        respond.poll_reset(cx).map(|reason| Err(reason.map_or_else(|error| error, Into::into)))
    })
    .await
}

/// One direction's body and trailers. The sender gets credit only for forwarded bytes, so a slow reader slows down its
/// writer and does not fill the relay's memory.
async fn pump(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(data) = http2::data_or_reset(from, to).await {
        let data = data?;
        let (len, has_ended) = (data.len(), from.is_end_stream());
        http2::send(to, data, has_ended).await?;
        from.flow_control().release_capacity(len)?;
        if has_ended {
            return Ok(());
        }
    }
    match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
}
