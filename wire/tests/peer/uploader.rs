//! A client that sends bodies as fast as the windows allow: with padding, on streams with an early response, on streams
//! that the server ignores, and on streams that either endpoint resets. If a window is not replenished, the client
//! stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use weft_wire::{Code, Connection, Event, Headers, Limits, Name, StreamId};

use super::blocks::Blocks;
use super::choices::Choices;
use super::frames::*;
use super::ours::script_limits;
use super::seen::Tap;

/// What the server does with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Reads,
    NeverAttaches,
    Detaches,
    Resets,
    /// The client resets it.
    IsReset,
}

const FATES: [Fate; 6] = [Fate::Reads, Fate::Reads, Fate::NeverAttaches, Fate::Detaches, Fate::Resets, Fate::IsReset];

/// A stream on which the client still sends.
struct Upload {
    window: i64,
    left: usize,
    fate: Fate,
}

pub struct Uploader {
    server: Connection<u32>,
    uploads: BTreeMap<u32, Upload>,
    next: u32,
    window: i64,
    /// Bytes on their way to the server.
    wire: Vec<u8>,
    tap: Tap,
    /// Received DATA that the server's user has not released, and the streams whose fate is still to come.
    held: Vec<(StreamId, usize)>,
    open: Vec<(StreamId, Fate)>,
    now: Instant,
    pub sent: usize,
}

const STREAM_WINDOW: i64 = 3_000;
const CONNECTION_WINDOW: i64 = 65_535;

impl Uploader {
    pub fn new(choices: &mut Choices) -> Self {
        let now = Instant::now();
        let limits = Limits {
            stream_window_bytes: STREAM_WINDOW as u32,
            connection_window_bytes: CONNECTION_WINDOW as u32,
            buffered_bytes: if choices.one_in(2) { choices.below(100_000) } else { 0 },
            ..script_limits()
        };
        let mut this = Self {
            server: Connection::server(&Arc::new(limits), now),
            uploads: BTreeMap::new(),
            next: 1,
            window: CONNECTION_WINDOW,
            wire: PREFACE.to_vec(),
            tap: Tap::default(),
            held: Vec::new(),
            open: Vec::new(),
            now,
            sent: 0,
        };
        Frame::settings(&[]).write(&mut this.wire);
        Frame::new(SETTINGS, ACK, 0, Vec::new()).write(&mut this.wire);
        this.carry(usize::MAX);
        this
    }

    /// Sends this many bytes, and panics if a window stays closed.
    pub fn run(&mut self, choices: &mut Choices, bytes: usize) {
        while self.sent < bytes {
            for _ in 0..20 {
                match choices.below(6) {
                    0..=2 => self.send(choices),
                    3 => self.carry(choices.below(4_000)),
                    4 => self.release(choices),
                    _ => self.act(choices),
                }
            }
            let before = self.sent;
            self.carry(usize::MAX);
            self.release_all();
            for _ in 0..50 {
                self.send(choices);
            }
            assert!(self.sent > before, "all windows are closed: {}, {:?}", self.window, self.windows());
        }
        self.carry(usize::MAX);
        self.release_all();
        assert!(self.window > CONNECTION_WINDOW / 2, "only {} of the connection's window are left", self.window);
        for (id, upload) in &self.uploads {
            assert!(upload.window > STREAM_WINDOW / 2, "only {} of the window of {id} are left", upload.window);
        }
    }

    fn windows(&self) -> Vec<(u32, i64, Fate)> {
        self.uploads.iter().map(|(id, upload)| (*id, upload.window, upload.fate)).collect()
    }

    fn send(&mut self, choices: &mut Choices) {
        if self.uploads.len() < 4 {
            return self.begin(choices);
        }
        let ids: Vec<u32> = self.uploads.keys().copied().collect();
        let id = choices.pick(&ids);
        let upload = self.uploads.get_mut(&id).expect("it is there");
        let room = upload.window.min(self.window).min(2_000);
        let padding = if choices.one_in(2) { choices.below(256) } else { 0 };
        let overhead = if padding > 0 { padding as i64 + 1 } else { 0 };
        if room <= overhead {
            return;
        }
        let bytes = choices.between(1, (room - overhead) as usize).min(upload.left);
        let mut payload = Vec::new();
        let mut flags = 0;
        if padding > 0 {
            flags |= PADDED;
            payload.push(padding as u8);
        }
        payload.resize(payload.len() + bytes + padding, 0);
        upload.left -= bytes;
        upload.window -= payload.len() as i64;
        self.window -= payload.len() as i64;
        self.sent += payload.len();
        if upload.left == 0 {
            flags |= END_STREAM;
            self.uploads.remove(&id);
        }
        Frame::new(DATA, flags, id, payload).write(&mut self.wire);
        if upload_is_reset(&self.uploads, id) && choices.one_in(8) {
            Frame::reset(id, 8).write(&mut self.wire);
            self.uploads.remove(&id);
        }
    }

    fn begin(&mut self, choices: &mut Choices) {
        let list = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "users")];
        let list = list.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        let block = Blocks::new(0).write(&list, choices);
        Frame::new(HEADERS, END_HEADERS, self.next, block).write(&mut self.wire);
        let fate = FATES[self.next as usize / 2 % FATES.len()];
        let upload = Upload { window: STREAM_WINDOW, left: choices.between(1, 40_000), fate };
        self.uploads.insert(self.next, upload);
        self.next += 2;
    }

    /// Delivers up to `bytes` to the server, and everything that it writes back.
    fn carry(&mut self, bytes: usize) {
        let wire = std::mem::take(&mut self.wire);
        let mut rest = &wire[..bytes.min(wire.len())];
        let later = &wire[rest.len()..];
        while let Some(event) = self.server.receive(&mut rest, self.now).expect("the client follows the rules") {
            match event {
                Event::Request { stream, headers, .. } => {
                    self.server.recycle(headers);
                    let fate = FATES[stream.get() as usize / 2 % FATES.len()];
                    if fate != Fate::NeverAttaches {
                        self.server.attach(stream, stream.get());
                    }
                    let mut head = Headers::new();
                    head.append(Name::STATUS, b"200");
                    self.server.respond(stream, &head, true);
                    self.open.push((stream, fate));
                }
                Event::Data { stream, data, .. } => self.held.push((stream, data.len())),
                Event::Reset { cause, .. } => assert_eq!(cause, weft_wire::Cause::Peer),
                Event::Settings => {}
                other => panic!("{other:?}"),
            }
        }
        self.wire = [rest, later].concat();
        self.take_output();
    }

    fn take_output(&mut self) {
        let output = self.server.output().to_vec();
        self.server.wrote(output.len());
        for frame in self.tap.take(&output) {
            match frame.kind {
                WINDOW_UPDATE if frame.stream == 0 => self.window += i64::from(frame.number(0)),
                WINDOW_UPDATE => {
                    if let Some(upload) = self.uploads.get_mut(&frame.stream) {
                        upload.window += i64::from(frame.number(0));
                    }
                }
                RST_STREAM => drop(self.uploads.remove(&frame.stream)),
                _ => {}
            }
        }
        assert!(self.window <= CONNECTION_WINDOW, "more credit was returned than was used");
        for upload in self.uploads.values() {
            assert!(upload.window <= STREAM_WINDOW, "more credit was returned than was used");
        }
    }

    fn release(&mut self, choices: &mut Choices) {
        if self.held.is_empty() {
            return;
        }
        let at = choices.below(self.held.len());
        let (stream, bytes) = self.held.swap_remove(at);
        self.server.release(stream, bytes);
        self.take_output();
    }

    fn release_all(&mut self) {
        for (stream, bytes) in std::mem::take(&mut self.held) {
            self.server.release(stream, bytes);
        }
        self.take_output();
    }

    /// The server's user detaches or resets a stream, perhaps in the middle of a frame.
    fn act(&mut self, choices: &mut Choices) {
        if self.open.is_empty() || !choices.one_in(4) {
            return;
        }
        let at = choices.below(self.open.len());
        let (stream, fate) = self.open[at];
        match fate {
            Fate::Detaches => self.server.detach(stream),
            Fate::Resets => self.server.reset(stream, Code::CANCEL),
            Fate::Reads | Fate::NeverAttaches | Fate::IsReset => return,
        }
        self.open.swap_remove(at);
        self.take_output();
    }
}

fn upload_is_reset(uploads: &BTreeMap<u32, Upload>, id: u32) -> bool {
    uploads.get(&id).is_some_and(|upload| upload.fate == Fate::IsReset)
}
