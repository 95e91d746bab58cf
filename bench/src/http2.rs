//! HTTP/2 for the client, the server and the floor's relays: settings (those of the sidecars, for a fair comparison),
//! and sending under flow control.

use std::{future::poll_fn, net::SocketAddr, task::Poll};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use weft_mesh::limits;

/// The client's side of a connection. Its driver runs as a task, which calls `on_close` when the connection has ended.
pub(crate) async fn connect<T>(io: T, on_close: fn()) -> Result<client::SendRequest<Bytes>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (requests, connection) = client::Builder::new()
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
        .max_header_list_size(limits::HEADER_LIST_BYTES)
        .max_frame_size(limits::MAX_FRAME_BYTES)
        .enable_push(false)
        .handshake(io)
        .await
        .context("no HTTP/2 connection")?;
    tokio::spawn(async move {
        // Each call on the connection gets the reason.
        let _ = connection.await;
        on_close();
    });
    Ok(requests)
}

/// The server's side of a connection.
pub(crate) async fn accept<T>(io: T) -> Result<server::Connection<T, Bytes>, h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    server::Builder::new()
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
        .max_header_list_size(limits::HEADER_LIST_BYTES)
        .max_frame_size(limits::MAX_FRAME_BYTES)
        .handshake(io)
        .await
}

/// A TCP connection that sends at once.
pub(crate) async fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("no connection to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Listens on a port that the kernel picks, and reports it to the parent process.
pub(crate) async fn listen_and_say() -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {}", listener.local_addr()?);
    Ok(listener)
}

/// Sends `data` as fast as the peer's windows allow.
pub(crate) async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    if data.is_empty() {
        return if end { to.send_data(data, true) } else { Ok(()) };
    }
    loop {
        to.reserve_capacity(data.len());
        let room = match to.capacity() {
            0 => poll_fn(|cx| to.poll_capacity(cx)).await,
            room => Some(Ok(room)),
        };
        let Some(room) = room else { return Err(why_closed(to).await) };
        let part = data.split_to(room?.min(data.len()));
        let is_last = data.is_empty();
        if to.send_data(part, is_last && end).is_err() {
            return Err(why_closed(to).await);
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Why nothing more can be sent: the peer's reason, if it has reset the stream.
async fn why_closed(to: &mut SendStream<Bytes>) -> h2::Error {
    poll_fn(|cx| match to.poll_reset(cx) {
        Poll::Ready(Ok(reason)) => Poll::Ready(reason.into()),
        Poll::Ready(Err(error)) => Poll::Ready(error),
        Poll::Pending => Poll::Ready(Reason::CANCEL.into()),
    })
    .await
}

/// The next piece of a body, unless the receiving peer resets the call first.
pub(crate) async fn data_or_reset(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
) -> Option<Result<Bytes, h2::Error>> {
    poll_fn(|cx| {
        if let Poll::Ready(data) = from.poll_data(cx) {
            return Poll::Ready(data);
        }
        to.poll_reset(cx).map(|reason| Some(Err(reason.map_or_else(|error| error, Into::into))))
    })
    .await
}
