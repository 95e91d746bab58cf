//! Scripts: the frames of one peer, mostly valid, with mutations.

use super::blocks::{Blocks, List, ODD};
use super::choices::Choices;
use super::frames::*;
use super::lists::{extra, request, response, spoil};

/// The limits of both implementations, which scripts test.
pub const STREAM_WINDOW: usize = 40_000;
pub const CONNECTION_WINDOW: usize = 90_000;
pub const FRAME_BYTES: usize = 16_384;
pub const HEADER_LIST_BYTES: usize = 4_000;
pub const STREAMS: usize = 6;
/// The length of the request and response bodies that both implementations send.
pub const BODY_BYTES: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// What the user of the connection under test does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Never,
    /// A head with END_STREAM at once.
    AtOnce,
    /// A head with END_STREAM when the request has ended.
    AtEnd,
    /// A head at once, and `BODY_BYTES` of body.
    Body,
}

/// The frames that a connection receives, and how its user behaves.
#[derive(Clone, Debug)]
pub struct Script {
    /// The role of the connection under test.
    pub role: Role,
    pub answer: Answer,
    /// Whether received DATA is released at once or never.
    pub is_reading: bool,
    pub frames: Vec<Frame>,
}

struct Stream {
    id: u32,
    /// The state of the script's half of the stream.
    phase: Phase,
    sent: usize,
    content_length: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Open,
    Ended,
}

struct Writer<'a, 'b> {
    role: Role,
    choices: &'a mut Choices<'b>,
    blocks: Blocks,
    streams: Vec<Stream>,
    next: u32,
    sent: usize,
    frames: Vec<Frame>,
}

/// The streams that the client under test has opened before the script starts: GET, a POST that has not ended, a POST
/// whose body exceeds the window, HEAD.
pub const CLIENT_STREAMS: [u32; 4] = [1, 3, 5, 7];
pub const CLIENT_METHODS: [&str; 4] = ["GET", "POST", "POST", "HEAD"];

impl Script {
    pub fn write(choices: &mut Choices) -> Self {
        let role = if choices.one_in(3) { Role::Client } else { Role::Server };
        Self::write_for(role, choices)
    }

    /// Reads the frames from bytes.
    pub fn read(role: Role, how: u8, mut bytes: &[u8]) -> Self {
        let answers = [Answer::AtEnd, Answer::AtOnce, Answer::Body, Answer::Never];
        let mut frames = vec![Frame::settings(&[]), Frame::new(SETTINGS, ACK, 0, Vec::new())];
        frames.extend(std::iter::from_fn(|| Frame::read(&mut bytes)));
        Self { role, answer: answers[usize::from(how >> 2) % 4], is_reading: how & 16 == 0, frames }
    }

    pub fn write_for(role: Role, choices: &mut Choices) -> Self {
        let answer = choices.pick(&[Answer::AtEnd, Answer::AtOnce, Answer::Body, Answer::Never]);
        let is_reading = !choices.one_in(3);
        let streams = match role {
            Role::Server => Vec::new(),
            Role::Client => CLIENT_STREAMS.iter().map(|id| Stream::new(*id)).collect(),
        };
        let mut writer =
            Writer { role, choices, blocks: Blocks::new(4096), streams, next: 1, sent: 0, frames: Vec::new() };
        // Limits apply once they are acknowledged; before that, the two implementations may accept different frames.
        writer.frames.extend([Frame::settings(&[]), Frame::new(SETTINGS, ACK, 0, Vec::new())]);
        for _ in 0..writer.choices.between(1, 24) {
            writer.step();
            if writer.choices.is_over() {
                break;
            }
        }
        let mut frames = writer.frames;
        // One script in three is not mutated, so that long conversations are tested, too.
        if !choices.one_in(3) {
            for _ in 0..choices.between(1, 2) {
                if frames.len() > 2 {
                    let at = choices.between(2, frames.len() - 1);
                    mutate(&mut frames, at, choices);
                }
            }
        }
        Self { role, answer, is_reading, frames: Frame::as_received(&frames) }
    }
}

impl Stream {
    fn new(id: u32) -> Self {
        Self { id, phase: Phase::Idle, sent: 0, content_length: None }
    }
}

impl Writer<'_, '_> {
    fn step(&mut self) {
        match self.choices.below(20) {
            0..=4 => self.head(),
            5..=9 => self.data(),
            10 | 11 => self.trailers(),
            12 => self.reset(),
            13 | 14 => self.window_update(),
            15 => self.settings(),
            16 => self.ping(),
            17 => self.odd_frame(),
            18 if self.choices.one_in(3) => self.odd_block(),
            19 if self.choices.one_in(6) => self.go_away(),
            _ => self.head(),
        }
    }

    /// A stream in `phase`; now and then a stream in any phase.
    fn stream(&mut self, phase: Phase) -> Option<usize> {
        let any = self.choices.one_in(24);
        let fitting: Vec<usize> =
            (0..self.streams.len()).filter(|at| any || self.streams[*at].phase == phase).collect();
        (!fitting.is_empty()).then(|| self.choices.pick(&fitting))
    }

    fn head(&mut self) {
        let at = match self.role {
            Role::Client => match self.stream(Phase::Idle) {
                Some(at) => at,
                None => return self.data(),
            },
            Role::Server => {
                self.streams.push(Stream::new(self.next));
                self.next += if self.choices.one_in(12) { 4 } else { 2 };
                self.streams.len() - 1
            }
        };
        let mut list = match self.role {
            Role::Server => request(self.choices),
            Role::Client => response(self.choices),
        };
        let is_end = self.choices.one_in(3);
        let is_informational = list.iter().any(|(n, v)| n == b":status" && v.starts_with(b"1"));
        let stream = &mut self.streams[at];
        if self.choices.one_in(5) {
            let length = if is_end && !self.choices.one_in(3) { 0 } else { self.choices.below(3000) };
            stream.content_length = Some(length);
            list.push((b"content-length".to_vec(), length.to_string().into_bytes()));
        }
        if !is_informational || is_end {
            stream.phase = if is_end { Phase::Ended } else { Phase::Open };
        }
        if self.choices.one_in(6) {
            spoil(&mut list, self.role, self.choices);
        }
        let id = stream.id;
        self.block(id, &list, is_end);
    }

    fn trailers(&mut self) {
        let Some(at) = self.stream(Phase::Open) else { return self.head() };
        let mut list: List = vec![(b"grpc-status".to_vec(), b"0".to_vec())];
        if self.choices.one_in(2) {
            list.push(extra(self.choices));
        }
        if self.choices.one_in(8) {
            spoil(&mut list, self.role, self.choices);
        }
        let is_end = !self.choices.one_in(10);
        self.streams[at].phase = if is_end { Phase::Ended } else { Phase::Open };
        let id = self.streams[at].id;
        self.block(id, &list, is_end);
    }

    /// A field block, in a HEADERS frame and a random number of CONTINUATION frames.
    fn block(&mut self, stream: u32, list: &List, is_end: bool) {
        let block = self.blocks.write(list, self.choices);
        self.raw_block(stream, &block, is_end);
    }

    fn raw_block(&mut self, stream: u32, block: &[u8], is_end: bool) {
        let cuts = if self.choices.one_in(4) { self.choices.between(1, 3) } else { 0 };
        let mut parts = vec![block];
        for _ in 0..cuts {
            let last = parts.pop().expect("there is always a last part");
            let (first, rest) = last.split_at(self.choices.below(last.len() + 1));
            parts.extend([first, rest]);
        }
        // A part that is too long for one frame is sent in several.
        let parts: Vec<&[u8]> = parts
            .iter()
            .flat_map(|part| if part.is_empty() { vec![*part] } else { part.chunks(16_000).collect() })
            .collect();
        let last = parts.len() - 1;
        for (at, part) in parts.iter().enumerate() {
            let end = if at == last { END_HEADERS } else { 0 };
            if at > 0 {
                self.frames.push(Frame::new(CONTINUATION, end, stream, part.to_vec()));
                continue;
            }
            let mut flags = end | if is_end { END_STREAM } else { 0 };
            let mut payload = Vec::new();
            if self.choices.one_in(6) {
                flags |= PRIORITY_FLAG;
                let parent = if self.choices.one_in(6) { stream } else { self.choices.below(4) as u32 };
                payload.extend_from_slice(&parent.to_be_bytes());
                payload.push(7);
            }
            payload.extend_from_slice(part);
            let payload = self.pad(payload, &mut flags);
            self.frames.push(Frame::new(HEADERS, flags, stream, payload));
        }
    }

    fn pad(&mut self, mut payload: Vec<u8>, flags: &mut u8) -> Vec<u8> {
        if self.choices.one_in(5) {
            *flags |= PADDED;
            let padding = self.choices.below(256);
            payload.insert(0, padding as u8);
            payload.resize(payload.len() + padding, 0);
        }
        payload
    }

    fn data(&mut self) {
        let Some(at) = self.stream(Phase::Open) else { return self.settings() };
        let length = match self.choices.below(6) {
            0 => 0,
            1..=3 => self.choices.below(200),
            4 => self.choices.below(9_000),
            _ => self.choices.between(9_000, FRAME_BYTES - 256),
        };
        let is_end = self.choices.one_in(4);
        let stream = &mut self.streams[at];
        // Mostly, the body has the promised length.
        let length = match stream.content_length {
            Some(promised) if is_end && !self.choices.one_in(4) => promised.saturating_sub(stream.sent),
            _ => length,
        };
        let mut flags = if is_end { END_STREAM } else { 0 };
        let id = stream.id;
        let before = stream.sent;
        let payload: Vec<u8> = (before..before + length).map(|at| (at as u32 ^ id) as u8).collect();
        let payload = self.pad(payload, &mut flags);
        // Mostly, the script does not use the windows up, since the two implementations may replenish them at different
        // times. Now and then, it does so on purpose.
        let over = self.streams[at].sent + payload.len() > STREAM_WINDOW - 9_000 || self.sent + payload.len() > 60_000;
        if over && !self.choices.one_in(8) {
            return self.window_update();
        }
        self.streams[at].sent += length;
        self.sent += payload.len();
        if is_end {
            self.streams[at].phase = Phase::Ended;
        }
        self.frames.push(Frame::new(DATA, flags, id, payload));
    }

    fn any_stream(&mut self) -> u32 {
        match self.choices.below(6) {
            0 => self.next,
            1 => self.choices.below(20) as u32,
            _ if self.streams.is_empty() => 1,
            _ => self.streams[self.choices.below(self.streams.len())].id,
        }
    }

    fn reset(&mut self) {
        let at = if self.choices.one_in(3) { self.stream(Phase::Ended) } else { self.stream(Phase::Open) };
        let Some(at) = at else { return self.head() };
        let code = self.choices.pick(&[8, 0, 7, 2, 99]);
        self.streams[at].phase = Phase::Ended;
        let id = self.streams[at].id;
        self.frames.push(Frame::reset(id, code));
    }

    fn window_update(&mut self) {
        let stream = if self.choices.one_in(2) { 0 } else { self.any_stream() };
        let increment = match self.choices.below(12) {
            0 => 0,
            1 => 0x7fff_ffff,
            2 => 0x7fff_0000,
            3 => 1,
            _ => self.choices.below(70_000) as u32,
        };
        self.frames.push(Frame::window_update(stream, increment));
    }

    fn settings(&mut self) {
        if self.choices.one_in(40) {
            return self.frames.push(Frame::new(SETTINGS, ACK, 0, Vec::new()));
        }
        let mut values = Vec::new();
        for _ in 0..self.choices.below(4) {
            let value = match self.choices.below(9) {
                0 => (1, self.choices.pick(&[0, 100, 4096, 65_536])),
                1 => (2, self.choices.pick(&[0, 0, 0, 1, 2])),
                2 => (3, self.choices.pick(&[100, 0, 1, u32::MAX])),
                3 | 4 => (4, self.choices.pick(&[65_535, 0, 1, 10, 20_000, 100_000, 0x7fff_ffff, 0x8000_0000])),
                5 => (5, self.choices.pick(&[16_384, 20_000, 16_383, 0xff_ffff, 0x0100_0000])),
                6 => (6, self.choices.pick(&[100_000, 10_000, u32::MAX])),
                7 => (8, self.choices.pick(&[0, 1, 1, 2])),
                _ => (0xabcd, 3),
            };
            values.push(value);
        }
        self.frames.push(Frame::settings(&values));
    }

    fn ping(&mut self) {
        let flags = if self.choices.one_in(4) { ACK } else { 0 };
        self.frames.push(Frame::new(PING, flags, 0, b"12345678".to_vec()));
    }

    fn go_away(&mut self) {
        let last = self.choices.pick(&[0x7fff_ffff, 0, 1, 3, 5]);
        let code = self.choices.pick(&[0, 0, 2, 11]);
        self.frames.push(Frame::new(GOAWAY, 0, 0, [u32::to_be_bytes(last), u32::to_be_bytes(code)].concat()));
    }

    fn odd_frame(&mut self) {
        let stream = self.any_stream();
        let frame = match self.choices.below(7) {
            0 | 1 => Frame::new(PRIORITY, 0, stream.max(1), vec![0, 0, 0, self.choices.below(6) as u8, 16]),
            2 | 3 => Frame::new(0xbe, 0xff, stream, b"anything".to_vec()),
            4 => Frame::new(PUSH_PROMISE, END_HEADERS, stream, vec![0, 0, 0, 2, 0x82, 0x84, 0x86]),
            5 => Frame::new(CONTINUATION, END_HEADERS, stream, vec![0x82]),
            _ => Frame::new(
                self.choices.below(11) as u8,
                self.choices.below(256) as u8,
                stream,
                vec![0; self.choices.below(9)],
            ),
        };
        self.frames.push(frame);
    }

    fn odd_block(&mut self) {
        let stream = self.any_stream();
        let block = self.choices.pick(ODD).to_vec();
        self.raw_block(stream, &block, true);
        if self.choices.one_in(3) {
            self.blocks.resize(0);
        }
    }
}

/// Mutates the frame at `at`, or moves, copies or removes it.
fn mutate(frames: &mut Vec<Frame>, at: usize, choices: &mut Choices) {
    match choices.below(12) {
        0 | 1 => frames[at].flags ^= 1 << choices.below(8),
        2 if choices.one_in(10) => frames[at].reserved = true,
        2 => frames[at].stream = choices.pick(&[0, 1, 2, 3, 5, 6, 7, 9, 99, 0x7fff_ffff]),
        3 => {
            let frame = &mut frames[at];
            frame.payload.truncate(choices.below(frame.length + 1));
            frame.length = frame.payload.len();
        }
        4 => {
            let frame = &mut frames[at];
            frame.payload.extend(std::iter::repeat_n(0, choices.between(1, 9)));
            frame.length = frame.payload.len();
        }
        5 if choices.one_in(2) => frames[at].length = choices.below(40),
        6 => drop(frames.remove(at)),
        7 => frames.insert(at, frames[at].clone()),
        8 => {
            let other = choices.between(2, frames.len() - 1);
            frames.swap(at, other);
        }
        9 => frames[at].kind = choices.below(11) as u8,
        10 => {
            let frame = &mut frames[at];
            if !frame.payload.is_empty() {
                let byte = choices.below(frame.payload.len().min(64));
                frame.payload[byte] ^= 1 << choices.below(8);
            }
        }
        _ => {
            let frame = &mut frames[at];
            if frame.has(PADDED) && !frame.payload.is_empty() {
                frame.payload[0] = choices.pick(&[0, 1, 254, 255]);
            } else if frame.kind == DATA {
                frame.payload.resize(FRAME_BYTES + choices.below(2), 0);
                frame.length = frame.payload.len();
            }
        }
    }
}
