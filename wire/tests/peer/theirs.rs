//! Drives the h2 crate's connection with the bytes of a script.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::blocks::List;
use super::script::*;
use super::seen::{Seen, Tap, sorted};

/// A transport in memory, whose other end is this module.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Ends>>);

#[derive(Default)]
struct Ends {
    input: Vec<u8>,
    output: Vec<u8>,
    /// The number of bytes moved so far, to find out when nothing more happens.
    moved: usize,
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.0.borrow_mut();
        let bytes = ends.input.len().min(into.remaining());
        if bytes == 0 {
            return Poll::Pending;
        }
        into.put_slice(&ends.input[..bytes]);
        ends.input.drain(..bytes);
        ends.moved += bytes;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut ends = self.0.borrow_mut();
        ends.output.extend_from_slice(bytes);
        ends.moved += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

enum Connection {
    Server(h2::server::Connection<Pipe, Bytes>),
    Client { connection: h2::client::Connection<Pipe, Bytes>, _sender: SendRequest<Bytes> },
    Over,
}

/// A call in progress: the parts that can still make progress.
struct Call {
    id: u32,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    respond: Option<SendResponse<Bytes>>,
    sending: Option<SendStream<Bytes>>,
}

pub struct Theirs {
    pipe: Pipe,
    connection: Connection,
    calls: Vec<Call>,
    tap: Tap,
    answer: Answer,
    is_reading: bool,
    steps: usize,
    pub seen: Seen,
    /// The bytes that it wrote.
    pub written: Vec<u8>,
}

macro_rules! configure {
    ($builder:expr) => {
        $builder
            .initial_window_size(STREAM_WINDOW as u32)
            .initial_connection_window_size(CONNECTION_WINDOW as u32)
            .max_frame_size(FRAME_BYTES as u32)
            .max_header_list_size(HEADER_LIST_BYTES as u32)
            .max_concurrent_streams(STREAMS as u32)
            .max_concurrent_reset_streams(1000)
            .max_pending_accept_reset_streams(1000)
            .max_local_error_reset_streams(None)
            .reset_stream_duration(Duration::from_secs(3600))
            .max_send_buffer_size(1 << 24)
            .data_frame_budget(1 << 30)
    };
}

fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

impl Theirs {
    pub fn new(script: &Script) -> Self {
        let pipe = Pipe::default();
        let mut calls = Vec::new();
        let connection = match script.role {
            Role::Server => {
                pipe.0.borrow_mut().input.extend_from_slice(super::frames::PREFACE);
                let handshake = configure!(h2::server::Builder::new()).handshake::<_, Bytes>(pipe.clone());
                Connection::Server(now_or_never(handshake).expect("the preface is there").expect("the preface is good"))
            }
            Role::Client => {
                let handshake =
                    configure!(h2::client::Builder::new()).enable_push(false).handshake::<_, Bytes>(pipe.clone());
                let (mut sender, connection) =
                    now_or_never(handshake).expect("the handshake only writes").expect("it can write");
                for (id, method) in CLIENT_STREAMS.into_iter().zip(CLIENT_METHODS) {
                    let is_end = method != "POST";
                    let head = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
                    let head = head.uri("http://users/").body(()).unwrap();
                    let (response, mut sending) =
                        sender.send_request(head, is_end).expect("the peer allows more streams");
                    assert_eq!(sending.stream_id().as_u32(), id);
                    match id {
                        3 => sending.send_data(Bytes::from(vec![b'x'; 100]), false).unwrap(),
                        5 => sending.send_data(Bytes::from(vec![b'y'; BODY_BYTES]), true).unwrap(),
                        _ => {}
                    }
                    calls.push(Call {
                        id,
                        response: Some(response),
                        body: None,
                        respond: None,
                        sending: Some(sending),
                    });
                }
                Connection::Client { connection, _sender: sender }
            }
        };
        let mut this = Self {
            pipe,
            connection,
            calls,
            tap: Tap::new(script.role == Role::Client),
            answer: script.answer,
            is_reading: script.is_reading,
            steps: 0,
            seen: Seen::default(),
            written: Vec::new(),
        };
        this.feed(&[]);
        this
    }

    /// Receives bytes from the peer and handles all events.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.seen.goaway.is_some() {
            return;
        }
        self.pipe.0.borrow_mut().input.extend_from_slice(bytes);
        let mut quiet = 0;
        while quiet < 3 {
            let before = (self.pipe.0.borrow().moved, self.steps);
            self.turn();
            quiet = if before == (self.pipe.0.borrow().moved, self.steps) { quiet + 1 } else { 0 };
        }
        let output = std::mem::take(&mut self.pipe.0.borrow_mut().output);
        for frame in self.tap.take(&output) {
            self.seen.sent(&frame);
        }
        self.written.extend(output);
    }

    fn turn(&mut self) {
        let context = &mut Context::from_waker(Waker::noop());
        let is_over = match &mut self.connection {
            Connection::Server(connection) => match connection.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.steps += 1;
                    self.accept(request, respond);
                    false
                }
                Poll::Ready(_) => true,
                Poll::Pending => false,
            },
            Connection::Client { connection, .. } => Pin::new(connection).poll(context).is_ready(),
            Connection::Over => return,
        };
        if is_over {
            // How the end of the connection affects its streams is not compared.
            self.connection = Connection::Over;
            return;
        }
        let mut calls = std::mem::take(&mut self.calls);
        calls.retain_mut(|call| !self.advance(call, context));
        self.calls = calls;
    }

    fn accept(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let id = respond.stream_id().as_u32();
        let (head, body) = request.into_parts();
        let text = |text: &str| text.as_bytes().to_vec();
        let mut list: List = vec![(text(":method"), text(head.method.as_str()))];
        let uri = head.uri.into_parts();
        list.extend(uri.scheme.map(|scheme| (text(":scheme"), text(scheme.as_str()))));
        list.extend(uri.authority.map(|authority| (text(":authority"), text(authority.as_str()))));
        list.extend(uri.path_and_query.map(|path| (text(":path"), text(path.as_str()))));
        list.extend(fields(&head.headers));
        self.seen.call(id).heads.push(sorted(list.into_iter().map(trimmed)));
        let mut sending = None;
        match self.answer {
            Answer::AtOnce => drop(respond.send_response(Response::new(()), true)),
            Answer::Body => {
                if let Ok(mut stream) = respond.send_response(Response::new(()), false) {
                    drop(stream.send_data(Bytes::from(vec![b'z'; BODY_BYTES]), true));
                    sending = Some(stream);
                }
            }
            Answer::Never | Answer::AtEnd => {}
        }
        self.calls.push(Call { id, response: None, body: Some(body), respond: Some(respond), sending });
    }

    /// Receives everything that has arrived for a call. Returns true when nothing more can come.
    fn advance(&mut self, call: &mut Call, context: &mut Context<'_>) -> bool {
        if let Some(response) = &mut call.response {
            while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
                self.steps += 1;
                self.head(call.id, interim);
            }
            match Pin::new(response).poll(context) {
                Poll::Pending => {}
                Poll::Ready(Ok(response)) => {
                    self.steps += 1;
                    call.response = None;
                    let (head, body) = response.into_parts();
                    self.head(call.id, Response::from_parts(head, ()));
                    call.body = Some(body);
                }
                Poll::Ready(Err(error)) => return self.failed(call, &error),
            }
        }
        if let Some(body) = &mut call.body {
            loop {
                match body.poll_data(context) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(data))) => {
                        self.steps += 1;
                        self.seen.call(call.id).body.extend_from_slice(&data);
                        if self.is_reading {
                            body.flow_control().release_capacity(data.len()).expect("it was received");
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return self.failed(call, &error),
                    Poll::Ready(None) => match body.poll_trailers(context) {
                        Poll::Pending => break,
                        Poll::Ready(Err(error)) => return self.failed(call, &error),
                        Poll::Ready(Ok(trailers)) => {
                            self.steps += 1;
                            let seen = self.seen.call(call.id);
                            seen.trailers = trailers.map(|trailers| sorted(fields(&trailers).map(trimmed)));
                            seen.is_ended = true;
                            call.body = None;
                            if let Some(respond) = &mut call.respond
                                && self.answer == Answer::AtEnd
                            {
                                drop(respond.send_response(Response::new(()), true));
                            }
                            break;
                        }
                    },
                }
            }
        }
        // The peer may reset a stream even after its own half has ended.
        if let Some(sending) = &mut call.sending
            && let Poll::Ready(Ok(code)) = sending.poll_reset(context)
        {
            self.steps += 1;
            self.seen.call(call.id).reset = Some(code.into());
            return true;
        }
        if let Some(respond) = &mut call.respond
            && let Poll::Ready(Ok(code)) = respond.poll_reset(context)
        {
            self.steps += 1;
            self.seen.call(call.id).reset = Some(code.into());
            return true;
        }
        false
    }

    fn head(&mut self, id: u32, response: Response<()>) {
        let status = (b":status".to_vec(), response.status().as_str().as_bytes().to_vec());
        let list = std::iter::once(status).chain(fields(response.headers()));
        self.seen.call(id).heads.push(sorted(list.map(trimmed)));
    }

    fn failed(&mut self, call: &Call, error: &h2::Error) -> bool {
        self.steps += 1;
        if error.is_reset() {
            self.seen.call(call.id).reset = error.reason().map(Into::into);
        }
        true
    }
}

fn fields(map: &HeaderMap) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    map.iter().map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()))
}

/// A field without whitespace around its value. Our decoder removes it, h2 does not.
fn trimmed((name, value): (Vec<u8>, Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    if name.starts_with(b":") {
        return (name, value);
    }
    let is_text = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let Some(start) = value.iter().position(is_text) else { return (name, Vec::new()) };
    let end = value.iter().rposition(is_text).map_or(start, |last| last + 1);
    (name, value[start..end].to_vec())
}
