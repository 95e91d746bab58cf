//! What is wrong with a message.

/// The message is malformed or ambiguous: the connection ends. Sections are those of RFC 9112.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Section 2.2.
    #[error("a line ends with a bare CR or LF, or has a control character in it (RFC 9112, section 2.2)")]
    Control,
    /// Section 3.
    #[error("the request line is not METHOD TARGET HTTP/1.1 (RFC 9112, section 3)")]
    RequestLine,
    /// Section 2.3.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0 (RFC 9112, section 2.3)")]
    Version,
    /// Section 3.2.
    #[error("the request target is malformed, or has a form that its method does not allow (RFC 9112, section 3.2)")]
    Target,
    /// Section 3.2.
    #[error("the request has no Host, more than one, or a malformed one (RFC 9112, section 3.2)")]
    Host,
    /// Section 4.
    #[error("the status line is malformed (RFC 9112, section 4)")]
    StatusLine,
    /// Section 5.
    #[error("a field is not NAME: VALUE, or is folded (RFC 9112, section 5)")]
    Field,
    /// See [`Limits`](super::Limits).
    #[error("the head is larger than the limit")]
    HeadTooLarge,
    /// Section 6.2.
    #[error("Content-Length is not one number (RFC 9112, section 6.2)")]
    Length,
    /// Section 6.1.
    #[error("both Content-Length and Transfer-Encoding are given (RFC 9112, section 6.1)")]
    TwoLengths,
    /// Section 6.1.
    #[error("Transfer-Encoding is not `chunked`, once and last (RFC 9112, section 6.1)")]
    TransferEncoding,
    /// Section 6.1.
    #[error("Transfer-Encoding has a coding other than `chunked`, which is not supported (RFC 9112, section 6.1)")]
    TransferCoding,
    /// Section 7.1.
    #[error("a chunk is malformed (RFC 9112, section 7.1)")]
    Chunk,
    /// See [`Limits`](super::Limits).
    #[error("a chunk's size line or the trailer section is larger than the limit")]
    ChunkTooLarge,
    /// RFC 9110, section 10.1.1.
    #[error("the expectation is not 100-continue (RFC 9110, section 10.1.1)")]
    Expectation,
    /// RFC 9110, section 15.2.2.
    #[error("the server changed the protocol, but the client did not ask for it (RFC 9110, section 15.2.2)")]
    Upgrade,
    /// RFC 9110, section 9.3.6.
    #[error("a successful response to CONNECT has a body, so no tunnel follows (RFC 9110, section 9.3.6)")]
    ConnectWithBody,
    /// Section 8.
    #[error("the connection ended before the message was complete (RFC 9112, section 8)")]
    Cut,
    /// In a message that is written.
    #[error("the body is longer or shorter than its Content-Length (RFC 9112, section 6.2)")]
    OtherLength,
}

impl Error {
    /// The status that a server responds with.
    pub fn status(self) -> u16 {
        match self {
            Error::Version => 505,
            Error::TransferCoding => 501,
            Error::HeadTooLarge => 431,
            Error::ChunkTooLarge => 413,
            Error::Expectation => 417,
            _ => 400,
        }
    }
}
