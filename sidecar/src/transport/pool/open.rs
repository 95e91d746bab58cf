//! Counts of open connections to endpoints.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{endpoints::catalog::Endpoint, shared::Shared};

/// Counts a connection for as long as it is open.
pub(super) struct OpenConnection(Arc<Endpoint>, Arc<Shared>);

impl OpenConnection {
    pub(super) fn new(endpoint: &Arc<Endpoint>, shared: &Arc<Shared>) -> Self {
        endpoint.connections.fetch_add(1, Relaxed);
        shared.metrics.open_made.fetch_add(1, Relaxed);
        Self(Arc::clone(endpoint), Arc::clone(shared))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
        self.1.metrics.open_made.fetch_sub(1, Relaxed);
    }
}
