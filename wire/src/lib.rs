//! HTTP/2 for relays (RFC 9113, RFC 7541, RFC 8441), with no I/O: bytes and the time go in, events and bytes come out.
//!
//! A [`Connection`] is one side of one connection, in either role. Its driver hands what it read to
//! [`Connection::receive`] and acts on the [`Event`]s, sends with `open`, `respond`, `send_data` and `send_trailers`,
//! drains the [`Notice`]s, and writes [`Connection::output`] once it has nothing more to read: many frames, one write.
//! What makes it cheap is in what it does not do: frames are parsed where they lie, header blocks become one flat list
//! that is used again ([`Headers`]), DATA is copied once, into the output, and streams live in a slab.
//!
//! Every count, size and rate has its limit in [`Limits`]; a peer that goes past one gets ENHANCE_YOUR_CALM. Without
//! server push (a client turns it off) and without priorities (parsed and ignored, as RFC 9113 section 5.3.2 has it).

mod code;
mod connection;
mod flow;
mod frame;
mod headers;
pub mod hpack;
pub mod http1;
mod limits;
mod stream;

pub use code::Code;
pub use connection::{Bound, CannotOpen, Cause, Connection, ConnectionError, Event, Notice, Usage};
pub use headers::{FieldRef, Headers, Name};
pub use limits::{KeepAlive, Limits, Rate};
pub use stream::StreamId;
