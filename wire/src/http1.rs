//! HTTP/1.1 for relays (RFC 9112), with no I/O: reads and writes the messages of one connection.
//!
//! A [`Decoder`] turns bytes into [`Event`]s, and an [`Encoder`] writes messages into an output. The API of both has
//! heads in HTTP/2's form, without connection-specific fields (RFC 9110, section 7.6.1); an upgrade is an extended
//! CONNECT (RFC 8441). No message may be ambiguous, or the programs before and after this relay could read it
//! differently (request smuggling). So everything ambiguous is an [`Error`], which ends the connection.

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

/// The field that marks the response to a declined upgrade when it could be taken for an acceptance: a final 200 to a
/// request that is an extended CONNECT in HTTP/2. It does not leave the mesh.
///
/// A relay adds it to a request to decline the upgrade itself: see [`MethodKind::Withheld`].
pub const DECLINED: &str = "x-weft-upgrade";

/// The field that carries a response's reason phrase over HTTP/2, which has none (RFC 9113, section 8.3.2). A decoder
/// adds it if the phrase is not the usual one for its status, and an encoder writes it into the status line. It does
/// not leave the mesh: a decoder drops one that a service has sent, and a relay removes it from HTTP/2 responses that
/// come from a service or go to a client.
pub const REASON: Name = Name::X_WEFT_REASON;

/// Whether a connection that is upgraded to this protocol may carry more HTTP requests, directly or inside TLS. A relay
/// must decline such an upgrade: it would forward requests whose heads it has not seen.
pub fn is_http_within(protocol: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] = [b"h2", b"h3", b"http", b"spdy", b"ssl", b"tls"];
    // The prefix covers versions and drafts, such as h2c-16.
    NAMES.iter().any(|name| protocol.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name)))
}

/// The limits on what a peer may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest head, in bytes.
    pub head_bytes: usize,
    /// The largest header list of a head or a trailer section, in bytes, as RFC 9113, section 6.5.2, counts them. It
    /// also bounds the number of fields, as each adds at least 33 bytes.
    pub list_bytes: usize,
    /// The longest line before a chunk (size and extensions), in bytes.
    pub chunk_line_bytes: usize,
    /// The largest trailer section, in bytes.
    pub trailer_bytes: usize,
}

/// A part of a message that was received.
#[derive(Debug)]
pub enum Event<'a> {
    /// The head of a request.
    Request {
        /// In HTTP/2's form.
        headers: Headers,
        /// Facts that the response and the encoder depend on.
        request: Request,
        /// Whether it has no body. A request for a tunnel has one.
        is_end: bool,
    },
    /// The head of a response: the final one, or an interim one (status below 200). The status of an accepted upgrade
    /// is 200.
    Response {
        /// In HTTP/2's form.
        headers: Headers,
        /// Whether it has no body.
        is_end: bool,
        /// Facts about the connection.
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

/// The facts about a request that its response depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The kind of its method.
    pub method: MethodKind,
    /// Whether it came over HTTP/1.0, which has neither chunks nor interim responses.
    pub is_http10: bool,
    /// Whether its sender wants to keep the connection open.
    pub is_keep_alive: bool,
    /// Whether its sender waits for 100 (Continue) before it sends the body.
    pub expects_continue: bool,
}

/// What the connection needs to know about a response besides its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Whether its sender accepts another request on this connection.
    pub is_keep_alive: bool,
}

/// The methods that change how a response is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// HEAD: the response has no body, even if its head announces one.
    Head,
    /// CONNECT: a successful response starts a tunnel.
    Connect,
    /// An upgrade, which is an extended CONNECT in HTTP/2's form: 101 starts a tunnel.
    Upgrade,
    /// An upgrade that the relay has declined ([`DECLINED`]). The server receives the GET without the Upgrade field
    /// (RFC 9110, section 7.8). Its response starts no tunnel, and 101 is an error.
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

    /// Whether the request asks for a tunnel, which starts after the response's head.
    pub fn wants_tunnel(self) -> bool {
        matches!(self, Self::Connect | Self::Upgrade | Self::Withheld)
    }
}
