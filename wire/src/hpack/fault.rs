//! What can be wrong with a header block, and with the list of fields in it.

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
    /// A value with a control character (section 8.2.1).
    Value,
    /// A value with white space at an end (section 8.2.1). Of a field it is taken off, which RFC 9113 leaves to the
    /// recipient and HTTP/1.1 asks for: it is the message of a gRPC client whose metadata ends in a space, and works with
    /// every server. Only of a pseudo-header it is a fault.
    Space,
    /// A pseudo-header after a field that is none (section 8.3).
    LatePseudo,
    /// A pseudo-header that no standard has (section 8.3).
    UnknownPseudo,
    /// A pseudo-header a second time (section 8.3).
    RepeatedPseudo,
}
