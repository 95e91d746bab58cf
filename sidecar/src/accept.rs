//! Connections come in: from the local service on the outbound port, from other sidecars on the inbound one. Here it is found out
//! what a connection speaks and whose it is, and each call on it goes its way ([`crate::proxy`]).

pub(crate) mod clients;
pub(crate) mod detect;
pub(crate) mod forward;
pub(crate) mod http;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod intercept;
pub(crate) mod listen;
pub(crate) mod members;
pub(crate) mod report;
pub(crate) mod tcp;
