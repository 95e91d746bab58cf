//! One side of an HTTP/2 connection.
//!
//! A frame's way in: [`receive`](Connection::receive) takes it off the input (`receive.rs`) and gives it to what knows
//! its type: DATA (`data.rs`), header blocks (`heads.rs`, which checks them with `message.rs`), SETTINGS
//! (`settings.rs`), GOAWAY and what ends a connection (`shutdown.rs`), and the rest at the end of `receive.rs`. What may
//! come only so often is counted in `flood.rs`. The way out is `send.rs`: into the output, or into the stream's queue when
//! a window is closed or the output is full; cancels may wait for the server (`cancel.rs`).

mod cancel;
mod data;
mod event;
mod flood;
mod heads;
mod message;
mod output;
mod receive;
mod send;
mod settings;
mod shutdown;
mod spare;
#[cfg(test)]
mod tests;
mod usage;

pub use event::{Bound, CannotOpen, Cause, ConnectionError, Event, Notice};
pub use usage::Usage;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::flow::{INITIAL_WINDOW, Queues, Window};
use crate::frame::PREFACE;
use crate::headers::Headers;
use crate::hpack::{Decoder, Encoder};
use crate::limits::Limits;
use crate::stream::{Closed, ClosedStreams, NO_QUEUE, StreamId, Streams};
use cancel::Cancels;
use data::Partial;
use flood::Rates;
use heads::Block;
use output::Output;
use settings::Peer;
use shutdown::{Ending, Timers};
use spare::SpareLists;

/// The size with which HPACK tables begin (RFC 9113 section 6.5.2).
const INITIAL_TABLE_BYTES: u32 = 4096;

/// Buffers that a busy connection may keep from one [`trim`](Connection::trim) to the next. A connection with a few calls has
/// less, so that nothing is done for it.
const KEPT_WHILE_BUSY_BYTES: usize = 64 << 10;

/// One side of an HTTP/2 connection, without its transport. `T` is what the user attaches to a stream.
///
/// All that is sent goes into one output, which the driver writes when it has nothing more to read. After an error, or
/// [`close`](Connection::close), all methods do nothing; what was attached to streams is left for `take_all`.
pub struct Connection<T> {
    limits: Arc<Limits>,
    is_server: bool,
    output: Output,
    streams: Streams<T>,
    closed: ClosedStreams,
    queues: Queues,
    /// Slots of streams with something queued and an open window of their own: the connection's window or the output's
    /// high water stops them. Each sends one frame in turn.
    ready: VecDeque<u32>,
    notices: VecDeque<Notice<T>>,
    decoder: Decoder,
    encoder: Encoder,
    spare: SpareLists,
    send_window: Window,
    /// The largest that it has been, and when the peer has last opened it.
    send_window_most: usize,
    send_window_opened: Instant,
    receive_window: Window,
    /// The window of new streams: what the peer knows of our SETTINGS.
    stream_window: i32,
    /// DATA that the user has, or will have once its frame is whole, and has not released.
    held_bytes: usize,
    peer: Peer,
    /// What is missing of the client's preface.
    preface_left: usize,
    /// The DATA frame that is being received.
    partial: Partial,
    /// The header block that is being received.
    block: Block,
    /// The highest stream that the peer has opened.
    last_peer_stream: u32,
    /// The next stream that we open.
    next_stream: u32,
    /// Our own cancels, where the server has to be spared.
    cancels: Cancels,
    ending: Ending,
    timers: Timers,
    rates: Rates,
    heads_too_large: u64,
    /// What was attached to streams when the connection ended.
    orphans: Vec<T>,
}

impl<T: Clone> Connection<T> {
    /// A client's side. The preface and SETTINGS are in the output at once.
    pub fn client(limits: &Arc<Limits>, now: Instant) -> Connection<T> {
        let mut connection = Connection::new(limits, false, now);
        connection.output.bytes.extend_from_slice(PREFACE);
        connection.send_settings();
        connection
    }

    /// A server's side, which expects the client's preface first. SETTINGS are in the output at once.
    pub fn server(limits: &Arc<Limits>, now: Instant) -> Connection<T> {
        let mut connection = Connection::new(limits, true, now);
        connection.preface_left = PREFACE.len();
        connection.send_settings();
        connection
    }

    fn new(limits: &Arc<Limits>, is_server: bool, now: Instant) -> Connection<T> {
        Connection {
            is_server,
            output: Output::default(),
            streams: Streams::new(),
            closed: ClosedStreams::default(),
            queues: Queues::default(),
            ready: VecDeque::new(),
            notices: VecDeque::new(),
            decoder: Decoder::new(limits.table_bytes.max(INITIAL_TABLE_BYTES)),
            encoder: Encoder::new(limits.table_bytes),
            spare: SpareLists::default(),
            send_window: Window::new(INITIAL_WINDOW),
            send_window_most: INITIAL_WINDOW as usize,
            send_window_opened: now,
            receive_window: Window::new(INITIAL_WINDOW),
            stream_window: INITIAL_WINDOW,
            held_bytes: 0,
            peer: Peer::new(),
            preface_left: 0,
            partial: Partial::default(),
            block: Block::default(),
            last_peer_stream: 0,
            next_stream: 1,
            cancels: Cancels::default(),
            ending: Ending::default(),
            timers: Timers::new(limits, now),
            rates: Rates::new(limits, now),
            heads_too_large: 0,
            orphans: Vec::new(),
            limits: limits.clone(),
        }
    }

    /// How many heads and trailers of the peer were refused because of their size.
    #[inline]
    pub fn heads_too_large(&self) -> u64 {
        self.heads_too_large
    }

    /// What happened besides the events. To be drained after `receive`, `wrote` and `on_timeout`.
    #[inline]
    pub fn next_notice(&mut self) -> Option<Notice<T>> {
        self.notices.pop_front()
    }

    /// Attaches what the stream's further events are about, in answer to [`Event::Request`]. A stream that has nothing
    /// attached discards its DATA and makes no events.
    #[inline]
    pub fn attach(&mut self, stream: StreamId, call: T) {
        if let Some(slot) = self.streams.slot(stream) {
            self.streams.at(slot).call = Some(call);
        }
    }

    /// Makes the stream silent. It lives on until it has ended: what is queued is still sent, what comes is discarded.
    pub fn detach(&mut self, stream: StreamId) {
        if let Some(slot) = self.streams.slot(stream) {
            self.streams.at(slot).call = None;
        }
    }

    /// What waits to be written.
    #[inline]
    pub fn output(&self) -> &[u8] {
        self.output.unsent()
    }

    /// So much of the output was written. Queued data may take its place.
    #[inline]
    pub fn wrote(&mut self, bytes: usize) {
        self.output.wrote(bytes);
        if !self.ready.is_empty() {
            self.send_queued();
        }
    }

    /// Whether the output is over its high water: the driver should write before it reads on.
    #[inline]
    pub fn is_congested(&self) -> bool {
        self.output.len() >= self.limits.output_bytes
    }

    /// Whether a header block has begun and not ended.
    #[inline]
    pub fn is_block_open(&self) -> bool {
        self.block.is_open()
    }

    /// Whether less than half of the peer's window for the whole connection is open, and since when the peer has opened none of
    /// it. Then it does not read all that it was sent, and DATA of other streams may wait for that: many servers give the
    /// window back in halves.
    #[inline]
    pub fn low_window_since(&self) -> Option<Instant> {
        (2 * self.send_window.open() < self.send_window_most).then_some(self.send_window_opened)
    }

    /// Whether the driver should read no more for now: the peer does not read what it is sent. For a client only the
    /// answers count that the peer has provoked, as it sends nothing else that the peer's windows do not bound; and if
    /// both ends stopped reading, neither would ever go on.
    #[inline]
    pub fn is_read_held(&self) -> bool {
        self.output.provoked() > self.limits.control_output_bytes || (self.is_server && self.is_congested())
    }

    /// Streams that have not ended.
    #[inline]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams the peer lets us have open (SETTINGS_MAX_CONCURRENT_STREAMS).
    #[inline]
    pub fn peer_stream_limit(&self) -> usize {
        self.peer.streams as usize
    }

    /// The longest header list that the peer takes (SETTINGS_MAX_HEADER_LIST_SIZE), as [`Headers::list_bytes`] counts it.
    /// Nothing is held back for it: what becomes of a longer one is the user's to say.
    #[inline]
    pub fn peer_header_list_bytes(&self) -> u32 {
        self.peer.header_list_bytes
    }

    /// Whether the peer's first SETTINGS have come.
    #[inline]
    pub fn has_settings(&self) -> bool {
        self.peer.has_settings
    }

    /// Whether the server takes RFC 8441's extended CONNECT.
    pub fn is_connect_protocol_enabled(&self) -> bool {
        self.peer.is_connect_protocol_enabled
    }

    /// Takes back a header list of an event, for the next one.
    #[inline]
    pub fn recycle(&mut self, headers: Headers) {
        self.spare.give(headers);
    }

    /// Gives back the buffers that are not in use. For connections on which nothing has moved for a while; they may have
    /// open streams.
    pub fn shrink(&mut self) {
        self.output.shrink();
        self.spare.clear();
        self.shrink_queues();
        self.ready.shrink_to_fit();
        self.notices.shrink_to_fit();
        self.block.shrink();
        if self.streams.is_empty() {
            self.streams.clear();
        }
    }

    /// Gives back the buffers that are not in use if they are many. To be called now and then on connections that are busy.
    pub fn trim(&mut self) {
        let kept = self.output.bytes.capacity() + self.spare.bytes() + self.queues.kept_bytes();
        if kept > KEPT_WHILE_BUSY_BYTES {
            self.output.shrink();
            self.spare.clear();
            self.shrink_queues();
        }
    }

    /// Gives back the queues that are not in use. The others get new places.
    fn shrink_queues(&mut self) {
        if self.queues.has_free() {
            let mut rest = Queues::default();
            for (_, stream) in self.streams.iter_mut().filter(|(_, stream)| stream.queue != NO_QUEUE) {
                stream.queue = rest.put(std::mem::take(self.queues.get(stream.queue)));
            }
            self.queues = rest;
        }
    }

    /// The transport has ended: what was attached to streams that still ran. Nothing follows.
    pub fn take_all(&mut self) -> Vec<T> {
        self.abandon();
        std::mem::take(&mut self.orphans)
    }

    /// Forgets all streams but what was attached to them.
    fn abandon(&mut self) {
        self.ending.is_closed = true;
        self.orphans.extend(self.streams.iter_mut().filter_map(|(_, stream)| stream.call.take()));
        self.streams.clear();
        self.queues.clear();
        self.ready.clear();
    }

    /// Ends the peer's half of a stream, and returns what is attached: the event that this makes is the last when our
    /// half has ended, too.
    #[inline]
    fn end_receive(&mut self, slot: usize) -> Option<T> {
        let stream = self.streams.at(slot);
        stream.is_receive_closed = true;
        if stream.is_send_closed { self.remove(slot, Closed::Ended) } else { stream.call.clone() }
    }

    /// Ends our half of a stream.
    #[inline]
    fn end_send(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        stream.is_ending = true;
        stream.is_send_closed = true;
        if stream.is_receive_closed {
            self.remove(slot, Closed::Ended);
        }
    }

    /// Removes a stream, with what it has queued.
    #[inline]
    fn remove(&mut self, slot: usize, how: Closed) -> Option<T> {
        let stream = self.streams.at(slot);
        let id = stream.id;
        if stream.queue != NO_QUEUE {
            self.drop_queue(slot);
        }
        self.closed.add(id, how, self.limits.closed_streams);
        self.streams.remove(slot)
    }

    /// Drops what a stream has queued.
    #[cold]
    fn drop_queue(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        let queue = std::mem::replace(&mut stream.queue, NO_QUEUE);
        if std::mem::take(&mut stream.is_ready) {
            self.ready.retain(|ready| *ready as usize != slot);
        }
        if let Some(trailers) = self.queues.remove(queue) {
            self.recycle(trailers);
        }
    }
}

impl<T> fmt::Debug for Connection<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Connection")
            .field("is_server", &self.is_server)
            .field("streams", &self.streams.len())
            .field("output_bytes", &self.output.len())
            .finish_non_exhaustive()
    }
}
