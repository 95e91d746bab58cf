//! Decisions about calls, as plain state: no input or output, no clock of their own.

pub(crate) mod breaker;
pub(crate) mod outcome;
pub(crate) mod retry;
