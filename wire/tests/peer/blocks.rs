//! Header blocks (RFC 7541), written in every representation.

use super::choices::Choices;

/// Writes header blocks, and keeps the same dynamic table as their decoder.
pub struct Blocks {
    table: Vec<(Vec<u8>, Vec<u8>)>,
    table_bytes: usize,
    max_table_bytes: usize,
    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    allowed_table_bytes: usize,
    pending_update: Option<usize>,
}

pub type List = Vec<(Vec<u8>, Vec<u8>)>;

/// Some entries of the static table, as (index, name, value).
const STATIC: &[(usize, &[u8], &[u8])] = &[
    (1, b":authority", b""),
    (2, b":method", b"GET"),
    (3, b":method", b"POST"),
    (4, b":path", b"/"),
    (5, b":path", b"/index.html"),
    (6, b":scheme", b"http"),
    (7, b":scheme", b"https"),
    (8, b":status", b"200"),
    (9, b":status", b"204"),
    (11, b":status", b"304"),
    (13, b":status", b"404"),
    (28, b"content-length", b""),
    (31, b"content-type", b""),
    (32, b"cookie", b""),
    (16, b"accept-encoding", b"gzip, deflate"),
    (58, b"user-agent", b""),
];

/// Strings with their Huffman codes (RFC 7541, appendix C).
const HUFFMAN: &[(&[u8], &[u8])] = &[
    (b"www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
    (b"no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
    (b"custom-key", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f]),
    (b"custom-value", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf]),
    (b"302", &[0x64, 0x02]),
    (b"private", &[0xae, 0xc3, 0x77, 0x1a, 0x4b]),
    (b"gzip", &[0x9b, 0xd9, 0xab]),
];

impl Blocks {
    pub fn new(allowed_table_bytes: usize) -> Self {
        Self {
            table: Vec::new(),
            table_bytes: 0,
            max_table_bytes: allowed_table_bytes.min(4096),
            allowed_table_bytes,
            pending_update: None,
        }
    }

    /// Makes the next block start with a size update.
    pub fn resize(&mut self, bytes: usize) {
        self.pending_update = Some(bytes.min(self.allowed_table_bytes));
    }

    pub fn write(&mut self, list: &List, choices: &mut Choices) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(bytes) = self.pending_update.take() {
            integer(&mut out, 0x20, 5, bytes);
            self.max_table_bytes = bytes;
            self.evict();
        }
        for (name, value) in list {
            self.field(name, value, choices, &mut out);
        }
        out
    }

    fn field(&mut self, name: &[u8], value: &[u8], choices: &mut Choices, out: &mut Vec<u8>) {
        let known =
            STATIC.iter().find(|(_, n, v)| *n == name && *v == value && !v.is_empty()).map(|(index, ..)| *index);
        let stored = self.table.iter().position(|(n, v)| n == name && v == value).map(|at| 62 + at);
        if let Some(index) = stored.or(known)
            && !choices.one_in(4)
        {
            return integer(out, 0x80, 7, index);
        }
        let name_index = STATIC
            .iter()
            .find(|(_, n, _)| *n == name)
            .map(|(index, ..)| *index)
            .or_else(|| self.table.iter().position(|(n, _)| n == name).map(|at| 62 + at))
            .filter(|_| !choices.one_in(4));
        let (first, bits) = choices.pick(&[(0x40, 6), (0x00, 4), (0x10, 4), (0x40, 6)]);
        integer(out, first, bits, name_index.unwrap_or(0));
        if name_index.is_none() {
            string(out, name, choices);
        }
        string(out, value, choices);
        if first == 0x40 {
            self.table.insert(0, (name.to_vec(), value.to_vec()));
            self.table_bytes += name.len() + value.len() + 32;
            self.evict();
        }
    }

    fn evict(&mut self) {
        while self.table_bytes > self.max_table_bytes {
            let (name, value) = self.table.pop().expect("entries make up the size");
            self.table_bytes -= name.len() + value.len() + 32;
        }
    }
}

fn string(out: &mut Vec<u8>, text: &[u8], choices: &mut Choices) {
    match HUFFMAN.iter().find(|(plain, _)| *plain == text) {
        Some((_, coded)) if !choices.one_in(3) => {
            integer(out, 0x80, 7, coded.len());
            out.extend_from_slice(coded);
        }
        _ => {
            integer(out, 0x00, 7, text.len());
            out.extend_from_slice(text);
        }
    }
}

/// An integer with a prefix of `bits` (RFC 7541, section 5.1).
pub fn integer(out: &mut Vec<u8>, first: u8, bits: u8, value: usize) {
    let most = (1usize << bits) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// Blocks that a decoder must refuse, except the last ones, which are unusual but valid.
pub const ODD: &[&[u8]] = &[
    &[0x80],                                                 // index 0
    &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],             // an integer that is too long
    &[0xc6],                                                 // an index past the table
    &[0x3f, 0xff, 0xff, 0x03],                               // a table size over the allowed one
    &[0x82, 0x20],                                           // a table size update after a field
    &[0x40, 0x01],                                           // truncated in a name
    &[0x40, 0x81, 0xff, 0x00],                               // Huffman: padding of 8 bits
    &[0x40, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00],             // Huffman: EOS
    &[0x40, 0x01, b'a', 0x81, 0x18],                         // Huffman: padding that is not the front of EOS
    &[0x40, 0x01],                                           // nothing after a length
    &[0x41, 0x7f],                                           // a truncated length
    &[0x00, 0x00, 0x00],                                     // an empty name
    &[0x40, 0x03, b'x', b'-', b'a', 0x7f, 0xe1, 0xff, 0xff], // a value longer than the block
    &[0x20, 0x3f, 0xe1, 0x1f],                               // two size updates: down to 0 and back up to 4096
    &[],                                                     // nothing at all
];
