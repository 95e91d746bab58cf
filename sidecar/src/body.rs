//! Bodies on their way through: read from where they come, part by part, and moved to where they go.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::http2::{self, Code, Part, Receiver, Sender};

/// A body that is read.
pub(crate) enum Body {
    Empty,
    H2(Receiver),
    H1(hyper::body::Incoming),
    /// Of a service inside the sidecar.
    Local(tonic::body::Body),
    /// One that is read again from its beginning: what was taken out of it before, then the rest.
    Replayed(VecDeque<Bytes>, Box<Body>),
}

/// Why a body stopped half-way.
#[derive(Debug)]
pub(crate) enum BodyError {
    H2(http2::Error),
    H1(hyper::Error),
    Local(tonic::Status),
}

impl BodyError {
    /// The code that says the same on the other side.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::H2(e) => e.reset_by_peer().unwrap_or(Code::CANCEL),
            Self::H1(_) | Self::Local(_) => Code::CANCEL,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::H2(e) => e.fmt(f),
            Self::H1(e) => e.fmt(f),
            Self::Local(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for BodyError {}

impl Body {
    /// Whether nothing more will come.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H2(receiver) => receiver.is_end(),
            Self::H1(body) => http_body::Body::is_end_stream(body),
            Self::Local(body) => http_body::Body::is_end_stream(body),
            Self::Replayed(kept, rest) => kept.is_empty() && rest.is_end(),
        }
    }

    /// The next part, or `None` at the end.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::H2(receiver) => receiver.poll_part(cx).map(|part| part.map(|part| part.map_err(BodyError::H2))),
            Self::H1(body) => poll_frame(body, cx, BodyError::H1),
            Self::Local(body) => poll_frame(body, cx, BodyError::Local),
            Self::Replayed(kept, rest) => match kept.pop_front() {
                Some(data) => Poll::Ready(Some(Ok(Part::Data(data)))),
                None => rest.poll_part(cx),
            },
        }
    }
}

fn poll_frame<B>(
    body: &mut B,
    cx: &mut Context<'_>,
    error: fn(B::Error) -> BodyError,
) -> Poll<Option<Result<Part, BodyError>>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
        None => None,
        Some(Err(e)) => Some(Err(error(e))),
        Some(Ok(frame)) => Some(Ok(match frame.into_data() {
            Ok(data) => Part::Data(data),
            Err(frame) => Part::Trailers(frame.into_trailers().unwrap_or_default()),
        })),
    })
}

/// For hyper and tonic, which take bodies as a trait.
impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_part(cx).map(|part| {
            part.map(|part| {
                part.map(|part| match part {
                    Part::Data(data) => Frame::data(data),
                    Part::Trailers(trailers) => Frame::trailers(trailers),
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::H1(body) => http_body::Body::size_hint(body),
            Self::H2(_) | Self::Local(_) | Self::Replayed(..) => SizeHint::default(),
        }
    }
}

/// What is looked at while a body moves.
pub(crate) trait Watch {
    /// A part of data is about to move on.
    fn data(&mut self, _data: &Bytes) {}
    /// The trailers are about to move on.
    fn trailers(&mut self, _trailers: &mut HeaderMap) {}
}

/// Why a body did not arrive whole.
#[derive(Debug)]
pub(crate) enum MoveError {
    /// Where it came from broke; the stream it went to is still open.
    Source(BodyError),
    /// Where it went to wants no more, or has gone.
    Sink,
}

/// Moves a body into a stream. Polled until it is ready.
pub(crate) struct Transfer<W> {
    pub(crate) body: Body,
    pub(crate) watch: W,
    pending: Option<Bytes>,
    is_done: bool,
}

impl<W: Watch> Transfer<W> {
    pub(crate) fn new(body: Body, watch: W) -> Self {
        Self { body, watch, pending: None, is_done: false }
    }

    /// Whether the whole body has been handed to its stream.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Marks a body that the head has ended.
    pub(crate) fn set_done(&mut self) {
        self.is_done = true;
    }

    pub(crate) fn poll(&mut self, to: &mut Sender, cx: &mut Context<'_>) -> Poll<Result<(), MoveError>> {
        while !self.is_done {
            if let Some(data) = &mut self.pending {
                let is_end = self.body.is_end();
                let sent = to.poll_send(data, is_end, cx);
                if sent.is_pending() && to.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(MoveError::Sink));
                }
                ready!(sent).map_err(|_| MoveError::Sink)?;
                self.pending = None;
                if is_end {
                    self.is_done = true;
                    break;
                }
            }
            let part = match self.body.poll_part(cx) {
                Poll::Ready(part) => part,
                Poll::Pending => {
                    ready!(to.poll_gone(cx));
                    return Poll::Ready(Err(MoveError::Sink));
                }
            };
            let sent = match part {
                Some(Ok(Part::Data(data))) => {
                    self.watch.data(&data);
                    self.pending = Some(data);
                    continue;
                }
                Some(Ok(Part::Trailers(mut trailers))) => {
                    self.watch.trailers(&mut trailers);
                    to.send_trailers(trailers)
                }
                None => to.finish(),
                Some(Err(e)) => return Poll::Ready(Err(MoveError::Source(e))),
            };
            self.is_done = true;
            sent.map_err(|_| MoveError::Sink)?;
        }
        Poll::Ready(Ok(()))
    }
}
