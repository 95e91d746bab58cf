//! What one thread owns and its connections share: clock, buffers, and how much of what is bounded each has.

pub(crate) mod account;
pub(crate) mod expiry;
pub(crate) mod fair;
pub(crate) mod give_way;
pub(crate) mod loads;
pub(crate) mod slots;
pub(crate) mod step;
pub(crate) mod strangers;
pub(crate) mod wire_limits;
pub(crate) mod worker;
