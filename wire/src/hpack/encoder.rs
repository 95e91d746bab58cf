//! From a list of fields to a header block.

use crate::headers::Headers;

/// One direction of a connection: the end that sends.
#[derive(Debug)]
pub struct Encoder {
    max_table_bytes: u32,
}

impl Encoder {
    /// An encoder whose table never takes more than this.
    pub fn new(max_table_bytes: u32) -> Encoder {
        Encoder { max_table_bytes }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_peer_table_bytes(&mut self, bytes: u32) {
        self.max_table_bytes = self.max_table_bytes.min(bytes);
    }

    /// Appends the list as a header block.
    pub fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        for (name, value) in headers.iter() {
            out.push(0);
            for text in [name, value] {
                let mut rest = text.len();
                if rest < 127 {
                    out.push(rest as u8);
                } else {
                    out.push(127);
                    rest -= 127;
                    while rest >= 128 {
                        out.push((rest % 128) as u8 | 128);
                        rest /= 128;
                    }
                    out.push(rest as u8);
                }
                out.extend_from_slice(text);
            }
        }
    }
}
