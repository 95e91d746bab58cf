//! What can be wrong with a header block, and with the header list in it.

/// Why a header block cannot be decoded. The dynamic tables of the two endpoints no longer agree, so it is a connection
/// error of type COMPRESSION_ERROR (RFC 9113, section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends inside a field.
    #[error("the header block ends inside a field")]
    Truncated,
    /// An index that is in neither table.
    #[error("a header field has an index that is in no table")]
    Index,
    /// An integer over 2^32 - 1, or in more bytes than 2^32 - 1 needs.
    #[error("an integer in the header block is too large")]
    Integer,
    /// A Huffman-coded string that contains EOS, or whose padding is too long or not all ones.
    #[error("a string in the header block has invalid Huffman code")]
    Huffman,
    /// A dynamic table size update that is too large, not at the start of the block, or missing where it is required.
    #[error("a dynamic table size update is too large, misplaced or missing")]
    TableSize,
}

/// What is wrong with a header list that could be decoded: its message is malformed (RFC 9113, section 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A name that is empty, or has a character that is not allowed in a lower-case token (section 8.2.1).
    Name,
    /// A value with a control character (section 8.2.1).
    Value,
    /// A pseudo-header's value that starts or ends with whitespace (section 8.2.1). In other fields the decoder removes
    /// the whitespace, which RFC 9113 leaves to the recipient and HTTP/1.1 requires: gRPC clients send such values when
    /// metadata ends in a space, and every server accepts them.
    Space,
    /// A pseudo-header after a regular field (section 8.3).
    LatePseudo,
    /// A pseudo-header that no standard defines (section 8.3).
    UnknownPseudo,
    /// A pseudo-header that appears twice (section 8.3).
    RepeatedPseudo,
}
