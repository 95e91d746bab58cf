//! Moves bytes, and knows no policy. A connection of HTTP/2 is a [`link`], one that carries one call at a time a [`socket`].
//! What happens on it they tell the call through [`exchange`].

pub(crate) mod connect;
pub(crate) mod exchange;
pub(crate) mod link;
pub(crate) mod pipe;
pub(crate) mod pool;
pub(crate) mod room;
pub(crate) mod socket;
pub(crate) mod tls_stream;
