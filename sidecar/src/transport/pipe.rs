//! Connects a call to a service that runs inside the sidecar. The call puts a request's body in, the service takes it
//! out as an [`http_body::Body`], and an attendant on the worker's thread tells the call how much was taken.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use weft_wire::Code;

/// One message that goes out of a call, and the window of the message that is pumped into the call from the same
/// service. The sender's flow-control window bounds it: credit is returned only for bytes that were taken.
#[derive(Clone, Default)]
pub(crate) struct Pipe(Arc<Mutex<Message>>);

#[derive(Default)]
struct Message {
    parts: VecDeque<Part>,
    is_whole: bool,
    broke: Option<Code>,
    /// Bytes taken since the attendant last asked.
    taken: usize,
    /// The reader has gone.
    is_left: bool,
    /// Bytes that the pump in the other direction may send again.
    granted: usize,
    reader: Option<Waker>,
    attendant: Option<Waker>,
    pump: Option<Waker>,
}

enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// What a pipe reports to its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// This many bytes were taken out.
    Taken(usize),
    /// The reader is gone and takes no more. No other news follows.
    Gone,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Message> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut Message)) {
        let mut message = self.lock();
        change(&mut message);
        if let Some(reader) = message.reader.take() {
            reader.wake();
        }
    }

    pub(crate) fn put_data(&self, data: &[u8], is_end: bool) {
        self.change(|message| {
            if !data.is_empty() {
                message.parts.push_back(Part::Data(Bytes::copy_from_slice(data)));
            }
            message.is_whole |= is_end;
        });
    }

    pub(crate) fn put_trailers(&self, trailers: HeaderMap) {
        self.change(|message| {
            message.parts.push_back(Part::Trailers(trailers));
            message.is_whole = true;
        });
    }

    /// Nothing more will come, although the message is incomplete.
    pub(crate) fn break_off(&self, code: Code) {
        self.change(|message| {
            if !message.is_whole {
                message.broke = Some(code);
            }
        });
    }

    /// Bytes that were pumped into the call from here have been forwarded.
    pub(crate) fn grant(&self, bytes: usize) {
        let mut message = self.lock();
        message.granted += bytes;
        if let Some(pump) = message.pump.take() {
            pump.wake();
        }
    }

    /// For the pump: waits until some of its bytes have been forwarded, and returns how many.
    pub(crate) async fn granted(&self) -> usize {
        std::future::poll_fn(|cx| {
            let mut message = self.lock();
            if message.granted > 0 {
                return Poll::Ready(std::mem::take(&mut message.granted));
            }
            message.pump = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// For the attendant: waits for news of the bytes that were put in.
    pub(crate) async fn news(&self) -> News {
        std::future::poll_fn(|cx| {
            let mut message = self.lock();
            if message.taken > 0 {
                return Poll::Ready(News::Taken(std::mem::take(&mut message.taken)));
            }
            if message.is_left {
                return Poll::Ready(News::Gone);
            }
            message.attendant = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// The reader's end: a body for hyper or tonic.
pub(crate) struct PipeBody {
    pipe: Pipe,
}

/// A message that ended before it was complete.
#[derive(Debug, thiserror::Error)]
#[error("the message ended early: {0}")]
pub(crate) struct BrokeOff(Code);

impl PipeBody {
    pub(crate) fn new(pipe: Pipe) -> Self {
        Self { pipe }
    }

    fn taken(message: &mut Message, bytes: usize) {
        message.taken += bytes;
        if let Some(attendant) = message.attendant.take() {
            attendant.wake();
        }
    }
}

impl http_body::Body for PipeBody {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        let mut message = self.pipe.lock();
        match message.parts.pop_front() {
            Some(Part::Data(data)) => {
                Self::taken(&mut message, data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Part::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None if message.is_whole => Poll::Ready(None),
            None => match message.broke {
                Some(code) => Poll::Ready(Some(Err(BrokeOff(code)))),
                None => {
                    message.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        let message = self.pipe.lock();
        message.is_whole && message.parts.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let message = self.pipe.lock();
        let is_data = |part: &Part| matches!(part, Part::Data(_));
        if message.is_whole && message.parts.iter().all(is_data) {
            let bytes = |part: &Part| if let Part::Data(data) = part { data.len() as u64 } else { 0 };
            return http_body::SizeHint::with_exact(message.parts.iter().map(bytes).sum());
        }
        http_body::SizeHint::default()
    }
}

impl Drop for PipeBody {
    fn drop(&mut self) {
        let mut message = self.pipe.lock();
        message.is_left = true;
        if let Some(attendant) = message.attendant.take() {
            attendant.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_attendant_notices_that_the_reader_is_gone() {
        let pipe = Pipe::default();
        let mut body = PipeBody::new(pipe.clone());
        pipe.put_data(b"hello", false);
        assert!(body.frame().await.is_some());
        drop(body);
        assert_eq!(pipe.news().await, News::Taken(5));
        assert_eq!(pipe.news().await, News::Gone);
    }
}
