//! Drives our connection with the bytes of a script.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::{Code, Connection, Event, Headers, Limits, Name, Rate};

use super::script::*;
use super::seen::{Seen, Tap, sorted};

pub struct Ours {
    connection: Connection<StreamCall>,
    input: Vec<u8>,
    tap: Tap,
    answer: Answer,
    is_reading: bool,
    now: Instant,
    pub seen: Seen,
    /// The bytes that it wrote.
    pub written: Vec<u8>,
}

/// The value attached to a stream: its identifier.
type StreamCall = u32;

/// Limits for scripts: small sizes, and no rates, which would depend on time.
pub fn script_limits() -> Limits {
    let endless = Rate { burst: u32::MAX, per_second: u32::MAX, frames_per_token: 0 };
    Limits {
        streams: STREAMS as u32,
        stream_window_bytes: STREAM_WINDOW as u32,
        connection_window_bytes: CONNECTION_WINDOW as u32,
        frame_bytes: FRAME_BYTES as u32,
        header_list_bytes: HEADER_LIST_BYTES as u32,
        header_block_frames: 5,
        table_bytes: 4096,
        output_bytes: 1 << 30,
        control_output_bytes: 1 << 30,
        buffered_bytes: 0,
        cancels: endless.clone(),
        stream_errors: endless.clone(),
        pings: endless.clone(),
        settings: endless.clone(),
        empty_frames: endless.clone(),
        small_data: endless.clone(),
        table_changes: endless,
        flood_time: Duration::from_secs(3600),
        closed_streams: 1000,
        settings_timeout: Duration::from_secs(3600),
        keep_alive: None,
        are_cancels_paced: false,
        is_connect_protocol_enabled: false,
    }
}

impl Ours {
    pub fn new(script: &Script) -> Self {
        let now = Instant::now();
        let limits = Arc::new(script_limits());
        let connection = match script.role {
            Role::Server => Connection::server(&limits, now),
            Role::Client => Connection::client(&limits, now),
        };
        let mut this = Self {
            connection,
            input: Vec::new(),
            tap: Tap::new(script.role == Role::Client),
            answer: script.answer,
            is_reading: script.is_reading,
            now,
            seen: Seen::default(),
            written: Vec::new(),
        };
        match script.role {
            Role::Server => this.feed(super::frames::PREFACE),
            Role::Client => this.open(),
        }
        this
    }

    fn open(&mut self) {
        for (id, method) in CLIENT_STREAMS.into_iter().zip(CLIENT_METHODS) {
            let mut head = Headers::new();
            head.append(Name::METHOD, method.as_bytes());
            head.append(Name::SCHEME, b"http");
            head.append(Name::AUTHORITY, b"users");
            head.append(Name::PATH, b"/");
            let stream = self.connection.open(&head, method != "POST", id).expect("nothing keeps streams from opening");
            assert_eq!(stream.get(), id);
            match id {
                3 => drop(self.connection.send_data(stream, &[b'x'; 100], false)),
                5 => drop(self.connection.send_data(stream, &[b'y'; BODY_BYTES], true)),
                _ => {}
            }
        }
        self.flush();
    }

    /// Receives bytes from the peer and handles all events.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.seen.goaway.is_some() {
            return;
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut rest = &input[..];
        loop {
            match self.connection.receive(&mut rest, self.now) {
                Ok(Some(event)) => act(&mut self.connection, &mut self.seen, event, self.answer, self.is_reading),
                Ok(None) => break,
                Err(error) => {
                    self.flush();
                    assert_eq!(self.seen.goaway, Some(error.code.0), "GOAWAY has the code of the error: {error}");
                    return;
                }
            }
        }
        self.input = rest.to_vec();
        self.flush();
    }

    fn flush(&mut self) {
        loop {
            while self.connection.next_notice().is_some() {}
            let output = self.connection.output();
            if output.is_empty() {
                return;
            }
            let bytes = output.len();
            self.written.extend_from_slice(output);
            for frame in self.tap.take(output) {
                self.seen.sent(&frame);
            }
            self.connection.wrote(bytes);
        }
    }
}

fn act(
    connection: &mut Connection<StreamCall>,
    seen: &mut Seen,
    event: Event<'_, StreamCall>,
    answer: Answer,
    is_reading: bool,
) {
    let list = |headers: &Headers| sorted(headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())));
    let (stream, has_ended) = match event {
        Event::Request { stream, headers, is_end } => {
            connection.attach(stream, stream.get());
            let call = seen.call(stream.get());
            call.heads.push(list(&headers));
            connection.recycle(headers);
            match answer {
                Answer::AtOnce => connection.respond(stream, &status(), true),
                Answer::Body => {
                    connection.respond(stream, &status(), false);
                    connection.send_data(stream, &[b'z'; BODY_BYTES], true);
                }
                Answer::Never | Answer::AtEnd => {}
            }
            (stream, is_end)
        }
        Event::RequestTooLarge { stream, headers, is_end } => {
            connection.recycle(headers);
            let mut head = Headers::new();
            head.append(Name::STATUS, b"431");
            connection.respond(stream, &head, true);
            if !is_end {
                connection.reset(stream, Code::NO_ERROR);
            }
            return;
        }
        Event::Response { stream, call, headers, is_end } => {
            assert_eq!(stream.get(), call);
            seen.call(call).heads.push(list(&headers));
            connection.recycle(headers);
            (stream, is_end)
        }
        Event::Data { stream, call, data, is_end } => {
            assert_eq!(stream.get(), call);
            assert!(is_end || !data.is_empty(), "an empty slice that ends nothing");
            seen.call(call).body.extend_from_slice(data);
            if is_reading {
                connection.release(stream, data.len());
            }
            (stream, is_end)
        }
        Event::Trailers { stream, call, headers } => {
            assert_eq!(stream.get(), call);
            seen.call(call).trailers = Some(list(&headers));
            connection.recycle(headers);
            (stream, true)
        }
        Event::Reset { stream, call, code, .. } => {
            assert_eq!(stream.get(), call);
            let call = seen.call(call);
            assert_eq!(call.reset, None, "a stream ends once");
            call.reset = Some(code.0);
            return;
        }
        Event::Settings | Event::GoAway { .. } => return,
    };
    if has_ended {
        let call = seen.call(stream.get());
        assert!(!call.is_ended && call.reset.is_none(), "a stream ends once");
        call.is_ended = true;
        if answer == Answer::AtEnd {
            connection.respond(stream, &status(), true);
        }
    }
}

fn status() -> Headers {
    let mut head = Headers::new();
    head.append(Name::STATUS, b"200");
    head
}
