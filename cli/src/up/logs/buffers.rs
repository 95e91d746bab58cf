//! Lines that wait to be printed: a bounded buffer for each source, so that a source that floods loses its own lines and
//! no other's.

use std::collections::VecDeque;

/// How many lines of one source may wait; if one more comes, the source's oldest is dropped and counted.
const LINES: usize = 1_024;
/// The same in bytes.
const BYTES: usize = 256 * 1024;

/// The lines of all sources that wait.
#[derive(Debug)]
pub(super) struct Buffers {
    sources: Vec<Buffer>,
    /// The number of the next line. Lines of all sources are printed in the order of their numbers.
    next: u64,
}

#[derive(Debug, Default)]
struct Buffer {
    lines: VecDeque<(u64, Line)>,
    bytes: usize,
    /// Lines dropped since the last one was taken.
    dropped: u64,
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    /// On a terminal it is shown without the name of its source.
    pub(super) is_bare: bool,
}

/// A line that is to be printed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) source: usize,
    pub(super) line: Line,
    /// Lines of the same source that were dropped before it.
    pub(super) dropped: u64,
}

impl Buffers {
    pub(super) fn new(sources: usize) -> Self {
        Self { sources: (0..sources).map(|_| Buffer::default()).collect(), next: 0 }
    }

    /// Whether the next line of a source drops an older one.
    pub(super) fn is_full(&self, source: usize) -> bool {
        let buffer = &self.sources[source];
        buffer.lines.len() >= LINES || buffer.bytes >= BYTES
    }

    /// Whether lines of a source were dropped since the last [`Self::take`].
    pub(super) fn has_dropped(&self, source: usize) -> bool {
        self.sources[source].dropped > 0
    }

    /// Adds a line. The newest line always has room.
    pub(super) fn push(&mut self, source: usize, line: Line) {
        let buffer = &mut self.sources[source];
        while buffer.lines.len() >= LINES || (buffer.bytes + line.text.len() > BYTES && !buffer.lines.is_empty()) {
            let Some((_, oldest)) = buffer.lines.pop_front() else { break };
            buffer.bytes -= oldest.text.len();
            buffer.dropped += 1;
        }
        buffer.bytes += line.text.len();
        buffer.lines.push_back((self.next, line));
        self.next += 1;
    }

    /// Whether these sources have lines for [`Self::take`].
    pub(super) fn has_any(&self, is_taken: impl Fn(usize) -> bool) -> bool {
        self.sources.iter().enumerate().any(|(source, buffer)| is_taken(source) && !buffer.lines.is_empty())
    }

    /// Takes all lines of these sources, in the order in which they came.
    pub(super) fn take(&mut self, is_taken: impl Fn(usize) -> bool) -> Vec<Entry> {
        let mut taken = Vec::new();
        for (source, buffer) in self.sources.iter_mut().enumerate().filter(|(source, _)| is_taken(*source)) {
            let mut dropped = std::mem::take(&mut buffer.dropped);
            buffer.bytes = 0;
            for (number, line) in buffer.lines.drain(..) {
                taken.push((number, Entry { source, line, dropped: std::mem::take(&mut dropped) }));
            }
        }
        taken.sort_unstable_by_key(|(number, _)| *number);
        taken.into_iter().map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: impl Into<String>) -> Line {
        Line { text: text.into(), is_bare: false }
    }

    #[test]
    fn a_flood_drops_no_line_of_another_source() {
        let mut buffers = Buffers::new(2);
        buffers.push(1, line("listening"));
        for n in 0..10 * LINES {
            buffers.push(0, line(format!("flood {n}")));
        }
        let taken = buffers.take(|_| true);
        assert_eq!(taken[0], Entry { source: 1, line: line("listening"), dropped: 0 });
        assert_eq!(taken.len(), 1 + LINES);
        let first = format!("flood {}", 9 * LINES);
        assert_eq!(taken[1], Entry { source: 0, line: line(first), dropped: 9 * LINES as u64 });
        assert!(taken[2..].iter().all(|entry| entry.dropped == 0), "the drop is reported once");
        assert!(!buffers.has_any(|_| true) && !buffers.has_dropped(0));
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes() {
        let mut buffers = Buffers::new(1);
        let long = "x".repeat(BYTES / 4);
        for _ in 0..10 {
            buffers.push(0, line(long.clone()));
        }
        assert!(buffers.is_full(0) && buffers.has_dropped(0));
        let taken = buffers.take(|_| true);
        assert_eq!((taken.len(), taken[0].dropped), (4, 6));
        assert!(!buffers.is_full(0));
        // A line that is too long by itself is kept all the same, alone.
        buffers.push(0, line("y".repeat(2 * BYTES)));
        buffers.push(0, line("z"));
        assert_eq!(buffers.take(|_| true), [Entry { source: 0, line: line("z"), dropped: 1 }]);
    }

    #[test]
    fn lines_come_out_in_the_order_in_which_they_came() {
        let mut buffers = Buffers::new(3);
        for (source, text) in [(2, "a"), (0, "b"), (1, "c"), (2, "d")] {
            buffers.push(source, line(text));
        }
        let texts = |taken: Vec<Entry>| taken.into_iter().map(|entry| entry.line.text).collect::<Vec<_>>();
        assert_eq!(texts(buffers.take(|source| source != 0)), ["a", "c", "d"]);
        assert!(buffers.has_any(|_| true) && !buffers.has_any(|source| source != 0));
        assert_eq!(texts(buffers.take(|_| true)), ["b"]);
    }
}
