//! HTTP/2 for relays (RFC 9113, RFC 7541, RFC 8441), with no I/O: bytes and the time go in, events and bytes come out.

pub mod headers;
pub mod hpack;

pub use headers::{FieldRef, Headers, Name};
