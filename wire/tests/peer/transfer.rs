//! Bodies in both directions on many streams of one connection, with random windows, chunks and pauses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::{Connection, Event, Headers, Limits, Name, Notice, Rate, StreamId};

use super::choices::Choices;

/// The value attached to a stream: the call's number.
type Number = usize;

/// One direction of one call.
#[derive(Default)]
struct Body {
    stream: Option<StreamId>,
    total: usize,
    with_trailers: bool,
    /// Bytes passed to the sender, and how many of them are queued there.
    sent: usize,
    waiting: usize,
    is_end_sent: bool,
    /// The receiver's stream; bytes that it received, and how many of them are not released yet.
    receiver: Option<StreamId>,
    received: usize,
    held: usize,
    is_end_received: bool,
}

/// A client and a server. Arrays with two elements have them in this order.
pub struct Transfer {
    ends: [Connection<Number>; 2],
    limits: [Arc<Limits>; 2],
    inboxes: [Vec<u8>; 2],
    /// By sender.
    bodies: [Vec<Body>; 2],
    now: Instant,
    pub moved: usize,
}

const PIECE: usize = 20_000;
const PATTERN_BYTES: usize = 251;

fn limits(choices: &mut Choices) -> Limits {
    let endless = Rate { burst: u32::MAX, per_second: u32::MAX, frames_per_token: 0 };
    Limits {
        stream_window_bytes: match choices.below(4) {
            0 => choices.between(1, 20) as u32,
            1 => choices.between(100, 3_000) as u32,
            _ => choices.between(10_000, 200_000) as u32,
        },
        connection_window_bytes: 65_535 + if choices.one_in(2) { choices.below(100_000) as u32 } else { 0 },
        frame_bytes: 16_384 + if choices.one_in(2) { choices.below(20_000) as u32 } else { 0 },
        output_bytes: choices.between(1_000, 100_000),
        buffered_bytes: if choices.one_in(2) { choices.below(500_000) } else { 0 },
        pings: endless.clone(),
        settings: endless.clone(),
        empty_frames: endless.clone(),
        small_data: endless.clone(),
        table_changes: endless,
        settings_timeout: Duration::from_secs(3600),
        ..Limits::default()
    }
}

impl Transfer {
    /// Up to `streams` calls, with up to `bytes` in total in each direction.
    pub fn new(choices: &mut Choices, streams: usize, bytes: usize) -> Self {
        let now = Instant::now();
        let limits = [limits(choices), limits(choices)].map(Arc::new);
        let streams = choices.between(1, streams);
        let bodies = [1, 0].map(|receiver: usize| {
            // A body that needs the window some hundred times is long enough.
            let window = limits[receiver].stream_window_bytes as usize;
            let most = (bytes / streams).min(window.saturating_mul(300)).max(1);
            let body = |choices: &mut Choices| Body {
                total: if choices.one_in(8) { 0 } else { choices.below(most) },
                with_trailers: choices.one_in(2),
                ..Body::default()
            };
            (0..streams).map(|_| body(choices)).collect()
        });
        let ends = [Connection::client(&limits[0], now), Connection::server(&limits[1], now)];
        Self { ends, limits, inboxes: Default::default(), bodies, now, moved: 0 }
    }

    /// Runs to the end. Panics if data is lost, a call stalls, or a buffer grows past its bound.
    pub fn run(&mut self, choices: &mut Choices) {
        loop {
            for _ in 0..choices.between(20, 60) {
                match choices.below(8) {
                    0..=2 => self.carry(choices.below(2), choices.below(30_000)),
                    // Frames arrive in many parts.
                    3 => self.carry(choices.below(2), choices.below(20)),
                    4 => self.send(choices.below(2), choices),
                    5 => self.release(choices.below(2), choices),
                    _ => {
                        let side = choices.below(2);
                        self.send(side, choices);
                        self.carry(side, usize::MAX);
                    }
                }
                self.assert_bounds();
            }
            if self.is_complete() {
                break;
            }
            self.assert_progress(choices);
        }
        for end in &mut self.ends {
            assert_eq!(end.streams(), 0);
            assert!(end.take_all().is_empty());
        }
    }

    fn is_complete(&self) -> bool {
        self.bodies.iter().flatten().all(|body| body.is_end_received && body.held == 0)
    }

    /// After every possible step was taken, at least one body must have made progress.
    fn assert_progress(&mut self, choices: &mut Choices) {
        let state = |this: &Self| -> Vec<_> {
            let bodies = this.bodies.iter().flatten();
            bodies.map(|body| (body.received, body.held, body.is_end_received)).collect()
        };
        let before = state(self);
        for _ in 0..3 {
            for side in [0, 1] {
                for number in 0..self.bodies[side].len() {
                    self.send_piece(side, number, choices);
                    self.release_some(side, number, usize::MAX);
                }
                self.carry(side, usize::MAX);
            }
        }
        assert!(self.is_complete() || before != state(self), "no call makes progress: {before:?}");
    }

    /// Delivers up to `bytes` of the output of one side to the other.
    fn carry(&mut self, from: usize, bytes: usize) {
        let output = self.ends[from].output();
        let bytes = bytes.min(output.len());
        self.inboxes[1 - from].extend_from_slice(&output[..bytes]);
        self.ends[from].wrote(bytes);
        self.moved += bytes;
        self.notices(from);
        self.receive(1 - from);
    }

    fn receive(&mut self, side: usize) {
        let inbox = std::mem::take(&mut self.inboxes[side]);
        let mut rest = &inbox[..];
        while let Some(event) = self.ends[side].receive(&mut rest, self.now).expect("the peer follows the rules") {
            let (number, is_end) = match event {
                Event::Request { stream, headers, is_end } => {
                    let number = (stream.get() as usize - 1) / 2;
                    self.ends[side].attach(stream, number);
                    self.ends[side].respond(stream, &status(), false);
                    self.ends[side].recycle(headers);
                    self.bodies[0][number].receiver = Some(stream);
                    self.bodies[1][number].stream = Some(stream);
                    (number, is_end)
                }
                Event::Response { call, headers, is_end, .. } => {
                    assert_eq!(headers.status(), Some(200));
                    self.ends[side].recycle(headers);
                    (call, is_end)
                }
                Event::Data { call, data, is_end, .. } => {
                    let body = &mut self.bodies[1 - side][call];
                    assert!(
                        is_pattern(data, call + body.received),
                        "the received bytes differ from those that were sent"
                    );
                    body.received += data.len();
                    body.held += data.len();
                    (call, is_end)
                }
                Event::Trailers { call, headers, .. } => {
                    assert_eq!(headers.get(Name::GRPC_STATUS), Some(&b"0"[..]));
                    self.ends[side].recycle(headers);
                    (call, true)
                }
                Event::Settings => continue,
                other => panic!("{other:?}"),
            };
            if is_end {
                let body = &mut self.bodies[1 - side][number];
                assert!(!body.is_end_received, "a body ends once");
                assert_eq!(body.received, body.total, "a body ends when it is complete");
                body.is_end_received = true;
            }
        }
        self.inboxes[side] = rest.to_vec();
        self.notices(side);
    }

    fn notices(&mut self, side: usize) {
        while let Some(notice) = self.ends[side].next_notice() {
            let Notice::Sent { call, bytes, .. } = notice else { panic!("{notice:?}") };
            let body = &mut self.bodies[side][call];
            assert!(
                bytes > 0 && bytes <= body.waiting,
                "{bytes} bytes were sent, but only {} were queued",
                body.waiting
            );
            body.waiting -= bytes;
        }
    }

    fn send(&mut self, side: usize, choices: &mut Choices) {
        let number = choices.below(self.bodies[side].len());
        self.send_piece(side, number, choices);
    }

    fn send_piece(&mut self, side: usize, number: usize, choices: &mut Choices) {
        let body = &mut self.bodies[side][number];
        let end = &mut self.ends[side];
        if body.is_end_sent || body.waiting > 0 || end.is_congested() {
            return;
        }
        let Some(stream) = body.stream else {
            if side == 0 && (number == 0 || self.bodies[0][number - 1].stream.is_some()) {
                let stream = end.open(&request(), false, number).expect("the peer allows this many streams");
                self.bodies[0][number].stream = Some(stream);
                self.bodies[1][number].receiver = Some(stream);
            }
            return;
        };
        let left = body.total - body.sent;
        let bytes = left.min(choices.below(PIECE));
        let at = (number + body.sent) % PATTERN_BYTES;
        let is_last = bytes == left;
        body.waiting = end.send_data(stream, &PATTERN[at..at + bytes], is_last && !body.with_trailers);
        assert!(body.waiting <= bytes);
        body.sent += bytes;
        if is_last && body.with_trailers {
            let mut trailers = Headers::new();
            trailers.append(Name::GRPC_STATUS, b"0");
            end.send_trailers(stream, &trailers);
        }
        body.is_end_sent = is_last;
    }

    fn release(&mut self, side: usize, choices: &mut Choices) {
        let number = choices.below(self.bodies[side].len());
        let most = if choices.one_in(2) { usize::MAX } else { choices.below(5_000) };
        self.release_some(side, number, most);
    }

    /// Releases some of the data that the peer of `side` holds.
    fn release_some(&mut self, side: usize, number: usize, most: usize) {
        let body = &mut self.bodies[side][number];
        let bytes = body.held.min(most);
        if let Some(stream) = body.receiver
            && bytes > 0
        {
            body.held -= bytes;
            self.ends[1 - side].release(stream, bytes);
            self.notices(1 - side);
        }
    }

    fn assert_bounds(&self) {
        for side in [0, 1] {
            let limits = &self.limits[1 - side];
            let held = |body: &Body| body.held;
            for body in &self.bodies[side] {
                // Until the limits are acknowledged, HTTP/2's initial values apply.
                let window = (limits.stream_window_bytes as usize).max(65_535);
                assert!(body.held <= window, "{} bytes of a stream are held", body.held);
            }
            let all: usize = self.bodies[side].iter().map(held).sum();
            let most = limits.connection_window_bytes as usize + limits.buffered_bytes;
            assert!(all <= most, "{all} bytes of all streams are held");
            let output = self.ends[side].output().len();
            let most = self.limits[side].output_bytes + self.limits[side].control_output_bytes + 3 * PIECE;
            assert!(output <= most, "{output} bytes of output wait");
            assert!(
                self.inboxes[side].len() <= 9 + self.limits[side].frame_bytes as usize,
                "more than one frame waits"
            );
        }
    }
}

static PATTERN: [u8; PATTERN_BYTES + 2 * 65_536] = {
    let mut pattern = [0; PATTERN_BYTES + 2 * 65_536];
    let mut at = 0;
    while at < pattern.len() {
        pattern[at] = (at % PATTERN_BYTES) as u8;
        at += 1;
    }
    pattern
};

fn is_pattern(data: &[u8], from: usize) -> bool {
    let from = from % PATTERN_BYTES;
    PATTERN[from..from + data.len()] == *data
}

fn status() -> Headers {
    let mut head = Headers::new();
    head.append(Name::STATUS, b"200");
    head
}

fn request() -> Headers {
    let mut head = Headers::new();
    head.append(Name::METHOD, b"POST");
    head.append(Name::SCHEME, b"http");
    head.append(Name::AUTHORITY, b"users");
    head.append(Name::PATH, b"/a/b");
    head
}
