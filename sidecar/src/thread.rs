//! What one thread owns and its connections share: the clock, buffers, and the accounts of everything that is limited.

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
