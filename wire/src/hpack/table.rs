//! The dynamic table (RFC 7541, section 2.3.2), as both ends of a direction keep it.

use std::collections::VecDeque;

use super::decoder::Malformed;
use crate::headers::FIELD_OVERHEAD;
use crate::headers::name::{Id, OTHER, TEXTS};

/// SETTINGS_HEADER_TABLE_SIZE as long as nothing was said (RFC 9113, section 6.5.2).
pub const DEFAULT_TABLE_BYTES: u32 = 4096;

/// Fields in the order in which they came, bounded by their bytes. Nothing is allocated before the first one.
#[derive(Debug)]
pub(crate) struct Table {
    /// The newest is the first.
    entries: VecDeque<Entry>,
    /// What the entries hold, oldest first, behind what those that were evicted held.
    text: Vec<u8>,
    bytes: usize,
    max_bytes: usize,
    /// How many were ever put in, which is the newest one's number. It may wrap.
    inserted: u32,
}

/// A field of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    start: u32,
    /// 0 when the name is known.
    name_len: u32,
    value_len: u32,
    /// Of name and value.
    pub(crate) hash: u32,
    pub(crate) id: Id,
    /// What was found when the field came, so that it isn't looked for again.
    pub(crate) fault: Option<Malformed>,
}

impl Entry {
    fn bytes(&self) -> usize {
        let known = TEXTS[usize::from(self.id)].len();
        known + self.name_len as usize + self.value_len as usize + FIELD_OVERHEAD
    }
}

/// What a field takes in the table.
pub(crate) fn field_bytes(id: Id, name: &[u8], value: &[u8]) -> usize {
    let name_len = if id == OTHER { name.len() } else { TEXTS[usize::from(id)].len() };
    name_len + value.len() + FIELD_OVERHEAD
}

impl Table {
    pub(crate) fn new(max_bytes: u32) -> Table {
        let max_bytes = max_bytes as usize;
        Table { entries: VecDeque::new(), text: Vec::new(), bytes: 0, max_bytes, inserted: 0 }
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of the newest entry.
    pub(crate) fn newest(&self) -> u32 {
        self.inserted
    }

    /// Where the entry with this number is by now, counted from the newest; nothing when it was evicted.
    pub(crate) fn position(&self, number: u32) -> Option<usize> {
        let age = self.inserted.wrapping_sub(number) as usize;
        (age < self.entries.len()).then_some(age)
    }

    pub(crate) fn get(&self, position: usize) -> Option<&Entry> {
        self.entries.get(position)
    }

    /// The text of the name; known names have none here.
    pub(crate) fn name(&self, entry: &Entry) -> &[u8] {
        let start = entry.start as usize;
        &self.text[start..start + entry.name_len as usize]
    }

    pub(crate) fn value(&self, entry: &Entry) -> &[u8] {
        let start = (entry.start + entry.name_len) as usize;
        &self.text[start..start + entry.value_len as usize]
    }

    /// Evicts until the field has room, and puts it in. One that is larger than the table empties it (RFC 7541, section 4.4).
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
        self.entries.push_front(Entry { start, name_len, value_len, hash, id, fault });
        self.bytes += needed;
        self.inserted = self.inserted.wrapping_add(1);
    }

    /// Moves the text to the front rather than let it grow, when at least half of it is of entries that are gone: so it stays within
    /// four times the table's size, and each byte is moved once on average.
    fn make_room(&mut self, bytes: usize) {
        if self.text.len() + bytes <= self.text.capacity() {
            return;
        }
        let gone = self.entries.back().map_or(self.text.len(), |oldest| oldest.start as usize);
        if gone >= self.text.len() - gone {
            self.text.drain(..gone);
            self.entries.iter_mut().for_each(|entry| entry.start -= gone as u32);
        }
    }

    /// A dynamic table size update (RFC 7541, section 4.3).
    pub(crate) fn set_max_bytes(&mut self, max_bytes: u32) {
        self.max_bytes = max_bytes as usize;
        self.evict(self.max_bytes);
        if self.entries.is_empty() {
            self.text = Vec::new();
            self.entries = VecDeque::new();
        }
    }

    fn evict(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            let Some(oldest) = self.entries.pop_back() else { break };
            self.bytes -= oldest.bytes();
        }
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
            assert_eq!(table.bytes, table.entries.iter().map(Entry::bytes).sum::<usize>());
            let newest = table.get(0).expect("it has room");
            assert_eq!(table.value(newest), value);
            assert_eq!(table.name(newest), if id == OTHER { b"x-name".as_slice() } else { b"" });
            let oldest = table.get(table.len() - 1).expect("it has one");
            assert!(table.value(oldest).iter().all(|&byte| byte == b'v'));
        }
        assert!(table.text.capacity() <= 4000, "{}", table.text.capacity());
        let kept = table.newest() - 3;
        assert_eq!(table.position(kept), Some(3));
        table.set_max_bytes(40);
        assert_eq!(table.position(kept), None);
        table.insert(OTHER, b"x-name", &[b'v'; 100], 1, None);
        assert_eq!(table.len(), 0);
    }
}
