//! Windows, queues, and SETTINGS that change the windows.

use super::*;

/// The payload of SETTINGS with one setting.
fn setting(name: u16, value: u32) -> Vec<u8> {
    let mut payload = Vec::new();
    frame::write_setting(name, value, &mut payload);
    payload
}

fn update(bytes: u32) -> [u8; 4] {
    bytes.to_be_bytes()
}

/// Streams and lengths of the DATA frames in the output.
fn sent_data(end: &mut End) -> Vec<(u32, usize)> {
    let data = end.sent().into_iter().filter(|(head, _)| head.kind == kind::DATA);
    data.map(|(head, _)| (head.stream, head.length)).collect()
}

#[test]
fn settings_change_the_windows_of_open_streams_and_can_make_them_negative() {
    let mut client = End::connected(&Limits::default());
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    assert_eq!(client.connection.send_data(stream, &[0; 50_000], false), 0);
    client.sent();
    // 50,000 were sent, so that the window is 20,000 - 50,000 = -30,000.
    client.frame(kind::SETTINGS, 0, 0, &setting(frame::setting::INITIAL_WINDOW_SIZE, 20_000)).expect("it is fine");
    assert_eq!(client.connection.send_data(stream, &[0; 10], false), 10);
    client.frame(kind::WINDOW_UPDATE, 0, 1, &update(30_000)).expect("it is fine");
    assert_eq!(sent_data(&mut client), []);
    client.frame(kind::WINDOW_UPDATE, 0, 1, &update(4)).expect("it is fine");
    assert_eq!(sent_data(&mut client), [(1, 4)]);
    client.frame(kind::SETTINGS, 0, 0, &setting(frame::setting::INITIAL_WINDOW_SIZE, 20_100)).expect("it is fine");
    assert_eq!(sent_data(&mut client), [(1, 6)]);
    assert_eq!(client.take_seen(), [Seen::Settings, Seen::Sent("one", 4), Seen::Settings, Seen::Sent("one", 6)]);
}

#[test]
fn a_window_that_settings_close_stops_a_stream_but_not_the_others() {
    let mut client = End::connected(&Limits { output_bytes: 100, ..Limits::default() });
    let [first, second] = ["first", "second"].map(|call| {
        let stream = client.connection.open(&post(), false, call).expect("it can open");
        client.sent();
        stream
    });
    client.frame(kind::WINDOW_UPDATE, 0, 3, &update(100_000)).expect("it is fine");
    client.connection.send_data(first, &[0; 100], false);
    // The output is full, so both streams wait.
    assert_eq!(client.connection.send_data(first, &[0; 10], false), 10);
    assert_eq!(client.connection.send_data(second, &[0; 10], false), 10);
    client.frame(kind::SETTINGS, 0, 0, &setting(frame::setting::INITIAL_WINDOW_SIZE, 0)).expect("it is fine");
    assert_eq!(sent_data(&mut client), [(1, 100)]);
    assert_eq!(sent_data(&mut client), [(3, 10)], "the first stream's window is closed");
}

#[test]
fn queued_data_goes_out_in_turns() {
    let mut client = End::connected(&Limits::default());
    let streams = ["a", "b", "c"].map(|call| client.connection.open(&post(), false, call).expect("it can open"));
    client.connection.send_data(streams[0], &[0; 65_535], false);
    for stream in streams {
        client.frame(kind::WINDOW_UPDATE, 0, stream.get(), &update(100_000)).expect("it is fine");
        assert_eq!(
            client.connection.send_data(stream, &[1; 40_000], true),
            40_000,
            "the connection's window is closed"
        );
    }
    client.sent();
    client.frame(kind::WINDOW_UPDATE, 0, 0, &update(120_000)).expect("it is fine");
    let turns: Vec<u32> = sent_data(&mut client).iter().map(|(stream, _)| *stream).collect();
    assert_eq!(turns, [1, 3, 5, 1, 3, 5, 1, 3, 5]);
    for call in ["a", "b", "c"] {
        let sum: usize = client
            .seen
            .iter()
            .map(|seen| {
                if let Seen::Sent(of, n) = seen
                    && *of == call
                {
                    *n
                } else {
                    0
                }
            })
            .sum();
        assert_eq!(sum, 40_000);
    }
}

#[test]
fn data_waits_while_the_output_is_full() {
    let mut client = End::connected(&Limits { output_bytes: 20_000, ..Limits::default() });
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    let waiting = client.connection.send_data(stream, &[0; 60_000], false);
    assert!(client.connection.is_congested() && client.connection.output().len() < 20_000 + 17_000 && waiting > 0);
    assert_eq!(client.connection.open(&post(), true, "two"), Err(CannotOpen::Congested));
    client.connection.send_trailers(stream, &list(&[("grpc-status", "0")]));
    let mut frames = Vec::new();
    while !client.connection.output().is_empty() {
        frames.extend(client.sent());
    }
    assert_eq!(
        frames.iter().filter(|(head, _)| head.kind == kind::DATA).map(|(head, _)| head.length).sum::<usize>(),
        60_000
    );
    let (last, _) = frames.last().expect("there are frames");
    assert_eq!((last.kind, last.flags), (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM));
}

#[test]
fn windows_are_replenished_in_halves() {
    let limits = Limits { stream_window_bytes: 1000, connection_window_bytes: 65_535, ..Limits::default() };
    let mut server = End::served(&limits);
    server.headers(1, 0, &POST).expect("it is fine");
    for _ in 0..4 {
        server.frame(kind::DATA, 0, 1, &[0; 100]).expect("it is fine");
    }
    assert_eq!(server.sent_kinds(), []);
    server.frame(kind::DATA, 0, 1, &[0; 100]).expect("it is fine");
    let frames = server.sent();
    assert_eq!((frames.len(), frames[0].0.stream, frame::number(&frames[0].1)), (1, 1, 500));
    server.frame(kind::DATA, flag::END_STREAM, 1, &[0; 900]).expect("it is fine");
    assert_eq!(server.sent_kinds(), [], "a stream that receives no more needs no window");
}

#[test]
fn padding_is_released_at_once_and_makes_no_event() {
    let limits = Limits { stream_window_bytes: 1000, ..Limits::default() };
    let mut server = End::served(&limits);
    server.is_holding = true;
    server.headers(1, 0, &POST).expect("it is fine");
    let mut padded = vec![200];
    padded.extend_from_slice(b"abc");
    padded.extend_from_slice(&[0; 200]);
    for _ in 0..20 {
        server.frame(kind::DATA, flag::PADDED, 1, &padded).expect("its window was replenished");
    }
    assert_eq!(server.body("call").0, b"abc".repeat(20));
    let mut frame = Vec::new();
    Head::write(kind::DATA, flag::PADDED | flag::END_STREAM, 1, &[3, b'x', b'y', 0, 0, 0], &mut frame);
    server.seen.clear();
    for byte in frame {
        server.take(&[byte]).expect("it is fine");
    }
    assert_eq!(server.seen, [Seen::Data("call", b"x".to_vec(), false), Seen::Data("call", b"y".to_vec(), true)]);
}

#[test]
fn one_slow_stream_does_not_stall_the_others() {
    // Most of the connection's window is held by one stream; the rest is still replenished.
    let limits = Limits { stream_window_bytes: 60_000, connection_window_bytes: 65_535, ..Limits::default() };
    for (buffered_bytes, is_larger) in [(0, false), (100_000, true)] {
        let mut server = End::served(&Limits { buffered_bytes, ..limits.clone() });
        server.headers(1, 0, &POST).expect("it is fine");
        server.headers(3, 0, &POST).expect("it is fine");
        server.is_holding = true;
        for _ in 0..6 {
            server.frame(kind::DATA, 0, 1, &[0; 10_000]).expect("it is within the windows");
        }
        let slow = std::mem::take(&mut server.held);
        let given: u32 =
            server.sent().iter().map(|(head, bytes)| if head.stream == 0 { frame::number(bytes) } else { 0 }).sum();
        assert_eq!(given > 0, is_larger, "DATA within the buffer limit is credited at once");
        server.is_holding = false;
        let mut window = 65_535 - 60_000 + given;
        for _ in 0..100 {
            server.frame(kind::DATA, 0, 3, &[0; 2000]).expect("it is within the window");
            window -= 2000;
            window += server
                .sent()
                .iter()
                .map(|(head, bytes)| if head.stream == 0 { frame::number(bytes) } else { 0 })
                .sum::<u32>();
            assert!(window >= 2000, "the other stream goes on");
        }
        assert_eq!(slow.len(), 6);
    }
}

#[test]
fn held_data_of_a_stream_that_is_gone_counts_until_it_is_released() {
    let mut server = End::served(&Limits { connection_window_bytes: 65_535, ..Limits::default() });
    server.is_holding = true;
    server.headers(1, 0, &POST).expect("it is fine");
    for _ in 0..4 {
        server.frame(kind::DATA, 0, 1, &[0; 16_000]).expect("it is within the window");
    }
    // Half of a frame has arrived when the stream is reset.
    server.take(&Head { length: 1000, kind: kind::DATA, flags: 0, stream: 1 }.bytes()).expect("it is fine");
    server.take(&[0; 500]).expect("it is fine");
    server.connection.reset(server.requests[0], Code::CANCEL);
    server.sent();
    server.take(&[0; 500]).expect("it is ignored");
    assert_eq!(server.connection.held_bytes, 64_500);
    server.release();
    assert_eq!(server.connection.held_bytes, 0);
    let given: u32 = server.sent().iter().map(|(_, bytes)| frame::number(bytes)).sum();
    assert!(
        given > 65_000 - 65_535 / 2,
        "all received bytes were credited, except too few for a WINDOW_UPDATE: {given}"
    );
}

#[test]
fn our_smaller_window_applies_once_the_peer_has_acknowledged_it() {
    let limits = Limits { stream_window_bytes: 100, ..Limits::default() };
    let mut server = End::server(&limits);
    server.take(frame::PREFACE).expect("it is the preface");
    server.frame(kind::SETTINGS, 0, 0, &[]).expect("it is fine");
    server.headers(1, 0, &POST).expect("it is fine");
    server.frame(kind::DATA, 0, 1, &[0; 5000]).expect("the peer has not seen our SETTINGS");
    server.frame(kind::SETTINGS, flag::ACK, 0, &[]).expect("it is fine");
    server.seen.clear();
    server.headers(3, 0, &POST).expect("it is fine");
    server.frame(kind::DATA, 0, 3, &[0; 101]).expect("a stream error");
    assert_eq!(server.take_seen().pop(), Some(Seen::Reset("call", Code::FLOW_CONTROL_ERROR, Cause::Rule)));
}

#[test]
fn large_field_blocks_are_split_at_the_peer_s_frame_size() {
    let limits = Limits { header_list_bytes: 100_000, ..Limits::default() };
    let (mut client, mut server) = pair(&limits);
    let mut headers = post();
    let long = "z".repeat(50_000);
    headers.append(Name::other("x-long"), long.as_bytes());
    client.connection.open(&headers, true, "one").expect("it can open");
    talk(&mut client, &mut server, || 1000);
    assert_eq!(server.take_seen(), [Seen::Request(1, true)]);
}

#[test]
fn the_peer_s_limit_on_streams_is_respected() {
    let mut client = End::connected(&Limits::default());
    client.frame(kind::SETTINGS, 0, 0, &setting(frame::setting::MAX_CONCURRENT_STREAMS, 1)).expect("it is fine");
    client.connection.open(&post(), true, "one").expect("it can open");
    assert_eq!(client.connection.open(&post(), true, "two"), Err(CannotOpen::Full));
    assert_eq!((client.connection.peer_stream_limit(), client.connection.can_open()), (1, false));
    client.headers(1, flag::END_STREAM, &OK).expect("it is fine");
    assert!(client.connection.can_open());
}

#[test]
fn the_window_is_low_when_more_than_half_is_used_until_it_is_increased() {
    let mut client = End::connected(&Limits::default());
    let start = client.now;
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    client.frame(kind::WINDOW_UPDATE, 0, 1, &1_000_000u32.to_be_bytes()).expect("it is fine");
    assert_eq!(client.connection.send_data(stream, &[0; 30_000], false), 0);
    assert_eq!(client.connection.low_window_since(), None);
    assert_eq!(client.connection.send_data(stream, &[0; 10_000], false), 0);
    assert_eq!(client.connection.low_window_since(), Some(start));
    client.now = start + Duration::from_secs(1);
    client.frame(kind::WINDOW_UPDATE, 0, 0, &1_000u32.to_be_bytes()).expect("it is fine");
    assert_eq!(client.connection.low_window_since(), Some(client.now), "it is still low");
    client.frame(kind::WINDOW_UPDATE, 0, 0, &30_000u32.to_be_bytes()).expect("it is fine");
    assert_eq!(client.connection.low_window_since(), None);
}
