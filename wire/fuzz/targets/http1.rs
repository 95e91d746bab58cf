//! HTTP/1.1: a reader's result does not depend on how the bytes are split; httparse reads the same from the bytes that
//! it accepts; and when its messages are written again, they are read as the same messages, so that no program behind
//! this relay sees different ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::http1::{Decoder, Encoder, Error, Event, Limits, MethodKind, Request};
use weft_wire::{Headers, Name};

const LIMITS: Limits = Limits { head_bytes: 2_048, list_bytes: 2_048, chunk_line_bytes: 64, trailer_bytes: 512 };

/// For messages that were written again: a field may have been added, such as the length of an empty body.
const WIDER: Limits = Limits { head_bytes: 4_096, list_bytes: 4_096, trailer_bytes: 1_024, ..LIMITS };

const ASKED: Request =
    Request { method: MethodKind::Other, is_http10: false, is_keep_alive: true, expects_continue: false };

/// A message with the parts of its body joined.
#[derive(Debug, PartialEq)]
struct Message {
    head: Headers,
    request: Option<Request>,
    body: Vec<u8>,
    trailers: Option<Headers>,
    is_whole: bool,
}

struct Reader {
    decoder: Decoder,
    is_server: bool,
    method: MethodKind,
}

impl Reader {
    fn new(is_server: bool, method: MethodKind, limits: Limits) -> Self {
        let decoder = if is_server { Decoder::requests(limits) } else { Decoder::responses(limits) };
        let mut reader = Self { decoder, is_server, method };
        reader.expect();
        reader
    }

    fn expect(&mut self) {
        if !self.is_server {
            self.decoder.expect(Request { method: self.method, ..ASKED });
        }
    }

    /// Reads bytes in pieces of `size`. Returns all messages, and the error that ended the reading.
    fn read(mut self, bytes: &[u8], size: usize) -> (Vec<Message>, Option<Error>) {
        let (mut messages, mut pending) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(size.max(1)) {
            pending.extend_from_slice(piece);
            let mut input = &pending[..];
            loop {
                match self.decoder.receive(&mut input) {
                    Ok(Some(event)) => {
                        if take(&mut messages, event) {
                            self.expect();
                        }
                    }
                    Ok(None) => break,
                    Err(e) => return (messages, Some(e)),
                }
            }
            let left = input.len();
            assert!(left <= LIMITS.head_bytes + piece.len() || self.is_held(), "{left} bytes are left over");
            pending.drain(..pending.len() - left);
        }
        let error = match self.decoder.end() {
            Ok(event) => {
                event.into_iter().for_each(|event| drop(take(&mut messages, event)));
                None
            }
            Err(e) => Some(e),
        };
        (messages, error)
    }

    /// Whether input may stay unread: after a request for a tunnel, nothing is read until it is answered.
    fn is_held(&self) -> bool {
        self.is_server
    }
}

/// Adds an event to the messages. Returns whether a message has ended.
fn take(messages: &mut Vec<Message>, event: Event<'_>) -> bool {
    let (head, request, is_end) = match event {
        Event::Request { headers, request, is_end } => (headers, Some(request), is_end),
        Event::Response { headers, is_end, .. } => (headers, None, is_end),
        Event::Data { data, is_end } => {
            let message = messages.last_mut().expect("a head came first");
            assert!(!message.is_whole, "nothing follows the end of a body");
            message.body.extend_from_slice(data);
            message.is_whole = is_end;
            return is_end;
        }
        Event::Trailers(trailers) => {
            let message = messages.last_mut().expect("a head came first");
            message.trailers = Some(trailers);
            message.is_whole = true;
            return true;
        }
    };
    messages.push(Message { head, request, body: Vec::new(), trailers: None, is_whole: is_end });
    is_end
}

/// Checks that httparse reads the same head as we do.
fn agrees_with_httparse(bytes: &[u8], first: &Message) {
    let mut bytes = bytes;
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let mut fields = [httparse::EMPTY_HEADER; 1_024];
    let mut parsed = httparse::Request::new(&mut fields);
    let status = parsed.parse(bytes).expect("httparse accepts the request that we accept");
    assert!(status.is_complete());
    if first.head.protocol().is_none() {
        assert_eq!(parsed.method.map(str::as_bytes), first.head.method());
    }
    assert_eq!(parsed.version, Some(u8::from(!first.request.expect("a request").is_http10)));
    for field in first.head.fields() {
        let name = std::str::from_utf8(field.name).expect("a name is ASCII");
        let found = parsed.headers.iter().any(|other| other.name.eq_ignore_ascii_case(name) && other.value.trim_ascii() == field.value);
        assert!(found, "httparse reads {name} differently");
    }
}

/// Checks that the messages are the same after they were written and read again.
fn written_again(is_server: bool, method: MethodKind, messages: &[Message]) {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    let mut expected = Vec::new();
    for message in messages.iter().take_while(|message| message.is_whole) {
        let is_end = message.body.is_empty() && message.trailers.is_none();
        let written = if is_server {
            // A request for a tunnel is not written as it was received, and no HTTP follows it.
            if message.head.method() == Some(b"CONNECT") {
                break;
            }
            encoder.request(&mut out, &message.head, is_end).map(drop)
        } else {
            encoder.response(&mut out, &message.head, is_end, Request { method, ..ASKED }, true)
        };
        written.expect("a message that was read can be written");
        if !is_end {
            encoder.data(&mut out, &message.body, message.trailers.is_none()).expect("its length is right");
            if let Some(trailers) = &message.trailers {
                encoder.trailers(&mut out, trailers).expect("its length is right");
            }
        }
        assert!(encoder.is_between_messages());
        expected.push(message);
    }
    let (again, error) = Reader::new(is_server, method, WIDER).read(&out, usize::MAX);
    assert!(error.is_none() || (!is_server && error == Some(Error::Cut)), "{error:?} in {}", out.escape_ascii());
    assert_eq!(again.len(), expected.len(), "{}", out.escape_ascii());
    for (again, before) in again.iter().zip(expected) {
        assert_eq!(again.body, before.body, "{}", out.escape_ascii());
        assert_eq!(again.head.method(), before.head.method());
        assert_eq!(again.head.path(), before.head.path());
        assert_eq!(again.head.authority().unwrap_or_default(), before.head.authority().unwrap_or_default());
        assert_eq!(again.head.status(), before.head.status());
        for name in [Name::COOKIE, Name::AUTHORIZATION, Name::CONTENT_TYPE] {
            if before.head.all(name).count() == 1 {
                assert_eq!(again.head.get(name), before.head.get(name));
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [first, size, bytes @ ..] = data else { return };
    let is_server = first % 2 == 0;
    let method = [MethodKind::Other, MethodKind::Head, MethodKind::Upgrade, MethodKind::Other][usize::from(first / 2 % 4)];
    let whole = Reader::new(is_server, method, LIMITS).read(bytes, usize::MAX);
    let pieces = Reader::new(is_server, method, LIMITS).read(bytes, usize::from(size % 32) + 1);
    assert_eq!(whole, pieces, "the result depends on how the bytes are split");
    if is_server && let Some(message) = whole.0.first() {
        agrees_with_httparse(bytes, message);
    }
    // A response to HEAD is written without its body, and an accepted upgrade starts a tunnel: neither is read again.
    if method == MethodKind::Other {
        written_again(is_server, method, &whole.0);
    }
});
