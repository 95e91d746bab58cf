//! Decodes a header block into a header list.

use super::fault::{HpackError, Malformed};
use super::static_table::{self, STATIC_LEN};
use super::table::{DEFAULT_TABLE_BYTES, Entry, Table, field_bytes};
use super::{hash, huffman};
use crate::headers::name::{self, Id, OTHER};
use crate::headers::{Headers, Origin, Record, is_pseudo};

/// The result of [`Decoder::decode`], besides the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The list exceeds the limit; the fields from that point on are not in it.
    pub is_too_large: bool,
    /// The first fault of the list; the fields from that point on are not in it.
    pub malformed: Option<Malformed>,
    /// The number of dynamic table size updates in the block.
    pub table_changes: u32,
}

/// The receiving end of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    pub(super) table: Table,
    /// The largest table that the peer may use (SETTINGS_HEADER_TABLE_SIZE).
    max_table_bytes: u32,
    /// The next block must start with a size update to this or less.
    owed_shrink: Option<u32>,
    /// The strings of one field, if they cannot be used in place in the block.
    strings: Vec<u8>,
}

/// How much of the buffer [`Decoder::strings`] is kept after a block.
const KEPT_STRING_BYTES: usize = 4096;

impl Decoder {
    /// A decoder for a peer whose table may take this many bytes: [`DEFAULT_TABLE_BYTES`] at the start of a connection.
    pub fn new(max_table_bytes: u32) -> Decoder {
        let table = Table::new(max_table_bytes.min(DEFAULT_TABLE_BYTES));
        Decoder { table, max_table_bytes, owed_shrink: None, strings: Vec::new() }
    }

    /// Applies another value of SETTINGS_HEADER_TABLE_SIZE, once the peer has acknowledged it. If the peer's table is
    /// larger, its next block must start with a size update (RFC 7541, section 4.2).
    pub fn set_max_table_bytes(&mut self, bytes: u32) {
        self.max_table_bytes = bytes;
        let owed = self.owed_shrink.unwrap_or(u32::MAX).min(bytes);
        self.owed_shrink = (self.table.max_bytes() > owed as usize).then_some(owed);
    }

    /// Decodes a whole header block into `headers`, which is cleared first.
    ///
    /// A block whose list exceeds `max_list_bytes` or is malformed is still decoded to its end, to keep the dynamic
    /// table up to date, but no more fields are stored.
    pub fn decode(
        &mut self,
        block: &[u8],
        max_list_bytes: usize,
        headers: &mut Headers,
    ) -> Result<Decoded, HpackError> {
        headers.clear();
        let mut block = Block(block);
        let table_changes = self.resize(&mut block)?;
        let mut list =
            List { headers, decoded: Decoded { table_changes, ..Decoded::default() }, max_bytes: max_list_bytes };
        while let Some(&first) = block.0.first() {
            match first {
                0x80.. => self.indexed(block.integer(7)?, &mut list)?,
                0x40.. => self.literal(&mut block, 6, Literal::Indexed, &mut list)?,
                0x20.. => return Err(HpackError::TableSize),
                0x10.. => self.literal(&mut block, 4, Literal::NeverIndexed, &mut list)?,
                _ => self.literal(&mut block, 4, Literal::NotIndexed, &mut list)?,
            }
        }
        self.strings.clear();
        self.strings.shrink_to(KEPT_STRING_BYTES);
        Ok(list.decoded)
    }

    /// Applies size updates, which are allowed only at the start of a block. Returns their number.
    fn resize(&mut self, block: &mut Block<'_>) -> Result<u32, HpackError> {
        let mut changes = 0;
        while let Some(0x20..0x40) = block.0.first() {
            let bytes = block.integer(5)?;
            if bytes > self.max_table_bytes {
                return Err(HpackError::TableSize);
            }
            self.table.set_max_bytes(bytes);
            self.owed_shrink = self.owed_shrink.filter(|&owed| bytes > owed);
            changes += 1;
        }
        if self.owed_shrink.is_some() && !block.0.is_empty() {
            return Err(HpackError::TableSize);
        }
        Ok(changes)
    }

    #[inline]
    fn indexed(&mut self, index: u32, list: &mut List<'_>) -> Result<(), HpackError> {
        let index = index as usize;
        if let Some(entry) = self.table.get(index.wrapping_sub(STATIC_LEN + 1)) {
            let origin = Origin { hash: entry.hash, static_index: 0, is_repeated: true };
            let Entry { id, name_len, bytes, fault, .. } = *entry;
            list.add(self.table.text(entry), Record { id, is_sensitive: false, name_len, bytes, origin }, fault);
            return Ok(());
        }
        if index == 0 || index > STATIC_LEN {
            return Err(HpackError::Index);
        }
        let (id, value) = static_table::field(index);
        let origin = Origin { static_index: index as u8, ..Origin::default() };
        let bytes = field_bytes(id, b"", value) as u32;
        list.add(value, Record { id, is_sensitive: false, name_len: 0, bytes, origin }, None);
        Ok(())
    }

    fn literal(
        &mut self,
        block: &mut Block<'_>,
        prefix: u32,
        kind: Literal,
        list: &mut List<'_>,
    ) -> Result<(), HpackError> {
        self.strings.clear();
        let id = self.name(block, prefix)?;
        let name_len = self.strings.len();
        let in_block = block.string(&mut self.strings, name_len == 0)?;
        // Name and value, or only the value when the name is a known one.
        let text = in_block.unwrap_or(&self.strings);
        let (name, value) = text.split_at(name_len);
        let fault = if id == OTHER { name_fault(name) } else { None }.or_else(|| value_fault(value));
        let bytes = field_bytes(id, name, value);
        let mut origin = Origin::default();
        if kind == Literal::Indexed {
            origin.hash = hash::of_field(id, name, value);
            self.table.insert(id, name, value, origin.hash, fault);
        }
        let (is_sensitive, name_len) = (kind == Literal::NeverIndexed, name_len as u32);
        // A block is smaller than 4 GiB, and so is every list with a limit.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        list.add(text, Record { id, is_sensitive, name_len, bytes, origin }, fault);
        Ok(())
    }

    /// The name of a literal: its number. If it is not a known name, its text is in `strings`.
    fn name(&mut self, block: &mut Block<'_>, prefix: u32) -> Result<Id, HpackError> {
        let index = block.integer(prefix)? as usize;
        if let Some(entry) = self.table.get(index.wrapping_sub(STATIC_LEN + 1)) {
            self.strings.extend_from_slice(self.table.name(entry));
            return Ok(entry.id);
        }
        if index > STATIC_LEN {
            return Err(HpackError::Index);
        }
        if index > 0 {
            return Ok(static_table::field(index).0);
        }
        let in_block = block.string(&mut self.strings, true)?;
        let id = name::find(in_block.unwrap_or(&self.strings));
        if id != OTHER {
            self.strings.clear();
        } else if let Some(name) = in_block {
            self.strings.extend_from_slice(name);
        }
        Ok(id)
    }
}

/// The three literal representations (RFC 7541, section 6.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Literal {
    Indexed,
    NotIndexed,
    NeverIndexed,
}

/// The list into which a block is decoded.
struct List<'h> {
    headers: &'h mut Headers,
    decoded: Decoded,
    /// 0 when no more fields should be stored.
    max_bytes: usize,
}

impl List<'_> {
    // Inlined, since passing a record through memory costs more than everything else in this function.
    #[inline(always)]
    fn add(&mut self, text: &[u8], record: Record, fault: Option<Malformed>) {
        let fits = self.headers.list_bytes() + record.bytes as usize <= self.max_bytes;
        if fits && fault.is_none() && (!is_pseudo(record.id) || self.headers.takes_pseudo(record.id)) {
            self.headers.add_decoded(text, record);
        } else {
            self.add_unfit(text, record, fits, fault);
        }
    }

    /// Adds a field without the whitespace around its value, or records why the list is refused.
    #[cold]
    fn add_unfit(&mut self, text: &[u8], record: Record, fits: bool, fault: Option<Malformed>) {
        if self.decoded.is_too_large {
            return;
        }
        if fault == Some(Malformed::Space) && fits && !is_pseudo(record.id) {
            let (name, value) = text.split_at(record.name_len as usize);
            let trimmed = trim(value);
            let bytes = record.bytes - (value.len() - trimmed.len()) as u32;
            // The trimmed field differs from the one in the table, so its origin does not apply.
            let record = Record { bytes, origin: Origin::default(), ..record };
            return self.headers.add_decoded(&[name, trimmed].concat(), record);
        }
        self.refuse(record.id, fits, fault);
    }

    /// Records why the list is refused, if this is the first reason.
    fn refuse(&mut self, id: Id, fits: bool, fault: Option<Malformed>) {
        if self.decoded.is_too_large || self.decoded.malformed.is_some() {
            return;
        }
        self.max_bytes = 0;
        self.decoded.is_too_large = !fits;
        let is_repeated = is_pseudo(id) && self.headers.has_pseudo(id);
        let pseudo_fault = if is_repeated { Malformed::RepeatedPseudo } else { Malformed::LatePseudo };
        self.decoded.malformed = fits.then_some(fault.unwrap_or(pseudo_fault));
    }
}

/// The rest of a block.
struct Block<'b>(&'b [u8]);

impl<'b> Block<'b> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (&byte, rest) = self.0.split_first().ok_or(HpackError::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    /// An integer with a prefix of `prefix` bits in the first byte (RFC 7541, section 5.1).
    #[inline]
    fn integer(&mut self, prefix: u32) -> Result<u32, HpackError> {
        let max = (1 << prefix) - 1;
        let first = u32::from(self.byte()?) & max;
        if first < max { Ok(first) } else { self.long_integer(max) }
    }

    fn long_integer(&mut self, first: u32) -> Result<u32, HpackError> {
        let mut value = u64::from(first);
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            value += u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| HpackError::Integer);
            }
        }
        Err(HpackError::Integer)
    }

    /// A string literal. It is appended to `strings`, or returned in place if it is not Huffman-coded and `may` allows
    /// it.
    fn string(&mut self, strings: &mut Vec<u8>, may: bool) -> Result<Option<&'b [u8]>, HpackError> {
        let is_coded = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let len = self.integer(7)? as usize;
        let (text, rest) = self.0.split_at_checked(len).ok_or(HpackError::Truncated)?;
        self.0 = rest;
        if is_coded {
            huffman::decode(text, strings)?;
        } else if may {
            return Ok(Some(text));
        } else {
            strings.extend_from_slice(text);
        }
        Ok(None)
    }
}

/// What is wrong with a name that is not a known one.
fn name_fault(name: &[u8]) -> Option<Malformed> {
    if name.first() == Some(&b':') {
        return Some(Malformed::UnknownPseudo);
    }
    let is_name = !name.is_empty() && name.iter().all(|&byte| IS_NAME[usize::from(byte)]);
    (!is_name).then_some(Malformed::Name)
}

/// The characters of a token (RFC 9110, section 5.6.2) except upper-case letters.
static IS_NAME: [bool; 256] = {
    let mut is_name = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        is_name[byte] = matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.'
            | b'^'..=b'`' | b'|' | b'~');
        byte += 1;
    }
    is_name
};

/// What is wrong with a value. RFC 9113, section 8.2.1 forbids NUL, CR and LF, and RFC 9110, section 5.5 the other
/// control characters.
fn value_fault(value: &[u8]) -> Option<Malformed> {
    // The loop has no early exit, so that the compiler can vectorize it.
    let has_control = value.iter().fold(false, |has, &byte| has | ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f));
    if has_control {
        return Some(Malformed::Value);
    }
    (is_space(value.first()) || is_space(value.last())).then_some(Malformed::Space)
}

fn is_space(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while is_space(value.first()) {
        value = &value[1..];
    }
    while is_space(value.last()) {
        value = &value[..value.len() - 1];
    }
    value
}
