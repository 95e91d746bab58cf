//! The stream states of RFC 9113, section 5.1, for two endpoints and a wire between them that delivers in order.

use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client = 0,
    Server = 1,
}

impl Side {
    pub fn peer(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// An action of a connection's user or of the wire. Streams are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Open {
        is_end: bool,
    },
    /// The server sends an interim response.
    Inform(u32),
    Respond {
        stream: u32,
        is_end: bool,
    },
    Data {
        side: Side,
        stream: u32,
        bytes: usize,
        is_end: bool,
    },
    Trailers {
        side: Side,
        stream: u32,
    },
    Reset {
        side: Side,
        stream: u32,
    },
    Detach {
        side: Side,
        stream: u32,
    },
    /// The wire delivers the next frame to this side.
    Deliver(Side),
    Drain(Side),
    /// The server stops waiting for the acknowledgement of its drain's PING.
    Timeout,
}

/// A frame on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Headers {
        stream: u32,
        is_end: bool,
    },
    /// An interim response.
    Interim {
        stream: u32,
    },
    Data {
        stream: u32,
        bytes: usize,
        is_end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    /// How many streams of its peer the sender has accepted; `None`: it may accept more.
    GoAway {
        taken: Option<u32>,
    },
    Ping,
    PingAck,
}

/// What a connection reports to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Request { stream: u32, is_end: bool },
    Response { stream: u32, is_end: bool },
    Data { stream: u32, bytes: usize, is_end: bool },
    Trailers { stream: u32 },
    Reset { stream: u32, code: u32 },
    GoAway,
    Unseen { stream: u32 },
}

/// The code of all resets: CANCEL.
pub const CODE: u32 = 8;

#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// A final response's or a request's head was sent, or received.
    has_sent_head: bool,
    has_received_head: bool,
    has_sent_end: bool,
    has_received_end: bool,
    is_gone: bool,
    is_detached: bool,
    pub sent_bytes: usize,
}

#[derive(Clone, Debug, Default)]
pub struct End {
    pub streams: BTreeMap<u32, Stream>,
    /// It has sent or received GOAWAY, so no more streams are opened.
    is_going: bool,
    has_drained: bool,
    /// How many streams a server accepts, once its GOAWAY has said so.
    taken: Option<u32>,
    awaits_ack: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub ends: [End; 2],
    /// By sender.
    pub wire: [VecDeque<Item>; 2],
    pub opened: u32,
}

impl Stream {
    fn settle(&mut self) {
        self.is_gone |= self.has_sent_end && self.has_received_end;
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub fn has_sent_end(&self) -> bool {
        self.has_sent_end
    }

    pub fn has_sent_head(&self) -> bool {
        self.has_sent_head
    }
}

impl End {
    /// The number of open streams.
    pub fn active(&self) -> usize {
        self.streams.values().filter(|stream| !stream.is_gone).count()
    }
}

impl Model {
    pub fn can_open(&self) -> bool {
        !self.ends[0].is_going
    }

    pub fn is_draining(&self) -> bool {
        self.ends.iter().any(|end| end.has_drained)
    }

    /// What a user that follows the rules may do next, with at most `streams` streams. Each side may send `bytes` of
    /// DATA on a stream, in one frame, before its end.
    pub fn actions(&self, streams: u32, bytes: usize, with_drain: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.opened < streams && self.can_open() {
            actions.extend([Action::Open { is_end: false }, Action::Open { is_end: true }]);
        }
        for side in [Side::Client, Side::Server] {
            for (&stream, state) in &self.ends[side as usize].streams {
                if state.is_gone {
                    continue;
                }
                actions.push(Action::Reset { side, stream });
                if state.has_sent_end {
                    continue;
                }
                if side == Side::Server && !state.has_sent_head {
                    actions.extend([false, true].map(|is_end| Action::Respond { stream, is_end }));
                    continue;
                }
                if state.sent_bytes == 0 {
                    actions.push(Action::Data { side, stream, bytes, is_end: false });
                }
                actions.push(Action::Data { side, stream, bytes: 0, is_end: true });
                actions.push(Action::Trailers { side, stream });
            }
            if !self.wire[side as usize].is_empty() {
                actions.push(Action::Deliver(side.peer()));
            }
            if with_drain && !self.ends[side as usize].has_drained {
                actions.push(Action::Drain(side));
            }
        }
        if self.ends[1].awaits_ack {
            actions.push(Action::Timeout);
        }
        actions
    }

    /// Performs an action. Returns the side that acts, what it reports to its user, and what it puts on the wire.
    pub fn act(&mut self, action: Action) -> (Side, Vec<Told>, Vec<Item>) {
        let (side, told, sent) = match action {
            Action::Deliver(side) => {
                let (told, sent) = self.deliver(side);
                (side, told, sent)
            }
            Action::Open { is_end } => {
                let stream = self.opened;
                self.opened += 1;
                let state = Stream { has_sent_head: true, has_sent_end: is_end, ..Stream::default() };
                self.ends[0].streams.insert(stream, state);
                (Side::Client, vec![], vec![Item::Headers { stream, is_end }])
            }
            Action::Inform(stream) => (Side::Server, vec![], self.send(Side::Server, stream, Item::Interim { stream })),
            Action::Respond { stream, is_end } => {
                let sent = self.send(Side::Server, stream, Item::Headers { stream, is_end });
                if let Some(state) = self.ends[1].streams.get_mut(&stream) {
                    state.has_sent_head = true;
                }
                (Side::Server, vec![], sent)
            }
            Action::Data { side, stream, bytes, is_end } => {
                (side, vec![], self.send(side, stream, Item::Data { stream, bytes, is_end }))
            }
            Action::Trailers { side, stream } => {
                (side, vec![], self.send(side, stream, Item::Headers { stream, is_end: true }))
            }
            Action::Reset { side, stream } => {
                (side, vec![], self.send(side, stream, Item::Reset { stream, code: CODE }))
            }
            Action::Detach { side, stream } => {
                self.ends[side as usize].streams.get_mut(&stream).expect("the stream was reported to it").is_detached =
                    true;
                (side, vec![], vec![])
            }
            Action::Drain(side) => (side, vec![], self.drain(side)),
            Action::Timeout => (Side::Server, vec![], self.end_of_drain()),
        };
        self.wire[side as usize].extend(&sent);
        (side, told, sent)
    }

    /// Sends an item, unless the stream is gone.
    fn send(&mut self, side: Side, stream: u32, item: Item) -> Vec<Item> {
        let Some(state) = self.ends[side as usize].streams.get_mut(&stream) else { return vec![] };
        // Empty DATA without END_STREAM is not sent.
        if state.is_gone || matches!(item, Item::Data { bytes: 0, is_end: false, .. }) {
            return vec![];
        }
        match item {
            Item::Headers { is_end, .. } => state.has_sent_end = is_end,
            Item::Data { bytes, is_end, .. } => {
                state.has_sent_end = is_end;
                state.sent_bytes += bytes;
            }
            Item::Reset { .. } => state.is_gone = true,
            Item::Interim { .. } | Item::GoAway { .. } | Item::Ping | Item::PingAck => {}
        }
        state.settle();
        vec![item]
    }

    fn drain(&mut self, side: Side) -> Vec<Item> {
        let end = &mut self.ends[side as usize];
        end.is_going = true;
        end.has_drained = true;
        match side {
            // Servers open no streams.
            Side::Client => vec![Item::GoAway { taken: Some(0) }],
            Side::Server => {
                end.awaits_ack = true;
                vec![Item::GoAway { taken: None }, Item::Ping]
            }
        }
    }

    fn end_of_drain(&mut self) -> Vec<Item> {
        let end = &mut self.ends[1];
        end.awaits_ack = false;
        end.taken = Some(end.streams.keys().max().map_or(0, |last| last + 1));
        vec![Item::GoAway { taken: end.taken }]
    }

    fn deliver(&mut self, side: Side) -> (Vec<Told>, Vec<Item>) {
        let item = self.wire[side.peer() as usize].pop_front().expect("there is something to deliver");
        let end = &mut self.ends[side as usize];
        let stream = match item {
            Item::Ping => return (vec![], vec![Item::PingAck]),
            Item::PingAck if end.awaits_ack => return (vec![], self.end_of_drain()),
            Item::PingAck => return (vec![], vec![]),
            Item::GoAway { taken } => return (end.go_away(side, taken), vec![]),
            Item::Headers { stream, .. }
            | Item::Interim { stream }
            | Item::Data { stream, .. }
            | Item::Reset { stream, .. } => stream,
        };
        if end.taken.is_some_and(|taken| stream >= taken) {
            return (vec![], vec![]);
        }
        if side == Side::Server
            && !end.streams.contains_key(&stream)
            && let Item::Headers { is_end, .. } = item
        {
            let state = Stream { has_received_head: true, has_received_end: is_end, ..Stream::default() };
            end.streams.insert(stream, state);
            return (vec![Told::Request { stream, is_end }], vec![]);
        }
        let state = end.streams.get_mut(&stream).expect("its head came first");
        if state.is_gone {
            return (vec![], vec![]);
        }
        let told = match item {
            Item::Headers { is_end, .. } if state.has_received_head => {
                debug_assert!(is_end);
                state.has_received_end = true;
                Told::Trailers { stream }
            }
            Item::Headers { is_end, .. } => {
                state.has_received_end = is_end;
                state.has_received_head = true;
                Told::Response { stream, is_end }
            }
            Item::Interim { .. } => Told::Response { stream, is_end: false },
            Item::Data { bytes, is_end, .. } => {
                state.has_received_end = is_end;
                Told::Data { stream, bytes, is_end }
            }
            Item::Reset { code, .. } => {
                state.is_gone = true;
                Told::Reset { stream, code }
            }
            Item::GoAway { .. } | Item::Ping | Item::PingAck => unreachable!("handled above"),
        };
        state.settle();
        (if state.is_detached { vec![] } else { vec![told] }, vec![])
    }
}

impl End {
    fn go_away(&mut self, side: Side, taken: Option<u32>) -> Vec<Told> {
        self.is_going = true;
        let mut told = vec![Told::GoAway];
        // A client's GOAWAY is about the server's streams, of which there are none.
        let taken = taken.filter(|_| side == Side::Client).unwrap_or(u32::MAX);
        for (&stream, state) in self.streams.range_mut(taken..) {
            if !state.is_gone {
                state.is_gone = true;
                if !state.is_detached {
                    told.push(Told::Unseen { stream });
                }
            }
        }
        told
    }
}
