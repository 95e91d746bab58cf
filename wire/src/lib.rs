//! HTTP/2 for relays (RFC 9113, RFC 7541, RFC 8441), with no I/O: bytes and the time go in, events and bytes come out.
//!
//! A [`Connection`] is one endpoint of a connection, client or server. Its driver passes the bytes that it read to
//! [`Connection::receive`] and acts on the [`Event`]s, sends with `open`, `respond`, `send_data` and `send_trailers`,
//! drains the [`Notice`]s, and writes [`Connection::output`] once it has nothing more to read: many frames, one write.
//! It is cheap because it avoids work: frames are parsed in place, field blocks are decoded into one flat, reusable
//! list ([`Headers`]), DATA is copied once, into the output, and streams live in a slab.
//!
//! Every count, size and rate has a limit in [`Limits`]; most end the connection with ENHANCE_YOUR_CALM when a peer
//! exceeds them. There is no server push (a client disables it), and priorities are parsed and ignored (RFC 9113
//! section 5.3.2).

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
