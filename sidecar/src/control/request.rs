//! One request of HTTP/1.1 on a connection of its own.

use bytes::Bytes;
use http::{Request, StatusCode, response::Parts};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// The status of the answer. The connection ends then, or when the future is dropped.
pub(crate) async fn status(stream: TcpStream, request: Request<Empty<Bytes>>) -> anyhow::Result<StatusCode> {
    Ok(head(stream, request).await?.status)
}

/// The head of the answer. The connection ends then, or when the future is dropped: the answer's body is not needed.
pub(crate) async fn head(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<Parts> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async { Ok(sender.send_request(request).await?.into_parts().0) };
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        head = &mut answer => head,
        ended = &mut connection => match ended {
            // The answer may be complete and still waiting here.
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}
