//! Encodes a header list into a header block.

use super::index::{Index, Recent};
use super::policy::{self, Policy};
use super::static_table::{self, STATIC_LEN};
use super::table::{DEFAULT_TABLE_BYTES, Entry, Table, field_bytes};
use super::{hash, huffman};
use crate::headers::name::{Id, OTHER, TEXTS, static_index};
use crate::headers::{Field, Headers};

/// The sending end of one direction of a connection.
#[derive(Debug)]
pub struct Encoder {
    pub(super) table: Table,
    index: Index,
    recent: Recent,
    /// The largest size that our table may have, even if the peer allows more.
    own_max_bytes: u32,
    /// The table's size as the peer knows it.
    said_bytes: u32,
    /// If the size has changed since the last size update: the smallest size since then.
    unsaid_min_bytes: Option<u32>,
}

/// A literal representation (RFC 7541, section 6.2): the pattern of its first bits, and how many bits of the first byte
/// hold the index.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Literal {
    pattern: u8,
    prefix: u32,
}

const INDEXED: Literal = Literal { pattern: 0x40, prefix: 6 };
const NOT_INDEXED: Literal = Literal { pattern: 0, prefix: 4 };
const NEVER_INDEXED: Literal = Literal { pattern: 0x10, prefix: 4 };

impl Encoder {
    /// An encoder whose table never takes more than this, nor more than [`DEFAULT_TABLE_BYTES`] until the peer allows
    /// it.
    pub fn new(max_table_bytes: u32) -> Encoder {
        let mut encoder = Encoder {
            table: Table::new(DEFAULT_TABLE_BYTES),
            index: Index::default(),
            recent: Recent::default(),
            own_max_bytes: max_table_bytes,
            said_bytes: DEFAULT_TABLE_BYTES,
            unsaid_min_bytes: None,
        };
        encoder.set_peer_table_bytes(DEFAULT_TABLE_BYTES);
        encoder
    }

    /// Applies the peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_peer_table_bytes(&mut self, bytes: u32) {
        let bytes = bytes.min(self.own_max_bytes);
        if bytes as usize == self.table.max_bytes() {
            return;
        }
        self.table.set_max_bytes(bytes);
        self.unsaid_min_bytes = Some(self.unsaid_min_bytes.map_or(bytes, |min| min.min(bytes)));
        // Their sizes follow the table's size, so they start again.
        self.index.clear();
        self.recent.clear();
    }

    /// Appends the list as a header block.
    pub fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        self.say_size(out);
        for field in headers.raw() {
            self.field(headers, field, out);
        }
    }

    /// Writes size updates if the table's size has changed since the last block. The smallest size in between is sent,
    /// too, since it has evicted entries that do not come back when the size grows again (RFC 7541, section 4.2).
    fn say_size(&mut self, out: &mut Vec<u8>) {
        let Some(min) = self.unsaid_min_bytes.take() else { return };
        if min < self.said_bytes {
            put_integer(0x20, 5, min as usize, out);
            self.said_bytes = min;
        }
        let bytes = self.table.max_bytes() as u32;
        if bytes != self.said_bytes {
            put_integer(0x20, 5, bytes as usize, out);
            self.said_bytes = bytes;
        }
    }

    /// Encodes a field. The fast path uses what the decoder found out about it; once calls repeat each other, all but
    /// new fields take it.
    #[inline]
    fn field(&mut self, headers: &Headers, field: &Field, out: &mut Vec<u8>) {
        if field.origin.static_index != 0 {
            return out.push(0x80 | field.origin.static_index);
        }
        if field.origin.hash != 0
            && let Some(position) = self.position(headers, field, field.origin.hash)
        {
            return put_integer(0x80, 7, STATIC_LEN + 1 + position, out);
        }
        self.other_field(headers, field, out);
    }

    #[inline]
    fn position(&self, headers: &Headers, field: &Field, hash: u32) -> Option<usize> {
        self.index.find(hash, &self.table, |entry| {
            let is_alike = (entry.id, entry.name_len) == (field.id, field.name_len);
            is_alike && equal(self.table.text(entry), headers.text(field))
        })
    }

    fn other_field(&mut self, headers: &Headers, field: &Field, out: &mut Vec<u8>) {
        let (id, value) = (field.id, headers.value(field));
        let name = if id == OTHER { headers.name(field) } else { b"" };
        if field.is_sensitive {
            return put_literal(NEVER_INDEXED, self.name_index(id, name), id, name, value, out);
        }
        let mut hash = field.origin.hash;
        if hash == 0 {
            let index = static_table::find(id, value);
            if index != 0 {
                return out.push(0x80 | index);
            }
            if policy::may_repeat(id, value) {
                hash = hash::of_field(id, name, value);
                if let Some(position) = self.position(headers, field, hash) {
                    return put_integer(0x80, 7, STATIC_LEN + 1 + position, out);
                }
            }
        }
        self.new_field(id, name, value, hash, field.origin.is_repeated, out);
    }

    /// Encodes a field that is not in the table.
    fn new_field(&mut self, id: Id, name: &[u8], value: &[u8], hash: u32, is_repeated: bool, out: &mut Vec<u8>) {
        let fits = field_bytes(id, name, value) <= self.table.max_bytes() / 2;
        let index = self.name_index(id, name);
        let is_indexed = match policy::of(id, name, value) {
            Policy::Secret => return put_literal(NEVER_INDEXED, index, id, name, value, out),
            Policy::Repeats => fits && (self.recent.note(hash) || is_repeated),
            Policy::Varies => fits && index == 0 && self.recent.note(hash::of_name(id, name)),
        };
        if !is_indexed {
            return put_literal(NOT_INDEXED, index, id, name, value, out);
        }
        put_literal(INDEXED, index, id, name, value, out);
        let hash = if hash == 0 { hash::of_field(id, name, value) } else { hash };
        self.table.insert(id, name, value, hash, None);
        self.index.insert(hash, &self.table);
        if static_index(id) == 0 {
            self.index.insert(hash::of_name(id, name), &self.table);
        }
    }

    /// The index of a field with this name in either table, or 0.
    fn name_index(&self, id: Id, name: &[u8]) -> usize {
        let index = static_index(id);
        if index != 0 || self.table.is_empty() {
            return usize::from(index);
        }
        let is_it = |entry: &Entry| entry.id == id && (id != OTHER || self.table.name(entry) == name);
        let position = self.index.find(hash::of_name(id, name), &self.table, is_it);
        position.map_or(0, |position| STATIC_LEN + 1 + position)
    }
}

/// Writes a literal representation. `index` is the index of the name in the tables, or 0: then the name is written,
/// too.
fn put_literal(literal: Literal, index: usize, id: Id, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    put_integer(literal.pattern, literal.prefix, index, out);
    if index == 0 {
        let name = if id == OTHER { name } else { TEXTS[usize::from(id)].as_bytes() };
        put_string(name, out);
    }
    if literal == INDEXED {
        put_string(value, out);
    } else {
        // Huffman code is worth its cost only for values that go into the table: they are sent once and used often. For
        // the others it would cost both ends of each hop more time than the saved bytes are worth: a deadline and a
        // `traceparent` take three times as long in Huffman code.
        put_plain(value, out);
    }
}

/// `==` without a call of `memcmp`: most fields are short.
#[inline]
fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    if let (Some(a_last), Some(b_last)) = (a.last_chunk::<16>(), b.last_chunk::<16>()) {
        return a_last == b_last && a.as_chunks::<16>().0 == b.as_chunks::<16>().0;
    }
    if let (Some(a_last), Some(b_last)) = (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        return a_last == b_last && a.first_chunk::<8>() == b.first_chunk::<8>();
    }
    a.iter().zip(b).all(|(a, b)| a == b)
}

/// An integer with a prefix of `prefix` bits, after the bits of `pattern` (RFC 7541, section 5.1).
#[inline]
pub(super) fn put_integer(pattern: u8, prefix: u32, value: usize, out: &mut Vec<u8>) {
    let max = (1_usize << prefix) - 1;
    if value < max {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | max as u8);
    let mut rest = value - max;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A string literal, in Huffman code if that is shorter.
fn put_string(text: &[u8], out: &mut Vec<u8>) {
    let coded_len = huffman::encoded_len(text);
    if coded_len < text.len() {
        put_integer(0x80, 7, coded_len, out);
        huffman::encode(text, out);
    } else {
        put_plain(text, out);
    }
}

fn put_plain(text: &[u8], out: &mut Vec<u8>) {
    put_integer(0, 7, text.len(), out);
    out.extend_from_slice(text);
}
