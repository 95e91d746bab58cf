//! Tests of a client and a server, byte by byte and frame by frame.

mod bench;
mod flow;
mod kept;
mod limits;
mod rules;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::code::Code;
use crate::frame::{self, Head, flag, kind};
use crate::headers::Name;
use crate::limits::Rate;

/// The value that is attached to a stream.
type Call = &'static str;

/// An event or a notice, with its data.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Request(u32, bool),
    RequestTooLarge(u32, bool),
    Response(Call, u16, bool),
    Data(Call, Vec<u8>, bool),
    Trailers(Call, String),
    Reset(Call, Code, Cause),
    Settings,
    GoAway(Code),
    Sent(Call, usize),
    Unseen(Call),
}

/// One endpoint, and everything that it has seen.
struct End {
    connection: Connection<Call>,
    input: Vec<u8>,
    seen: Vec<Seen>,
    /// The streams of the requests, in the order of their arrival.
    requests: Vec<StreamId>,
    /// The data that is not released yet.
    held: Vec<(StreamId, usize)>,
    is_holding: bool,
    now: Instant,
}

impl End {
    fn new(connection: Connection<Call>, now: Instant) -> End {
        End {
            connection,
            input: Vec::new(),
            seen: Vec::new(),
            requests: Vec::new(),
            held: Vec::new(),
            is_holding: false,
            now,
        }
    }

    fn client(limits: &Limits) -> End {
        let now = Instant::now();
        End::new(Connection::client(&Arc::new(limits.clone()), now), now)
    }

    fn server(limits: &Limits) -> End {
        let now = Instant::now();
        End::new(Connection::server(&Arc::new(limits.clone()), now), now)
    }

    /// A server that has exchanged SETTINGS with a client that the test plays.
    fn served(limits: &Limits) -> End {
        let mut server = End::server(limits);
        server.take(frame::PREFACE).expect("it is the preface");
        server.frame(kind::SETTINGS, 0, 0, &[]).expect("SETTINGS are fine");
        server.frame(kind::SETTINGS, flag::ACK, 0, &[]).expect("so is their acknowledgement");
        server.sent();
        server.seen.clear();
        server
    }

    /// A client that has exchanged SETTINGS with a server that the test plays.
    fn connected(limits: &Limits) -> End {
        let mut client = End::client(limits);
        client.frame(kind::SETTINGS, 0, 0, &[]).expect("SETTINGS are fine");
        client.frame(kind::SETTINGS, flag::ACK, 0, &[]).expect("so is their acknowledgement");
        client.sent();
        client.seen.clear();
        client
    }

    /// Receives bytes, which follow those that were left over.
    fn take(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        let result = loop {
            match self.connection.receive(&mut rest, self.now) {
                Ok(Some(event)) => {
                    let seen = self.note(event);
                    self.seen.push(seen);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            self.drain_notices();
        };
        self.input = rest.to_vec();
        self.drain_notices();
        if !self.is_holding {
            self.release();
        }
        result
    }

    fn note(&mut self, event: Event<'_, Call>) -> Seen {
        let text = |headers: &Headers| String::from_utf8_lossy(headers.get(Name::GRPC_STATUS).unwrap_or(b"")).into();
        let (seen, headers) = match event {
            Event::Request { stream, headers, is_end } => {
                self.connection.attach(stream, "call");
                self.requests.push(stream);
                (Seen::Request(stream.get(), is_end), Some(headers))
            }
            Event::Response { call, headers, is_end, .. } => {
                (Seen::Response(call, headers.status().expect("it is checked"), is_end), Some(headers))
            }
            Event::RequestTooLarge { stream, headers, is_end } => {
                self.requests.push(stream);
                (Seen::RequestTooLarge(stream.get(), is_end), Some(headers))
            }
            Event::Data { stream, call, data, is_end } => {
                self.held.push((stream, data.len()));
                (Seen::Data(call, data.to_vec(), is_end), None)
            }
            Event::Trailers { call, headers, .. } => (Seen::Trailers(call, text(&headers)), Some(headers)),
            Event::Reset { call, code, cause, .. } => (Seen::Reset(call, code, cause), None),
            Event::Settings => (Seen::Settings, None),
            Event::GoAway { code } => (Seen::GoAway(code), None),
        };
        headers.into_iter().for_each(|headers| self.connection.recycle(headers));
        seen
    }

    fn drain_notices(&mut self) {
        while let Some(notice) = self.connection.next_notice() {
            self.seen.push(match notice {
                Notice::Sent { call, bytes, .. } => Seen::Sent(call, bytes),
                Notice::Unseen { call, .. } => Seen::Unseen(call),
            });
        }
    }

    fn release(&mut self) {
        for (stream, bytes) in std::mem::take(&mut self.held) {
            self.connection.release(stream, bytes);
        }
    }

    /// Receives a frame.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        Head::write(kind, flags, stream, payload, &mut bytes);
        self.take(&bytes)
    }

    /// Receives a HEADERS frame with these fields.
    fn headers(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) -> Result<(), ConnectionError> {
        self.frame(kind::HEADERS, flags | flag::END_HEADERS, stream, &block(fields))
    }

    /// The frames in the output. It is marked as written.
    fn sent(&mut self) -> Vec<(Head, Vec<u8>)> {
        let output = self.connection.output().to_vec();
        self.connection.wrote(output.len());
        self.drain_notices();
        let mut rest = output.strip_prefix(frame::PREFACE).unwrap_or(&output);
        let mut frames = Vec::new();
        while let Some(head) = Head::parse(rest) {
            let end = frame::HEAD_BYTES + head.length;
            frames.push((head, rest[frame::HEAD_BYTES..end].to_vec()));
            rest = &rest[end..];
        }
        assert!(rest.is_empty(), "the output consists of complete frames");
        frames
    }

    /// Kind, flags and stream of the frames in the output.
    fn sent_kinds(&mut self) -> Vec<(u8, u8, u32)> {
        self.sent().into_iter().map(|(head, _)| (head.kind, head.flags, head.stream)).collect()
    }

    /// Streams and codes of the RST_STREAM frames in the output.
    fn sent_resets(&mut self) -> Vec<(u32, Code)> {
        let resets = self.sent().into_iter().filter(|(head, _)| head.kind == kind::RST_STREAM);
        resets.map(|(head, payload)| (head.stream, Code(frame::number(&payload)))).collect()
    }

    fn take_seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    /// All DATA that was received for a call, and whether it has ended.
    fn body(&self, call: Call) -> (Vec<u8>, bool) {
        let mut whole = (Vec::new(), false);
        for seen in &self.seen {
            if let Seen::Data(of, data, is_end) = seen
                && *of == call
            {
                whole.0.extend_from_slice(data);
                whole.1 = *is_end;
            }
        }
        whole
    }
}

/// A field block without any compression.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127 + 128, "longer ones take more than two bytes");
            if text.len() < 127 {
                out.push(text.len() as u8);
            } else {
                out.extend_from_slice(&[127, (text.len() - 127) as u8]);
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":path", "/a/B"), (":authority", "a")];
const OK: [(&str, &str); 1] = [(":status", "200")];

fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in fields {
        headers.append_bytes(name.as_bytes(), value.as_bytes());
    }
    headers
}

fn post() -> Headers {
    list(&POST)
}

fn ok() -> Headers {
    list(&OK)
}

/// Exchanges the output of both endpoints, in pieces of these sizes, until both are empty.
fn talk(client: &mut End, server: &mut End, mut piece: impl FnMut() -> usize) {
    while !client.connection.output().is_empty() || !server.connection.output().is_empty() {
        pass(client, server, &mut piece);
        pass(server, client, &mut piece);
    }
}

fn pass(from: &mut End, to: &mut End, mut piece: impl FnMut() -> usize) {
    while !from.connection.output().is_empty() {
        let output = from.connection.output();
        let bytes = output[..piece().clamp(1, output.len())].to_vec();
        from.connection.wrote(bytes.len());
        from.drain_notices();
        to.take(&bytes).expect("both endpoints follow the rules");
    }
}

fn pair(limits: &Limits) -> (End, End) {
    let (mut client, mut server) = (End::client(limits), End::server(limits));
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!((client.take_seen(), server.take_seen()), (vec![Seen::Settings], vec![Seen::Settings]));
    assert!(client.connection.has_settings() && client.connection.can_open());
    (client, server)
}

/// Three calls, one after the other: a request with a body, then a response with a body and trailers.
fn call_and_answer(limits: &Limits, body: &[u8], mut piece: impl FnMut() -> usize) {
    let (mut client, mut server) = pair(limits);
    for round in 0..3 {
        let stream = client.connection.open(&post(), false, "one").expect("it can open");
        let waiting = client.connection.send_data(stream, body, true);
        talk(&mut client, &mut server, &mut piece);
        assert_eq!(server.seen[0], Seen::Request(round * 2 + 1, false));
        assert_eq!(server.body("call"), (body.to_vec(), true));
        let sent =
            client.take_seen().iter().map(|seen| if let Seen::Sent("one", bytes) = seen { *bytes } else { 0 }).sum();
        assert_eq!(waiting, sent, "all queued bytes were reported as sent");

        let served = server.requests.pop().expect("it came");
        server.take_seen();
        server.connection.respond(served, &ok(), false);
        server.connection.send_data(served, body, false);
        server.connection.send_trailers(served, &list(&[("grpc-status", "0")]));
        talk(&mut client, &mut server, &mut piece);
        assert_eq!(client.seen[0], Seen::Response("one", 200, false));
        assert_eq!(client.body("one"), (body.to_vec(), false));
        assert_eq!(client.seen.last(), Some(&Seen::Trailers("one", "0".into())));
        assert_eq!((client.connection.streams(), server.connection.streams()), (0, 0));
        client.take_seen();
        server.take_seen();
    }
}

#[test]
fn calls_work_with_pieces_of_any_size() {
    let body: Vec<u8> = (0..200_000u32).map(|byte| byte as u8).collect();
    let mut random = fastrand::Rng::with_seed(1);
    call_and_answer(&Limits::default(), b"hello", || usize::MAX);
    call_and_answer(&Limits::default(), b"hello", || 1);
    call_and_answer(&Limits::default(), &body, || usize::MAX);
    call_and_answer(&Limits::default(), &body, move || random.usize(1..5000));
    call_and_answer(&Limits::default(), &body[..70_000], || 1);
}

#[test]
fn calls_work_with_tiny_windows() {
    let body: Vec<u8> = (0..10_000u32).map(|byte| byte as u8).collect();
    let plenty = Rate { burst: u32::MAX, per_second: 1, frames_per_token: 0 };
    let mut limits = Limits { empty_frames: plenty, output_bytes: 100, ..Limits::default() };
    for window in [1, 2, 3, 10, 1000] {
        limits.stream_window_bytes = window;
        let mut random = fastrand::Rng::with_seed(u64::from(window));
        call_and_answer(&limits, &body, move || random.usize(1..100));
    }
}

#[test]
fn a_response_may_end_with_its_head_and_follow_interim_ones() {
    let (mut client, mut server) = pair(&Limits::default());
    client.connection.open(&post(), true, "one").expect("it can open");
    talk(&mut client, &mut server, || usize::MAX);
    let served = server.requests[0];
    server.connection.respond(served, &list(&[(":status", "103"), ("link", "x")]), true);
    server.connection.respond(served, &ok(), true);
    server.connection.respond(served, &ok(), true);
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(client.take_seen(), [Seen::Response("one", 103, false), Seen::Response("one", 200, true)]);
    assert_eq!((client.connection.streams(), server.connection.streams()), (0, 0));
}

#[test]
fn an_early_response_lets_the_request_continue_until_it_is_reset() {
    let (mut client, mut server) = pair(&Limits::default());
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    talk(&mut client, &mut server, || usize::MAX);
    server.connection.respond(server.requests[0], &ok(), true);
    talk(&mut client, &mut server, || usize::MAX);
    client.connection.send_data(stream, b"more", false);
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(server.body("call").0, b"more");
    server.connection.reset(server.requests[0], Code::NO_ERROR);
    client.connection.send_data(stream, b"under way", true);
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(server.body("call").0, b"more", "late DATA is ignored");
    assert_eq!(client.take_seen(), [Seen::Response("one", 200, true)], "the call had ended with its response");
}

#[test]
fn a_detached_stream_makes_no_events_but_sends_all_its_data() {
    let (mut client, mut server) = pair(&Limits { stream_window_bytes: 10, ..Limits::default() });
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    assert_eq!(client.connection.send_data(stream, &[1; 25], true), 15);
    client.connection.detach(stream);
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(server.body("call"), (vec![1; 25], true));
    server.connection.respond(server.requests[0], &ok(), false);
    server.connection.send_data(server.requests[0], &[2; 95], true);
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(client.take_seen(), []);
    assert_eq!((client.connection.streams(), server.connection.streams()), (0, 0), "the windows were replenished");
}

#[test]
fn both_endpoints_can_reset_and_a_reset_drops_queued_data() {
    let (mut client, mut server) = pair(&Limits { stream_window_bytes: 10, ..Limits::default() });
    let first = client.connection.open(&post(), false, "first").expect("it can open");
    let second = client.connection.open(&post(), false, "second").expect("it can open");
    client.connection.send_data(first, &[1; 25], false);
    client.connection.reset(first, Code::CANCEL);
    server.is_holding = true;
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(server.take_seen().last(), Some(&Seen::Reset("call", Code::CANCEL, Cause::Peer)));
    server.connection.reset(server.requests[1], Code::REFUSED_STREAM);
    server.release();
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(client.take_seen(), [Seen::Reset("second", Code::REFUSED_STREAM, Cause::Peer)]);
    assert_eq!(client.connection.send_data(second, &[1; 25], true), 0, "the stream is gone");
    client.connection.reset(second, Code::CANCEL);
    assert!(client.connection.output().is_empty());
}

#[test]
fn cancels_wait_until_the_server_has_processed_the_requests_and_share_one_settings_frame() {
    let mut client = End::connected(&Limits { are_cancels_paced: true, ..Limits::default() });
    let open = |call| client.connection.open(&post(), call != "d", call).expect("room");
    let streams = ["a", "b", "c", "d"].map(open);
    client.sent();
    client.connection.send_data(streams[3], &[0; 70_000], false);
    client.sent();
    for stream in &streams[1..] {
        client.connection.reset(*stream, Code::CANCEL);
    }
    let late = client.connection.open(&post(), true, "e").expect("room");
    client.connection.reset(late, Code::CANCEL);
    assert_eq!(client.sent_kinds(), [(kind::SETTINGS, 0, 0), (kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, 9)]);
    assert_eq!(client.connection.streams(), 5, "streams count until they are reset");

    // One of the cancelled streams is answered before it is reset. The response makes no event.
    client.headers(3, flag::END_STREAM, &[(":status", "200")]).expect("a response is fine");
    assert!(client.take_seen().is_empty());
    client.frame(kind::SETTINGS, flag::ACK, 0, &[]).expect("it acknowledges our SETTINGS");
    let kinds = client.sent();
    let resets = kinds.iter().filter(|(head, _)| head.kind == kind::RST_STREAM).map(|(head, _)| head.stream);
    assert_eq!(resets.collect::<Vec<_>>(), [5, 7]);
    assert_eq!(kinds.last().map(|(head, _)| head.kind), Some(kind::SETTINGS), "for the stream that was opened later");
    // A stream whose request was processed is cancelled at once.
    client.connection.reset(streams[0], Code::CANCEL);
    assert_eq!(client.sent_resets(), [(1, Code::CANCEL)]);
    client.frame(kind::SETTINGS, flag::ACK, 0, &[]).expect("it acknowledges our SETTINGS");
    assert_eq!(client.sent_resets(), [(9, Code::CANCEL)]);
    assert_eq!(client.connection.streams(), 0);
}

#[test]
fn a_server_drains_in_two_steps() {
    let (mut client, mut server) = pair(&Limits::default());
    client.connection.open(&post(), false, "before").expect("it can open");
    talk(&mut client, &mut server, || usize::MAX);
    server.connection.drain(server.now);
    // This request is on its way when the first GOAWAY arrives.
    client.connection.open(&post(), true, "under way").expect("it can open");
    talk(&mut client, &mut server, || usize::MAX);
    assert_eq!(server.requests.len(), 2);
    let going = Seen::GoAway(Code::NO_ERROR);
    assert_eq!(client.take_seen(), [going.clone(), going]);
    assert_eq!(client.connection.open(&post(), true, "after"), Err(CannotOpen::Going));
    assert!(!server.connection.is_finished() && !client.connection.is_finished());
    server.connection.respond(server.requests[0], &ok(), true);
    server.connection.reset(server.requests[0], Code::NO_ERROR);
    server.connection.respond(server.requests[1], &ok(), true);
    talk(&mut client, &mut server, || usize::MAX);
    assert!(server.connection.is_finished() && client.connection.is_finished());
}

#[test]
fn a_drain_continues_without_the_ping_s_acknowledgement_and_ignores_later_streams() {
    let mut server = End::served(&Limits::default());
    server.headers(1, flag::END_STREAM, &POST).expect("it is fine");
    server.connection.drain(server.now);
    server.sent();
    let due = server.connection.next_timeout().expect("it waits");
    server.connection.on_timeout(due).expect("it is no error");
    let frames = server.sent();
    assert_eq!((frames[0].0.kind, frame::number(&frames[0].1)), (kind::GOAWAY, 1));
    server.headers(3, 0, &POST).expect("it is ignored");
    server.frame(kind::DATA, flag::END_STREAM, 3, b"x").expect("it is ignored");
    server.frame(kind::RST_STREAM, 0, 3, &[0; 4]).expect("it is ignored");
    assert_eq!((server.requests.len(), server.sent_kinds()), (1, vec![]));
}

#[test]
fn goaway_reports_the_streams_that_were_not_processed() {
    let mut client = End::connected(&Limits::default());
    for call in ["seen", "unseen", "too"] {
        client.connection.open(&post(), true, call).expect("it can open");
    }
    client.frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11]).expect("it is fine");
    let expected = [Seen::GoAway(Code::ENHANCE_YOUR_CALM), Seen::Unseen("unseen"), Seen::Unseen("too")];
    assert_eq!(client.take_seen(), expected);
    client.headers(3, flag::END_STREAM, &OK).expect("late frames are ignored");
    client.headers(1, flag::END_STREAM, &OK).expect("the stream that was processed ends");
    assert_eq!(client.take_seen(), [Seen::Response("seen", 200, true)]);
    assert!(client.connection.is_finished());
    let error =
        client.frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]).expect_err("the last stream identifier grew");
    assert_eq!(error.code, Code::PROTOCOL_ERROR);
}

#[test]
fn a_draining_client_opens_no_more_streams() {
    let (mut client, mut server) = pair(&Limits::default());
    client.connection.open(&post(), true, "one").expect("it can open");
    client.connection.drain(client.now);
    assert_eq!(client.connection.open(&post(), true, "two"), Err(CannotOpen::Going));
    talk(&mut client, &mut server, || usize::MAX);
    assert!(!client.connection.is_finished());
    server.connection.respond(server.requests[0], &ok(), true);
    talk(&mut client, &mut server, || usize::MAX);
    assert!(client.connection.is_finished() && server.connection.is_finished());
}

#[test]
fn attached_values_can_be_taken_when_the_transport_ends() {
    let mut client = End::connected(&Limits::default());
    client.connection.open(&post(), true, "one").expect("it can open");
    client.connection.open(&post(), true, "two").expect("it can open");
    client.sent();
    let error = client.frame(kind::DATA, 0, 0, b"x").expect_err("it is wrong");
    assert_eq!(client.sent_kinds(), [(kind::GOAWAY, 0, 0)]);
    assert_eq!(client.frame(kind::PING, 0, 0, &[0; 8]), Err(error), "the error is final");
    assert_eq!(client.connection.take_all(), ["one", "two"]);
    assert_eq!(client.connection.take_all(), [""; 0]);
    assert!(client.connection.is_finished() && !client.connection.can_open());
}

#[test]
fn close_sends_goaway_and_nothing_more() {
    let mut client = End::connected(&Limits::default());
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    client.connection.close(Code::INTERNAL_ERROR);
    client.connection.send_data(stream, b"x", true);
    client.connection.drain(client.now);
    let kinds: Vec<u8> = client.sent_kinds().iter().map(|sent| sent.0).collect();
    assert_eq!(kinds, [kind::HEADERS, kind::GOAWAY]);
    client.frame(kind::PING, 0, 0, &[0; 8]).expect("it is ignored");
    assert_eq!((client.sent_kinds(), client.connection.next_timeout()), (vec![], None));
}

#[test]
fn an_idle_connection_frees_its_buffers_and_still_works() {
    let (mut client, mut server) = pair(&Limits::default());
    for _ in 0..2 {
        client.connection.open(&post(), true, "one").expect("it can open");
        talk(&mut client, &mut server, || usize::MAX);
        let served = server.requests.pop().expect("it came");
        server.connection.respond(served, &ok(), true);
        talk(&mut client, &mut server, || usize::MAX);
        assert_eq!(client.take_seen().pop(), Some(Seen::Response("one", 200, true)));
        client.connection.shrink();
        server.connection.shrink();
    }
}

#[test]
fn a_silent_peer_gets_a_ping_and_then_its_connection_ends() {
    let keep_alive = crate::limits::KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
    let mut client = End::connected(&Limits { keep_alive: Some(keep_alive), ..Limits::default() });
    let start = client.now;
    assert_eq!(client.connection.next_timeout(), Some(start + Duration::from_secs(10)));
    client.connection.on_timeout(start + Duration::from_secs(9)).expect("too early");
    assert_eq!(client.sent_kinds(), []);
    client.connection.on_timeout(start + Duration::from_secs(10)).expect("it sends a PING");
    let asked = client.sent();
    assert_eq!(asked[0].0.kind, kind::PING);
    client.now = start + Duration::from_secs(12);
    client.frame(kind::PING, flag::ACK, 0, &asked[0].1).expect("the peer acknowledges it");
    // The acknowledgement postpones the next PING, but this is computed only when the timeout is due.
    let soon = client.connection.next_timeout().filter(|due| *due <= start + Duration::from_secs(22));
    client.connection.on_timeout(soon.expect("in time")).expect("too early");
    assert_eq!(client.sent_kinds(), []);
    assert_eq!(client.connection.next_timeout(), Some(start + Duration::from_secs(22)));
    client.connection.on_timeout(start + Duration::from_secs(22)).expect("it sends another PING");
    assert_eq!(client.sent_kinds().iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [kind::PING]);
    client.connection.on_timeout(start + Duration::from_secs(27)).expect_err("the peer is gone");
}

#[test]
fn a_peer_that_is_not_read_does_not_time_out() {
    let keep_alive = crate::limits::KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
    let limits = Limits { keep_alive: Some(keep_alive), settings_timeout: Duration::from_secs(8), ..Limits::default() };
    let start = Instant::now();
    let mut server = Connection::<usize>::server(&std::sync::Arc::new(limits), start);
    server.wrote(server.output().len());
    for second in 1..=100 {
        server.note_unread();
        server.on_timeout(start + Duration::from_secs(second)).expect("nothing was read, so nothing is late");
    }
    let pings = server.output().windows(8).filter(|bytes| bytes == b"is there").count();
    assert_eq!(pings, 10, "PINGs are still sent");
    server.on_timeout(start + Duration::from_secs(109)).expect_err("the peer has not acknowledged SETTINGS");
}
