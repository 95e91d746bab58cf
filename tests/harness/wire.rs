//! Clients that do what a well-behaved client never does.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{SendStream, client};
use http::Request;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::Status;

use crate::{Bed, Text, get};

const CONNECTION_WINDOW: u32 = 1 << 20;

/// A bare HTTP/2 connection, whose calls can stop half-way.
pub struct Wire {
    sender: client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Wire {
    /// To a loopback port.
    ///
    /// # Panics
    /// Nothing speaks HTTP/2 there.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("something listens");
        stream.set_nodelay(true).expect("it is open");
        Self::over(stream).await
    }

    /// Over an established connection.
    ///
    /// # Panics
    /// Nothing speaks HTTP/2 at its other end.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        // A stream that is not read must not use up the connection's window.
        let mut builder = client::Builder::new();
        builder.initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2 begins");
        Self { sender, connection: tokio::spawn(connection) }
    }

    /// Opens a call of `probe.v1.Probe` with headers. The caller sends the body.
    ///
    /// # Panics
    /// The connection is gone.
    pub async fn open(
        &mut self,
        method: &str,
        headers: &[(&'static str, &str)],
    ) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://127.0.0.1/probe.v1.Probe/{method}"));
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut ready = self.sender.clone().ready().await.expect("the connection is there");
        ready.send_request(request, false).expect("the call opens")
    }

    /// Makes a call with one message. Returns the status that it ends with.
    ///
    /// # Panics
    /// It ends without a status.
    pub async fn call(&mut self, method: &str, headers: &[(&'static str, &str)]) -> Status {
        let (answer, mut body) = self.open(method, headers).await;
        // This fails if the call has been refused already. Then the answer says so.
        let _ = body.send_data(framed("hello"), true);
        let mut answer = answer.await.expect("an answer");
        if let Some(status) = Status::from_header_map(answer.headers()) {
            return status;
        }
        while answer.body_mut().data().await.is_some() {}
        let trailers = answer.body_mut().trailers().await.expect("a whole answer").expect("trailers");
        Status::from_header_map(&trailers).expect("a status")
    }

    /// Ends the connection at once, with all calls on it.
    pub fn cut(self) {
        self.connection.abort();
    }
}

/// Sends `bytes` bytes as fast as flow control allows. Before each part, `left` gets the number of bytes that are left.
/// Does not end the body.
///
/// # Errors
/// The stream has ended.
pub async fn pour(body: &mut SendStream<Bytes>, bytes: usize, mut left: impl FnMut(usize)) -> Result<(), h2::Error> {
    const CHUNK: usize = 64 * 1024;
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let mut rest = bytes;
    while rest > 0 {
        left(rest);
        body.reserve_capacity(rest.min(CHUNK));
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap_or(Err(h2::Reason::CANCEL.into()))?;
        let part = chunk.slice(..room.min(rest));
        rest -= part.len();
        body.send_data(part, false)?;
    }
    Ok(())
}

/// A message with its gRPC prefix, as in a body.
///
/// # Panics
/// Never: the buffer grows.
pub fn framed(text: &str) -> Bytes {
    let message = Text { text: text.into() };
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).expect("a growing buffer has room");
    frame.freeze()
}

/// Sends bytes to a loopback port. Returns what comes back until the other side closes the connection.
///
/// # Panics
/// The other side does not close it.
pub async fn raw(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("something listens");
    // Both may fail if the other side closes early. Then what came before counts.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    assert!(reading.is_ok(), "the connection stays open: {}", answer.escape_ascii());
    answer
}

/// A metric of a sidecar, summed over the rows whose line contains `label`.
///
/// # Panics
/// Nothing serves `/metrics` at the port.
pub async fn metric(port: u16, name: &str, label: &str) -> f64 {
    let (_, page) = get(port, "/metrics").await;
    let rows = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
    rows.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Checks that neither the keyboard's sidecar nor that of a replica has panicked.
///
/// # Panics
/// One of them has.
pub async fn assert_no_panics(bed: &Bed, replica: &str) {
    for name in ["keyboard", replica] {
        assert_eq!(metric(bed.ports(name).metrics, "weft_panics_total", "").await, 0.0, "{name}'s sidecar");
    }
}
