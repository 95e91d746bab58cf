//! What a connection tells its user.

use crate::code::Code;
use crate::headers::Headers;
use crate::stream::StreamId;

/// Why a stream is gone before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The peer has reset it.
    Peer,
    /// This side has reset it, because the peer broke a rule on it.
    Rule,
    /// This side has reset it, because a header list of the peer is over [`header_list_bytes`].
    ///
    /// [`header_list_bytes`]: crate::Limits::header_list_bytes
    TooLarge,
}

/// What the peer did. `T` is what the user attached to the stream.
#[derive(Debug)]
pub enum Event<'a, T> {
    /// A client opened a stream. Answer with [`attach`](super::Connection::attach), or what follows on it is discarded.
    Request {
        /// The new stream.
        stream: StreamId,
        /// The request's head; hand it back with [`recycle`](super::Connection::recycle).
        headers: Headers,
        /// Whether the request has ended with it.
        is_end: bool,
    },
    /// A client opened a stream with a header list over [`header_list_bytes`](crate::Limits::header_list_bytes). Answer
    /// with [`respond`](super::Connection::respond), and end the stream: what follows on it is discarded.
    RequestTooLarge {
        /// The new stream.
        stream: StreamId,
        /// As much of the head as is within the limit; hand it back with [`recycle`](super::Connection::recycle).
        headers: Headers,
        /// Whether the request has ended with it.
        is_end: bool,
    },
    /// The head of an answer; also each interim one (`headers.status()` below 200), before the final one.
    Response {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// The answer's head; hand it back with [`recycle`](super::Connection::recycle).
        headers: Headers,
        /// Whether the answer has ended with it.
        is_end: bool,
    },
    /// A slice of the body, to be released once it was passed on ([`release`](super::Connection::release)).
    Data {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// Part of a DATA frame; empty only when `is_end`.
        data: &'a [u8],
        /// Whether the body has ended with it.
        is_end: bool,
    },
    /// The trailers, with which the peer's half of the stream has ended.
    Trailers {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// The trailers; hand them back with [`recycle`](super::Connection::recycle).
        headers: Headers,
    },
    /// The stream is gone before its end.
    Reset {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// The code that was sent.
        code: Code,
        /// Why.
        cause: Cause,
    },
    /// The peer's SETTINGS were applied: `peer_stream_limit` and more may have changed.
    Settings,
    /// The peer takes no more streams. Those that it never saw follow as [`Notice::Unseen`].
    GoAway {
        /// Why.
        code: Code,
    },
}

/// What happened as a consequence, to be drained after `receive`, `wrote` and `on_timeout`.
#[derive(Debug)]
pub enum Notice<T> {
    /// Queued data of a stream went into the output.
    Sent {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
        /// How much of what `send_data` said it had queued.
        bytes: usize,
    },
    /// The peer never saw the stream (GOAWAY's last id is below it): the call may be sent again. The stream is gone.
    Unseen {
        /// The stream.
        stream: StreamId,
        /// What was attached to it.
        call: T,
    },
}

/// The connection is lost: the peer broke a rule that concerns all streams. GOAWAY is in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {why}")]
pub struct ConnectionError {
    /// The code that the peer is told.
    pub code: Code,
    /// What the peer did.
    pub why: &'static str,
    /// The limit that it went past, if that was it.
    pub limit: Option<Bound>,
}

/// What becomes of a frame.
pub(super) type Taken<'a, T> = Result<Option<Event<'a, T>>, ConnectionError>;

/// A limit past which a connection ends; each is of that name in [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `header_block_frames`
    HeaderBlockFrames,
    /// `settings_timeout`, of a header block too.
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
    /// The peer's SETTINGS_MAX_CONCURRENT_STREAMS are open; one of them has to end first.
    #[error("as many streams are open as the peer allows")]
    Full,
    /// The connection takes no more streams: GOAWAY, drain, an error, or the ids are used up.
    #[error("the connection is going away")]
    Going,
    /// Too much output waits to be written.
    #[error("too much output waits to be written")]
    Congested,
}
