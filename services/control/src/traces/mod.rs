//! The built-in trace store: what sidecars and services say of their calls, kept in memory for a quick look.
//!
//! A span's way: [`receiver()`] takes an OTLP export, `span` makes the spans of it with every size bounded, `store`
//! files them by trace and makes room by dropping the oldest trace, `tree` puts a trace together when it is read.
//! Nothing here outlives the process: who wants history sends traces to an OTLP endpoint as well.

mod ids;
mod receiver;
mod span;
mod store;
mod tree;

pub use ids::{SpanId, TraceId};
pub use receiver::{Receiver, receiver};
pub use span::{Attributes, Component, Event, Kind, Link, Resource, Span, Status, StatusCode};
pub use store::{Counts, Filter, Store, Stored, Summary, Taken};
pub use tree::{Parent, Row, Share, Tree};
