//! Times, and a wheel of them.

pub(crate) mod moment;
pub(crate) mod timer;
