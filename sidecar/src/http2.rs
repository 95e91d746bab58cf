//! HTTP/2, spoken by the h2 crate behind a small interface: accept a call's head, open a call, move data and
//! trailers, reset, GOAWAY. Nothing else in the sidecar's data path names that crate.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_mesh::limits;

/// The error codes of RFC 9113, section 7.
pub(crate) use h2::Reason as Code;

/// What broke a stream or its connection.
#[derive(Debug)]
pub(crate) struct Error(h2::Error);

impl Error {
    /// Whether the peer provably never looked at the stream: it refused it, or said GOAWAY with a lower last id
    /// (RFC 9113, sections 6.8 and 8.7).
    pub(crate) fn is_unseen(&self) -> bool {
        let refused = self.0.is_reset() && self.0.reason() == Some(Code::REFUSED_STREAM);
        self.0.is_remote() && (refused || self.0.is_go_away())
    }

    /// The code of a reset by the peer.
    pub(crate) fn reset_by_peer(&self) -> Option<Code> {
        if self.0.is_reset() && self.0.is_remote() { self.0.reason() } else { None }
    }

    /// Whether it is a rule of the protocol that was broken, and not just the transport.
    pub(crate) fn is_protocol(&self) -> bool {
        !self.0.is_io() && self.0.is_library()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl From<h2::Error> for Error {
    fn from(error: h2::Error) -> Self {
        Self(error)
    }
}

/// A connection on which calls come in.
pub(crate) struct Server<IO>(h2::server::Connection<IO, Bytes>);

/// A call that came in: its head, its body, and where its answer goes.
pub(crate) struct Incoming {
    pub(crate) head: request::Parts,
    pub(crate) body: Receiver,
    pub(crate) responder: Responder,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Server<IO> {
    /// Exchanges prefaces and settings.
    pub(crate) async fn handshake(io: IO) -> Result<Self, Error> {
        let connection = h2::server::Builder::new()
            .initial_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::MAX_FRAME_BYTES)
            .max_header_list_size(limits::HEADER_LIST_BYTES)
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
            .max_local_error_reset_streams(Some(limits::LOCAL_RESETS))
            .max_pending_accept_reset_streams(limits::RESETS_PENDING_ACCEPT)
            .max_concurrent_reset_streams(limits::RESET_STREAMS_KEPT)
            .handshake(io)
            .await?;
        Ok(Self(connection))
    }

    /// The next call, or `None` when the connection has ended well. Drives all streams of the connection, so it is
    /// to be awaited for as long as any runs.
    pub(crate) async fn next(&mut self) -> Option<Result<Incoming, Error>> {
        let accepted = self.0.accept().await?;
        Some(accepted.map_err(Error).map(|(request, responder)| {
            let (head, body) = request.into_parts();
            Incoming { head, body: Receiver::new(body), responder: Responder(responder) }
        }))
    }

    /// Says GOAWAY in two steps (RFC 9113, section 6.8); [`Self::next`] ends when the last stream has.
    pub(crate) fn drain(&mut self) {
        self.0.graceful_shutdown();
    }
}

/// Where the answer to a call goes.
pub(crate) struct Responder(h2::server::SendResponse<Bytes>);

impl Responder {
    /// Sends the head of an answer.
    pub(crate) fn respond(&mut self, head: Response<()>, is_end: bool) -> Result<Sender, Error> {
        Ok(Sender::new(self.0.send_response(head, is_end)?))
    }

    /// Ends the call with an error code.
    pub(crate) fn reset(&mut self, code: Code) {
        self.0.send_reset(code);
    }

    /// Ready when the caller has given the call up, or its connection is gone.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_reset(cx).map(drop)
    }
}

/// A connection on which calls go out.
pub(crate) struct Client(h2::client::SendRequest<Bytes>);

impl Client {
    /// Exchanges prefaces and settings. The second part drives the connection and ends with it.
    pub(crate) async fn handshake<IO: AsyncRead + AsyncWrite + Unpin>(
        io: IO,
    ) -> Result<(Self, impl Future<Output = Result<(), Error>>), Error> {
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::MAX_FRAME_BYTES)
            .max_header_list_size(limits::HEADER_LIST_BYTES)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
            .max_local_error_reset_streams(Some(limits::LOCAL_RESETS))
            .max_concurrent_reset_streams(limits::RESET_STREAMS_KEPT)
            .enable_push(false)
            .handshake(io)
            .await?;
        Ok((Self(client), async { Ok(connection.await?) }))
    }

    /// How many calls the peer takes at once.
    pub(crate) fn stream_limit(&self) -> usize {
        self.0.current_max_send_streams()
    }

    /// Opens a call. Fails without having sent anything when the connection is gone or going.
    pub(crate) async fn open(&mut self, head: Request<()>, is_end: bool) -> Result<(Responding, Sender), Error> {
        poll_fn(|cx| self.0.poll_ready(cx)).await?;
        let (response, stream) = self.0.send_request(head, is_end)?;
        Ok((Responding(response), Sender::new(stream)))
    }

    /// Another handle of the same connection.
    pub(crate) fn another(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The head of an answer to come. Dropping it, and its stream's other half, cancels the call.
pub(crate) struct Responding(h2::client::ResponseFuture);

impl Future for Responding {
    type Output = Result<Response<Receiver>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let head = Pin::new(&mut self.0).poll(cx);
        head.map(|head| head.map(|head| head.map(Receiver::new)).map_err(Error))
    }
}

/// The half of a stream that is read.
pub(crate) struct Receiver {
    stream: h2::RecvStream,
    /// Bytes that were handed out; their window is given back when the next ones are asked for, which is when the
    /// earlier have been passed on. So a slow reader slows the writer.
    unreleased: usize,
    is_data_over: bool,
}

/// A part of a body.
pub(crate) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Receiver {
    pub(crate) fn new(stream: h2::RecvStream) -> Self {
        Self { stream, unreleased: 0, is_data_over: false }
    }

    /// Whether nothing more will come.
    pub(crate) fn is_end(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// The next part, or `None` at the end.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, Error>>> {
        if self.unreleased > 0 {
            let bytes = std::mem::take(&mut self.unreleased);
            // Refused only for a stream that has ended.
            let _ = self.stream.flow_control().release_capacity(bytes);
        }
        if !self.is_data_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.unreleased = data.len();
                    return Poll::Ready(Some(Ok(Part::Data(data))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
                None => self.is_data_over = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Part::Trailers(trailers))))
    }
}

/// The half of a stream that is written.
pub(crate) struct Sender {
    stream: h2::SendStream<Bytes>,
    /// Whether a part was sent whose place in the peer's window is not known yet.
    is_ahead: bool,
}

impl Sender {
    fn new(stream: h2::SendStream<Bytes>) -> Self {
        Self { stream, is_ahead: false }
    }

    /// Sends as much of `data` as there is room for, until all of it is sent. The first part of up to one frame goes
    /// out without asking for room: most bodies have no second one, and a stream's buffer stays bounded by a frame.
    pub(crate) fn poll_send(
        &mut self,
        data: &mut Bytes,
        is_end: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        // An empty part takes no room; it may well be what ends the stream.
        let is_free = data.is_empty() || (!self.is_ahead && data.len() <= limits::MAX_FRAME_BYTES as usize);
        if is_free {
            self.is_ahead = true;
            return Poll::Ready(self.stream.send_data(std::mem::take(data), is_end).map_err(Error));
        }
        self.is_ahead = true;
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let room = match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(h2::Error::from(Code::CANCEL).into())),
                },
                room => room,
            };
            let part = data.split_to(room.min(data.len()));
            self.stream.send_data(part, is_end && data.is_empty())?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the stream without trailers.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        Ok(self.stream.send_data(Bytes::new(), true)?)
    }

    /// Ends the stream.
    pub(crate) fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Error> {
        Ok(self.stream.send_trailers(trailers)?)
    }

    /// Ends the stream with an error code.
    pub(crate) fn reset(&mut self, code: Code) {
        self.stream.send_reset(code);
    }

    /// Ready when the peer wants no more of it, or the connection is gone.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(drop)
    }
}
