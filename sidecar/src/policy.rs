//! Decisions about calls, as plain state machines: no I/O and no clock of their own.

pub(crate) mod breaker;
pub(crate) mod fallback;
pub(crate) mod hedge;
pub(crate) mod outcome;
pub(crate) mod retry;
