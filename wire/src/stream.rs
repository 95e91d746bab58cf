//! A connection's streams: a slab of small entries, and an index from stream identifiers to slots.

use crate::flow::Window;

/// A stream of one connection. It stays unique after the stream has ended; calls with it then do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    id: u32,
    /// Where its entry is (or was), so that calls find it without a search.
    slot: u32,
}

impl StreamId {
    pub(crate) fn new(id: u32, slot: usize) -> StreamId {
        StreamId { id, slot: slot as u32 }
    }

    /// The identifier on the wire.
    pub fn get(self) -> u32 {
        self.id
    }
}

/// The stream has no queue.
pub(crate) const NO_QUEUE: u32 = u32::MAX;

/// There is no content-length, or it does not apply.
pub(crate) const ANY_LENGTH: u64 = u64::MAX;

/// What the request's method says about the response's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// As many bytes as the content-length says, if there is one.
    Any,
    /// None, although there may be a content-length (HEAD).
    None,
    /// The bytes of a tunnel, to which no content-length applies (CONNECT).
    Tunnel,
}

/// A stream that is open or half-closed.
#[derive(Debug)]
pub(crate) struct Stream<T> {
    /// 0: the entry is free.
    pub(crate) id: u32,
    pub(crate) send_window: Window,
    pub(crate) receive_window: Window,
    /// Released bytes that no WINDOW_UPDATE has returned yet.
    pub(crate) released: u32,
    /// How many bytes of the content-length are still to come.
    pub(crate) content_left: u64,
    /// The index of the queue with its unsent data, or [`NO_QUEUE`].
    pub(crate) queue: u32,
    /// The peer has sent its (final) head.
    pub(crate) is_head_received: bool,
    /// The peer's half has ended.
    pub(crate) is_receive_closed: bool,
    /// We have sent our (final) head.
    pub(crate) is_head_sent: bool,
    /// The user has ended our half; it may still be queued.
    pub(crate) is_ending: bool,
    /// Our half has ended.
    pub(crate) is_send_closed: bool,
    /// It is in the connection's `ready` queue: only the connection's window or the output keeps it from sending.
    pub(crate) is_ready: bool,
    /// What content the response may have.
    pub(crate) body: Body,
    pub(crate) call: Option<T>,
}

impl<T> Stream<T> {
    pub(crate) fn new(id: u32, send_window: i32, receive_window: i32, call: Option<T>) -> Stream<T> {
        Stream {
            id,
            send_window: Window::new(send_window),
            receive_window: Window::new(receive_window),
            released: 0,
            content_left: ANY_LENGTH,
            queue: NO_QUEUE,
            is_head_received: false,
            is_receive_closed: false,
            is_head_sent: false,
            is_ending: false,
            is_send_closed: false,
            is_ready: false,
            body: Body::Any,
            call,
        }
    }
}

/// The streams of a connection.
#[derive(Debug)]
pub(crate) struct Streams<T> {
    entries: Vec<Stream<T>>,
    free: Vec<u32>,
    index: Index,
}

impl<T> Streams<T> {
    pub(crate) fn new() -> Streams<T> {
        Streams { entries: Vec::new(), free: Vec::new(), index: Index::default() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The memory that it takes, in use or not.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * (size_of::<Stream<T>>() + size_of::<u32>() + Index::BYTES_A_STREAM)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the stream with this identifier is.
    #[inline]
    pub(crate) fn find(&self, id: u32) -> Option<usize> {
        self.index.find(id)
    }

    /// Where the stream is, if it still is.
    #[inline]
    pub(crate) fn slot(&self, stream: StreamId) -> Option<usize> {
        let slot = stream.slot as usize;
        (self.entries.get(slot)?.id == stream.id).then_some(slot)
    }

    #[inline]
    pub(crate) fn at(&mut self, slot: usize) -> &mut Stream<T> {
        &mut self.entries[slot]
    }

    #[inline]
    pub(crate) fn id(&self, slot: usize) -> StreamId {
        StreamId::new(self.entries[slot].id, slot)
    }

    #[inline]
    pub(crate) fn insert(&mut self, stream: Stream<T>) -> usize {
        let id = stream.id;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = stream;
                slot as usize
            }
            None => {
                self.entries.push(stream);
                self.entries.len() - 1
            }
        };
        self.index.insert(id, slot as u32);
        slot
    }

    /// Frees the entry.
    #[inline]
    pub(crate) fn remove(&mut self, slot: usize) -> Option<T> {
        let stream = &mut self.entries[slot];
        self.index.remove(stream.id);
        stream.id = 0;
        self.free.push(slot as u32);
        stream.call.take()
    }

    /// All slots. Those whose entry has id 0 are free.
    pub(crate) fn slots(&self) -> std::ops::Range<usize> {
        0..self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Stream<T>> {
        self.entries.iter().filter(|stream| stream.id != 0)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Stream<T>)> {
        self.entries.iter_mut().enumerate().filter(|(_, stream)| stream.id != 0)
    }

    pub(crate) fn clear(&mut self) {
        *self = Streams::new();
    }
}

/// From identifiers to slots: open addressing, at most half full, with Robin Hood hashing: entries are sorted by their
/// home positions. Identifiers grow by two, so half the identifier fills the table evenly without a hash function, and
/// removing an entry does not need to examine all the entries after it.
#[derive(Debug, Default)]
struct Index {
    /// Identifier and slot; 0 and 0 in an empty place. The length is a power of two, or 0.
    table: Vec<(u32, u32)>,
    len: usize,
}

impl Index {
    /// At most half full.
    const BYTES_A_STREAM: usize = 2 * size_of::<(u32, u32)>();

    #[inline]
    fn mask(&self) -> usize {
        self.table.len() - 1
    }

    /// How far the entry at a place is from its home position.
    #[inline]
    fn distance(&self, at: usize) -> usize {
        at.wrapping_sub((self.table[at].0 >> 1) as usize) & self.mask()
    }

    /// Where in the table an identifier is.
    #[inline]
    fn place_of(&self, id: u32) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let mut at = (id >> 1) as usize & mask;
        loop {
            let found = self.table[at].0;
            // This check comes first, since `id` may be 0, which is no stream.
            if found == 0 {
                return None;
            }
            if found == id {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn find(&self, id: u32) -> Option<usize> {
        self.place_of(id).map(|at| self.table[at].1 as usize)
    }

    #[inline]
    fn insert(&mut self, id: u32, slot: u32) {
        if self.table.len() < (self.len + 1) * 2 {
            self.grow();
        }
        self.place(id, slot);
        self.len += 1;
    }

    #[inline]
    fn place(&mut self, id: u32, slot: u32) {
        let mut entry = (id, slot);
        let mut at = (id >> 1) as usize & self.mask();
        let mut distance = 0;
        while self.table[at].0 != 0 {
            let other = self.distance(at);
            if other < distance {
                std::mem::swap(&mut self.table[at], &mut entry);
                distance = other;
            }
            at = (at + 1) & self.mask();
            distance += 1;
        }
        self.table[at] = entry;
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![(0, 0); (self.table.len() * 2).max(16)];
        for (id, slot) in std::mem::replace(&mut self.table, larger) {
            if id != 0 {
                self.place(id, slot);
            }
        }
    }

    /// Removes an entry, and moves up the entries behind it that are not at their home position.
    #[inline]
    fn remove(&mut self, id: u32) {
        let Some(mut gap) = self.place_of(id) else { return };
        self.len -= 1;
        loop {
            let next = (gap + 1) & self.mask();
            if self.table[next].0 == 0 || self.distance(next) == 0 {
                break;
            }
            self.table[gap] = self.table[next];
            gap = next;
        }
        self.table[gap] = (0, 0);
    }
}

/// How a stream was closed, which decides how its late frames are treated (RFC 9113 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Both sides have sent END_STREAM: no more frames can be on their way.
    Ended,
    /// By the peer's RST_STREAM: the peer sends nothing more.
    ByPeer,
    /// By our RST_STREAM, which the peer may not have received yet.
    ByUs,
}

/// The streams that were closed last.
#[derive(Debug, Default)]
pub(crate) struct ClosedStreams {
    /// Streams that we reset are kept apart: many other streams that end must not turn their late frames into errors.
    by_us: Ring,
    others: Ring,
}

/// More are not needed: a frame on a stream that ended long ago is an error, too.
const REMEMBERED_ENDED: usize = 64;

impl ClosedStreams {
    #[inline]
    pub(crate) fn add(&mut self, id: u32, how: Closed, limit: usize) {
        match how {
            Closed::ByUs => self.by_us.add(id << 1, limit),
            Closed::Ended => self.others.add(id << 1, limit.min(REMEMBERED_ENDED)),
            Closed::ByPeer => self.others.add(id << 1 | 1, limit.min(REMEMBERED_ENDED)),
        }
    }

    pub(crate) fn find(&self, id: u32) -> Option<Closed> {
        if self.by_us.has(id << 1) {
            Some(Closed::ByUs)
        } else if self.others.has(id << 1) {
            Some(Closed::Ended)
        } else if self.others.has(id << 1 | 1) {
            Some(Closed::ByPeer)
        } else {
            None
        }
    }
}

/// A ring of the last values.
#[derive(Debug, Default)]
struct Ring {
    values: Vec<u32>,
    next: usize,
}

impl Ring {
    #[inline]
    fn add(&mut self, value: u32, limit: usize) {
        if self.values.len() < limit {
            self.values.push(value);
        } else if limit > 0 {
            self.values[self.next] = value;
            self.next = if self.next + 1 == self.values.len() { 0 } else { self.next + 1 };
        }
    }

    fn has(&self, value: u32) -> bool {
        self.values.contains(&value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(id: u32) -> Stream<u32> {
        Stream::new(id, 0, 0, Some(id))
    }

    #[test]
    fn the_index_agrees_with_a_map_over_many_inserts_and_removals() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut streams = Streams::new();
        let mut model = std::collections::HashMap::new();
        for round in 0..20_000u32 {
            // Strides of 32 and 64 make identifiers collide.
            let id = (random.u32(0..400) << random.u32(0..6)) | 1;
            if model.contains_key(&id) {
                let slot = streams.find(id).expect("it is in the model");
                assert_eq!(streams.remove(slot), model.remove(&id));
            } else if model.len() < 150 {
                streams.insert(stream(id));
                model.insert(id, id);
            }
            assert_eq!(streams.len(), model.len(), "round {round}");
            assert!(model.keys().all(|id| streams.find(*id).is_some_and(|slot| streams.at(slot).id == *id)));
        }
    }

    #[test]
    fn an_old_stream_id_does_not_find_the_new_stream_in_its_slot() {
        let mut streams = Streams::new();
        let slot = streams.insert(stream(1));
        let first = streams.id(slot);
        streams.remove(slot);
        assert_eq!(streams.slot(first), None);
        assert_eq!(streams.insert(stream(3)), slot);
        assert_eq!(streams.slot(first), None);
        assert_eq!(streams.slot(StreamId::new(3, slot)), Some(slot));
    }

    #[test]
    fn resets_are_remembered_however_many_streams_end() {
        let mut closed = ClosedStreams::default();
        closed.add(1, Closed::ByUs, 4);
        for id in 1..1000 {
            closed.add(id * 2 + 1, Closed::Ended, 4);
        }
        assert_eq!(closed.find(1), Some(Closed::ByUs));
        assert_eq!(closed.find(1999), Some(Closed::Ended));
        assert_eq!(closed.find(3), None);
    }
}
