//! HTTP/1.1 for relays (RFC 9112), with no I/O: the messages of one connection, read and written.
//!
//! A [`Decoder`] takes bytes and gives [`Event`]s, an [`Encoder`] puts messages into an output. Heads are in HTTP/2's form
//! on this side of both, without what concerns one connection only (RFC 9110, section 7.6.1); an upgrade is an extended
//! CONNECT (RFC 8441). Between two that trust this relay nothing may be read in two ways: whatever another reader could
//! take for something else is an [`Error`], which ends the connection.

mod decoder;
mod encoder;
mod error;
mod head;
#[cfg(test)]
mod tests;

pub use decoder::Decoder;
pub use encoder::Encoder;
pub use error::Error;

use crate::headers::{Headers, Name};

/// The field with which the answer to an upgrade that was declined is marked, where it could be taken for an accepted one:
/// a final answer of 200 to what is an extended CONNECT in HTTP/2. It does not leave the mesh.
///
/// A relay that adds it to a request has its upgrade declined: see [`MethodKind::Withheld`].
pub const DECLINED: &str = "x-weft-upgrade";

/// The field that carries the reason phrase of an answer over HTTP/2, which has none (RFC 9113, section 8.3.2). A decoder
/// adds it where the phrase is not the usual one for its status, and an encoder writes it into the status line. It does
/// not leave the mesh: a decoder drops one that a service has sent, and a relay removes it from answers over HTTP/2 that
/// come from a service or go to a client.
pub const REASON: Name = Name::X_WEFT_REASON;

/// Whether a connection that changes to a protocol of this name goes on with HTTP, or with TLS in which HTTP may follow.
/// A relay does not change to it: it would pass on requests whose heads it has not seen.
pub fn is_http_within(protocol: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] = [b"h2", b"h3", b"http", b"spdy", b"ssl", b"tls"];
    // With versions and drafts of theirs, as h2c-16.
    NAMES.iter().any(|name| protocol.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name)))
}

/// What bounds a peer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Size of the header list of a head or of a trailer section, as RFC 9113, section 6.5.2, counts it. It also bounds
    /// the number of fields, as each adds at least 33 bytes.
    pub list_bytes: usize,
    /// Bytes of the line before a chunk.
    pub chunk_line_bytes: usize,
    /// Bytes of a trailer section.
    pub trailer_bytes: usize,
}

/// What has come.
#[derive(Debug)]
pub enum Event<'a> {
    /// The head of a request.
    Request {
        /// In HTTP/2's form.
        headers: Headers,
        /// What later steps must know of it.
        request: Request,
        /// Whether it has no body. What wants a tunnel has one.
        is_end: bool,
    },
    /// The head of an answer, also each interim one, whose status is below 200. An accepted upgrade is 200.
    Response {
        /// In HTTP/2's form.
        headers: Headers,
        /// Whether it has no body.
        is_end: bool,
        /// What later steps must know of it.
        response: Response,
    },
    /// A part of the body.
    Data {
        /// Empty only when `is_end`.
        data: &'a [u8],
        /// Whether the body has ended with it.
        is_end: bool,
    },
    /// The end of a body, with trailers.
    Trailers(Headers),
}

/// What the answer to a request depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What kind of answer it has.
    pub method: MethodKind,
    /// Whether it was made by HTTP/1.0, which knows neither chunks nor interim answers.
    pub is_http10: bool,
    /// Whether its sender wants the connection to go on.
    pub is_keep_alive: bool,
    /// Whether its sender waits for 100 before it sends the body.
    pub expects_continue: bool,
}

/// What there is to know of an answer besides its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Whether its sender takes another request.
    pub is_keep_alive: bool,
}

/// Methods whose answers are not as others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// The answer has no body, whatever its head says.
    Head,
    /// The answer may begin a tunnel.
    Connect,
    /// The same, by an upgrade: an extended CONNECT in HTTP/2's form.
    Upgrade,
    /// The same, where the relay has declined the upgrade ([`DECLINED`]). The server gets the GET that it came with, and is
    /// not asked to change the protocol (RFC 9110, section 7.8). Its answer begins no tunnel, and 101 is an error.
    Withheld,
    /// Any other.
    Other,
}

impl MethodKind {
    fn of(head: &Headers) -> Self {
        match head.method() {
            Some(b"HEAD") => Self::Head,
            Some(b"CONNECT") if head.protocol().is_some() => match head.get(Name::other(DECLINED)) {
                None => Self::Upgrade,
                Some(_) => Self::Withheld,
            },
            Some(b"CONNECT") => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether the request asks for a tunnel, from the answer's head on.
    pub fn wants_tunnel(self) -> bool {
        matches!(self, Self::Connect | Self::Upgrade | Self::Withheld)
    }
}
