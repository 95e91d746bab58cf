//! A minimal relay of two connections: it forwards requests from a client to a server, and responses back.

use std::sync::Arc;
use std::time::Instant;

use weft_wire::{Code, Connection, ConnectionError, Event, Headers, Limits, Name, Notice, StreamId};

/// The value attached to both streams of a call: its index in `calls`.
type Number = usize;

#[derive(Clone, Copy, Default)]
struct Call {
    down: Option<StreamId>,
    up: Option<StreamId>,
}

pub struct Relay {
    /// To the client, and to the server.
    down: Connection<Number>,
    up: Connection<Number>,
    calls: Vec<Call>,
    /// Received bytes of an incomplete frame, by leg.
    rests: [Vec<u8>; 2],
    is_over: [bool; 2],
    now: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    Down = 0,
    Up = 1,
}

impl Relay {
    pub fn new(limits: &Arc<Limits>) -> Self {
        let now = Instant::now();
        Self {
            down: Connection::server(limits, now),
            up: Connection::client(limits, now),
            calls: Vec::new(),
            rests: Default::default(),
            is_over: [false; 2],
            now,
        }
    }

    fn leg(&mut self, leg: Leg) -> &mut Connection<Number> {
        match leg {
            Leg::Down => &mut self.down,
            Leg::Up => &mut self.up,
        }
    }

    /// Receives bytes from a leg.
    pub fn receive(&mut self, leg: Leg, bytes: &[u8]) {
        if self.is_over[leg as usize] {
            return;
        }
        let mut input = std::mem::take(&mut self.rests[leg as usize]);
        input.extend_from_slice(bytes);
        let mut rest = &input[..];
        loop {
            let now = self.now;
            match self.leg(leg).receive(&mut rest, now) {
                Ok(Some(event)) => match leg {
                    Leg::Down => self.on_client(event),
                    Leg::Up => self.on_server(event),
                },
                Ok(None) => break,
                Err(ConnectionError { .. }) => {
                    self.end(leg);
                    break;
                }
            }
            self.notices();
        }
        self.rests[leg as usize] = rest.to_vec();
        self.notices();
    }

    /// The transport of a leg has ended: ends the calls on it.
    pub fn end(&mut self, leg: Leg) {
        self.is_over[leg as usize] = true;
        for number in self.leg(leg).take_all() {
            match leg {
                Leg::Down => self.reset_up(number, Code::CANCEL),
                Leg::Up => self.reset_down(number, Code::INTERNAL_ERROR),
            }
        }
        self.notices();
    }

    /// Takes the output of a leg.
    pub fn take_output(&mut self, leg: Leg) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !self.leg(leg).output().is_empty() {
            let output = self.leg(leg).output().to_vec();
            self.leg(leg).wrote(output.len());
            bytes.extend(output);
            self.notices();
        }
        bytes
    }

    /// Whether nothing waits to be written.
    pub fn is_quiet(&self) -> bool {
        self.down.output().is_empty() && self.up.output().is_empty()
    }

    pub fn streams(&self) -> [usize; 2] {
        [self.down.streams(), self.up.streams()]
    }

    fn on_client(&mut self, event: Event<'_, Number>) {
        match event {
            Event::Request { stream, headers, is_end } => {
                let number = self.calls.len();
                match self.up.open(&headers, is_end, number) {
                    Ok(up) => {
                        self.calls.push(Call { down: Some(stream), up: Some(up) });
                        self.down.attach(stream, number);
                    }
                    Err(_) => {
                        let mut head = Headers::new();
                        head.append(Name::STATUS, b"503");
                        self.down.respond(stream, &head, true);
                        self.down.reset(stream, Code::NO_ERROR);
                    }
                }
                self.down.recycle(headers);
            }
            Event::Data { stream, call, data, is_end } => {
                if let Some(up) = self.calls[call].up {
                    let waiting = self.up.send_data(up, data, is_end);
                    self.down.release(stream, data.len() - waiting);
                } else {
                    self.down.release(stream, data.len());
                }
            }
            Event::Trailers { call, headers, .. } => {
                if let Some(up) = self.calls[call].up {
                    self.up.send_trailers(up, &headers);
                }
                self.down.recycle(headers);
            }
            Event::Reset { call, code, .. } => {
                self.calls[call].down = None;
                self.reset_up(call, code);
            }
            Event::RequestTooLarge { stream, headers, .. } => {
                self.down.recycle(headers);
                self.down.reset(stream, Code::ENHANCE_YOUR_CALM);
            }
            Event::Response { .. } => panic!("a server got a response"),
            Event::Settings | Event::GoAway { .. } => {}
        }
    }

    fn on_server(&mut self, event: Event<'_, Number>) {
        match event {
            Event::Response { call, headers, is_end, .. } => {
                if let Some(down) = self.calls[call].down {
                    self.down.respond(down, &headers, is_end);
                }
                self.up.recycle(headers);
            }
            Event::Data { stream, call, data, is_end } => {
                if let Some(down) = self.calls[call].down {
                    let waiting = self.down.send_data(down, data, is_end);
                    self.up.release(stream, data.len() - waiting);
                } else {
                    self.up.release(stream, data.len());
                }
            }
            Event::Trailers { call, headers, .. } => {
                if let Some(down) = self.calls[call].down {
                    self.down.send_trailers(down, &headers);
                }
                self.up.recycle(headers);
            }
            Event::Reset { call, code, .. } => {
                self.calls[call].up = None;
                self.reset_down(call, code);
            }
            Event::Request { .. } | Event::RequestTooLarge { .. } => panic!("a client got a request"),
            Event::Settings | Event::GoAway { .. } => {}
        }
    }

    fn notices(&mut self) {
        while let Some(notice) = self.up.next_notice() {
            match notice {
                Notice::Sent { call, bytes, .. } => {
                    if let Some(down) = self.calls[call].down {
                        self.down.release(down, bytes);
                    }
                }
                Notice::Unseen { call, .. } => {
                    self.calls[call].up = None;
                    self.reset_down(call, Code::REFUSED_STREAM);
                }
            }
        }
        while let Some(notice) = self.down.next_notice() {
            if let Notice::Sent { call, bytes, .. } = notice
                && let Some(up) = self.calls[call].up
            {
                self.up.release(up, bytes);
            }
        }
    }

    fn reset_up(&mut self, number: Number, code: Code) {
        if let Some(up) = self.calls[number].up.take() {
            self.up.reset(up, code);
        }
    }

    fn reset_down(&mut self, number: Number, code: Code) {
        if let Some(down) = self.calls[number].down.take() {
            self.down.reset(down, code);
        }
    }
}
