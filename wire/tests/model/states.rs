//! The states of RFC 9113, section 5.1, for two sides and a wire between them that delivers in order.

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

/// What a user of a connection does, or what the wire does. Streams are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Open {
        is_end: bool,
    },
    /// An interim answer.
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
    /// The server's patience with the acknowledgement of its drain ends.
    Timeout,
}

/// What is on the wire, in the order in which it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Headers {
        stream: u32,
        is_end: bool,
    },
    /// The head of an interim answer.
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
    /// How many streams of its peer the sender has taken; `None`: it may take more.
    GoAway {
        taken: Option<u32>,
    },
    Ping,
    PingAck,
}

/// What a connection's user is told.
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

/// CANCEL
pub const CODE: u32 = 8;

#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// A final head was sent, or received.
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
    /// It has said, or been told, that no more streams are opened.
    is_going: bool,
    has_drained: bool,
    /// How many streams a server takes at most, once it has said so.
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
    /// How many streams it has.
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

    /// What a user that follows the rules may do next, with at most `streams` streams; `bytes` is how much DATA each
    /// side may send on a stream in one piece before its end.
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

    /// What the side that acts is told, and what it puts on the wire.
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
                self.ends[side as usize].streams.get_mut(&stream).expect("it was told of it").is_detached = true;
                (side, vec![], vec![])
            }
            Action::Drain(side) => (side, vec![], self.drain(side)),
            Action::Timeout => (Side::Server, vec![], self.end_of_drain()),
        };
        self.wire[side as usize].extend(&sent);
        (side, told, sent)
    }

    /// A stream that is gone, or whose half has ended, sends nothing.
    fn send(&mut self, side: Side, stream: u32, item: Item) -> Vec<Item> {
        let Some(state) = self.ends[side as usize].streams.get_mut(&stream) else { return vec![] };
        // An empty piece that ends nothing is not worth a frame.
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
            Item::GoAway { .. } | Item::Ping | Item::PingAck => unreachable!("dealt with above"),
        };
        state.settle();
        (if state.is_detached { vec![] } else { vec![told] }, vec![])
    }
}

impl End {
    fn go_away(&mut self, side: Side, taken: Option<u32>) -> Vec<Told> {
        self.is_going = true;
        let mut told = vec![Told::GoAway];
        // What a client says of the server's streams concerns none of its own.
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
