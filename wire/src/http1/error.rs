//! What is wrong with a message.

/// The message is not one that everyone reads alike: the connection ends. Sections are those of RFC 9112.
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
    #[error("the request's target is malformed, or not of a form that its method takes (RFC 9112, section 3.2)")]
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
    /// A limit.
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
    #[error("a transfer coding other than `chunked` is not known (RFC 9112, section 6.1)")]
    TransferCoding,
    /// Section 7.1.
    #[error("a chunk is malformed (RFC 9112, section 7.1)")]
    Chunk,
    /// A limit.
    #[error("a chunk's line or the trailers are larger than the limit")]
    ChunkTooLarge,
    /// RFC 9110, section 10.1.1.
    #[error("the expectation is not 100-continue (RFC 9110, section 10.1.1)")]
    Expectation,
    /// RFC 9110, section 15.2.2.
    #[error("the protocol was changed without having been asked for (RFC 9110, section 15.2.2)")]
    Upgrade,
    /// RFC 9110, section 9.3.6.
    #[error("an answer that accepts CONNECT has a body, so what follows is no tunnel (RFC 9110, section 9.3.6)")]
    ConnectWithBody,
    /// Section 8.
    #[error("the message ended before it was whole (RFC 9112, section 8)")]
    Cut,
    /// Of what is sent.
    #[error("the body is longer or shorter than its Content-Length (RFC 9112, section 6.2)")]
    OtherLength,
}

impl Error {
    /// The status with which a server answers.
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
