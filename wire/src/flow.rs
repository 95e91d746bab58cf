//! Flow-control windows (RFC 9113 section 5.2), and data that waits for them.

use crate::headers::Headers;

/// The size of every window at the start of a connection.
pub(crate) const INITIAL_WINDOW: i32 = 65_535;

/// The largest window.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;

/// A queue with a larger buffer than this frees it once it is empty.
const KEPT_QUEUE_BYTES: usize = 64 << 10;

/// How many bytes of buffers the empty queues of a connection keep together. No budget counts them, and a program may
/// have many thousands of connections.
const KEPT_QUEUES_BYTES: usize = 128 << 10;

/// A queue's buffer may always be this large. A larger one is at most 8 times as large as the data in it, because
/// budgets count only the data.
const SMALL_QUEUE_BYTES: usize = 4 << 10;

/// How many bytes may still be sent in one direction. Negative after SETTINGS have made it smaller (section 6.9.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window(i32);

impl Window {
    pub(crate) fn new(bytes: i32) -> Window {
        Window(bytes)
    }

    /// How many bytes may be sent now.
    #[inline]
    pub(crate) fn open(self) -> usize {
        self.0.max(0) as usize
    }

    #[inline]
    pub(crate) fn get(self) -> i32 {
        self.0
    }

    /// Uses up this many bytes. `false`, and unchanged, when it has fewer.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let is_enough = bytes <= self.open();
        if is_enough {
            self.0 -= bytes as i32;
        }
        is_enough
    }

    /// Changes it by this many bytes. `false`, and unchanged, when it would leave the range of a window.
    #[inline]
    pub(crate) fn add(&mut self, bytes: i64) -> bool {
        match i32::try_from(i64::from(self.0) + bytes) {
            Ok(sum) => {
                self.0 = sum;
                true
            }
            Err(_) => false,
        }
    }
}

/// Data that a stream still has to send.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    bytes: Vec<u8>,
    start: usize,
    /// The stream ends after this data.
    pub(crate) is_end: bool,
    /// The trailers to send after the data.
    pub(crate) trailers: Option<Headers>,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The next bytes to send.
    pub(crate) fn front(&self, bytes: usize) -> &[u8] {
        &self.bytes[self.start..self.start + bytes]
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.bytes.capacity() > (8 * self.len()).max(SMALL_QUEUE_BYTES) {
            self.give_back();
        }
    }

    /// Frees most of the buffer: it held much more data than is left.
    #[cold]
    fn give_back(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.shrink_to(2 * self.bytes.len());
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(data);
    }
}

/// The queues of all streams that have one. They are reused, so that queueing data does not allocate either.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    entries: Vec<Queue>,
    free: Vec<u32>,
    /// The size of the free queues' buffers.
    kept_bytes: usize,
}

impl Queues {
    pub(crate) fn add(&mut self) -> u32 {
        let Some(at) = self.free.pop() else { return self.put(Queue::default()) };
        self.kept_bytes -= self.entries[at as usize].bytes.capacity();
        at
    }

    /// Adds a queue with its content.
    pub(crate) fn put(&mut self, queue: Queue) -> u32 {
        self.entries.push(queue);
        self.entries.len() as u32 - 1
    }

    #[inline]
    pub(crate) fn get(&mut self, at: u32) -> &mut Queue {
        &mut self.entries[at as usize]
    }

    /// Empties a queue and frees its place; returns its trailers.
    pub(crate) fn remove(&mut self, at: u32) -> Option<Headers> {
        let queue = &mut self.entries[at as usize];
        queue.bytes.clear();
        queue.start = 0;
        queue.is_end = false;
        let bytes = queue.bytes.capacity();
        if bytes > KEPT_QUEUE_BYTES || self.kept_bytes + bytes > KEPT_QUEUES_BYTES {
            queue.bytes = Vec::new();
        } else {
            self.kept_bytes += bytes;
        }
        self.free.push(at);
        queue.trailers.take()
    }

    pub(crate) fn capacity_bytes(&self) -> usize {
        self.entries.iter().map(|queue| queue.bytes.capacity()).sum()
    }

    /// Whether no queue is in use.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    pub(crate) fn clear(&mut self) {
        *self = Queues::default();
    }

    /// Whether some queues are not in use.
    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// The memory of the queues that are not in use.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_can_be_negative_but_not_overflow() {
        let mut window = Window::new(10);
        assert!(window.take(10) && !window.take(1));
        assert!(window.add(-30));
        assert_eq!((window.get(), window.open()), (-30, 0));
        assert!(window.add(i64::from(MAX_WINDOW)));
        assert!(window.add(30) && !window.add(1));
        assert_eq!(window.get(), i32::MAX);
    }

    #[test]
    fn a_queue_gives_its_bytes_in_order() {
        let mut queues = Queues::default();
        let at = queues.add();
        let queue = queues.get(at);
        let mut seen = Vec::new();
        for round in 0..50u8 {
            queue.push(&[round; 7]);
            seen.extend_from_slice(queue.front(5));
            queue.advance(5);
        }
        seen.extend_from_slice(queue.front(queue.len()));
        assert!(seen.is_sorted() && seen.len() == 350);
        queues.remove(at);
        assert_eq!((queues.add(), queues.get(at).len()), (at, 0));
    }

    #[test]
    fn the_memory_that_empty_queues_keep_is_bounded() {
        let mut queues = Queues::default();
        for _ in 0..3 {
            let all: Vec<u32> = (0..1000).map(|_| queues.add()).collect();
            all.iter().for_each(|at| queues.get(*at).push(&[0; 60_000]));
            assert!(queues.capacity_bytes() >= 1000 * 60_000 && queues.kept_bytes() == 0);
            all.into_iter().for_each(|at| {
                queues.remove(at);
            });
            assert!(queues.capacity_bytes() <= KEPT_QUEUES_BYTES);
            assert!(queues.kept_bytes() == queues.capacity_bytes() && queues.kept_bytes() > KEPT_QUEUES_BYTES / 2);
        }
    }

    #[test]
    fn a_queue_with_little_data_left_frees_its_buffer() {
        let mut queue = Queue::default();
        queue.push(&[0; 256 << 10]);
        let mut moves = 0;
        while queue.len() > 1 {
            let before = queue.bytes.capacity();
            queue.advance((queue.len() / 2).min(16 << 10));
            assert!(queue.bytes.capacity() <= (8 * queue.len()).max(SMALL_QUEUE_BYTES), "{} bytes wait", queue.len());
            moves += usize::from(queue.bytes.capacity() != before);
        }
        assert!(moves < 6, "{moves} copies");
    }
}
