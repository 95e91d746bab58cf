//! One test for each limit.

use super::*;

const NONE: Rate = Rate { burst: 3, per_second: 0, frames_per_token: 0 };

/// Sends until the peer is slowed down. Returns the rate that it exceeded, and how often `send` was allowed before.
fn until_paused(end: &mut End, mut send: impl FnMut(&mut End, u32) -> Result<(), ConnectionError>) -> (Bound, u32) {
    for round in 0..100_000 {
        send(end, round).expect("a flood is first slowed down");
        if let Some(bound) = end.connection.take_exceeded() {
            assert!(end.connection.is_paused(end.now));
            return (bound, round);
        }
    }
    panic!("the peer is never slowed down");
}

/// Sends until the connection fails. Returns the code, and how often `send` succeeded before.
fn until_failure(end: &mut End, mut send: impl FnMut(&mut End, u32) -> Result<(), ConnectionError>) -> (Code, u32) {
    for round in 0..100_000 {
        if let Err(error) = send(end, round) {
            return (error.code, round);
        }
    }
    panic!("the connection never fails");
}

/// Lets the time pass until the driver reads again.
fn wait_for_pause(end: &mut End) {
    while end.connection.is_paused(end.now) {
        end.now = end.connection.next_timeout().expect("the end of the pause is a timeout");
        end.connection.on_timeout(end.now).expect("nothing else is due");
    }
}

fn ping(end: &mut End, _: u32) -> Result<(), ConnectionError> {
    let result = end.frame(kind::PING, 0, 0, &[7; 8]);
    end.sent();
    result
}

#[test]
fn pings_settings_cancels_and_stream_errors_are_limited_by_rates() {
    let mut server = End::served(&Limits { pings: NONE, ..Limits::default() });
    assert_eq!(until_paused(&mut server, ping), (Bound::Pings, 3));

    let mut server = End::served(&Limits { settings: NONE, ..Limits::default() });
    assert_eq!(until_paused(&mut server, |end, _| end.frame(kind::SETTINGS, 0, 0, &[])), (Bound::Settings, 3));

    let mut server = End::served(&Limits { cancels: NONE, ..Limits::default() });
    let cancel = |end: &mut End, round: u32| {
        end.headers(round * 2 + 1, flag::END_STREAM, &POST)?;
        end.frame(kind::RST_STREAM, 0, round * 2 + 1, &[0, 0, 0, 8])
    };
    assert_eq!(until_paused(&mut server, cancel), (Bound::Cancels, 3));

    let mut server = End::served(&Limits { stream_errors: NONE, ..Limits::default() });
    let malformed = |end: &mut End, round: u32| {
        end.headers(round * 2 + 1, flag::END_STREAM, &POST)?;
        end.frame(kind::WINDOW_UPDATE, 0, round * 2 + 1, &[0; 4])
    };
    assert_eq!(until_paused(&mut server, malformed), (Bound::StreamErrors, 3));
}

#[test]
fn frames_that_come_with_useful_work_are_no_flood() {
    let per_frame = Rate { frames_per_token: 1, ..NONE };
    let limits =
        Limits { pings: per_frame.clone(), cancels: per_frame.clone(), settings: per_frame, ..Limits::default() };
    let mut server = End::served(&limits);
    for round in 0..1000 {
        // A gRPC call with a bandwidth estimator: a PING for each DATA frame, in both directions.
        let stream = round * 4 + 1;
        server.headers(stream, 0, &POST).expect("it is fine");
        server.frame(kind::DATA, flag::END_STREAM, stream, b"message").expect("it is fine");
        ping(&mut server, 0).expect("it came with received DATA");
        let served = server.requests.pop().expect("it came");
        server.connection.respond(served, &ok(), false);
        server.connection.send_data(served, b"message", true);
        ping(&mut server, 0).expect("it came for DATA that we sent");
        server.frame(kind::SETTINGS, 0, 0, &[]).expect("SETTINGS earn tokens in the same way");
        // One cancelled call for each answered one.
        server.headers(stream + 2, 0, &POST).expect("it is fine");
        server.frame(kind::RST_STREAM, 0, stream + 2, &[0, 0, 0, 8]).expect("it is fine");
        server.sent();
    }
    assert_eq!(server.connection.take_exceeded(), None);
}

#[test]
fn requests_without_a_response_are_not_useful_work() {
    let per_frame = Rate { frames_per_token: 1, ..NONE };
    let limits = Limits { cancels: per_frame.clone(), stream_errors: per_frame, ..Limits::default() };
    for (frame, bound) in [((kind::RST_STREAM, 8), Bound::Cancels), ((kind::WINDOW_UPDATE, 0), Bound::StreamErrors)] {
        let mut server = End::served(&limits);
        let (kind, last) = frame;
        let ask_and_break = |end: &mut End, round: u32| {
            end.headers(round * 2 + 1, flag::END_STREAM, &POST)?;
            end.frame(kind, 0, round * 2 + 1, &[0, 0, 0, last])
        };
        assert_eq!(until_paused(&mut server, ask_and_break), (bound, 3));
    }
}

/// In virtual time: the server pauses after each read for as long as the rate demands.
#[test]
fn a_server_slows_a_flood_down_then_drains_and_then_closes_the_connection() {
    let slow = Rate { burst: 3, per_second: 2, frames_per_token: 0 };
    let flood_time = Duration::from_secs(10);
    let mut server = End::served(&Limits { pings: slow, flood_time, ..Limits::default() });
    server.headers(1, 0, &POST).expect("it is fine");
    let start = server.now;
    let (mut pings, mut drained_after) = (0, None);
    let error = loop {
        let taken = server.frame(kind::PING, 0, 0, &[7; 8]);
        pings += 1;
        let is_drained = server.sent().iter().any(|(head, _)| head.kind == kind::GOAWAY);
        if is_drained && drained_after.is_none() {
            drained_after = Some(server.now - start);
        }
        match taken {
            Ok(()) => wait_for_pause(&mut server),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, error.limit), (Code::ENHANCE_YOUR_CALM, Some(Bound::Pings)));
    let lasted = server.now - start;
    assert!(drained_after.is_some_and(|after| after >= flood_time && after < flood_time * 3 / 2), "{drained_after:?}");
    assert!(lasted >= flood_time * 2 && lasted < flood_time * 5 / 2, "{lasted:?}");
    assert!(pings < 50, "no faster than the rate: {pings}");
}

#[test]
fn a_client_does_not_close_its_connection_for_a_rate_but_drains_it() {
    let slow = Rate { burst: 3, per_second: 2, frames_per_token: 0 };
    let mut client = End::connected(&Limits { pings: slow, ..Limits::default() });
    client.connection.open(&post(), true, "one").expect("it can open");
    for _ in 0..200 {
        ping(&mut client, 0).expect("a flood is slowed down");
        wait_for_pause(&mut client);
    }
    assert!(!client.connection.can_open(), "new calls need another connection");
    client.headers(1, flag::END_STREAM, &OK).expect("the connection goes on");
    assert_eq!(client.take_seen(), [Seen::Response("one", 200, true)]);
    assert!(client.connection.is_finished());
}

#[test]
fn a_flood_is_forgiven_after_a_quiet_time() {
    let slow = Rate { burst: 3, per_second: 2, frames_per_token: 0 };
    let mut server = End::served(&Limits { pings: slow, ..Limits::default() });
    for _ in 0..100 {
        until_paused(&mut server, ping);
        wait_for_pause(&mut server);
        server.now += Duration::from_secs(5);
    }
    server.headers(1, 0, &POST).expect("it is fine");
    assert_eq!(server.requests.len(), 1, "it is not drained");
}

#[test]
fn frames_that_carry_nothing_are_limited() {
    for frame in [
        (kind::DATA, 0, 1, &[][..]),
        (kind::DATA, flag::PADDED, 1, &[1, 0]),
        (kind::PRIORITY, 0, 9, &[0; 5]),
        (0x99, 0, 0, b"x"),
        (kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        (kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        (kind::SETTINGS, flag::ACK, 0, &[]),
    ] {
        let mut server = End::served(&Limits { empty_frames: NONE, ..Limits::default() });
        server.headers(1, 0, &POST).expect("it is fine");
        let flood = |end: &mut End, _| end.frame(frame.0, frame.1, frame.2, frame.3);
        assert_eq!(until_paused(&mut server, flood), (Bound::EmptyFrames, 3), "{frame:?}");
    }
}

#[test]
fn tiny_data_frames_of_clients_are_limited() {
    let limits = Limits { small_data: NONE, ..Limits::default() };
    let small = |end: &mut End, _| end.frame(kind::DATA, 0, 1, b"abcd");
    let mut server = End::served(&limits);
    server.headers(1, 0, &POST).expect("it is fine");
    for _ in 0..100 {
        server.frame(kind::DATA, 0, 1, b"abcde").expect("it may be a message");
    }
    assert_eq!(until_paused(&mut server, small), (Bound::SmallData, 3));
    let mut server = End::served(&limits);
    for stream in (1..200).step_by(2) {
        server.headers(stream, 0, &POST).expect("it is fine");
        server.frame(kind::DATA, flag::END_STREAM, stream, b"x").expect("it ends the stream");
    }
    let mut client = End::connected(&limits);
    client.connection.open(&post(), true, "one").expect("it can open");
    client.headers(1, 0, &OK).expect("it is fine");
    for _ in 0..100 {
        small(&mut client, 0).expect("a server's DATA is not limited");
    }
}

#[test]
fn dynamic_table_size_updates_are_limited() {
    let mut server = End::served(&Limits { table_changes: NONE, ..Limits::default() });
    let played = [&[0x20, 0x3f, 0xe1, 0x1f][..], &block(&POST)].concat();
    let game = |end: &mut End, round: u32| {
        end.frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, round * 2 + 1, &played)
    };
    assert_eq!(until_paused(&mut server, game), (Bound::TableChanges, 1), "two in each block");
    let mut server = End::served(&Limits::default());
    let many = [&[0x20; 10_000][..], &block(&POST)].concat();
    server.frame(kind::HEADERS, flag::END_HEADERS, 1, &many).expect("the peer is slowed down first");
    assert_eq!(server.connection.take_exceeded(), Some(Bound::TableChanges));
}

#[test]
fn window_updates_for_sent_data_are_free_but_tiny_ones_are_not() {
    let empty_frames = Rate { frames_per_token: 1, ..NONE };
    let mut client = End::connected(&Limits { empty_frames, ..Limits::default() });
    let stream = client.connection.open(&post(), false, "one").expect("it can open");
    for _ in 0..100 {
        client.connection.send_data(stream, &[0; 100], false);
        client.frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 100]).expect("it is due");
        client.frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 100]).expect("it is due");
        client.sent();
    }
    client.connection.send_data(stream, &[0; 200_000], false);
    let crumb = |end: &mut End, _| {
        end.frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])?;
        end.frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])?;
        end.sent();
        Ok(())
    };
    assert_eq!(client.connection.take_exceeded(), None);
    let (bound, rounds) = until_paused(&mut client, crumb);
    assert!(bound == Bound::EmptyFrames && rounds < 20, "{bound:?} after {rounds}");
}

#[test]
fn replies_that_the_peer_does_not_read_are_limited() {
    let plenty = Rate { burst: u32::MAX, per_second: 1, frames_per_token: 0 };
    let limits =
        Limits { pings: plenty.clone(), stream_errors: plenty, control_output_bytes: 1000, ..Limits::default() };
    let mut server = End::served(&limits);
    while !server.connection.is_read_held() {
        server.frame(kind::PING, 0, 0, &[7; 8]).expect("first, the driver should stop reading");
    }
    assert!(server.connection.output().len() < 1100);
    server.sent();
    assert!(!server.connection.is_read_held(), "the peer has read the replies");
    // If the driver reads on all the same, the connection fails.
    let (code, rounds) = until_failure(&mut server, |end, _| end.frame(kind::PING, 0, 0, &[7; 8]));
    assert_eq!((code, rounds), (Code::ENHANCE_YOUR_CALM, 4000 / 17));
    assert!(server.connection.output().len() < 4200);
    let mut server = End::served(&Limits { streams: 0, ..limits });
    let open = |end: &mut End, round: u32| end.headers(round * 2 + 1, 0, &POST);
    assert_eq!(until_failure(&mut server, open), (Code::ENHANCE_YOUR_CALM, 4000 / 13));
}

#[test]
fn more_streams_than_allowed_are_refused() {
    let mut server = End::served(&Limits { streams: 2, ..Limits::default() });
    for stream in [1, 3, 5] {
        server.headers(stream, 0, &POST).expect("the connection goes on");
    }
    assert_eq!((server.requests.len(), server.connection.streams()), (2, 2));
    assert_eq!(server.sent_resets(), [(5, Code::REFUSED_STREAM)]);
    server.frame(kind::DATA, flag::END_STREAM, 5, b"under way").expect("it is ignored");
}

#[test]
fn field_blocks_are_limited_in_frames_and_time() {
    let mut server = End::served(&Limits { header_block_frames: 3, ..Limits::default() });
    server.frame(kind::HEADERS, 0, 1, &[]).expect("it is fine");
    let more = |end: &mut End, _| end.frame(kind::CONTINUATION, 0, 1, &[]);
    assert_eq!(until_failure(&mut server, more), (Code::ENHANCE_YOUR_CALM, 3));

    let mut server = End::served(&Limits::default());
    server.frame(kind::HEADERS, 0, 1, &[]).expect("it is fine");
    let due = server.connection.next_timeout().expect("it waits for the rest");
    assert_eq!(server.connection.on_timeout(due).map_err(|error| error.code), Err(Code::ENHANCE_YOUR_CALM));
}

#[test]
fn header_lists_that_are_too_large_are_refused() {
    let long = "x".repeat(200);
    let mut fields = POST.to_vec();
    fields.extend([("a", &long[..]), ("b", &long)]);
    let limits = Limits { header_list_bytes: 400, ..Limits::default() };
    let mut server = End::served(&limits);
    server.headers(1, 0, &fields).expect("the connection goes on");
    server.frame(kind::DATA, 0, 1, b"of a request that is refused").expect("it is ignored");
    server.headers(3, flag::END_STREAM, &fields).expect("the connection goes on");
    assert_eq!(server.take_seen(), [Seen::RequestTooLarge(1, false), Seen::RequestTooLarge(3, true)]);
    for stream in std::mem::take(&mut server.requests) {
        server.connection.respond(stream, &list(&[(":status", "431")]), true);
        server.connection.reset(stream, Code::NO_ERROR);
    }
    let answer = (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM);
    let sent = [(answer.0, answer.1, 1), (kind::RST_STREAM, 0, 1), (answer.0, answer.1, 3)];
    assert_eq!(server.sent_kinds(), sent);
    assert_eq!((server.connection.streams(), server.connection.heads_too_large()), (0, 2));

    let mut client = End::connected(&limits);
    client.connection.open(&post(), true, "one").expect("it can open");
    client.headers(1, 0, &[(":status", "200"), ("a", &long), ("b", &long)]).expect("the connection goes on");
    assert_eq!(client.take_seen(), [Seen::Reset("one", Code::ENHANCE_YOUR_CALM, Cause::TooLarge)]);
}

#[test]
fn data_beyond_the_windows_is_an_error() {
    let limits = Limits { stream_window_bytes: 1 << 20, connection_window_bytes: 65_535, ..Limits::default() };
    let mut server = End::served(&limits);
    server.is_holding = true;
    server.headers(1, 0, &POST).expect("it is fine");
    let data = |end: &mut End, _| end.frame(kind::DATA, 0, 1, &[0; 16_000]);
    assert_eq!(until_failure(&mut server, data), (Code::FLOW_CONTROL_ERROR, 4));
}

#[test]
fn settings_must_be_acknowledged_in_time() {
    let limits = Limits::default();
    let mut server = End::server(&limits);
    assert_eq!(server.connection.next_timeout(), Some(server.now + limits.settings_timeout));
    server.take(frame::PREFACE).expect("it is the preface");
    server.frame(kind::SETTINGS, 0, 0, &[]).expect("it is fine");
    let late = server.now + limits.settings_timeout;
    assert_eq!(server.connection.on_timeout(late).map_err(|error| error.code), Err(Code::SETTINGS_TIMEOUT));
    assert_eq!(End::served(&limits).connection.next_timeout(), None);
}

#[test]
fn only_the_last_closed_streams_are_remembered() {
    let mut server = End::served(&Limits { closed_streams: 2, ..Limits::default() });
    for stream in [1, 3, 5] {
        server.headers(stream, 0, &POST).expect("it is fine");
    }
    for stream in std::mem::take(&mut server.requests) {
        server.connection.reset(stream, Code::CANCEL);
    }
    server.sent();
    server.frame(kind::DATA, 0, 3, b"x").expect("it is remembered");
    assert_eq!(server.sent_resets(), []);
    server.frame(kind::DATA, 0, 1, b"x").expect("the connection goes on");
    assert_eq!(server.sent_resets(), [(1, Code::STREAM_CLOSED)]);
}
