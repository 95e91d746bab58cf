//! Header lists that are kept for reuse, so that a head allocates nothing.

use crate::headers::Headers;

/// How many lists are kept: as many as there are calls that start in one turn and end in another. With 64, a connection
/// with 256 calls allocated for three of four.
const LISTS: usize = 256;

/// The largest list that is kept as it is.
const LIST_BYTES: usize = 8 << 10;

/// How large all lists may be together: enough for [`LISTS`] heads of the usual size. No budget counts these bytes, and
/// a program may have many thousands of connections, so a peer must not be able to make all lists large.
pub(super) const ALL_BYTES: usize = 256 << 10;

/// The lists of one connection.
#[derive(Debug, Default)]
pub(super) struct SpareLists {
    lists: Vec<Headers>,
    /// The memory that they take.
    bytes: usize,
}

impl SpareLists {
    /// A list to fill. Its old content has no meaning.
    #[inline]
    pub(super) fn take(&mut self) -> Headers {
        let list = self.lists.pop().unwrap_or_default();
        self.bytes -= list.capacity_bytes();
        list
    }

    /// Keeps a list if there is room for it.
    #[inline]
    pub(super) fn give(&mut self, list: Headers) {
        let own = list.capacity_bytes();
        if own > LIST_BYTES {
            return self.give_large(list);
        }
        if self.lists.len() < LISTS && self.bytes + own <= ALL_BYTES {
            self.bytes += own;
            self.lists.push(list);
        }
    }

    #[cold]
    fn give_large(&mut self, mut list: Headers) {
        list.clear();
        list.shrink();
        // What `shrink` leaves is small, so this does not recurse again.
        if list.capacity_bytes() <= LIST_BYTES {
            self.give(list);
        }
    }

    /// The memory that they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        *self = SpareLists::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Name;

    fn list(bytes: usize) -> Headers {
        let mut list = Headers::new();
        list.set(Name::PATH, &vec![b'a'; bytes]);
        list
    }

    #[test]
    fn all_lists_of_the_usual_size_are_kept() {
        let mut spare = SpareLists::default();
        (0..2 * LISTS).for_each(|_| spare.give(list(300)));
        assert_eq!(spare.lists.len(), LISTS);
        let taken: Vec<Headers> = (0..2 * LISTS).map(|_| spare.take()).collect();
        assert!(taken[LISTS - 1].capacity_bytes() > 0 && taken[LISTS].capacity_bytes() == 0);
        assert_eq!(spare.bytes(), 0);
    }

    #[test]
    fn the_memory_of_large_lists_is_bounded() {
        let mut spare = SpareLists::default();
        let memory = |spare: &SpareLists| -> usize { spare.lists.iter().map(Headers::capacity_bytes).sum() };
        for round in 0..10 * LISTS {
            spare.give(list([100, LIST_BYTES - 200, 8 * LIST_BYTES][round % 3]));
            assert!(memory(&spare) <= ALL_BYTES);
            assert_eq!(memory(&spare), spare.bytes());
            if round % 7 == 0 {
                spare.take();
            }
        }
        // A list that has grown while it was in use counts with its new size.
        let mut grown = spare.take();
        grown.set(Name::PATH, &vec![b'a'; LIST_BYTES - 200]);
        spare.give(grown);
        assert_eq!(memory(&spare), spare.bytes());
        spare.clear();
        assert_eq!((memory(&spare), spare.bytes()), (0, 0));
    }
}
