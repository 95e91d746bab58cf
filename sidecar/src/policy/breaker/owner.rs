//! Whose breaker it is, and the counts that the breakers of a service share.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use weft_mesh::names::ServiceName;

/// The service or the endpoint whose calls a breaker admits.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) service: ServiceName,
    /// `None`: the service as a whole.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) counts: Arc<BreakerCounts>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.endpoint {
            None => write!(f, "{}", self.service),
            Some(address) => write!(f, "{address}, an endpoint of {},", self.service),
        }
    }
}

/// What is counted of a service's breaker, or of those of its endpoints together. It outlives them.
#[derive(Debug, Default)]
pub(crate) struct BreakerCounts {
    opened: AtomicU64,
    open: AtomicI64,
}

impl BreakerCounts {
    /// How often one has opened, also after a probe that failed.
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// How many are open now, or half-open.
    pub(crate) fn open(&self) -> i64 {
        self.open.load(Relaxed)
    }

    /// One that was closed has opened, or one has opened again.
    pub(crate) fn note_opened(&self, was_closed: bool) {
        self.opened.fetch_add(1, Relaxed);
        self.open.fetch_add(i64::from(was_closed), Relaxed);
    }

    /// One that was not closed has closed, or is gone.
    pub(super) fn note_closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }
}
