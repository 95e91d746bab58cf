//! The metrics of calls, and their spans.

pub(crate) mod metrics;
pub(crate) mod span;
