//! The clock of the request path, and a timer wheel.

pub(crate) mod moment;
pub(crate) mod timer;
