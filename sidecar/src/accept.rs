//! Accepted connections: from the local service on the outbound port, from other sidecars on the inbound port. This
//! folder finds out what a connection speaks and who is on it, and hands each of its calls to [`crate::proxy`].

pub(crate) mod clients;
pub(crate) mod detect;
pub(crate) mod forward;
pub(crate) mod http;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod intercept;
pub(crate) mod listen;
pub(crate) mod members;
mod refused;
pub(crate) mod report;
pub(crate) mod tcp;
