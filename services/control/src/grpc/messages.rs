//! Limits for the messages of clients: how large each may be, and how long it may take to arrive.
//!
//! The messages of a call follow each other in its body. Before each are five bytes: a flag and its length ("gRPC over
//! HTTP2", Length-Prefixed-Message). A decoder keeps a partial message until the rest arrives, so a client that stops
//! in the middle of one could hold that memory for as long as it likes. Here a partial message has a time limit, and
//! its length is checked before its bytes are taken. A message that is larger than others may be has to be descriptors and
//! nothing else, as only these are counted before they are decoded.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};
use weft_mesh::limits;

/// The largest message that a call may send now, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Allowance(Arc<AtomicUsize>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(limits::ANNOUNCEMENT_BYTES)))
    }
}

impl Allowance {
    /// Descriptors were asked for, and they may be large, until what this returns is dropped.
    pub(crate) fn allow_descriptors(&self) -> Allowed {
        self.0.store(limits::CONTROL_MESSAGE_BYTES, Relaxed);
        Allowed(self.clone())
    }
}

/// While this lives, a message may be large.
#[derive(Debug)]
pub(crate) struct Allowed(Allowance);

impl Drop for Allowed {
    fn drop(&mut self) {
        self.0.0.store(limits::ANNOUNCEMENT_BYTES, Relaxed);
    }
}

/// Checks the messages of a request. Its handler finds the [`Allowance`] in the request's extensions.
pub(crate) fn watch_over(request: http::Request<Body>) -> http::Request<Body> {
    let allowance = Allowance::default();
    let (mut head, body) = request.into_parts();
    head.extensions.insert(allowance.clone());
    let body = Messages { body, allowance, reading: Reading::default(), deadline: None };
    http::Request::from_parts(head, Body::new(body))
}

/// A request's body.
struct Messages {
    body: Body,
    allowance: Allowance,
    reading: Reading,
    /// When the partial message must be complete.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The position in a body's messages.
#[derive(Debug, Default)]
struct Reading {
    /// How many of the five bytes have arrived, and the length that they give so far.
    prefix: usize,
    length: usize,
    /// How many bytes of the message itself are missing.
    left: usize,
    /// The first bytes of a large message, and how many of them have arrived.
    head: [u8; HEAD],
    head_bytes: usize,
    /// How many messages have started.
    begun: u64,
}

/// The first bytes of a large message: the key and the length of its first field.
const HEAD: usize = 6;
/// The key of `AnnounceRequest.descriptors`: field 4, with a length.
const DESCRIPTORS: u8 = 4 << 3 | 2;

/// Why a message is not taken.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// It has this many bytes, which is too many.
    TooLarge(usize),
    /// It has this many bytes, and is not only descriptors.
    NotDescriptors(usize),
}

impl Reading {
    const PREFIX: usize = 5;

    fn take(&mut self, mut data: &[u8], allowed: usize) -> Result<(), Refused> {
        // Each round takes at least one byte.
        while let Some((&byte, rest)) = data.split_first() {
            if self.left > 0 {
                let taken = self.left.min(data.len());
                if self.length > limits::ANNOUNCEMENT_BYTES {
                    self.look_at(&data[..taken])?;
                }
                self.left -= taken;
                data = &data[taken..];
                continue;
            }
            self.begun += u64::from(self.prefix == 0);
            // The first byte is a flag.
            self.length = if self.prefix == 0 { 0 } else { self.length << 8 | usize::from(byte) };
            self.prefix += 1;
            data = rest;
            if self.prefix == Self::PREFIX {
                self.prefix = 0;
                self.left = self.length;
                self.head_bytes = 0;
                if self.length > allowed {
                    return Err(Refused::TooLarge(self.length));
                }
            }
        }
        Ok(())
    }

    /// Takes the next bytes of a large message. Its first field has to be the descriptors, and as long as all of it.
    fn look_at(&mut self, data: &[u8]) -> Result<(), Refused> {
        let taken = data.len().min(HEAD - self.head_bytes);
        if taken == 0 {
            return Ok(());
        }
        self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&data[..taken]);
        self.head_bytes += taken;
        let [key, length @ ..] = self.head;
        // A varint of `u32` has at most five bytes, and the last one no high bit.
        let is_whole = self.head_bytes == HEAD;
        let Some(last) = length.iter().position(|byte| byte & 0x80 == 0).filter(|_| is_whole) else {
            return if is_whole { Err(Refused::NotDescriptors(self.length)) } else { Ok(()) };
        };
        let content = length[..=last].iter().rev().fold(0_usize, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
        match key == DESCRIPTORS && 1 + last + 1 + content == self.length {
            true => Ok(()),
            false => Err(Refused::NotDescriptors(self.length)),
        }
    }

    /// Whether a message has started and is not complete.
    fn is_half_way(&self) -> bool {
        self.prefix > 0 || self.left > 0
    }
}

impl Messages {
    fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        let allowed = self.allowance.0.load(Relaxed);
        let begun = self.reading.begun;
        self.reading.take(data, allowed).map_err(|refused| match refused {
            Refused::TooLarge(bytes) => Status::out_of_range(format!(
                "a message of {bytes} bytes; allowed, before more is asked for: {allowed}"
            )),
            Refused::NotDescriptors(bytes) => Status::out_of_range(format!(
                "a message of {bytes} bytes that is not only descriptors; allowed for others: {}",
                limits::ANNOUNCEMENT_BYTES
            )),
        })?;
        if !self.reading.is_half_way() {
            self.deadline = None;
        } else if self.reading.begun != begun || self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep_until(Instant::now() + limits::CONTROL_MESSAGE_TIME)));
        }
        Ok(())
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            let within = limits::CONTROL_MESSAGE_TIME;
            return Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
                "a message was not complete within {within:?} of its start"
            )))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.take(data)?;
            if let Some(deadline) = &mut this.deadline {
                // Polled so that it wakes the reader. If it is over already, the next poll sees it.
                let _ = deadline.as_mut().poll(cx);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::{sync::mpsc, time::timeout};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    use super::*;

    /// A request's body, and what sends it.
    fn body() -> (mpsc::Sender<Result<Frame<Bytes>, Status>>, Allowance, Body) {
        let (send, receive) = mpsc::channel(8);
        let request = watch_over(http::Request::new(Body::new(StreamBody::new(ReceiverStream::new(receive)))));
        let allowance = request.extensions().get::<Allowance>().unwrap().clone();
        (send, allowance, request.into_body())
    }

    async fn send(to: &mpsc::Sender<Result<Frame<Bytes>, Status>>, data: &[u8]) {
        to.send(Ok(Frame::data(Bytes::copy_from_slice(data)))).await.unwrap();
    }

    #[test]
    fn messages_are_recognized_however_the_body_is_cut() {
        let messages = b"\0\0\0\0\x03abc\0\0\0\0\0\0\0\0\x01\x00".to_vec();
        let messages = [messages, vec![b'x'; 256]].concat();
        for size in 1..messages.len() {
            let mut reading = Reading::default();
            for piece in messages.chunks(size) {
                reading.take(piece, 256).unwrap();
            }
            assert!(!reading.is_half_way() && reading.begun == 3, "in pieces of {size}");
        }
        let mut reading = Reading::default();
        assert_eq!(reading.take(&messages, 255), Err(Refused::TooLarge(256)));
        let mut reading = Reading::default();
        assert_eq!(reading.take(&[0, 255, 255, 255, 255], 1 << 20), Err(Refused::TooLarge(u32::MAX as usize)));
    }

    #[test]
    fn a_large_message_is_only_descriptors() {
        use prost::Message as _;
        use weft_contracts::weft::discovery::v1::{Announce, AnnounceRequest, announce_request::What};
        let framed =
            |message: &[u8]| [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
        let take = |message: &[u8], piece: usize| {
            let mut reading = Reading::default();
            // Another message before and after.
            let bytes = [framed(b"abc"), framed(message), framed(b"")].concat();
            bytes.chunks(piece).try_for_each(|piece| reading.take(piece, limits::CONTROL_MESSAGE_BYTES))
        };
        let large = 2 * limits::ANNOUNCEMENT_BYTES;
        let encode = |what| AnnounceRequest { what: Some(what) }.encode_to_vec();
        let descriptors = |bytes| encode(What::Descriptors(vec![7; bytes].into()));
        let announce =
            |count| encode(What::Announce(Announce { contracts: vec![String::new(); count], ..Default::default() }));
        let both = [descriptors(10), announce(large)].concat();
        let after = [descriptors(large), announce(1)].concat();
        for piece in [1, 2, 7, usize::MAX] {
            for bytes in [large, limits::ANNOUNCEMENT_BYTES, 10, limits::CONTROL_MESSAGE_BYTES - HEAD] {
                assert_eq!(take(&descriptors(bytes), piece), Ok(()), "{bytes} bytes in pieces of {piece}");
            }
            assert_eq!(take(&announce(10), piece), Ok(()));
            for (what, message) in [("announce", announce(large)), ("both", both.clone()), ("after", after.clone())] {
                assert_eq!(take(&message, piece), Err(Refused::NotDescriptors(message.len())), "{what}");
            }
            let no_varint = [vec![DESCRIPTORS], vec![0xff; large]].concat();
            assert_eq!(take(&no_varint, piece), Err(Refused::NotDescriptors(no_varint.len())));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_incomplete_message_ends_its_stream_and_silence_between_messages_does_not() {
        let (to, _, mut body) = body();
        send(&to, b"\0\0\0\0\x01a").await;
        assert!(body.frame().await.unwrap().is_ok());
        assert!(timeout(Duration::from_secs(3_600), body.frame()).await.is_err(), "no message has started");
        let begun = Instant::now();
        // A byte now and then does not extend the time.
        for byte in b"\0\0\0\0" {
            send(&to, &[*byte]).await;
            assert!(body.frame().await.unwrap().is_ok());
            tokio::time::advance(limits::CONTROL_MESSAGE_TIME / 5).await;
        }
        let ended = body.frame().await.unwrap().unwrap_err();
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
        assert!(begun.elapsed() >= limits::CONTROL_MESSAGE_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn each_message_has_its_own_time_limit() {
        let (to, _, mut body) = body();
        send(&to, b"\0\0\0\0\x02a").await;
        assert!(body.frame().await.unwrap().is_ok());
        for _ in 0..10 {
            tokio::time::advance(limits::CONTROL_MESSAGE_TIME / 2).await;
            // The end of one message and the start of the next.
            send(&to, b"b\0\0\0\0\x02a").await;
            assert!(body.frame().await.unwrap().is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_is_taken_only_when_descriptors_were_asked_for() {
        let prefix = |bytes: usize| [&[0], &u32::try_from(bytes).unwrap().to_be_bytes()[..]].concat();
        let (to, allowance, mut asked) = body();
        let _allowed = allowance.allow_descriptors();
        send(&to, &prefix(limits::CONTROL_MESSAGE_BYTES)).await;
        assert!(asked.frame().await.unwrap().is_ok());
        let (to, allowance, mut not_asked) = body();
        drop(allowance.allow_descriptors());
        send(&to, &prefix(limits::ANNOUNCEMENT_BYTES + 1)).await;
        let refused = not_asked.frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    }
}
