//! Whose breaker it is.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use weft_mesh::names::ServiceName;

/// The service or the endpoint whose calls a breaker admits.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) service: ServiceName,
    /// `None`: the service as a whole.
    pub(crate) endpoint: Option<SocketAddr>,
    /// How often the service's breaker has opened, or those of its endpoints together. It outlives them.
    pub(crate) openings: Arc<AtomicU64>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.endpoint {
            None => write!(f, "{}", self.service),
            Some(address) => write!(f, "{address}, an endpoint of {},", self.service),
        }
    }
}
