//! Two of our connections and a wire between them, which behaves like the model's wire.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::{Code, Connection, Event, Headers, Limits, Name, Notice, Rate, StreamId};

use crate::peer::frames::*;
use crate::peer::seen::Tap;

use super::states::{Action, CODE, Item, Model, Side, Told};

/// The value attached to a stream: its number.
type Number = u32;

pub struct Pair {
    ends: [Connection<Number>; 2],
    /// Each end's streams, by number.
    streams: [Vec<Option<StreamId>>; 2],
    /// By sender.
    wire: [VecDeque<Frame>; 2],
    taps: [Tap; 2],
    /// Bytes of DATA that each end received (with padding), and how much credit it returned for the connection's
    /// window.
    received: [usize; 2],
    returned: [usize; 2],
    /// The stream identifier of stream 0.
    base: u32,
    now: Instant,
}

pub const WINDOW: usize = 65_535;

fn limits() -> Limits {
    let endless = Rate { burst: u32::MAX, per_second: u32::MAX, frames_per_token: 0 };
    Limits {
        stream_window_bytes: WINDOW as u32,
        connection_window_bytes: WINDOW as u32,
        cancels: endless.clone(),
        stream_errors: endless.clone(),
        pings: endless.clone(),
        settings: endless.clone(),
        empty_frames: endless.clone(),
        small_data: endless.clone(),
        table_changes: endless,
        settings_timeout: Duration::from_secs(3600),
        ..Limits::default()
    }
}

fn head(name: Name, value: &str) -> Headers {
    let mut headers = Headers::new();
    headers.append(name, value.as_bytes());
    headers
}

fn request() -> Headers {
    let mut headers = head(Name::METHOD, "POST");
    headers.append(Name::SCHEME, b"http");
    headers.append(Name::AUTHORITY, b"users");
    headers.append(Name::PATH, b"/a/b");
    headers
}

impl Pair {
    pub fn new() -> Self {
        let (limits, now) = (Arc::new(limits()), Instant::now());
        let mut this = Self {
            ends: [Connection::client(&limits, now), Connection::server(&limits, now)],
            streams: [Vec::new(), Vec::new()],
            wire: Default::default(),
            taps: [Tap::default(), Tap::default()],
            received: [0; 2],
            returned: [0; 2],
            base: 1,
            now,
        };
        let hello = this.ends[0].output().to_vec();
        this.ends[0].wrote(hello.len());
        let told = this.receive(Side::Server, &hello);
        assert_eq!(told, []);
        this.flush();
        while this.wire.iter().any(|wire| !wire.is_empty()) {
            for side in [Side::Client, Side::Server] {
                assert_eq!(this.deliver(side), []);
            }
            this.flush();
        }
        this.returned = [0; 2];
        this
    }

    /// Forgets the streams, which have all ended. New ones are numbered from 0 again.
    pub fn again(&mut self) {
        self.base += 2 * self.streams[0].len() as u32;
        self.streams = [Vec::new(), Vec::new()];
    }

    /// Performs an action. Returns what was reported and sent.
    pub fn act(&mut self, action: Action) -> (Vec<Told>, Vec<Item>) {
        let mut told = Vec::new();
        match action {
            Action::Deliver(side) => told = self.deliver(side),
            Action::Open { is_end } => {
                let number = self.streams[0].len() as u32;
                let stream = self.ends[0].open(&request(), is_end, number).expect("the model opens a stream here");
                assert_eq!(stream.get(), self.base + 2 * number);
                self.streams[0].push(Some(stream));
                self.streams[1].push(None);
            }
            Action::Inform(number) => {
                let stream = self.stream(Side::Server, number);
                self.ends[1].respond(stream, &head(Name::STATUS, "103"), false);
            }
            Action::Respond { stream, is_end } => {
                let stream = self.stream(Side::Server, stream);
                self.ends[1].respond(stream, &head(Name::STATUS, "200"), is_end);
            }
            Action::Data { side, stream, bytes, is_end } => {
                let stream = self.stream(side, stream);
                let waiting = self.ends[side as usize].send_data(stream, &vec![b'd'; bytes], is_end);
                assert_eq!(waiting, 0, "the windows are large enough");
            }
            Action::Trailers { side, stream } => {
                let stream = self.stream(side, stream);
                self.ends[side as usize].send_trailers(stream, &head(Name::GRPC_STATUS, "0"));
            }
            Action::Reset { side, stream } => {
                let stream = self.stream(side, stream);
                self.ends[side as usize].reset(stream, Code(CODE));
            }
            Action::Detach { side, stream } => {
                let stream = self.stream(side, stream);
                self.ends[side as usize].detach(stream);
            }
            Action::Drain(side) => self.ends[side as usize].drain(self.now),
            Action::Timeout => {
                self.now += Duration::from_secs(2);
                self.ends[1].on_timeout(self.now).expect("only the drain has a timeout now");
            }
        }
        (told, self.flush())
    }

    fn stream(&self, side: Side, number: Number) -> StreamId {
        self.streams[side as usize][number as usize].expect("the side has the stream")
    }

    /// Moves the output of both ends onto the wire. Returns the frames that the model has, too.
    fn flush(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        for side in [Side::Client, Side::Server] {
            let end = &mut self.ends[side as usize];
            let output = end.output().to_vec();
            end.wrote(output.len());
            assert!(end.next_notice().is_none(), "nothing waits for a window");
            for frame in self.taps[side as usize].take(&output) {
                if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
                    self.returned[side as usize] += frame.number(0) as usize;
                }
                items.extend(self.item(&frame));
                self.wire[side as usize].push_back(frame);
            }
        }
        items
    }

    fn item(&self, frame: &Frame) -> Option<Item> {
        let number = |id: u32| (id.wrapping_sub(self.base)) / 2;
        let stream = number(frame.stream);
        Some(match frame.kind {
            DATA => Item::Data { stream, bytes: frame.payload.len(), is_end: frame.has(END_STREAM) },
            HEADERS => Item::Headers { stream, is_end: frame.has(END_STREAM) },
            RST_STREAM => Item::Reset { stream, code: frame.number(0) },
            GOAWAY => {
                assert_eq!(frame.number(4), 0, "GOAWAY has NO_ERROR");
                let taken = match frame.number(0) {
                    0x7fff_ffff => None,
                    0 => Some(0),
                    last => Some(number(last) + 1),
                };
                Item::GoAway { taken }
            }
            PING if frame.has(ACK) => Item::PingAck,
            PING => Item::Ping,
            WINDOW_UPDATE | SETTINGS => return None,
            kind => panic!("a frame of kind {kind} was sent"),
        })
    }

    /// Delivers frames up to the first one that the model has, too.
    fn deliver(&mut self, side: Side) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(frame) = self.wire[side.peer() as usize].pop_front() {
            if frame.kind == DATA {
                self.received[side as usize] += frame.length;
            }
            told.extend(self.receive(side, &frame.to_bytes()));
            if self.item(&frame).is_some() {
                break;
            }
        }
        told
    }

    fn receive(&mut self, side: Side, bytes: &[u8]) -> Vec<Told> {
        let mut told = Vec::new();
        let mut input = bytes;
        let end = &mut self.ends[side as usize];
        while let Some(event) = end.receive(&mut input, self.now).expect("the peer follows the rules") {
            told.push(match event {
                Event::Request { stream, headers, is_end } => {
                    let number = (stream.get() - self.base) / 2;
                    self.streams[1][number as usize] = Some(stream);
                    end.recycle(headers);
                    end.attach(stream, number);
                    Told::Request { stream: number, is_end }
                }
                Event::Response { call, headers, is_end, .. } => {
                    end.recycle(headers);
                    Told::Response { stream: call, is_end }
                }
                Event::Data { stream, call, data, is_end } => {
                    end.release(stream, data.len());
                    Told::Data { stream: call, bytes: data.len(), is_end }
                }
                Event::Trailers { call, headers, .. } => {
                    end.recycle(headers);
                    Told::Trailers { stream: call }
                }
                Event::Reset { call, code, cause, .. } => {
                    assert_eq!(cause, weft_wire::Cause::Peer);
                    Told::Reset { stream: call, code: code.0 }
                }
                Event::RequestTooLarge { .. } => panic!("no request is that large"),
                Event::GoAway { code } => {
                    assert_eq!(code, Code::NO_ERROR);
                    Told::GoAway
                }
                Event::Settings => continue,
            });
        }
        assert!(input.is_empty(), "complete frames are taken off the input");
        while let Some(notice) = end.next_notice() {
            match notice {
                Notice::Unseen { call, .. } => told.push(Told::Unseen { stream: call }),
                Notice::Sent { .. } => panic!("nothing waits for a window"),
            }
        }
        told
    }

    /// Performs an action in the model and here, and compares the results.
    pub fn step(&mut self, model: &mut Model, action: Action) {
        let (_, expected, on_wire) = model.act(action);
        let (told, sent) = self.act(action);
        assert_eq!(told, expected, "reported after {action:?}");
        let on_wire: Vec<Item> = on_wire.into_iter().map(plain).collect();
        assert_eq!(sent, on_wire, "sent after {action:?}");
        for side in [0, 1] {
            assert_eq!(self.ends[side].streams(), model.ends[side].active(), "streams of end {side} after {action:?}");
        }
        assert_eq!(self.ends[0].can_open(), model.can_open(), "whether a stream can be opened after {action:?}");
    }

    /// Checks that no stream is left.
    pub fn assert_empty(&mut self, is_draining: bool) {
        for end in &mut self.ends {
            assert_eq!(end.streams(), 0);
            assert!(!end.is_congested());
        }
        if is_draining {
            assert!(self.ends[0].is_finished() && self.ends[1].is_finished(), "an end still waits for something");
        }
        for side in [0, 1] {
            let kept = self.received[side] - self.returned[side];
            assert!(kept < WINDOW / 2 + 1, "end {side} has not returned {kept} bytes of the window");
        }
    }

    /// Sends on a new stream, in small steps, until each end returns credit: then it must have returned everything that
    /// it received, to the byte.
    pub fn assert_windows(&mut self) {
        self.again();
        self.act(Action::Open { is_end: false });
        self.act(Action::Deliver(Side::Server));
        self.act(Action::Respond { stream: 0, is_end: false });
        self.act(Action::Deliver(Side::Client));
        for side in [Side::Client, Side::Server] {
            let receiver = side.peer() as usize;
            let before = self.returned[receiver];
            let mut steps = 0;
            // In small frames, so that the credit returned covers all frames up to the last.
            while self.returned[receiver] == before {
                self.act(Action::Data { side, stream: 0, bytes: 97, is_end: false });
                self.act(Action::Deliver(side.peer()));
                steps += 1;
                assert!(steps < WINDOW / 97, "the window is not replenished");
            }
            // The credit may have been returned before the last piece was released.
            let kept = self.received[receiver] - self.returned[receiver];
            assert!(kept == 0 || kept == 97, "{kept} bytes of the window were lost");
        }
        for side in [Side::Client, Side::Server] {
            self.act(Action::Data { side, stream: 0, bytes: 0, is_end: true });
            self.act(Action::Deliver(side.peer()));
        }
        assert_eq!([self.ends[0].streams(), self.ends[1].streams()], [0, 0]);
        self.again();
    }
}

/// An item as it appears on the wire, where an interim response is like any other.
fn plain(item: Item) -> Item {
    match item {
        Item::Interim { stream } => Item::Headers { stream, is_end: false },
        other => other,
    }
}
