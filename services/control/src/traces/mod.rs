//! The built-in trace store: the spans of sidecars and services, kept in memory for a quick look.
//!
//! [`receiver()`] takes an OTLP export and decodes it, if it takes little enough memory by `shapes`. `span` reads its
//! spans and limits every size, `store` files them by trace and drops the oldest trace to make room, and `tree` puts a
//! trace together when it is read. Nothing here outlives the process: to keep traces, send them to an OTLP endpoint as
//! well.

mod ids;
mod receiver;
mod shapes;
mod span;
mod store;
mod tree;

pub use ids::{SpanId, TraceId};
pub use receiver::{Receiver, receiver};
pub use span::{Attributes, Component, Event, Kind, Link, Resource, Span, Status, StatusCode};
pub use store::{Counts, Filter, Store, Stored, Summary, Taken};
pub use tree::{Parent, Row, Share, Tree};
