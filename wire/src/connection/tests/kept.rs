//! The memory that a connection keeps is small, and is freed when it is idle.

use super::*;

/// A server with this many calls. Each has this many bytes waiting for the connection's window.
fn with_waiting(calls: u32, bytes: usize) -> (End, Vec<StreamId>) {
    let mut server = End::served(&Limits { streams: calls, ..Limits::default() });
    for call in 0..calls {
        server.headers(2 * call + 1, flag::END_STREAM, &POST).expect("it is a request");
        server.frame(kind::WINDOW_UPDATE, 0, 2 * call + 1, &1_000_000u32.to_be_bytes()).expect("it is fine");
    }
    let streams = std::mem::take(&mut server.requests);
    for (number, stream) in streams.iter().enumerate() {
        server.connection.respond(*stream, &ok(), false);
        server.connection.send_data(*stream, &vec![number as u8; bytes], false);
    }
    (server, streams)
}

/// Opens the connection's window and reads everything that is sent. Returns for each stream the length of its DATA and
/// the byte that it consists of.
fn take_waiting(server: &mut End) -> std::collections::BTreeMap<u32, (usize, u8)> {
    let mut taken = std::collections::BTreeMap::new();
    server.frame(kind::WINDOW_UPDATE, 0, 0, &1_000_000_000u32.to_be_bytes()).expect("it is fine");
    while !server.connection.output().is_empty() {
        for (head, payload) in server.sent().into_iter().filter(|(head, _)| head.kind == kind::DATA) {
            let (bytes, byte) = taken.entry(head.stream).or_insert((0, payload[0]));
            assert!(payload.iter().all(|one| one == byte), "bytes of another stream");
            *bytes += head.length;
        }
    }
    taken
}

#[test]
fn a_connection_with_one_call_left_keeps_little() {
    const CALLS: u32 = 500;
    let (mut server, streams) = with_waiting(CALLS, 60_000);
    assert!(server.connection.usage().buffer_bytes > 400 * 60_000);
    assert_eq!(take_waiting(&mut server).len(), CALLS as usize);
    for _ in 0..CALLS {
        let mut head = post();
        head.set(Name::PATH, &[b'a'; 7_000]);
        server.connection.recycle(head);
    }
    for stream in &streams[1..] {
        server.connection.send_data(*stream, &[], true);
    }
    server.sent();
    assert_eq!(server.connection.streams(), 1);
    let kept = server.connection.usage().buffer_bytes;
    assert!(kept <= 1 << 20, "{kept} bytes in all");
    server.connection.trim();
    let kept = server.connection.usage().buffer_bytes;
    assert!(kept <= 8 << 10, "{kept} bytes after a while");
}

#[test]
fn trim_does_nothing_for_a_busy_connection_that_keeps_little() {
    let (mut client, mut server) = pair(&Limits::default());
    for call in 0..20 {
        client.connection.open(&post(), call % 2 == 0, "one").expect("it can open");
    }
    talk(&mut client, &mut server, || usize::MAX);
    let before = server.connection.usage();
    assert!(before.buffer_bytes > 0);
    server.connection.trim();
    assert_eq!(server.connection.usage().buffer_bytes, before.buffer_bytes);
    server.connection.shrink();
    assert!(server.connection.usage().buffer_bytes < before.buffer_bytes);
}

#[test]
fn queued_data_is_sent_after_the_buffers_of_other_streams_were_freed() {
    let (mut server, streams) = with_waiting(10, 60_000);
    let held = server.connection.usage().buffer_bytes;
    for stream in streams.iter().step_by(2) {
        server.connection.reset(*stream, Code::CANCEL);
    }
    server.connection.send_trailers(streams[9], &list(&[("grpc-status", "0")]));
    server.connection.shrink();
    assert!(
        server.connection.usage().buffer_bytes <= held - 4 * 60_000,
        "the buffers of the calls that were reset are freed"
    );
    server.connection.send_data(streams[7], &[7; 100], true);
    // The first two calls have used the window of 65,535.
    let taken = take_waiting(&mut server);
    let bytes: Vec<_> = streams.iter().map(|stream| taken.get(&stream.get()).copied().unwrap_or_default()).collect();
    let sent_before = 65_535 - 60_000;
    assert_eq!(bytes[1], (60_000, 1), "its first {sent_before} bytes are in the output as well");
    assert_eq!(&bytes[2..], [(0, 0), (60_000, 3), (0, 0), (60_000, 5), (0, 0), (60_100, 7), (0, 0), (60_000, 9)]);
    assert_eq!(server.connection.streams(), 3, "two have ended");
    server.connection.shrink();
    assert_eq!(server.connection.send_data(streams[3], &[3; 10], true), 0);
    assert_eq!(server.connection.streams(), 2);
}

#[test]
fn the_memory_of_very_many_streams_counts_until_it_is_freed() {
    const CALLS: u32 = 1_000;
    let mut server = End::served(&Limits { streams: CALLS, ..Limits::default() });
    let held = |server: &mut End| {
        server.sent();
        server.connection.held_and_unsent_bytes()
    };
    for call in 0..CALLS {
        server.headers(2 * call + 1, flag::END_STREAM, &POST).expect("it is a request");
        if call == 50 {
            assert_eq!(held(&mut server), 0, "it is too little to count");
        }
    }
    assert!(held(&mut server) > CALLS as usize * 50, "{} bytes", held(&mut server));
    let streams = std::mem::take(&mut server.requests);
    for stream in &streams[1..] {
        server.connection.respond(*stream, &ok(), true);
    }
    server.connection.shrink();
    assert!(held(&mut server) > CALLS as usize * 50, "one stream is still open");
    server.connection.respond(streams[0], &ok(), true);
    assert!(held(&mut server) > CALLS as usize * 50);
    server.connection.shrink();
    assert_eq!(held(&mut server), 0);
}

#[test]
fn a_field_block_counts_until_it_is_complete() {
    let mut server = End::served(&Limits::default());
    let block = [0x82; 100];
    server.frame(kind::HEADERS, flag::END_STREAM, 1, &block).expect("more is to come");
    server.frame(kind::CONTINUATION, 0, 1, &block).expect("more is to come");
    server.sent();
    assert_eq!(server.connection.held_and_unsent_bytes(), 200);
    // It is malformed, which is only a stream error.
    server.frame(kind::CONTINUATION, flag::END_HEADERS, 1, &block).expect("it can be decoded");
    server.sent();
    assert_eq!(server.connection.held_and_unsent_bytes(), 0);
}
