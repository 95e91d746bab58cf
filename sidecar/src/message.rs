//! What the heads of messages say.

pub(crate) mod code;
pub(crate) mod deadline;
pub(crate) mod failure;
pub(crate) mod fixed;
pub(crate) mod headers;
pub(crate) mod rpc;
pub(crate) mod site;
pub(crate) mod target;
pub(crate) mod tunnel;
pub(crate) mod websocket;
