//! Moves bytes, and knows no policy. An HTTP/2 connection is a [`link`]; a connection that carries one call at a time
//! is a [`socket`]. Both report what happens on them to the call through [`exchange`].

pub(crate) mod connect;
pub(crate) mod exchange;
pub(crate) mod link;
pub(crate) mod pipe;
pub(crate) mod pool;
pub(crate) mod room;
pub(crate) mod socket;
pub(crate) mod tls_stream;
