//! A connection whose user calls any method at any time, and whose peer sends anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::{Code, Connection, Event, Headers, Limits, Name, Notice, Rate, StreamId};

use super::choices::Choices;
use super::frames::PREFACE;
use super::ours::script_limits;
use super::script::Role;

/// What the user knows of a stream.
struct Known {
    stream: StreamId,
    has_head: bool,
    is_ended: bool,
    /// No more events may come for it.
    is_quiet: bool,
    has_sent_head: bool,
    has_sent_end: bool,
    held: usize,
    waiting: usize,
}

pub struct Chaos {
    role: Role,
    connection: Connection<u32>,
    limits: Arc<Limits>,
    known: BTreeMap<u32, Known>,
    inbox: Vec<u8>,
    now: Instant,
    is_over: bool,
}

const PIECE: usize = 4_000;

fn limits(choices: &mut Choices) -> Limits {
    let few = Rate { burst: 20, per_second: 5, frames_per_token: 2 };
    let mut limits = script_limits();
    limits.output_bytes = 20_000;
    limits.control_output_bytes = 2_000;
    if choices.one_in(3) {
        limits.cancels = few.clone();
        limits.stream_errors = few.clone();
        limits.pings = few.clone();
        limits.settings = few.clone();
        limits.empty_frames = few.clone();
        limits.small_data = few.clone();
        limits.table_changes = few;
        limits.flood_time = Duration::from_secs(2);
        limits.closed_streams = 2;
    }
    if choices.one_in(3) {
        limits.buffered_bytes = 30_000;
        limits.is_connect_protocol_enabled = true;
        limits.table_bytes = 100;
    }
    limits
}

impl Chaos {
    pub fn new(role: Role, choices: &mut Choices) -> Self {
        let (limits, now) = (Arc::new(limits(choices)), Instant::now());
        let connection = match role {
            Role::Server => Connection::server(&limits, now),
            Role::Client => Connection::client(&limits, now),
        };
        let inbox = if role == Role::Server && !choices.one_in(50) { PREFACE.to_vec() } else { Vec::new() };
        Self { role, connection, limits, known: BTreeMap::new(), inbox, now, is_over: false }
    }

    /// Plays until all of `input` was received or the connection has failed.
    pub fn play(&mut self, choices: &mut Choices, mut input: &[u8]) {
        while !input.is_empty() && !self.is_over {
            let (chunk, rest) = input.split_at(if choices.is_over() {
                input.len()
            } else if choices.one_in(2) {
                choices.between(1, 3_000).min(input.len())
            } else {
                choices.between(1, 12).min(input.len())
            });
            input = rest;
            self.inbox.extend_from_slice(chunk);
            self.receive();
            for _ in 0..choices.below(4) {
                self.user(choices);
                self.notices();
                self.assert_bounds();
            }
            self.assert_bounds();
        }
        while !self.connection.output().is_empty() {
            self.connection.wrote(self.connection.output().len());
            self.notices();
        }
        self.connection.take_all();
        while self.connection.next_notice().is_some() {}
        self.connection.shrink();
    }

    fn receive(&mut self) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        loop {
            let before = rest.len();
            match self.connection.receive(&mut rest, self.now) {
                Ok(Some(event)) => self.event(event),
                Ok(None) => break,
                Err(_) => {
                    self.is_over = true;
                    break;
                }
            }
            assert!(rest.len() <= before);
            self.notices();
        }
        assert!(
            self.is_over || rest.len() < 9 + self.limits.frame_bytes as usize + 1,
            "{} bytes were not taken off the input",
            rest.len()
        );
        self.inbox = rest.to_vec();
        self.notices();
    }

    fn event(&mut self, event: Event<'_, u32>) {
        match event {
            Event::Request { stream, headers, is_end } => {
                assert_eq!(self.role, Role::Server);
                assert!(headers.list_bytes() <= self.limits.header_list_bytes as usize);
                assert!(headers.method().is_some());
                // Some streams get no attached value, so they must make no more events.
                let is_quiet = stream.get() % 7 == 5;
                if !is_quiet {
                    self.connection.attach(stream, stream.get());
                }
                let known = Known { has_head: true, is_ended: is_end, is_quiet, ..Known::new(stream) };
                assert!(self.known.insert(stream.get(), known).is_none(), "a stream is opened once");
                self.connection.recycle(headers);
            }
            Event::RequestTooLarge { stream, headers, .. } => {
                assert_eq!(self.role, Role::Server);
                assert!(headers.list_bytes() <= self.limits.header_list_bytes as usize);
                self.connection.recycle(headers);
                self.connection.reset(stream, Code::ENHANCE_YOUR_CALM);
                let known = Known { is_quiet: true, has_sent_head: true, has_sent_end: true, ..Known::new(stream) };
                assert!(self.known.insert(stream.get(), known).is_none(), "a stream is opened once");
            }
            Event::Response { stream, call, headers, is_end } => {
                assert_eq!(self.role, Role::Client);
                let known = self.known(stream, call);
                assert!(!known.has_head, "there is one final response, after interim ones");
                known.has_head = headers.status().expect("a response has a status") >= 200;
                known.is_ended = is_end;
                self.connection.recycle(headers);
            }
            Event::Data { stream, call, data, is_end } => {
                let known = self.known(stream, call);
                assert!(known.has_head);
                assert!(is_end || !data.is_empty());
                known.is_ended = is_end;
                known.held += data.len();
            }
            Event::Trailers { stream, call, headers } => {
                let known = self.known(stream, call);
                assert!(known.has_head);
                known.is_ended = true;
                self.connection.recycle(headers);
            }
            Event::Reset { stream, call, .. } => {
                let known = self.known.get_mut(&call).expect("it is known");
                assert!(!known.is_quiet && known.stream == stream);
                known.is_quiet = true;
            }
            Event::Settings => assert!(self.connection.has_settings()),
            Event::GoAway { .. } => assert!(!self.connection.can_open()),
        }
    }

    fn known(&mut self, stream: StreamId, call: u32) -> &mut Known {
        assert_eq!(stream.get(), call);
        let known = self.known.get_mut(&call).expect("it is known");
        assert_eq!(known.stream, stream);
        assert!(!known.is_quiet && !known.is_ended, "an event after the end of stream {call}");
        known
    }

    fn notices(&mut self) {
        while let Some(notice) = self.connection.next_notice() {
            match notice {
                Notice::Sent { call, bytes, .. } => {
                    let known = self.known.get_mut(&call).expect("it is known");
                    assert!(!known.is_quiet && bytes <= known.waiting, "{bytes} of {} were sent", known.waiting);
                    known.waiting -= bytes;
                }
                Notice::Unseen { call, .. } => {
                    let known = self.known.get_mut(&call).expect("it is known");
                    assert!(!known.is_quiet);
                    known.is_quiet = true;
                }
            }
        }
    }

    fn user(&mut self, choices: &mut Choices) {
        match choices.below(16) {
            0..=2 if self.role == Role::Client => self.open(choices),
            0..=3 => {
                let bytes = choices.below(3_000).min(self.connection.output().len());
                self.connection.wrote(bytes);
            }
            4..=12 => {
                let Some(at) = self.known.len().checked_sub(1) else { return };
                let key = *self.known.keys().nth(choices.below(at + 1)).expect("below the length");
                let known = self.known.get_mut(&key).expect("it is there");
                with_stream(&mut self.connection, self.role, known, choices);
            }
            13 => {
                self.now += Duration::from_millis(choices.below(3_000) as u64);
                if self.connection.on_timeout(self.now).is_err() {
                    self.is_over = true;
                }
            }
            14 if choices.one_in(20) => self.connection.drain(self.now),
            15 if choices.one_in(40) => self.connection.close(Code::NO_ERROR),
            15 => self.connection.shrink(),
            _ => {
                let bytes = self.connection.output().len();
                self.connection.wrote(bytes);
            }
        }
    }

    fn open(&mut self, choices: &mut Choices) {
        let mut head = Headers::new();
        head.append(Name::METHOD, choices.pick(&[&b"POST"[..], b"HEAD", b"GET"]));
        head.append(Name::SCHEME, b"http");
        head.append(Name::PATH, b"/");
        head.append_bytes(b"x-a", b"b");
        let is_end = choices.one_in(2);
        let can_open = self.connection.can_open();
        let number = self.known.len() as u32 * 2 + 1;
        match self.connection.open(&head, is_end, number) {
            Ok(stream) => {
                assert!(can_open);
                assert_eq!(stream.get(), number);
                let known = Known { has_sent_head: true, has_sent_end: is_end, ..Known::new(stream) };
                assert!(self.known.insert(stream.get(), known).is_none());
            }
            Err(_) => assert!(!can_open || self.connection.is_congested()),
        }
    }

    fn assert_bounds(&self) {
        let limits = &self.limits;
        if self.role == Role::Server {
            assert!(self.connection.streams() <= limits.streams as usize);
        }
        let held: usize = self.known.values().map(|known| known.held).sum();
        let most = limits.connection_window_bytes as usize + limits.buffered_bytes;
        assert!(held <= most, "{held} bytes are held");
        // Header sections and trailers are not bounded by the limit on output; there are few of them here.
        let most = limits.output_bytes + limits.control_output_bytes + 20_000 + 200 * self.known.len();
        assert!(self.connection.output().len() <= most, "{} bytes wait", self.connection.output().len());
        if self.connection.is_finished() {
            assert_eq!(self.connection.streams(), 0);
        }
    }
}

impl Known {
    fn new(stream: StreamId) -> Self {
        Self {
            stream,
            has_head: false,
            is_ended: false,
            is_quiet: false,
            has_sent_head: false,
            has_sent_end: false,
            held: 0,
            waiting: 0,
        }
    }
}

fn with_stream(connection: &mut Connection<u32>, role: Role, known: &mut Known, choices: &mut Choices) {
    let stream = known.stream;
    match choices.below(9) {
        0 if choices.one_in(3) => {
            connection.reset(stream, Code::CANCEL);
            (known.is_quiet, known.waiting, known.has_sent_end) = (true, 0, true);
        }
        1 if choices.one_in(6) => {
            connection.detach(stream);
            (known.is_quiet, known.waiting) = (true, 0);
        }
        2 | 3 => {
            let bytes = known.held.min(choices.below(10_000));
            known.held -= bytes;
            connection.release(stream, bytes);
        }
        _ if known.has_sent_end => {}
        4 if role == Role::Server && !known.has_sent_head => {
            let mut head = Headers::new();
            head.append(Name::STATUS, b"103");
            connection.respond(stream, &head, false);
        }
        5 | 6 if !known.has_sent_head => {
            let mut head = Headers::new();
            head.append(Name::STATUS, b"200");
            known.has_sent_end = choices.one_in(4);
            known.has_sent_head = true;
            connection.respond(stream, &head, known.has_sent_end);
        }
        7 if known.has_sent_head && known.waiting < 50_000 && !connection.is_congested() => {
            known.has_sent_end = choices.one_in(4);
            let waiting = connection.send_data(stream, &[7; PIECE][..choices.below(PIECE)], known.has_sent_end);
            assert!(waiting <= PIECE);
            known.waiting += if known.is_quiet { 0 } else { waiting };
        }
        8 if known.has_sent_head && choices.one_in(3) => {
            let mut trailers = Headers::new();
            trailers.append(Name::GRPC_STATUS, b"0");
            connection.send_trailers(stream, &trailers);
            known.has_sent_end = true;
        }
        _ => {}
    }
}
