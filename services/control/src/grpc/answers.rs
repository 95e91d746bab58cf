//! Limits for answers that clients have not read yet.
//!
//! If a client does not read, or gives no flow-control window, its answers wait here. They may be large, and there may
//! be many calls on many connections. So each part of an answer counts for the caller's identity until HTTP/2 has sent
//! it. An identity with `limits::ANSWER_BYTES_UNREAD` unread bytes gets no more until it reads; others are not
//! affected. An answer about the whole mesh is built completely before any of it is sent, so an identity may have only
//! `limits::ANSWERS_AT_ONCE` of those at once.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Response, Status, body::Body};
use tower::{Layer, Service};

use super::{
    peer::Peer,
    unread::{Part, Turn, Unread},
};

/// The body of an answer.
struct Answer {
    body: Body,
    unread: Arc<Unread>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    turn: Option<Turn>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.waiting.is_none() && this.unread.is_full() {
            let unread = Arc::clone(&this.unread);
            this.waiting = Some(Box::pin(async move { unread.room().await }));
        }
        if let Some(waiting) = &mut this.waiting {
            ready!(waiting.as_mut().poll(cx));
            this.waiting = None;
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| frame.map_data(|data| Bytes::from_owner(Part::new(data, &this.unread, &this.turn))))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The layer that counts a service's answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counting;

impl<S> Layer<S> for Counting {
    type Service = CountedAnswers<S>;

    fn layer(&self, inner: S) -> CountedAnswers<S> {
        CountedAnswers(inner)
    }
}

/// See [`Counting`].
#[derive(Debug, Clone)]
pub(crate) struct CountedAnswers<S>(S);

impl<S> Service<http::Request<Body>> for CountedAnswers<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let unread = request.extensions().get::<Peer>().map(Peer::unread).unwrap_or_default();
        let answering = self.0.call(request);
        Box::pin(async move {
            let mut response = answering.await?;
            let turn = response.extensions_mut().remove::<Turn>();
            Ok(response.map(|body| Body::new(Answer { body, unread, waiting: None, turn })))
        })
    }
}

/// An answer that keeps its turn until it is sent.
pub(crate) fn in_turn<T>(message: T, turn: Turn) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(turn);
    response
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use http_body_util::{BodyExt as _, Full};
    use weft_mesh::limits;

    use super::*;

    fn answer(bytes: usize, unread: &Arc<Unread>) -> Answer {
        let body = Body::new(Full::new(Bytes::from(vec![b'x'; bytes])));
        Answer { body, unread: Arc::clone(unread), waiting: None, turn: None }
    }

    async fn part(answer: &mut Answer) -> Bytes {
        answer.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test]
    async fn an_identity_that_does_not_read_gets_no_more_and_others_do() {
        let unread = Arc::<Unread>::default();
        let first = part(&mut answer(limits::ANSWER_BYTES_UNREAD - 1, &unread)).await;
        let second = part(&mut answer(10, &unread)).await;
        let mut third = answer(10, &unread);
        let mut waiting = Box::pin(part(&mut third));
        assert!(poll!(&mut waiting).is_pending());
        part(&mut answer(10, &Arc::default())).await;
        // A slice keeps the whole part in memory, so all of it counts.
        let rest = first.slice(5..);
        drop(first);
        assert!(poll!(&mut waiting).is_pending());
        drop(rest);
        let third = waiting.await;
        drop((second, third));
        assert_eq!(unread.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn large_answers_at_once_are_limited() {
        let unread = Unread::default();
        let mut turns = Vec::new();
        for _ in 0..limits::ANSWERS_AT_ONCE {
            turns.push(in_turn((), unread.turn().await.unwrap()));
        }
        let refused = unread.turn().await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        turns.pop();
        unread.turn().await.unwrap();
    }
}
