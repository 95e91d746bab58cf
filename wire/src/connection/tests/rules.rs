//! RFC 9113's rules for frames that are malformed, or come at a wrong time.

use super::*;
use crate::frame::setting;

/// A frame as kind, flags, stream and payload.
type Frame<'a> = (u8, u8, u32, &'a [u8]);

/// The code with which a server's connection fails when it receives this frame. Stream 1 is open, stream 3 is idle.
fn server_fails(frame: Frame<'_>) -> Option<Code> {
    let mut server = End::served(&Limits::default());
    server.headers(1, 0, &POST).expect("it is fine");
    server.frame(frame.0, frame.1, frame.2, frame.3).err().map(|error| error.code)
}

fn client_fails(frame: Frame<'_>) -> Option<Code> {
    let mut client = End::connected(&Limits::default());
    client.connection.open(&post(), false, "one").expect("it can open");
    client.frame(frame.0, frame.1, frame.2, frame.3).err().map(|error| error.code)
}

fn parameter(name: u16, value: u32) -> Vec<u8> {
    let mut payload = Vec::new();
    frame::write_setting(name, value, &mut payload);
    payload
}

#[test]
fn frames_that_are_connection_errors() {
    const SIZE: Code = Code::FRAME_SIZE_ERROR;
    const PROTOCOL: Code = Code::PROTOCOL_ERROR;
    let window = parameter(setting::INITIAL_WINDOW_SIZE, 1 << 31);
    let small_frames = parameter(setting::MAX_FRAME_SIZE, 16_383);
    let large_frames = parameter(setting::MAX_FRAME_SIZE, 1 << 24);
    let push = parameter(setting::ENABLE_PUSH, 2);
    let cases: [(Frame<'_>, Code); 37] = [
        ((kind::DATA, 0, 0, b"x"), PROTOCOL),
        ((kind::DATA, 0, 3, b"x"), PROTOCOL),
        ((kind::DATA, 0, 2, b"x"), PROTOCOL),
        ((kind::DATA, flag::PADDED, 1, &[]), SIZE),
        ((kind::DATA, flag::PADDED, 1, &[2, 0]), PROTOCOL),
        ((kind::DATA, 0, 1, &[0; 16_385]), SIZE),
        ((kind::HEADERS, flag::END_HEADERS, 0, &[]), PROTOCOL),
        ((kind::HEADERS, flag::END_HEADERS, 2, &[]), PROTOCOL),
        ((kind::HEADERS, flag::END_HEADERS, 3, &[0xff, 0xff, 0xff]), Code::COMPRESSION_ERROR),
        ((kind::HEADERS, flag::END_HEADERS | flag::PADDED, 3, &[]), SIZE),
        ((kind::HEADERS, flag::END_HEADERS | flag::PADDED, 3, &[9, 0]), PROTOCOL),
        ((kind::HEADERS, flag::END_HEADERS | flag::PRIORITY, 3, &[0; 4]), SIZE),
        ((kind::PRIORITY, 0, 0, &[0; 5]), PROTOCOL),
        ((kind::PRIORITY, 0, 3, &[0; 4]), SIZE),
        ((kind::PRIORITY, 0, 3, &[0, 0, 0, 3, 0]), PROTOCOL),
        ((kind::RST_STREAM, 0, 0, &[0; 4]), PROTOCOL),
        ((kind::RST_STREAM, 0, 3, &[0; 4]), PROTOCOL),
        ((kind::RST_STREAM, 0, 1, &[0; 3]), SIZE),
        ((kind::SETTINGS, 0, 1, &[]), PROTOCOL),
        ((kind::SETTINGS, flag::ACK, 0, &[0; 6]), SIZE),
        ((kind::SETTINGS, 0, 0, &[0; 5]), SIZE),
        ((kind::SETTINGS, 0, 0, &window), Code::FLOW_CONTROL_ERROR),
        ((kind::SETTINGS, 0, 0, &small_frames), PROTOCOL),
        ((kind::SETTINGS, 0, 0, &large_frames), PROTOCOL),
        ((kind::SETTINGS, 0, 0, &push), PROTOCOL),
        ((kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL),
        ((kind::PING, 0, 1, &[0; 8]), PROTOCOL),
        ((kind::PING, 0, 0, &[0; 7]), SIZE),
        ((kind::GOAWAY, 0, 1, &[0; 8]), PROTOCOL),
        ((kind::GOAWAY, 0, 0, &[0; 7]), SIZE),
        ((kind::WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL),
        ((kind::WINDOW_UPDATE, 0, 3, &[0, 0, 0, 1]), PROTOCOL),
        ((kind::WINDOW_UPDATE, 0, 1, &[0; 3]), SIZE),
        ((kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), Code::FLOW_CONTROL_ERROR),
        ((kind::CONTINUATION, flag::END_HEADERS, 1, &[]), PROTOCOL),
        ((kind::CONTINUATION, flag::END_HEADERS, 0, &[]), PROTOCOL),
        ((kind::CONTINUATION, 0, 3, &[]), PROTOCOL),
    ];
    for (frame, code) in cases {
        assert_eq!(server_fails(frame), Some(code), "server: {frame:?}");
        assert_eq!(client_fails(frame), Some(code), "client: {frame:?}");
    }
    assert_eq!(client_fails((kind::SETTINGS, 0, 0, &parameter(setting::ENABLE_PUSH, 1))), Some(PROTOCOL));
    assert_eq!(server_fails((kind::SETTINGS, 0, 0, &parameter(setting::ENABLE_PUSH, 1))), None);
}

#[test]
fn unknown_frames_and_frames_without_effect_are_ignored() {
    for frame in [
        (0x16, 0xff, 0, &b"whatever"[..]),
        (0x16, 0xff, 7, b""),
        (kind::PRIORITY, 0, 5, &[0; 5]),
        (kind::PRIORITY, 0, 1, &[0; 5]),
        (kind::SETTINGS, 0, 0, &parameter(0x77, 9)),
        (kind::PING, flag::ACK, 0, &[1; 8]),
        (kind::SETTINGS, flag::ACK, 0, &[]),
    ] {
        assert_eq!((server_fails(frame), client_fails(frame)), (None, None), "{frame:?}");
    }
}

#[test]
fn a_connection_starts_with_the_preface_and_settings() {
    let mut server = End::server(&Limits::default());
    server.take(&frame::PREFACE[..10]).expect("it may come in parts");
    assert_eq!(server.take(b"GET / HTTP/1.1\r\n").map_err(|error| error.code), Err(Code::PROTOCOL_ERROR));
    for (kind, flags) in [(kind::PING, 0), (kind::SETTINGS, flag::ACK), (kind::DATA, 0), (0x16, 0)] {
        let mut client = End::client(&Limits::default());
        assert!(client.frame(kind, flags, 0, &[]).is_err(), "{kind} is not the server's preface");
    }
}

#[test]
fn frames_that_are_stream_errors() {
    let cases: [(Frame<'_>, Code); 5] = [
        ((kind::WINDOW_UPDATE, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ((kind::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]), Code::FLOW_CONTROL_ERROR),
        ((kind::PRIORITY, 0, 1, &[0; 4]), Code::FRAME_SIZE_ERROR),
        ((kind::PRIORITY, 0, 1, &[0x80, 0, 0, 1, 0]), Code::PROTOCOL_ERROR),
        ((kind::HEADERS, flag::END_HEADERS, 1, &block(&[("x", "trailers without END_STREAM")])), Code::PROTOCOL_ERROR),
    ];
    for (frame, code) in cases {
        let mut server = End::served(&Limits::default());
        server.headers(1, 0, &POST).expect("it is fine");
        server.frame(frame.0, frame.1, frame.2, frame.3).expect("the connection goes on");
        assert_eq!(server.take_seen().pop(), Some(Seen::Reset("call", code, Cause::Rule)), "{frame:?}");
        assert_eq!(server.sent_resets(), [(1, code)]);
    }
}

#[test]
fn a_window_update_of_0_is_an_error_even_after_the_stream_has_ended() {
    let by_nothing = |end: &mut End| {
        end.sent();
        end.frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).expect("the connection goes on");
        assert_eq!(end.sent_resets(), []);
        for times in [1, 0] {
            end.frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4]).expect("the connection goes on");
            assert_eq!(end.sent_resets(), [(1, Code::PROTOCOL_ERROR)][..times], "the reset is sent once");
        }
    };
    let mut server = End::served(&Limits::default());
    server.headers(1, flag::END_STREAM, &POST).expect("it is fine");
    server.connection.respond(server.requests[0], &ok(), true);
    by_nothing(&mut server);
    let mut client = End::connected(&Limits::default());
    client.connection.open(&post(), true, "one").expect("it can open");
    client.headers(1, flag::END_STREAM, &OK).expect("it is fine");
    by_nothing(&mut client);
}

/// The resets that a server sends for a request that is followed by these DATA frames.
fn resets_for(fields: &[(&str, &str)], data: &[&[u8]]) -> Vec<(u32, Code)> {
    let mut server = End::served(&Limits::default());
    let flags = if data.is_empty() { flag::END_STREAM } else { 0 };
    server.headers(1, flags, fields).expect("the connection goes on");
    for (at, data_of) in data.iter().enumerate() {
        let flags = if at + 1 == data.len() { flag::END_STREAM } else { 0 };
        server.frame(kind::DATA, flags, 1, data_of).expect("the connection goes on");
    }
    server.sent_resets()
}

#[test]
fn malformed_requests_are_reset() {
    let with = |name, value| {
        let mut fields = POST.to_vec();
        fields.push((name, value));
        fields
    };
    let reset = [(1, Code::PROTOCOL_ERROR)];
    assert_eq!(resets_for(&POST, &[]), []);
    for (name, value) in
        [("connection", "close"), ("te", "gzip"), ("Upper", "x"), (":path", "/"), (":new", "x"), ("x", "a\nb")]
    {
        assert_eq!(resets_for(&with(name, value), &[]), reset, "{name}: {value}");
    }
    let length = with("content-length", "4");
    assert_eq!(resets_for(&length, &[b"ab", b"cd"]), []);
    assert_eq!(resets_for(&length, &[b"ab", b"", b"cd", b""]), []);
    assert_eq!(resets_for(&length, &[b"abcde"]), reset);
    assert_eq!(resets_for(&length, &[b"abc"]), reset);
    assert_eq!(resets_for(&length, &[]), reset);
}

#[test]
fn malformed_responses_are_reset() {
    let cases: [&[(&str, &str)]; 5] = [
        &[("x", "no status")],
        &[(":status", "101")],
        &[(":status", "200"), (":path", "/")],
        &[(":status", "200"), ("transfer-encoding", "chunked")],
        &[(":status", "200"), ("content-length", "1")],
    ];
    for fields in cases {
        let mut client = End::connected(&Limits::default());
        client.connection.open(&post(), true, "one").expect("it can open");
        client.headers(1, flag::END_STREAM, fields).expect("the connection goes on");
        assert_eq!(client.take_seen(), [Seen::Reset("one", Code::PROTOCOL_ERROR, Cause::Rule)], "{fields:?}");
    }
    let mut client = End::connected(&Limits::default());
    client.connection.open(&post(), true, "one").expect("it can open");
    client.frame(kind::DATA, 0, 1, b"before the head").expect("the connection goes on");
    assert_eq!(client.take_seen(), [Seen::Reset("one", Code::PROTOCOL_ERROR, Cause::Rule)]);
}

#[test]
fn responses_without_content_may_have_a_content_length() {
    for (method, status) in [("HEAD", "200"), ("GET", "304")] {
        let mut client = End::connected(&Limits::default());
        let mut head = post();
        head.set(Name::METHOD, method.as_bytes());
        client.connection.open(&head, true, "one").expect("it can open");
        client.headers(1, flag::END_STREAM, &[(":status", status), ("content-length", "9")]).expect("it is fine");
        assert!(matches!(client.take_seen()[..], [Seen::Response("one", _, true)]), "{method} {status}");
        client.connection.open(&head, true, "two").expect("it can open");
        client.headers(3, 0, &[(":status", status), ("content-length", "9")]).expect("it is fine");
        client.take_seen();
        client.frame(kind::DATA, flag::END_STREAM, 3, b"nine byte").expect("the connection goes on");
        assert_eq!(client.take_seen(), [Seen::Reset("two", Code::PROTOCOL_ERROR, Cause::Rule)], "{method} {status}");
    }
}

#[test]
fn extended_connect_must_be_enabled_by_settings() {
    let mut fields = POST.to_vec();
    fields[0] = (":method", "CONNECT");
    fields.push((":protocol", "websocket"));
    assert_eq!(resets_for(&fields, &[]), [(1, Code::PROTOCOL_ERROR)]);
    let (client, mut server) = pair(&Limits { is_connect_protocol_enabled: true, ..Limits::default() });
    assert!(client.connection.is_connect_protocol_enabled());
    server.headers(1, 0, &fields).expect("it is fine");
    assert_eq!(server.take_seen(), [Seen::Request(1, false)]);
}

#[test]
fn frames_after_end_stream_are_errors() {
    for kind in [kind::DATA, kind::HEADERS] {
        // Half-closed: a stream error.
        let mut server = End::served(&Limits::default());
        server.headers(1, flag::END_STREAM, &POST).expect("it is fine");
        server.frame(kind, flag::END_HEADERS | flag::END_STREAM, 1, &[]).expect("the connection goes on");
        assert_eq!(server.sent_resets(), [(1, Code::STREAM_CLOSED)]);
        // Closed by both endpoints: a connection error.
        server.headers(3, flag::END_STREAM, &POST).expect("it is fine");
        server.connection.respond(server.requests[1], &ok(), true);
        let error = server.frame(kind, flag::END_HEADERS, 3, &[]).expect_err("it ended");
        assert_eq!(error.code, Code::STREAM_CLOSED);
    }
}

#[test]
fn frames_after_our_reset_are_ignored_and_after_the_peer_s_are_errors() {
    let mut server = End::served(&Limits::default());
    for stream in [1, 3] {
        server.headers(stream, 0, &POST).expect("it is fine");
    }
    server.connection.reset(server.requests[0], Code::CANCEL);
    server.frame(kind::RST_STREAM, 0, 3, &[0, 0, 0, 8]).expect("it is fine");
    server.sent();
    server.take_seen();
    // After our reset, late frames are ignored, but still count for flow control.
    server.frame(kind::DATA, 0, 1, &[0; 100]).expect("it is ignored");
    server.headers(1, flag::END_STREAM, &[("x", "y")]).expect("it is ignored");
    server.frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).expect("it is ignored");
    server.frame(kind::RST_STREAM, 0, 1, &[0; 4]).expect("it is ignored");
    assert_eq!((server.sent_kinds(), server.take_seen()), (vec![], vec![]));
    // After the peer's own reset, it must not send more frames.
    server.frame(kind::DATA, 0, 3, b"x").expect("the connection goes on");
    assert_eq!(server.sent_resets(), [(3, Code::STREAM_CLOSED)]);
}

#[test]
fn identifiers_of_new_streams_grow() {
    let mut server = End::served(&Limits::default());
    server.headers(5, flag::END_STREAM, &POST).expect("it is fine");
    let error = server.headers(3, flag::END_STREAM, &POST).expect_err("3 is below 5");
    assert_eq!(error.code, Code::PROTOCOL_ERROR);
}

#[test]
fn field_blocks_may_come_in_parts_with_padding_and_priority() {
    let mut server = End::served(&Limits::default());
    let block = block(&POST);
    let mut first = vec![2, 0, 0, 0, 0, 7];
    first.extend_from_slice(&block[..10]);
    first.extend_from_slice(&[0, 0]);
    server.frame(kind::HEADERS, flag::PADDED | flag::PRIORITY | flag::END_STREAM, 1, &first).expect("it is fine");
    server.frame(kind::CONTINUATION, 0, 1, &block[10..20]).expect("it is fine");
    server.frame(kind::CONTINUATION, flag::END_HEADERS, 1, &block[20..]).expect("it is fine");
    assert_eq!(server.take_seen(), [Seen::Request(1, true)]);
    server.frame(kind::HEADERS, 0, 3, &block).expect("it is fine");
    let error = server.frame(kind::PING, 0, 0, &[0; 8]).expect_err("the block is not complete");
    assert_eq!(error.code, Code::PROTOCOL_ERROR);
    let mut server = End::served(&Limits::default());
    server.frame(kind::HEADERS, flag::END_HEADERS | flag::PRIORITY, 1, &[0, 0, 0, 1, 0]).expect("a stream error");
    assert_eq!(server.sent_resets(), [(1, Code::PROTOCOL_ERROR)]);
}
