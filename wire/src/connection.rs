//! One endpoint of an HTTP/2 connection.
//!
//! Receiving: [`receive`](Connection::receive) takes a frame off the input (`receive.rs`) and passes it on by its type:
//! DATA (`data.rs`), field blocks (`heads.rs`, which checks them with `message.rs`), SETTINGS (`settings.rs`), GOAWAY
//! and the end of the connection (`shutdown.rs`); `receive.rs` handles the rest itself. `flood.rs` counts frames that
//! are limited by a rate. Sending is in `send.rs`: frames go into the output; DATA goes into the stream's queue when a
//! window is closed or the output is full. Cancels may wait for the server (`cancel.rs`).

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

/// The initial size of the HPACK dynamic tables (RFC 9113 section 6.5.2).
const INITIAL_TABLE_BYTES: u32 = 4096;

/// [`trim`](Connection::trim) lets a busy connection keep this much in buffers. A connection with a few calls has less,
/// so `trim` does nothing for it.
const KEPT_WHILE_BUSY_BYTES: usize = 64 << 10;

/// One endpoint of an HTTP/2 connection, without its transport. `T` is the value that the user attaches to a stream.
///
/// Everything that is sent goes into one output, which the driver writes when it has nothing more to read. After an
/// error, or [`close`](Connection::close), all methods do nothing; the values that were attached to streams stay for
/// `take_all`.
pub struct Connection<T> {
    limits: Arc<Limits>,
    is_server: bool,
    output: Output,
    streams: Streams<T>,
    closed: ClosedStreams,
    queues: Queues,
    /// Slots of streams that have queued data and whose own window is open: only the connection's window or the limit
    /// on unsent output stops them. They send one frame each, in turn.
    ready: VecDeque<u32>,
    notices: VecDeque<Notice<T>>,
    decoder: Decoder,
    encoder: Encoder,
    spare: SpareLists,
    send_window: Window,
    /// The largest that the send window has been, and when the peer last increased it.
    send_window_most: usize,
    send_window_opened: Instant,
    receive_window: Window,
    /// The receive window of new streams, as far as the peer has acknowledged our SETTINGS.
    stream_window: i32,
    /// Bytes of DATA that the user has not released, including the rest of a frame that is still being received.
    held_bytes: usize,
    peer: Peer,
    /// How many bytes of the client's preface are still to come.
    preface_left: usize,
    /// The DATA frame that is being received.
    partial: Partial,
    /// The field block that is being received.
    block: Block,
    /// The highest stream that the peer has opened.
    last_peer_stream: u32,
    /// The next stream that we open.
    next_stream: u32,
    /// Our own cancels, when they have to wait for the server.
    cancels: Cancels,
    ending: Ending,
    timers: Timers,
    rates: Rates,
    heads_too_large: u64,
    /// The values that were attached to streams when the connection ended.
    orphans: Vec<T>,
}

impl<T: Clone> Connection<T> {
    /// The client's endpoint. The preface and SETTINGS are in the output at once.
    pub fn client(limits: &Arc<Limits>, now: Instant) -> Connection<T> {
        let mut connection = Connection::new(limits, false, now);
        connection.output.bytes.extend_from_slice(PREFACE);
        connection.send_settings();
        connection
    }

    /// The server's endpoint, which expects the client's preface first. SETTINGS are in the output at once.
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

    /// How many of the peer's header and trailer sections were refused because of their size.
    #[inline]
    pub fn heads_too_large(&self) -> u64 {
        self.heads_too_large
    }

    /// The next notice. Drain them after `receive`, `wrote` and `on_timeout`.
    #[inline]
    pub fn next_notice(&mut self) -> Option<Notice<T>> {
        self.notices.pop_front()
    }

    /// Attaches the value that the stream's further events carry. To be called for each [`Event::Request`]: a stream
    /// without a value discards its DATA and makes no events.
    #[inline]
    pub fn attach(&mut self, stream: StreamId, call: T) {
        if let Some(slot) = self.streams.slot(stream) {
            self.streams.at(slot).call = Some(call);
        }
    }

    /// Detaches the value, so that the stream makes no more events. The stream goes on until it has ended: queued data
    /// is still sent, and received data is discarded.
    pub fn detach(&mut self, stream: StreamId) {
        if let Some(slot) = self.streams.slot(stream) {
            self.streams.at(slot).call = None;
        }
    }

    /// The bytes that wait to be written.
    #[inline]
    pub fn output(&self) -> &[u8] {
        self.output.unsent()
    }

    /// Reports that this many bytes of the output were written. Queued data may take their place.
    #[inline]
    pub fn wrote(&mut self, bytes: usize) {
        self.output.wrote(bytes);
        if !self.ready.is_empty() {
            self.send_queued();
        }
    }

    /// Whether the unsent output has reached its limit: the driver should write before it reads on.
    #[inline]
    pub fn is_congested(&self) -> bool {
        self.output.len() >= self.limits.output_bytes
    }

    /// Whether a field block has started and not ended.
    #[inline]
    pub fn is_block_open(&self) -> bool {
        self.block.is_open()
    }

    /// When less than half of the peer's window for the connection is open: the time since which the peer has not
    /// increased it. The peer then does not read everything that it was sent, and DATA of other streams may have to
    /// wait. Half, because many servers return the window in halves.
    #[inline]
    pub fn low_window_since(&self) -> Option<Instant> {
        (2 * self.send_window.open() < self.send_window_most).then_some(self.send_window_opened)
    }

    /// Whether the driver should read no more for now, because the peer does not read what it is sent. On a client,
    /// only replies that the peer provoked count: the peer's windows bound the rest of its output, and if both
    /// endpoints stopped reading, neither would ever go on.
    #[inline]
    pub fn is_read_held(&self) -> bool {
        self.output.provoked() > self.limits.control_output_bytes || (self.is_server && self.is_congested())
    }

    /// Streams that have not ended.
    #[inline]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams the peer allows us to have open (SETTINGS_MAX_CONCURRENT_STREAMS).
    #[inline]
    pub fn peer_stream_limit(&self) -> usize {
        self.peer.streams as usize
    }

    /// The largest header list that the peer accepts (SETTINGS_MAX_HEADER_LIST_SIZE), as [`Headers::list_bytes`] counts
    /// it. Larger ones are sent all the same: the user decides what to do with them.
    #[inline]
    pub fn peer_header_list_bytes(&self) -> u32 {
        self.peer.header_list_bytes
    }

    /// Whether the peer's first SETTINGS were received.
    #[inline]
    pub fn has_settings(&self) -> bool {
        self.peer.has_settings
    }

    /// Whether the server accepts RFC 8441's extended CONNECT.
    pub fn is_connect_protocol_enabled(&self) -> bool {
        self.peer.is_connect_protocol_enabled
    }

    /// Takes back the header list of an event, to reuse it.
    #[inline]
    pub fn recycle(&mut self, headers: Headers) {
        self.spare.give(headers);
    }

    /// Frees the buffers that are not in use. For connections that have been idle for a while; they may have open
    /// streams.
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

    /// Frees the buffers that are not in use if they are large in total. To be called now and then on busy connections.
    pub fn trim(&mut self) {
        let kept = self.output.bytes.capacity() + self.spare.bytes() + self.queues.kept_bytes();
        if kept > KEPT_WHILE_BUSY_BYTES {
            self.output.shrink();
            self.spare.clear();
            self.shrink_queues();
        }
    }

    /// Frees the queues that are not in use. The others get new indices.
    fn shrink_queues(&mut self) {
        if self.queues.has_free() {
            let mut rest = Queues::default();
            for (_, stream) in self.streams.iter_mut().filter(|(_, stream)| stream.queue != NO_QUEUE) {
                stream.queue = rest.put(std::mem::take(self.queues.get(stream.queue)));
            }
            self.queues = rest;
        }
    }

    /// To be called when the transport has ended: returns the values that were attached to open streams. The connection
    /// makes no more events.
    pub fn take_all(&mut self) -> Vec<T> {
        self.abandon();
        std::mem::take(&mut self.orphans)
    }

    /// Drops all streams, and keeps the values that were attached to them.
    fn abandon(&mut self) {
        self.ending.is_closed = true;
        self.orphans.extend(self.streams.iter_mut().filter_map(|(_, stream)| stream.call.take()));
        self.streams.clear();
        self.queues.clear();
        self.ready.clear();
    }

    /// Ends the peer's half of a stream, and returns the attached value for the event. If our half has ended, too, the
    /// stream is removed, and this event is its last.
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

    /// Removes a stream and its queued data.
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

    /// Drops a stream's queued data.
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
