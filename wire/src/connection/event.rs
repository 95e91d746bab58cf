//! Events, notices and errors: what a connection reports to its user.

use crate::code::Code;
use crate::headers::Headers;
use crate::stream::StreamId;

/// Why a stream was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The peer reset it.
    Peer,
    /// This endpoint reset it, because the peer broke a rule on it.
    Rule,
    /// This endpoint reset it, because a header list of the peer exceeds [`header_list_bytes`].
    ///
    /// [`header_list_bytes`]: crate::Limits::header_list_bytes
    TooLarge,
}

/// What the peer did. `T` is the value that the user attached to the stream.
#[derive(Debug)]
pub enum Event<'a, T> {
    /// A client opened a stream. Call [`attach`](super::Connection::attach), or everything that follows on it is
    /// discarded.
    Request {
        /// The new stream.
        stream: StreamId,
        /// The request's header section; give it back with [`recycle`](super::Connection::recycle).
        headers: Headers,
        /// Whether the request has ended with it.
        is_end: bool,
    },
    /// A client opened a stream with a header list over [`header_list_bytes`](crate::Limits::header_list_bytes). Reply
    /// with [`respond`](super::Connection::respond) and end the stream; everything that follows on it is discarded.
    RequestTooLarge {
        /// The new stream.
        stream: StreamId,
        /// As much of the header section as is within the limit; give it back with
        /// [`recycle`](super::Connection::recycle).
        headers: Headers,
        /// Whether the request has ended with it.
        is_end: bool,
    },
    /// The header section of a response: the final one, or before it an interim one (`headers.status()` below 200).
    Response {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// The response's header section; give it back with [`recycle`](super::Connection::recycle).
        headers: Headers,
        /// Whether the response has ended with it.
        is_end: bool,
    },
    /// A slice of the content, to be released once it was passed on ([`release`](super::Connection::release)).
    Data {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// Part of a DATA frame; empty only when `is_end`.
        data: &'a [u8],
        /// Whether the content has ended with it. No trailers follow then.
        is_end: bool,
    },
    /// The trailers. The peer's half of the stream has ended with them.
    Trailers {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// The trailers; give them back with [`recycle`](super::Connection::recycle).
        headers: Headers,
    },
    /// The stream was reset, by the peer or by this endpoint. It is gone.
    Reset {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// The code in the RST_STREAM.
        code: Code,
        /// Why.
        cause: Cause,
    },
    /// The peer's SETTINGS were applied: `peer_stream_limit` and more may have changed.
    Settings,
    /// The peer accepts no more streams. Streams that it did not process follow as [`Notice::Unseen`].
    GoAway {
        /// Why.
        code: Code,
    },
}

/// What else happened. To be drained after `receive`, `wrote` and `on_timeout`.
#[derive(Debug)]
pub enum Notice<T> {
    /// Queued data of a stream went into the output.
    Sent {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// How many bytes, of those that `send_data` returned as queued.
        bytes: usize,
    },
    /// The peer did not process the stream (GOAWAY's last stream identifier is below it): the request may be retried.
    /// The stream is gone.
    Unseen {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
    },
}

/// A connection error (RFC 9113 section 5.4.1). GOAWAY is in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {why}")]
pub struct ConnectionError {
    /// The code in the GOAWAY.
    pub code: Code,
    /// What the peer did.
    pub why: &'static str,
    /// The limit that the peer exceeded, if that was the error.
    pub limit: Option<Bound>,
}

/// The result of handling a frame.
pub(super) type Taken<'a, T> = Result<Option<Event<'a, T>>, ConnectionError>;

/// A limit whose violation ends a connection. The doc of each variant names its field in [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `header_block_frames`
    HeaderBlockFrames,
    /// `settings_timeout`, also for a field block.
    SettingsTimeout,
    /// `control_output_bytes`
    ControlOutputBytes,
    /// `cancels`
    Cancels,
    /// `stream_errors`
    StreamErrors,
    /// `pings`
    Pings,
    /// `settings`
    Settings,
    /// `empty_frames`
    EmptyFrames,
    /// `small_data`
    SmallData,
    /// `table_changes`
    TableChanges,
}

impl ConnectionError {
    pub(super) const fn new(code: Code, why: &'static str) -> ConnectionError {
        ConnectionError { code, why, limit: None }
    }

    pub(super) const fn protocol(why: &'static str) -> ConnectionError {
        ConnectionError::new(Code::PROTOCOL_ERROR, why)
    }

    pub(super) const fn frame_size(why: &'static str) -> ConnectionError {
        ConnectionError::new(Code::FRAME_SIZE_ERROR, why)
    }

    pub(super) const fn calm(limit: Bound, why: &'static str) -> ConnectionError {
        ConnectionError { code: Code::ENHANCE_YOUR_CALM, why, limit: Some(limit) }
    }
}

/// Why no stream can be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotOpen {
    /// As many streams are open as the peer's SETTINGS_MAX_CONCURRENT_STREAMS allows; one of them has to end first.
    #[error("as many streams are open as the peer allows")]
    Full,
    /// No more streams can be opened: GOAWAY, drain, an error, or the identifiers are used up.
    #[error("the connection is going away")]
    Going,
    /// Too much output waits to be written.
    #[error("too much output waits to be written")]
    Congested,
}
