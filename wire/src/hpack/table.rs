//! The dynamic table (RFC 7541, section 2.3.2), for encoder and decoder.

use super::fault::Malformed;
use crate::headers::FIELD_OVERHEAD;
use crate::headers::name::{Id, OTHER, TEXTS};

/// The initial value of SETTINGS_HEADER_TABLE_SIZE (RFC 9113, section 6.5.2).
pub const DEFAULT_TABLE_BYTES: u32 = 4096;

/// The first insertion makes room for this many entries.
const LEAST_ENTRIES: usize = 8;

/// Fields in the order of their insertion, bounded by their size in bytes. Nothing is allocated before the first one.
#[derive(Debug)]
pub(crate) struct Table {
    /// A ring whose length is a power of two: an entry's index is its number modulo the length.
    entries: Vec<Entry>,
    len: usize,
    /// The text of the entries, oldest first. Text of evicted entries may still be in front.
    text: Vec<u8>,
    bytes: usize,
    max_bytes: usize,
    /// How many entries were ever inserted, which is also the newest entry's number. It may wrap around.
    inserted: u32,
}

/// A field of the table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    start: u32,
    /// 0 when the name is a known one.
    pub(crate) name_len: u32,
    value_len: u32,
    /// Its size in the table, and in a header list.
    pub(crate) bytes: u32,
    /// The hash of name and value.
    pub(crate) hash: u32,
    pub(crate) id: Id,
    /// The fault found when the field was received, so that it need not be checked again.
    pub(crate) fault: Option<Malformed>,
}

/// The size of a field in the table (RFC 7541, section 4.1).
pub(crate) fn field_bytes(id: Id, name: &[u8], value: &[u8]) -> usize {
    let name_len = if id == OTHER { name.len() } else { TEXTS[usize::from(id)].len() };
    name_len + value.len() + FIELD_OVERHEAD
}

impl Table {
    pub(crate) fn new(max_bytes: u32) -> Table {
        let max_bytes = max_bytes as usize;
        Table { entries: Vec::new(), len: 0, text: Vec::new(), bytes: 0, max_bytes, inserted: 0 }
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Number of the newest entry.
    pub(crate) fn newest(&self) -> u32 {
        self.inserted
    }

    /// The current position of the entry with this number, counted from the newest; `None` when it was evicted.
    #[inline]
    pub(crate) fn position(&self, number: u32) -> Option<usize> {
        let age = self.inserted.wrapping_sub(number) as usize;
        (age < self.len).then_some(age)
    }

    /// The entry with this number, and its current position; `None` when it was evicted.
    #[inline]
    pub(crate) fn numbered(&self, number: u32) -> Option<(usize, &Entry)> {
        let position = self.position(number)?;
        let entry = self.entries.get(number as usize & self.entries.len().wrapping_sub(1))?;
        Some((position, entry))
    }

    /// The entry at a position, counted from the newest.
    #[inline]
    pub(crate) fn get(&self, position: usize) -> Option<&Entry> {
        if position < self.len { self.entries.get(self.slot(position)) } else { None }
    }

    fn slot(&self, position: usize) -> usize {
        self.inserted.wrapping_sub(position as u32) as usize & self.entries.len().wrapping_sub(1)
    }

    /// The text of the name; empty for a known name.
    pub(crate) fn name(&self, entry: &Entry) -> &[u8] {
        &self.text(entry)[..entry.name_len as usize]
    }

    /// Name and value, or only the value when the name is a known one.
    #[inline]
    pub(crate) fn text(&self, entry: &Entry) -> &[u8] {
        let start = entry.start as usize;
        &self.text[start..start + (entry.name_len + entry.value_len) as usize]
    }

    /// Evicts entries until the field has room, and inserts it. `name` is used only if it is not a known name. A field
    /// that is larger than the table empties it (RFC 7541, section 4.4).
    pub(crate) fn insert(&mut self, id: Id, name: &[u8], value: &[u8], hash: u32, fault: Option<Malformed>) {
        let name = if id == OTHER { name } else { &[] };
        let needed = field_bytes(id, name, value);
        self.evict(self.max_bytes.saturating_sub(needed));
        if needed > self.max_bytes {
            return;
        }
        self.make_room(name.len() + value.len());
        let start = self.text.len() as u32;
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        let (name_len, value_len) = (name.len() as u32, value.len() as u32);
        self.bytes += needed;
        self.inserted = self.inserted.wrapping_add(1);
        self.len += 1;
        let newest = self.slot(0);
        self.entries[newest] = Entry { start, name_len, value_len, bytes: needed as u32, hash, id, fault };
    }

    /// Makes room for another entry and its text. When at least half of the text belongs to evicted entries, the rest
    /// is moved to the front instead of growing the buffer. So the buffer stays within four times the table's size, and
    /// each byte is moved once on average.
    fn make_room(&mut self, bytes: usize) {
        if self.len == self.entries.len() {
            let mut entries = vec![Entry::default(); (2 * self.len).max(LEAST_ENTRIES)];
            let mask = entries.len() - 1;
            for position in 0..self.len {
                let number = self.inserted.wrapping_sub(position as u32) as usize;
                entries[number & mask] = self.entries[self.slot(position)];
            }
            self.entries = entries;
        }
        if self.text.len() + bytes <= self.text.capacity() {
            return;
        }
        let gone = match self.len.checked_sub(1) {
            Some(oldest) => self.entries[self.slot(oldest)].start as usize,
            None => self.text.len(),
        };
        if gone >= self.text.len() - gone {
            self.text.drain(..gone);
            for position in 0..self.len {
                let slot = self.slot(position);
                self.entries[slot].start -= gone as u32;
            }
        }
    }

    /// A dynamic table size update (RFC 7541, section 4.3).
    pub(crate) fn set_max_bytes(&mut self, max_bytes: u32) {
        self.max_bytes = max_bytes as usize;
        self.evict(self.max_bytes);
        if self.len == 0 {
            self.text = Vec::new();
            self.entries = Vec::new();
        }
    }

    fn evict(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            self.len -= 1;
            self.bytes -= self.entries[self.slot(self.len)].bytes as usize;
        }
    }
}

#[cfg(test)]
impl Table {
    pub(crate) fn value(&self, entry: &Entry) -> &[u8] {
        &self.text(entry)[entry.name_len as usize..]
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn text_capacity(&self) -> usize {
        self.text.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Name;

    #[test]
    fn the_oldest_go_first_and_the_text_stays_bounded() {
        let mut table = Table::new(1000);
        for round in 0..10_000_u32 {
            let value = vec![b'v'; (round % 97) as usize];
            let id = if round % 3 == 0 { Name::TE.id() } else { OTHER };
            table.insert(id, b"x-name", &value, 1, None);
            assert!(table.bytes <= 1000);
            let all = (0..table.len).filter_map(|position| table.get(position));
            assert_eq!(table.bytes, all.map(|entry| entry.bytes as usize).sum::<usize>());
            let newest = table.get(0).expect("it has room");
            assert_eq!(table.value(newest), value);
            assert_eq!(table.name(newest), if id == OTHER { b"x-name".as_slice() } else { b"" });
            let oldest = table.get(table.len() - 1).expect("it has one");
            assert!(table.value(oldest).iter().all(|&byte| byte == b'v'));
        }
        assert!(table.text.capacity() <= 4000 && table.entries.len() <= 32);
        let kept = table.newest() - 3;
        assert_eq!(table.position(kept), Some(3));
        table.set_max_bytes(40);
        assert_eq!(table.position(kept), None);
        table.insert(OTHER, b"x-name", &[b'v'; 100], 1, None);
        assert_eq!(table.len(), 0);
    }
}
